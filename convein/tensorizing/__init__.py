"""A whole model in one call: every layer factorised, and a report of what that does."""

from convein.tensorizing.model import densify, tensorize
from convein.tensorizing.report import Report, Row

__all__ = ["Report", "Row", "densify", "tensorize"]
