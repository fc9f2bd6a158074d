"""The C library's heap, in training on a CPU."""

import ctypes

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # malloc.h
LARGEST_INT = 2**31 - 1


def keep_freed_memory() -> bool:
    """Let the process keep the memory that tensors free, for the tensors of the next layer.

    By default glibc hands large blocks back to the kernel at once, which gives them out again page by page, zeroed:
    which attention's large scores feel most. The price is a process that seldom shrinks again.

    Returns:
        Whether there was such a setting; other C libraries have none, and there nothing happens.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # macOS, Windows
        return False
    return bool(mallopt(M_MMAP_MAX, 0) and mallopt(M_TRIM_THRESHOLD, LARGEST_INT))
