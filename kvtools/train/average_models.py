"""The weighted average of models of one architecture, weight by weight.

Source: model soups (arXiv 2203.05482), as Keye-VL's report ends its pre-training (arXiv 2507.01949 section 3). Not here: models
whose hidden units stand in another order; they must have begun from the same one for an average to mean anything.
"""

from collections.abc import Mapping, Sequence

import ml_dtypes
import numpy as np

Tensors = Mapping[str, np.ndarray]

_FLOATS = {np.dtype(t) for t in (np.float16, np.float32, np.float64, ml_dtypes.bfloat16)}
_CHUNK = 1 << 20  # numbers: 8 MiB in float64 a model


def average(models: Sequence[Tensors], weights: Sequence[float], names: Sequence[str]) -> dict[str, np.ndarray]:
    """sum(weight * tensor) / sum(weights) for each tensor, in float64, rounded once to the tensor's own dtype.

    names: of the models, for errors. Tensors that are the same in all, bit for bit, are taken as they are. Memory: one model,
    and a few MiB. Raises ValueError where tensors, dtypes or shapes differ, where integers differ, and for an average that is
    not finite.
    """
    first, *others = models
    for name, other in zip(names[1:], others, strict=True):
        _refuse_other_tensors(first, names[0], other, name)
    merged = {}
    fractions = np.asarray(weights, np.float64) / sum(weights)
    for tensor, array in first.items():
        is_same = [_is_same(array, other[tensor]) for other in others]
        if all(is_same):
            merged[tensor] = array
        elif array.dtype not in _FLOATS:
            name = names[1 + is_same.index(False)]
            raise ValueError(
                f"{name}: {tensor} is {array.dtype}, which cannot be averaged, and differs from that of {names[0]}"
            )
        else:
            merged[tensor] = _averaged([model[tensor] for model in models], fractions, tensor)
    return merged


def _refuse_other_tensors(first: Tensors, first_name: str, other: Tensors, name: str) -> None:
    differing = sorted(set(first) ^ set(other))
    if differing:
        has, lacks = (first_name, name) if differing[0] in first else (name, first_name)
        raise ValueError(f"{lacks}: there is no tensor {differing[0]}, which {has} has")
    for tensor, array in first.items():
        one, two = (f"{x.dtype} {list(x.shape)}" for x in (array, other[tensor]))
        if one != two:
            raise ValueError(f"{name}: {tensor} is {two}, and in {first_name} it is {one}")


def _is_same(one: np.ndarray, other: np.ndarray) -> bool:
    return bool(np.array_equal(one.reshape(-1).view(np.uint8), other.reshape(-1).view(np.uint8)))


def _averaged(arrays: Sequence[np.ndarray], fractions: np.ndarray, name: str) -> np.ndarray:
    out = np.empty(arrays[0].shape, arrays[0].dtype)
    flat, parts = out.reshape(-1), [array.reshape(-1) for array in arrays]
    for begin in range(0, flat.size, _CHUNK):
        span = slice(begin, begin + _CHUNK)
        flat[span] = sum(weight * part[span].astype(np.float64) for weight, part in zip(fractions, parts, strict=True))
        if not np.isfinite(flat[span].astype(np.float64)).all():
            raise ValueError(f"{name}: the average has values that are not finite")
    return out
