"""A trained network, tensorised by every form and distilled both ways: `make compress`, or `python bench/compress`."""

from __future__ import annotations

import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).parents[1])  # beside this folder lie the networks and the pictures
    from compress.command import main

    sys.exit(main())
