"""The peak FLOP/s of this machine, measured by matrix products.

MFU = FLOPs of the model's products / (seconds * peak). Recomputation and padding lower it, since a model counts only the
products that it needs. Not here: how a model counts them.
"""

import time

import torch

_SIDE = 2048
_SECONDS = 0.3


def measured_peak(device: str, dtype: torch.dtype) -> float:
    """FLOP/s of a square matrix product, the best of as many as 0.3 s hold: a ceiling for this machine, not a data sheet's."""
    a, b = (torch.randn(_SIDE, _SIDE, device=device).to(dtype) for _ in range(2))
    out = torch.empty(_SIDE, _SIDE, device=device, dtype=dtype)
    best, end = float("inf"), time.perf_counter() + _SECONDS
    while time.perf_counter() < end or best == float("inf"):
        begun = time.perf_counter()
        torch.mm(a, b, out=out)
        if out.is_cuda:
            torch.cuda.synchronize(device)
        best = min(best, time.perf_counter() - begun)
    return float(2 * _SIDE**3 / best)
