"""Conv-TT-LSTM and ConvLSTM, trained alike to predict moving digits: `make video`, or `python bench/video`."""

from __future__ import annotations

import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).parents[1])  # beside this folder lie the videos and the clock
    from video.command import main

    sys.exit(main())
