"""This module has the C library keep what freed arrays took, for the arrays that come next."""

import ctypes
import sys

_TRIM_THRESHOLD, _MMAP_THRESHOLD, _ARENA_MAX = -1, -3, -8  # glibc's names in malloc.h, with M_ in front
_KEPT = 1 << 30  # bytes
_LARGEST_OF_OLD = 32 << 20  # bytes; older releases of glibc take no greater one


def keep_freed_memory(largest: int, of_threads: bool = False) -> None:
    """Keep up to 1 GiB of it until this process ends; whoever has another C library than glibc is left alone.

    Metrics are computed, and weights are packed, in arrays of the same sizes over and over. Without this, the system maps
    and zeroes each of them anew.

    Args:
        largest: the bytes of the largest array that is kept. What lies below a living array cannot be given back.
        of_threads: whether threads make arrays, too; then all threads share one heap, because their own cannot grow to hold
            such arrays.
    """
    if not sys.platform.startswith("linux"):
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        if of_threads:
            mallopt(_ARENA_MAX, 1)
        mallopt(_MMAP_THRESHOLD, largest) or mallopt(_MMAP_THRESHOLD, _LARGEST_OF_OLD)
        mallopt(_TRIM_THRESHOLD, _KEPT)
