"""A run put aside between two steps: weights, the best weights so far, the optimiser, and where the data stand.

One file, `train.state` in the state's folder, whole or absent, without pickle. The invariant: a run taken up from it does
what the uninterrupted one would have done, to the bit on one machine.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from kvtools.artifact import Bag, open_artifact
from kvtools.artifact.bag import write_bag
from kvtools.artifact.casts import to_numpy, to_torch
from kvtools.artifact.files import Sink, claim
from kvtools.errors import CannotCreate, Corrupt, Usage

_KIND = "train-state"


@dataclass
class Progress:
    """Where a run stands."""

    epoch: int = 0
    batch: int = 0  # steps done in this epoch
    step: int = 0
    tokens: int = 0
    best_score: float | None = None
    best_epoch: int = 0
    is_over: bool = False
    loss: float | None = None  # of the last step


def beside(dst: str) -> str | None:
    """The folder for the state of a run that writes dst: `.NAME.state` beside it; none for a pipe or a device."""
    if dst == "-" or (os.path.exists(dst) and not os.path.isfile(dst)):
        return None
    return os.path.join(os.path.dirname(dst), f".{os.path.basename(dst)}.state")


@contextmanager
def claimed(folder: str | None, *, is_root: bool) -> Iterator[None]:
    """While two runs would spoil each other's state: rank 0 has the folder for itself. folder None: nothing is kept. Raises
    CannotCreate where another run is at work in it, or it cannot be made."""
    if folder is None or not is_root:
        yield
        return
    try:
        os.makedirs(folder, exist_ok=True)
        fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    except OSError as error:
        raise CannotCreate(f"{folder}: {(error.strerror or str(error)).lower()}.") from None
    try:
        if not claim(fd):
            raise CannotCreate(f"{folder}: another run is at work there. Wait for it, or name another --state.")
        yield
    finally:
        os.close(fd)
        with suppress(OSError):  # something is kept in it
            os.rmdir(folder)


class State:
    """The state of a run, in a folder. folder None: the run keeps none."""

    def __init__(self, folder: str | None, config: dict[str, Any]) -> None:
        self._path = None if folder is None else os.path.join(folder, "train.state")
        self._config = config

    @property
    def has_place(self) -> bool:
        """Whether there is a folder to keep it in."""
        return self._path is not None

    @property
    def is_kept(self) -> bool:
        """Whether there is one to take up."""
        return self._path is not None and os.path.exists(self._path)

    def save(
        self, model: nn.Module, best: dict[str, torch.Tensor], optimizer: torch.optim.Optimizer, progress: Progress
    ) -> None:
        """Put everything aside; an earlier state is replaced once this one is whole."""
        if self._path is None:
            return
        os.makedirs(os.path.dirname(self._path), exist_ok=True)
        tensors = {f"model.{name}": to_numpy(x) for name, x in model.state_dict().items()}
        tensors |= {f"best.{name}": to_numpy(x) for name, x in best.items()}
        for name, parameter in model.named_parameters():
            for slot, x in optimizer.state.get(parameter, {}).items():
                tensors[f"optimizer.{slot}.{name}"] = to_numpy(x)
        write_bag(Sink(self._path, force=True), _KIND, tensors, config=self._config, history=[], progress=vars(progress))

    def load(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> tuple[Progress, dict[str, torch.Tensor]] | None:
        """Take up what was put aside; None where nothing was. Raises Usage for a run with other options."""
        if self._path is None or not os.path.exists(self._path):
            return None
        try:
            bag = open_artifact(self._path)
        except Corrupt as fault:
            raise Corrupt(f"{fault} The unfinished run cannot be taken up: give --force to start over.") from None
        if not isinstance(bag, Bag) or bag.kind != _KIND:
            raise Corrupt(f"{self._path}: the state of an unfinished run expected. Give --force to start over.")
        other = sorted(k for k in {*self._config, *bag.fields["config"]} if self._config.get(k) != bag.fields["config"].get(k))
        if other:
            raise Usage(
                f"{self._path}: an unfinished run with another {other[0]}. "
                "Run again with the same options to resume it, or give --force to start over."
            )
        found = {name: to_torch(array) for name, array in bag.tensors.items()}
        model.load_state_dict({name: found[f"model.{name}"] for name in model.state_dict()})
        best = {name.removeprefix("best."): x for name, x in found.items() if name.startswith("best.")}
        for name, parameter in model.named_parameters():
            slots = {
                s: found[f"optimizer.{s}.{name}"] for s in ("step", "exp_avg", "exp_avg_sq") if f"optimizer.{s}.{name}" in found
            }
            if slots:
                optimizer.state[parameter] = {s: x if s == "step" else x.to(parameter.device) for s, x in slots.items()}
        return Progress(**bag.fields["progress"]), best

    def forget(self) -> None:
        """The run is done, or starts over."""
        if self._path is not None:
            with suppress(FileNotFoundError):
                os.unlink(self._path)
            with suppress(OSError):
                os.rmdir(os.path.dirname(self._path))
