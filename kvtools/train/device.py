"""Where to compute and how exactly, from what --device and --dtype say; and how many cores are this process's."""

import os

from kvtools.errors import Usage


def place_of(device: str, dtype: str = "auto", *, rank: int = 0) -> tuple[str, str]:
    """("cpu" or "cuda:N", "float32" or "bfloat16"); auto is cuda where there is one, and bfloat16 there. Ranks take the GPUs
    of a machine in turn. Raises Usage."""
    import torch

    has_cuda = torch.cuda.is_available()
    if device == "cuda" and not has_cuda:
        raise Usage("--device cuda: a machine that has one expected.")
    is_cuda = device != "cpu" and has_cuda
    place = f"cuda:{rank % torch.cuda.device_count()}" if is_cuda else "cpu"
    return place, ("bfloat16" if is_cuda else "float32") if dtype == "auto" else dtype


def share_cores(n_processes: int) -> None:
    """Leave as many of this machine's cores to the others as they are, where several processes work on it."""
    import torch

    if n_processes > 1:
        torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) // n_processes))
