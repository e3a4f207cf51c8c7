"""Network -> Plan: in which order the operands meet."""

from __future__ import annotations

from convein.planner.plan import Plan, Step
from convein.planner.search import plan
from convein.planner.table import PathInfo, path_info

__all__ = ["PathInfo", "Plan", "Step", "path_info", "plan"]
