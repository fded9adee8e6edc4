"""The average of models of one shape: of each number in the same place, weighted.

Source: model soups (arXiv 2203.05482), as Keye-VL's report ends its pre-training (arXiv 2507.01949 section 3). Not here: models
whose hidden units stand in another order; they must have begun from the same one for an average to mean anything.
"""

from collections.abc import Mapping, Sequence

import numpy as np

from kvtools.artifact.casts import BFLOAT16

Tensors = Mapping[str, np.ndarray]

_FLOATS = {np.dtype(np.float16), np.dtype(np.float32), np.dtype(np.float64), BFLOAT16}
_CHUNK = 1 << 20  # numbers: 8 MiB in float64 a model


def average(models: Sequence[Tensors], parts: Sequence[float], names: Sequence[str]) -> dict[str, np.ndarray]:
    """sum(part * tensor) / sum(parts) for each tensor, in float64, rounded once to the tensor's own type.

    names: what to call the models in what is raised. Tensors that are the same in all, bit for bit, are taken as they are.
    Raises ValueError where names, types or shapes differ, where others than floating point numbers do, and where an average is
    not finite. Memory: one model, and a few MiB.
    """
    first, *others = models
    for name, other in zip(names[1:], others, strict=True):
        lost, more = sorted(set(first) - set(other)), sorted(set(other) - set(first))
        if lost or more:
            raise ValueError(f"{name}: {lost[0] if lost else more[0]}: {'missing' if lost else 'found'}, unlike in {names[0]}")
        for tensor, array in first.items():
            found, expected = other[tensor], f"{array.dtype} {list(array.shape)}"
            if found.dtype != array.dtype or found.shape != array.shape:
                raise ValueError(
                    f"{name}: {tensor}: {found.dtype} {list(found.shape)} found, {expected} as in {names[0]} expected"
                )
    merged = {}
    share = np.asarray(parts, np.float64) / sum(parts)
    for tensor, array in first.items():
        alike = [_is_same(array, other[tensor]) for other in others]
        if all(alike):
            merged[tensor] = array
        elif array.dtype not in _FLOATS:
            raise ValueError(f"{names[1 + alike.index(False)]}: {tensor}: differs from that in {names[0]}, equal expected")
        else:
            merged[tensor] = _averaged([model[tensor] for model in models], share, tensor)
    return merged


def _is_same(one: np.ndarray, other: np.ndarray) -> bool:
    return bool(np.array_equal(one.reshape(-1).view(np.uint8), other.reshape(-1).view(np.uint8)))


def _averaged(arrays: Sequence[np.ndarray], share: np.ndarray, name: str) -> np.ndarray:
    out = np.empty(arrays[0].shape, arrays[0].dtype)
    flat, parts = out.reshape(-1), [array.reshape(-1) for array in arrays]
    for begin in range(0, flat.size, _CHUNK):
        span = slice(begin, begin + _CHUNK)
        total = sum(weight * part[span].astype(np.float64) for weight, part in zip(share, parts, strict=True))
        flat[span] = total
        if not np.isfinite(flat[span].astype(np.float64)).all():
            raise ValueError(f"{name}: numbers that are not finite found, finite ones expected")
    return out
