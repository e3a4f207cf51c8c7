"""The main job on real data: `make demo`, or `python bench/demo`."""

from __future__ import annotations

import sys
import time

import torch

import digits
import photograph


def main() -> int:
    """Run both parts; 0 when both came out right."""
    start = time.perf_counter()
    torch.set_num_threads(1)  # the tensors are small, and times are steadier
    results = [digits.main()]
    print()
    results.append(photograph.main())
    print(f"\n{time.perf_counter() - start:.0f} seconds in all")
    return 0 if all(results) else 1


if __name__ == "__main__":
    sys.exit(main())
