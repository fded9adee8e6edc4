"""A training run saved between two steps: weights, the best weights so far, the optimiser, and the position in the data.

The invariant: a run resumed from it does what the uninterrupted one would have done, to the bit on one machine. Not here: the
file, whose it is, and the refusal of a run with other options (artifact/state.py).
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import nn

from kvtools.artifact import Bag
from kvtools.artifact.casts import to_numpy, to_torch
from kvtools.artifact.state import RunState

_ADAM_SLOTS = ("step", "exp_avg", "exp_avg_sq")


def train_state(folder: str | None, config: Mapping[str, Any]) -> RunState:
    """The state of a training run, kept in a folder or nowhere. config: its options and inputs, which must be the same to
    resume it."""
    return RunState(folder, "train-state", config)


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
    first: dict[str, float] = field(default_factory=dict)  # metrics of the first weights that were validated
    best: dict[str, float] = field(default_factory=dict)  # metrics of the best weights so far
    task: dict[str, float] = field(default_factory=dict)  # what the task adds up over its steps
    threads: int = 0  # of torch on rank 0, which sums depend on; 0: unknown


def changing_tensors(model: nn.Module) -> dict[str, torch.Tensor]:
    """The tensors of a model, by name, that a training may change: all but the parameters that it keeps as they are."""
    frozen = {name for name, parameter in model.named_parameters() if not parameter.requires_grad}
    return {name: x for name, x in model.state_dict().items() if name not in frozen}


def state_tensors(model: nn.Module, best: dict[str, torch.Tensor], optimizer: torch.optim.Optimizer) -> dict[str, np.ndarray]:
    """The tensors of a state: `model.NAME`, `best.NAME`, `optimizer.SLOT.NAME`, each in its own dtype and shape.

    What the training does not change is not among them: the run that resumes builds it again from the same inputs.
    """
    tensors = {f"model.{name}": to_numpy(x) for name, x in changing_tensors(model).items()}
    tensors |= {f"best.{name}": to_numpy(x) for name, x in best.items()}
    for name, parameter in model.named_parameters():
        for slot, x in optimizer.state.get(parameter, {}).items():
            tensors[f"optimizer.{slot}.{name}"] = to_numpy(x)
    return tensors


def restore(bag: Bag, model: nn.Module, optimizer: torch.optim.Optimizer) -> tuple[Progress, dict[str, torch.Tensor]]:
    """Load a saved state into the model and its optimiser; returns where the run stood and the best weights so far."""
    tensors = {name: to_torch(array) for name, array in bag.tensors.items()}
    model.load_state_dict({name: tensors[f"model.{name}"] for name in changing_tensors(model)}, strict=False)
    best = {name.removeprefix("best."): x for name, x in tensors.items() if name.startswith("best.")}
    for name, parameter in model.named_parameters():
        slots = {slot: tensors.get(f"optimizer.{slot}.{name}") for slot in _ADAM_SLOTS}
        found = {slot: x if slot == "step" else x.to(parameter.device) for slot, x in slots.items() if x is not None}
        if found:
            optimizer.state[parameter] = found
    return Progress(**bag.fields["progress"]), best
