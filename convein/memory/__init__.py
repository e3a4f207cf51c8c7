"""How a call stays within given bytes: its drafts are observed on tensors without memory, the fastest is taken."""

from __future__ import annotations

from convein.memory.fitting import Draft, draft, keeping
from convein.memory.limiting import Sketch, limited

__all__ = ["Draft", "Sketch", "draft", "keeping", "limited"]
