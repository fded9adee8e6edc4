"""How ranks train one model together: each on its own, with gradients summed over them, or with the model in parts.

An engine holds what the loop does to gradients and weights, so that the loop is the same for any number of ranks. Here are one
rank alone, ranks that each have the whole model, and those that add up gradients as one rank would. Not here: a model in parts
(sharded.py), the connections (process_group.py).
"""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn

from kvtools.artifact.casts import to_numpy
from kvtools.artifact.state import RunState
from kvtools.train.parts import ModelWriters, save_in_parts
from kvtools.train.process_group import close_process_group, open_process_group
from kvtools.world import World

_BUCKET_BYTES = 25 << 20  # as torch's DistributedDataParallel has it: less is slow, more waits longer for the backward pass

Figures = dict[str, float]


class Engine:
    """One rank alone, and what all engines do.

    model: what is trained. parameters: those that learn. updated: those of them that this rank's optimiser updates.
    """

    is_lockstep = False  # whether all ranks must compute whenever one does, because weights come from all of them

    def __init__(self, model: nn.Module, world: World) -> None:
        self.model, self._world = model, world
        self.parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self.updated = set(self.parameters)

    def clear_gradients(self) -> None:
        """Begin a step: no parameter has a gradient."""
        for parameter in self.parameters:
            parameter.grad = None

    def backward(self, loss: Tensor | None, *, is_last: bool) -> None:  # noqa: ARG002 for engines that exchange
        """Add the gradients of a round of microbatches, one a rank: the loss of this rank's, a scalar, None where it has none.

        is_last: whether it is the last round of a step.
        """
        if loss is not None and loss.requires_grad:
            loss.backward()  # type: ignore[no-untyped-call]

    def sum_gradients(self) -> None:
        """Make the gradients those of all ranks together; a collective, once a step, after its last round."""

    def average_gradients(self, count: float) -> None:
        """Divide all gradients by the count; a parameter without one gets zeros."""
        for parameter in self.parameters:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            parameter.grad.div_(count)

    def clip_gradients(self, largest: float) -> float:
        """The norm of all gradients, which are scaled down to the largest one allowed."""
        norm = whole(nn.utils.get_total_norm([parameter.grad for parameter in self.parameters if parameter.grad is not None]))
        nn.utils.clip_grads_with_norm_(self.parameters, largest, norm)
        return float(norm)

    def share_weights(self) -> None:
        """Give all ranks the weights that each has updated; a collective, once a step, after its update."""

    def validate(self, figures: Callable[[], Figures | None]) -> Figures | None:
        """The figures of a validation, of rank 0 on all ranks."""
        answer: Figures | None = self._world.broadcast(figures() if self._world.is_root else None)
        return answer

    def save(self, state: RunState, tensors: Mapping[str, Tensor], progress: Mapping[str, Any]) -> None:
        """Write the state of the run, tensors by name; a collective."""
        if self._world.is_root:
            state.save({name: to_numpy(x) for name, x in tensors.items()}, progress=progress)

    def close(self) -> nn.Module:
        """End the exchange; a collective. Returns the model, whole on rank 0."""
        return self.model

    def writers(self) -> ModelWriters | None:
        """Who writes a model that is in parts, in place of `close`; None where rank 0 has the whole of it."""
        return None


def share_buffers(model: nn.Module) -> None:
    """Give all ranks rank 0's buffers of real numbers, where a validation keeps what it chose; a collective."""
    for buffer in model.buffers():
        if buffer.is_floating_point():
            dist.broadcast(buffer, 0)


class Replicas(Engine):
    """Every rank has the whole model. Gradients are summed in buckets, while the backward pass computes further ones.

    The gradients of a bucket's parameters are views of one array, so that nothing is copied. All ranks send the same buckets in
    the same order, whatever each has computed: a rank without a microbatch, and a parameter without a gradient, count as zeros.
    All ranks get the same bits, and as many ranks the same ones every time: the order of a sum depends on their number alone.

    shards_optimizer: each rank's optimiser updates some of the weights, and sends them to all (ZeRO's first stage, Rajbhandari
    et al. 2020, arXiv 1910.02054): the same bits, half as many bytes more a step, and its memory divided by the ranks, but for
    one weight that is larger than a rank's part.
    """

    def __init__(self, model: nn.Module, world: World, device: str, *, shards_optimizer: bool = False) -> None:
        super().__init__(model, world)
        open_process_group(world, device)
        self._owners = _owners(self.parameters, world.size) if shards_optimizer else {}
        if shards_optimizer:
            self.updated = {parameter for parameter, owner in self._owners.items() if owner == world.rank}
        self._buckets = _buckets(self.parameters)
        self._bucket_of = {parameter: bucket for bucket in self._buckets for parameter in bucket.parameters}
        self._hooks: list[Any] = []
        for parameter in self.parameters:
            self._hooks.append(parameter.register_post_accumulate_grad_hook(self._count))  # type: ignore[no-untyped-call]
        self._is_last = False
        self._sent: list[Any] = []

    def clear_gradients(self) -> None:
        """Begin a step: all gradients are 0."""
        for bucket in self._buckets:
            bucket.clear()

    def backward(self, loss: Tensor | None, *, is_last: bool) -> None:
        """As Engine.backward; in the last round a bucket is sent once its gradients are there."""
        self._is_last = is_last
        super().backward(loss, is_last=is_last)
        self._is_last = False

    def sum_gradients(self) -> None:
        """As Engine.sum_gradients."""
        while len(self._sent) < len(self._buckets):
            self._send()
        for work in self._sent:
            work.wait()
        self._sent = []

    def validate(self, figures: Callable[[], Figures | None]) -> Figures | None:
        """As Engine.validate."""
        answer = super().validate(figures)
        share_buffers(self.model)
        return answer

    def share_weights(self) -> None:
        """As Engine.share_weights."""
        for work in [dist.broadcast(parameter.data, owner, async_op=True) for parameter, owner in self._owners.items()]:
            work.wait()

    def save(self, state: RunState, tensors: Mapping[str, Tensor], progress: Mapping[str, Any]) -> None:
        """As Engine.save; where ranks have parts of the optimiser, each writes its own."""
        if self._owners:
            save_in_parts(state, tensors, progress, self._world)
        else:
            super().save(state, tensors, progress)

    def close(self) -> nn.Module:
        """As Engine.close."""
        for hook in self._hooks:
            hook.remove()
        close_process_group()
        return self.model

    def _count(self, parameter: nn.Parameter) -> None:
        """Called within a backward pass, once the parameter has its gradient."""
        if self._is_last:
            self._bucket_of[parameter].n_missing -= 1
            while len(self._sent) < len(self._buckets) and not self._buckets[len(self._sent)].n_missing:
                self._send()

    def _send(self) -> None:
        self._sent.append(dist.all_reduce(self._buckets[len(self._sent)].flat, async_op=True))


class InRankOrder(Engine):
    """Every rank has the whole model, and gradients are added one microbatch after the other, in rank order, as one rank would:
    the same bits for any number of ranks. It costs an exchange a round that nothing hides."""

    def __init__(self, model: nn.Module, world: World) -> None:
        super().__init__(model, world)
        self._sum: np.ndarray | None = None

    def clear_gradients(self) -> None:
        """Begin a step: all gradients are 0."""
        self._sum = None
        for parameter in self.parameters:
            parameter.grad = torch.zeros_like(parameter)

    def backward(self, loss: Tensor | None, *, is_last: bool) -> None:
        """As Engine.backward; a collective."""
        super().backward(loss, is_last=is_last)
        flat = np.concatenate([gradient.detach().cpu().float().numpy().reshape(-1) for gradient in self._gradients()])
        for gradient in self._gradients():
            gradient.zero_()
        if self._sum is not None and self._world.is_root:
            flat += self._sum
        self._sum = np.asarray(self._world.sum_array(flat))

    def sum_gradients(self) -> None:
        """As Engine.sum_gradients; they were added round by round."""
        if self._sum is not None:
            gradients = self._gradients()
            parts = torch.split(torch.from_numpy(self._sum), [gradient.numel() for gradient in gradients])
            for gradient, part in zip(gradients, parts, strict=True):
                gradient.copy_(part.view_as(gradient))

    def _gradients(self) -> list[Tensor]:
        return [parameter.grad for parameter in self.parameters if parameter.grad is not None]


class _Bucket:
    """Parameters of one dtype, whose gradients are parts of `flat`. n_missing: how many gradients a round has not given yet."""

    def __init__(self, parameters: list[nn.Parameter]) -> None:
        self.parameters, self.n_missing = parameters, len(parameters)
        first = parameters[0]
        self.flat = torch.zeros(sum(x.numel() for x in parameters), dtype=first.dtype, device=first.device)

    def clear(self) -> None:
        self.flat.zero_()
        self.n_missing = len(self.parameters)
        parts = torch.split(self.flat, [x.numel() for x in self.parameters])
        for parameter, part in zip(self.parameters, parts, strict=True):
            parameter.grad = part.view_as(parameter)


def _owners(parameters: list[nn.Parameter], size: int) -> dict[nn.Parameter, int]:
    """The rank that updates each parameter: the largest first, each to the rank with the least so far."""
    owners, loads = {}, [0] * size
    for parameter in sorted(parameters, key=lambda x: -x.numel()):
        owners[parameter] = loads.index(min(loads))
        loads[owners[parameter]] += parameter.numel()
    return owners


def _buckets(parameters: list[nn.Parameter]) -> list[_Bucket]:
    """The last parameters first: a model's end has its gradients first."""
    groups: list[list[nn.Parameter]] = []
    n_bytes = 0
    for parameter in reversed(parameters):
        if not groups or n_bytes > _BUCKET_BYTES or parameter.dtype != groups[-1][0].dtype:
            groups.append([])
            n_bytes = 0
        groups[-1].append(parameter)
        n_bytes += parameter.nbytes
    return [_Bucket(group) for group in groups]


def whole(x: Tensor) -> Tensor:
    """The tensor, of the same shape, gathered from all ranks where each has a part of it: then a collective."""
    gathered: Tensor = x.full_tensor() if hasattr(x, "full_tensor") else x
    return gathered


def own_part(x: Tensor, like: Tensor) -> Tensor:
    """What this rank holds of a whole tensor, where `like`, of the same shape, is in parts; else the tensor."""
    if not hasattr(like, "full_tensor"):  # its class, torch's DTensor, takes long to import
        return x
    from torch.distributed.tensor import DTensor, distribute_tensor

    assert isinstance(like, DTensor), "only parts know how they are gathered"
    return distribute_tensor(x.to(like.device), like.device_mesh, like.placements, src_data_rank=None)
