"""Training curves as TensorBoard's event files, by its own writer, which the extra kvtools[tensorboard] installs."""

from collections.abc import Mapping
from importlib.util import find_spec
from typing import Any, Self

from kvtools.errors import Usage, unwritable


def require_tensorboard(folder: str | None) -> None:
    """Raise Usage where a folder is named and TensorBoard is not installed."""
    if folder is not None and find_spec("tensorboard") is None:
        raise Usage("--tensorboard needs the package tensorboard. Install kvtools[tensorboard], or leave it out.")


class Board:
    """Event files in a folder, a context manager; folder None: nothing is written.

    at: the step whose state a resumed run continues from; TensorBoard drops what stands after it.
    """

    def __init__(self, folder: str | None, at: int | None = None) -> None:
        self._writer: Any = None
        require_tensorboard(folder)
        if folder is not None:
            from torch.utils.tensorboard import SummaryWriter

            try:
                self._writer = SummaryWriter(folder, purge_step=None if at is None else at + 1)
            except OSError as error:
                raise unwritable(folder, error) from None

    def write(self, step: int, numbers: Mapping[str, float]) -> None:
        """Add numbers of a step, those of a validation under `valid/`."""
        if self._writer is not None:
            for name, x in numbers.items():
                prefix, _, rest = name.partition("_")
                self._writer.add_scalar(f"valid/{rest}" if prefix == "valid" else f"train/{name}", x, step)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._writer is not None:
            self._writer.close()
