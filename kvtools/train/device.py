"""Where to compute and how exactly, from what --device and --dtype say; this process's part of the cores and of the memory."""

import ctypes
import os

from kvtools.errors import Usage

# of mallopt(3), as glibc's malloc.h numbers them
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_LARGEST_BYTES = 32 << 20  # glibc takes no more
_KEPT_BYTES = 1 << 30


def resolve_device(device: str, dtype: str = "auto", *, rank: int = 0) -> tuple[str, str]:
    """("cpu" or "cuda:N", "float32" or "bfloat16"); auto is cuda where there is one, and bfloat16 there. Ranks take the GPUs
    of a machine in turn. Raises Usage."""
    import torch

    has_cuda = torch.cuda.is_available()
    if device == "cuda" and not has_cuda:
        raise Usage("--device cuda: this machine has no CUDA device. Use --device cpu.")
    is_cuda = device != "cpu" and has_cuda
    resolved = f"cuda:{rank % torch.cuda.device_count()}" if is_cuda else "cpu"
    return resolved, ("bfloat16" if is_cuda else "float32") if dtype == "auto" else dtype


def n_cores(n_processes: int) -> int:
    """This process's part of the machine's cores, where so many processes work on it; at least 1."""
    return max(1, len(os.sched_getaffinity(0)) // n_processes)


def limit_threads(n_processes: int) -> None:
    """Give torch an equal part of this machine's cores, where several processes work on it."""
    import torch

    if n_processes > 1:
        torch.set_num_threads(n_cores(n_processes))


def add_in_one_order(device: str) -> None:
    """Let torch add up gradients of gathered rows in one order on the CPU, where threads would race otherwise: the same bytes
    every time for one number of threads. On CUDA nothing changes: some operations have no such form there."""
    import torch

    torch.use_deterministic_algorithms(device == "cpu")
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]  # costs passes, and is never read


def keep_freed_memory() -> None:
    """Let the C library keep up to 1 GiB of freed memory: tensors of a few MiB, made and dropped all the time, then need no new
    pages each. Does nothing where the library is not glibc. Measured on two cores, November 2026: beams of width 256 1.14 times
    as fast, training of width 64 1.1 times."""
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return
    mallopt(_M_MMAP_THRESHOLD, _LARGEST_BYTES)
    mallopt(_M_TRIM_THRESHOLD, _KEPT_BYTES)
