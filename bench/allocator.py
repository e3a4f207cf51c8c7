"""glibc's malloc, told to keep what it has.

By default it maps a large block when it is asked for and unmaps it when it is freed, above a threshold that moves: a
large result is paged in again, or not, and times jump by a factor that has nothing to do with the work. A run sets this
once, for all variants alike; where malloc is not glibc's, nothing is set.
"""

from __future__ import annotations

import ctypes
import platform

# The numbers are those of <malloc.h>.
_SETTINGS = {-3: 2**30, -1: 2**31 - 1, -2: 2**28}  # M_MMAP_THRESHOLD, M_TRIM_THRESHOLD, M_TOP_PAD


def keep_heap() -> str:
    """Make freed memory stay in the process, if malloc can; what was done, for the rows."""
    if platform.libc_ver()[0] != "glibc":
        return "default"
    mallopt = ctypes.CDLL(None).mallopt
    done = [mallopt(name, value) for name, value in _SETTINGS.items()]
    return "kept" if all(done) else "kept in part"
