"""ARMA layers: how far they see, and that training them needs a stable parametrisation: `make arma`."""

from __future__ import annotations

import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).parents[1])  # beside this folder lie the data sets
    from arma.command import main

    sys.exit(main())
