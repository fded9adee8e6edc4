"""Functions that numba compiles, their machine code kept for the next run where there is room for it.

numba keeps it beside the function's file, or in the user's cache folder where that cannot be written. By itself it raises where
neither can be, where the disk is full, and where a kept file is damaged; here the function is compiled anew instead.
"""

from collections.abc import Callable
from contextlib import suppress
from typing import Any

from numba import njit
from numba.core.caching import FunctionCache


class _Cache(FunctionCache):  # type: ignore[misc]
    def load_overload(self, sig: Any, target_context: Any) -> Any:
        with suppress(Exception):  # whatever a damaged file of pickles leads to
            return super().load_overload(sig, target_context)
        return None

    def save_overload(self, sig: Any, data: Any) -> None:
        with suppress(Exception):  # a full disk, or the damaged index again
            super().save_overload(sig, data)


def compiled(*, fastmath: bool | set[str] = False) -> Callable[[Callable[..., Any]], Any]:
    """A decorator: compiled for each kind of arguments at the first call; Python's lock is not held in it."""

    def decorate(function: Callable[..., Any]) -> Any:
        dispatcher = njit(nogil=True, fastmath=fastmath)(function)
        with suppress(RuntimeError):  # there is no folder that can be written
            dispatcher._cache = _Cache(function)  # noqa: SLF001 - numba's own `cache=True` sets it likewise
        return dispatcher

    return decorate
