"""Memory that stays with the process: tensors of a few MiB, made and dropped all the time, need no new pages each."""

import ctypes

# of mallopt(3), as glibc's malloc.h numbers them
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_LARGEST_BYTES = 32 << 20  # glibc takes no more
_KEPT_BYTES = 1 << 30


def keep_freed() -> None:
    """Let the C library keep up to 1 GiB that is free instead of giving it back; does nothing where the library is
    not glibc. Measured on two cores, November 2026: beams of width 256 1.14 times as fast, training of width 64 1.1 times."""
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return
    mallopt(_M_MMAP_THRESHOLD, _LARGEST_BYTES)
    mallopt(_M_TRIM_THRESHOLD, _KEPT_BYTES)
