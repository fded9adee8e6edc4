"""Where to compute and how exactly, from what --device and --dtype say; this process's part of the cores and of the memory."""

import ctypes
import hashlib
import math
import os
import socket
from pathlib import Path

from kvtools.environment import count_in
from kvtools.errors import Usage
from kvtools.world import World

# of mallopt(3), as glibc's malloc.h numbers them
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_LARGEST_BYTES = 32 << 20  # glibc takes no more
_KEPT_BYTES = 1 << 30
_RETURNED_BYTES = 1 << 18
_WAITS_OF_OPENMP = {  # GNU's counts turns of a loop, of about 20 ns; LLVM's and Intel's take milliseconds
    "OMP_WAIT_POLICY": "passive",
    "GOMP_SPINCOUNT": "1000",
    "KMP_BLOCKTIME": "0",
}


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


def own_cores(world: World) -> int:
    """How many cores this rank may use, at least 1. A collective.

    Of the cores that it may run on, and of the quota of its control group, it has an even part beside the ranks that share
    them, and no more than SLURM_CPUS_PER_TASK and OMP_NUM_THREADS say. Raises Usage where one of these is no number.
    """
    cores = sorted(os.sched_getaffinity(0))
    n_sharing = world.local_size
    if world.size > 1:  # ranks that a launcher bound to cores of their own do not share them
        import numpy as np

        word = hashlib.blake2b(f"{socket.gethostname()} {cores}".encode(), digest_size=8).digest()
        everyone = world.gather_array(np.frombuffer(word, np.int64))
        n_sharing = int((everyone == everyone[world.rank]).sum())
    n = min(len(cores) // n_sharing, math.floor(min(cpu_quota(), 1 << 20) / world.local_size))
    return max(1, min(n, threads_asked_for() or n))


def threads_asked_for() -> int | None:
    """The fewest threads that SLURM_CPUS_PER_TASK or OMP_NUM_THREADS asks for; None where neither does. Raises Usage where one
    is no number, as the libraries of threads do not."""
    counts = [count_in(name, separators=",") for name in ("SLURM_CPUS_PER_TASK", "OMP_NUM_THREADS")]
    return min((n for n in counts if n), default=None)


def cpu_quota(groups: str = "/sys/fs/cgroup") -> float:
    """Cores that the control group of this process may use, of either version; infinite where there is no quota."""
    files = (("cpu.max",), ("cpu/cpu.cfs_quota_us", "cpu/cpu.cfs_period_us"))
    for names in files:
        try:
            quota_and_period = " ".join(Path(groups, name).read_text().strip() for name in names).split()
            quota, period = float(quota_and_period[0]), float(quota_and_period[1])
        except (OSError, ValueError, IndexError):
            continue
        if quota > 0 and period > 0:
            return quota / period
    return math.inf


def limit_threads(world: World) -> None:
    """Give this rank's threads its part of the cores: those of torch, OpenMP and BLAS, which would take all of them each. A
    collective."""
    import torch
    from threadpoolctl import threadpool_limits

    n = own_cores(world)
    threadpool_limits(n)
    torch.set_num_threads(n)


def let_waiting_threads_sleep() -> None:
    """Let threads of OpenMP and BLAS that wait for one another spin for about 10 µs, as long as waking one takes, then sleep.

    By default they spin for milliseconds, on cores that other jobs, or the very threads that they wait for, could use. What the
    user's environment says of it stays. Must be called before numpy or torch is loaded, since their libraries look only then.
    """
    if not any(name in os.environ for name in _WAITS_OF_OPENMP):
        os.environ.update(_WAITS_OF_OPENMP)
    os.environ.setdefault("OPENBLAS_THREAD_TIMEOUT", "15")  # 2 to the power of it, in cycles


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
    _set_thresholds(_LARGEST_BYTES, _KEPT_BYTES)


def return_freed_memory() -> None:
    """Let the C library give freed tensors back to the system at once: the process holds what is in use, and no more. Does
    nothing where the library is not glibc. Measured on two ranks, November 2026: a model in parts, of 325 MiB a rank with its
    gradients and optimiser, at most 840 MiB with torch and activations, where kept memory would have made it 1,410."""
    _set_thresholds(_RETURNED_BYTES, _RETURNED_BYTES)


def _set_thresholds(mapped_bytes: int, kept_bytes: int) -> None:
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return
    mallopt(_M_MMAP_THRESHOLD, mapped_bytes)
    mallopt(_M_TRIM_THRESHOLD, kept_bytes)
