"""This module has the C library keep what freed arrays took, for the arrays that come next."""

import ctypes
import sys

_TRIM_THRESHOLD, _MMAP_THRESHOLD, _ARENA_MAX = -1, -3, -8  # glibc's names in malloc.h, with M_ in front
_MOST, _MOST_OF_OLD = 1 << 30, 32 << 20  # bytes; older releases of glibc take no greater one for mmap


def keep_freed_memory() -> None:
    """Keep up to 1 GiB of it until this process ends; whoever has another C library than glibc is left alone.

    Metrics are computed, and weights are packed, in arrays of a few MB, over and over. Without this, the system maps and
    zeroes each of them anew.
    """
    if not sys.platform.startswith("linux"):
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_ARENA_MAX, 1)  # those of threads cannot grow to hold such arrays
        mallopt(_MMAP_THRESHOLD, _MOST) or mallopt(_MMAP_THRESHOLD, _MOST_OF_OLD)
        mallopt(_TRIM_THRESHOLD, _MOST)
