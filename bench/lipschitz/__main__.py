"""Digits classified with certificates, by networks of Lipschitz constant one: `make lipschitz`."""

from __future__ import annotations

import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).parents[1])  # beside this folder lie the pictures and the rows
    from lipschitz.command import main

    sys.exit(main())
