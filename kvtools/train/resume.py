"""A training run saved between two steps: weights, the best weights so far, the optimiser, and the position in the data.

The invariant: a run resumed from it does what the uninterrupted one would have done, to the bit on one machine. Not here: the
file, whose it is, and the refusal of a run with other options (artifact/state.py).
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from kvtools.artifact import Bag
from kvtools.artifact.casts import to_torch
from kvtools.artifact.state import RunState
from kvtools.train.engine import own_part
from kvtools.train.parts import names_in_parts, read_parts

_ADAM_MOMENTS = ("exp_avg", "exp_avg_sq")


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


def state_tensors(
    model: nn.Module, best: Mapping[str, torch.Tensor], optimizer: torch.optim.Optimizer
) -> dict[str, torch.Tensor]:
    """The tensors of a state: `model.NAME`, `best.NAME`, `optimizer.SLOT.NAME`, each in its own dtype and shape.

    What the training does not change is not among them: the run that resumes builds it again from the same inputs.
    """
    tensors = {f"model.{name}": x for name, x in changing_tensors(model).items()}
    tensors |= {f"best.{name}": x for name, x in best.items()}
    for name, parameter in model.named_parameters():
        for slot, x in optimizer.state.get(parameter, {}).items():
            tensors[f"optimizer.{slot}.{name}"] = x
    return tensors


@torch.no_grad()
def restore(
    bag: Bag, parts: Path | None, model: nn.Module, optimizer: torch.optim.Optimizer
) -> tuple[Progress, dict[str, torch.Tensor]]:
    """Load a saved state into the model and its optimiser; returns where the run stood and the best weights so far.

    parts: the folder of a state that ranks wrote in parts, however many. Tensors are read one by one, and of a model in parts
    each rank keeps its own.
    """
    changing = changing_tensors(model)
    places = {f"model.{name}": x for name, x in changing.items()}
    saved = set(bag.tensors) if parts is None else names_in_parts(parts)
    best = {name: torch.empty_like(x) for name, x in changing.items() if f"best.{name}" in saved}
    places |= {f"best.{name}": x for name, x in best.items()}
    updated = {parameter for group in optimizer.param_groups for parameter in group["params"]}
    for name, parameter in model.named_parameters():
        if parameter in updated and f"optimizer.step.{name}" in saved:
            step = torch.zeros((), dtype=torch.float32, device=parameter.device)
            slots = {"step": step, **{slot: torch.empty_like(parameter) for slot in _ADAM_MOMENTS}}
            optimizer.state[parameter] = slots
            places |= {f"optimizer.{slot}.{name}": x for slot, x in slots.items()}
    if parts is not None:
        read_parts(parts, places)
    else:
        for name, x in places.items():
            x.copy_(own_part(to_torch(bag.tensors[name]), x))
    return Progress(**bag.fields["progress"]), best
