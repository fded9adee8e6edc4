"""A model in parts: each rank holds a part of every weight, of its gradient and of its optimiser's state (torch's FSDP2).

Whole weights are gathered one layer at a time, when it is computed forward and again backward; what is no layer stays gathered
from the forward to the backward pass. So all ranks must compute whenever one does, and the tasks see to it. The losses are
those of whole models, to the rounding of sums. Source: Zhao et al. 2023 (arXiv 2304.11277). Not here: what is in the state of a
run (resume.py), which a run of any number of ranks takes up, in parts or not.
"""

import copy
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from kvtools.artifact.state import RunState
from kvtools.train.engine import Engine, Figures, InRankOrder, Replicas, share_buffers
from kvtools.train.parts import ModelWriters, gathered, save_in_parts
from kvtools.train.process_group import close_process_group, open_process_group
from kvtools.world import World


def open_engine(
    model: nn.Module, world: World, device: str, *, in_order: bool, cut: "Cut | None", shards_optimizer: bool
) -> Engine:
    """The engine for a world; a collective. in_order: whether gradients are to be added as one rank would. cut: how to cut the
    model into parts, which one rank alone does not do; None: every rank has the whole of it. shards_optimizer: whether each
    rank then updates a part of the weights only. Raises Fault where the ranks do not reach one another."""
    if world.size == 1:
        return Engine(model, world)
    if cut is not None:
        return Shards(model, world, device, cut)
    return InRankOrder(model, world) if in_order else Replicas(model, world, device, shards_optimizer=shards_optimizer)


@dataclass(frozen=True)
class Cut:
    """How a model is cut. layers: modules that are gathered one at a time. entries: names of the model's methods that a task
    calls to compute, none of which calls another."""

    layers: Sequence[nn.Module]
    entries: Sequence[str]


class Shards(Engine):
    """Every rank has a part of the model. Ranks differ in what they compute with, but not in which layers, nor in how often.

    The model may be on the CPU: its parts go to the rank's device.
    """

    is_lockstep = True

    def __init__(self, model: nn.Module, world: World, device: str, cut: Cut) -> None:
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method

        open_process_group(world, device)
        # torch warns of layers that return views, and tells not to change those in place: we do not
        warnings.filterwarnings("ignore", message="FSDP2-wrapped module .* returned a view", category=UserWarning)
        # its weights are no copies, and have no memory; it becomes the whole model in the end
        self._skeleton = copy.deepcopy(model, {id(x): _without_data(x) for x in model.parameters()})
        mesh = init_device_mesh(torch.device(device).type, (world.size,))
        for part in (*cut.layers, model):
            fully_shard(part, mesh=mesh)
        for name in cut.entries:
            register_fsdp_forward_method(model, name)
        self._parts = [part for part in model.modules() if isinstance(part, FSDPModule)]
        for part in self._parts:
            part.set_gradient_divide_factor(1.0)  # losses are sums, and so are gradients
            part.set_force_sum_reduction_for_comms(True)  # gloo has no averages
            part.set_reduce_scatter_unused_params(True)  # rows without pictures on one rank, and with some on another
            # its memory is made here, and not within a validation's inference mode, whose tensors know no gradients
            part.unshard()
            part.reshard()
        super().__init__(model, world)

    def validate(self, figures: Callable[[], Figures | None]) -> Figures | None:
        """As Engine.validate; all ranks compute the same."""
        answer: Figures | None = self._world.broadcast(figures())
        share_buffers(self.model)
        for part in self._parts:
            part.reshard()
        return answer

    def save(self, state: RunState, tensors: Mapping[str, Tensor], progress: Mapping[str, Any]) -> None:
        """As Engine.save; each rank writes what it holds."""
        save_in_parts(state, tensors, progress, self._world)

    def close(self) -> nn.Module:
        """As Engine.close."""
        whole: dict[str, Tensor] = {}
        for name, x in self.model.state_dict().items():
            on_root = gathered(x, 0)
            if on_root is not None and self._world.is_root:
                whole[name] = on_root.cpu()
        if self._world.is_root:
            self._skeleton.load_state_dict(whole, assign=True)
        close_process_group()
        return self._skeleton

    def writers(self) -> ModelWriters | None:
        """As Engine.writers."""
        return ModelWriters(self.model.state_dict(), self._world)


def _without_data(parameter: nn.Parameter) -> nn.Parameter:
    return nn.Parameter(torch.empty_like(parameter, device="meta"), requires_grad=parameter.requires_grad)
