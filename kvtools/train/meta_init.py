"""Models without weights: the names and shapes of their parameters, at no cost of memory and little of time.

On torch's meta device a tensor has a shape and no data. But filling or scaling one there loads most of torch's compiler, a
second that every reading of a model would pay; here such operations return the tensor unchanged.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

_SKIPPED = {torch.Tensor.normal_, torch.Tensor.uniform_, torch.Tensor.fill_, torch.Tensor.zero_, torch.Tensor.__rmul__}


class _SkipInit(TorchFunctionMode):
    def __torch_function__(self, func: Any, _types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in _SKIPPED or getattr(func, "__module__", "") == "torch.nn.init":
            return args[0] if args else kwargs["tensor"]
        return func(*args, **(kwargs or {}))


@contextmanager
def meta_init() -> Iterator[None]:
    """Within it, modules are made on the meta device, with shapes alone."""
    with torch.device("meta"), _SkipInit():
        yield
