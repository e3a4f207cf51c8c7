"""Digits classified with calibrated uncertainty: `make bayes`, or `python bench/bayes`."""

from __future__ import annotations

import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).parents[1])  # beside this folder lie the pictures and the rows
    from bayes.command import main

    sys.exit(main())
