"""The training loop that all models share: steps, pieces of a step, ranks, validation, stopping, resuming.

A task brings rows and a loss. The rows of a step do not depend on the number of ranks or pieces: a step is cut into pieces,
rank r takes every size-th of them, and gradients are added in rank order, so that all ranks hold the same weights to the
bit; other numbers of ranks differ by the rounding of sums, and, with dropout, by its draw for each piece. Parameters that
want no gradient when a run is made get none: they are kept as they are.

Chance comes from (seed, step, piece), never from a generator's state, so that a resumed run equals an uninterrupted one.
AdamW after Loshchilov and Hutter 2019, torch's own; matrices decay, vectors do not.
"""

import math
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from kvtools.chance import seed_for
from kvtools.errors import Fault, Stopped
from kvtools.train.lr_schedule import Rate
from kvtools.train.resume import Progress, State
from kvtools.world import World

Rows = TypeVar("Rows")

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


@dataclass(frozen=True)
class Loss:
    """A piece's loss, summed over what it counts: to be differentiated, how many, and sums to be told."""

    total: Tensor
    count: int
    told: dict[str, Tensor | float] = field(default_factory=dict)
    tokens: int = 0
    flops: float = 0.0


class Task(Protocol[Rows]):
    """What a model brings to the loop."""

    @property
    def model(self) -> nn.Module:
        """What is trained."""

    def epoch(self, number: int) -> Iterator[Rows]:
        """The rows of each step, the same every time for the same number."""

    def pieces(self, rows: Rows, n: int) -> Sequence[Rows]:
        """The rows in at most n parts, of work as equal as may be."""

    def loss(self, rows: Rows) -> Loss:
        """The loss of some rows; called under autocast."""

    def after_step(self, world: World) -> dict[str, float]:
        """What follows an update, such as balancing experts; a collective. Returns what is to be told."""

    def validate(self) -> dict[str, float] | None:
        """Figures on held-out data, of which "score" is better when larger; None where there are none."""

    def names(self, rows: Rows) -> str:
        """The rows in words, for a fault."""


@dataclass(frozen=True)
class Plan:
    """How long and how fast to learn. All but what the command's options set is our choice."""

    epochs: int
    n_steps: int  # in all: what the cosine spans
    rate: float = 1e-3
    warmup: int = 200
    shape: Literal["cosine", "constant"] = "cosine"
    weight_decay: float = 0.1
    betas: tuple[float, float] = (0.9, 0.98)
    clip: float = 1.0  # norm of the gradients, at most
    pieces: int = 1  # a step is worked through in so many parts: gradient accumulation
    patience: int = 0  # epochs without a better score until the run ends; 0: never
    save_every: int = 0  # steps between states put aside within an epoch, for what gives no warning; 0: none
    rates: dict[str, float] = field(default_factory=dict)  # how names begin -> factor of the rate; the longest that fits
    dtype: Literal["float32", "bfloat16"] = "float32"
    seed: int = 0


@dataclass(frozen=True)
class Step:
    """One update, or the end of an epoch (`validation` is then set): what is logged."""

    step: int
    epoch: float
    figures: dict[str, float]
    validation: dict[str, float] | None = None


class Training:
    """A run over a task; iterate `run` for its steps. Afterwards the model has the best weights found."""

    def __init__(
        self, task: Task[Any], plan: Plan, state: State, world: World, *, device: str = "cpu", peak: float = 0.0
    ) -> None:
        self.task, self.plan, self.peak, self._state, self._world, self._device = task, plan, peak, state, world, device
        self.progress = Progress()
        self.best: dict[str, Tensor] = {}
        groups = _groups(task.model, plan)
        self._optimizer = torch.optim.AdamW(groups, lr=plan.rate, betas=plan.betas, fused=True)
        self._parameters = [p for p in task.model.parameters() if p.requires_grad]

    def take_up(self, *, start_over: bool) -> bool:
        """Continue from the state, if there is one; whether there was."""
        if start_over:
            self._state.forget()
            return False
        found = self._state.load(self.task.model, self._optimizer)
        if found is not None:
            self.progress, self.best = found
        return found is not None

    def run(self, stop: object) -> Iterator[Step]:
        """Train to the end. The state stays until `forget`: weights that cannot be written are not lost.

        Raises Stopped, everything saved where there is a folder, when any rank is asked to stop; Fault for a loss that is not
        finite, naming the rows, with the state that was put aside last kept.
        """
        rate = Rate(self.plan.rate, self.plan.n_steps, self.plan.warmup, self.plan.shape)
        at = self.progress
        # a run stopped after its last step has that epoch's validation before it still
        while at.epoch < self.plan.epochs and (at.step < self.plan.n_steps or at.batch) and not at.is_over:
            for number, rows in enumerate(self.task.epoch(at.epoch)):
                if number < at.batch:
                    continue
                if at.step >= self.plan.n_steps:
                    break
                yield self._step(rows, rate.at(at.step))
                at.batch, at.step = number + 1, at.step + 1
                if self._world.any(stop):
                    raise self._stopped()
                if self.plan.save_every and at.step % self.plan.save_every == 0:
                    self._save()
            at.epoch, at.batch = at.epoch + 1, 0
            told = self._validate()
            self._save()
            if told is not None:
                yield Step(at.step, at.epoch, {}, told)
        if self.best:
            self.task.model.load_state_dict(self.best)

    def forget(self) -> None:
        """The weights are where they belong: the state may go."""
        self._state.forget()

    def _step(self, rows: Any, rate: float) -> Step:
        begun = time.perf_counter()
        self.task.model.train()
        for group in self._optimizer.param_groups:
            group["lr"] = rate * group["factor"]
        self._optimizer.zero_grad(set_to_none=True)
        pieces = self.task.pieces(rows, max(self.plan.pieces, self._world.size))
        sums: dict[str, float] = {"count": 0.0, "tokens": 0.0, "flops": 0.0}
        for number in range(self._world.rank, len(pieces), self._world.size):
            torch.manual_seed(seed_for(self.plan.seed, "step", self.progress.step, number))
            with torch.autocast(torch.device(self._device).type, DTYPES[self.plan.dtype], enabled=self.plan.dtype != "float32"):
                loss = self.task.loss(pieces[number])
            loss.total.backward()  # type: ignore[no-untyped-call]
            for name, value in {"count": loss.count, "tokens": loss.tokens, "flops": loss.flops, **loss.told}.items():
                sums[name] = sums.get(name, 0.0) + float(value)
        # ranks without a piece know no names; rank 0 always has one
        names = self._world.broadcast(sorted(sums))
        total = dict(zip(names, self._world.sum_array(np.array([sums.get(name, 0.0) for name in names])).tolist(), strict=True))
        count, tokens, flops = (total.pop(name) for name in ("count", "tokens", "flops"))
        if not count:  # nothing in this step could be read, so there is nothing to learn from it
            seconds = time.perf_counter() - begun
            told = {"rate": rate, "tokens": self.progress.tokens, "tokens_per_s": 0.0, "seconds": seconds}
            return Step(self.progress.step + 1, self.progress.epoch + 1, told)
        figures = {name: value / count for name, value in total.items()}
        self._require_finite("loss", figures.values(), rows)
        self._share_gradients(count)
        figures["grad_norm"] = float(nn.utils.clip_grad_norm_(self._parameters, self.plan.clip))
        # a finite loss can have a gradient that is not, and an update by it would leave no weight whole
        self._require_finite("gradient", [figures["grad_norm"]], rows)
        self._optimizer.step()
        figures |= self.task.after_step(self._world)
        seconds = time.perf_counter() - begun
        self.progress.tokens += int(tokens)
        self.progress.loss = figures.get("loss", self.progress.loss)
        figures |= {"rate": rate, "tokens": self.progress.tokens, "tokens_per_s": tokens / seconds, "seconds": seconds}
        if self.peak:
            figures["mfu"] = flops / (seconds * self.peak * self._world.size)
        return Step(self.progress.step + 1, self.progress.epoch + 1, figures)

    def _require_finite(self, what: str, values: Iterable[float], rows: Any) -> None:
        """Raise Fault, naming the rows, unless all are finite; called with the same values on all ranks."""
        if not all(map(math.isfinite, values)):
            kept = f" {self._where()}" if self._state.is_kept else ""
            raise Fault(f"step {self.progress.step + 1}: a {what} that is not finite, at {self.task.names(rows)}.{kept}")

    def _share_gradients(self, count: float) -> None:
        for parameter in self._parameters:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        if self._world.size > 1:
            flat = np.concatenate([_flat(p) for p in self._parameters])
            summed = torch.from_numpy(self._world.sum_array(flat))
            begin = 0
            for parameter in self._parameters:
                part = summed[begin : begin + parameter.numel()].view_as(parameter)
                assert parameter.grad is not None, "given above"
                parameter.grad.copy_(part)
                begin += parameter.numel()
        for parameter in self._parameters:
            assert parameter.grad is not None, "given above"
            parameter.grad.div_(count)

    def _validate(self) -> dict[str, float] | None:
        self.task.model.eval()
        told = self.task.validate() if self._world.is_root else None
        told = self._world.broadcast(told)
        at = self.progress
        if told is None or "score" not in told:
            return told if told is None else dict(told)
        if at.best_score is None or told["score"] > at.best_score:
            at.best_score, at.best_epoch = told["score"], at.epoch
            self.best = {name: x.detach().clone() for name, x in self.task.model.state_dict().items()}
        at.is_over = bool(self.plan.patience) and at.epoch - at.best_epoch >= self.plan.patience
        return dict(told)

    def _save(self) -> None:
        if self._world.is_root:
            self._state.save(self.task.model, self.best, self._optimizer, self.progress)

    def _stopped(self) -> Stopped:
        self._save()
        if self._state.has_place:
            return Stopped(f"stopped after step {self.progress.step}. Run again to continue.")
        lost = Stopped(f"stopped after step {self.progress.step}, and kept nowhere. Run again with --state DIR.")
        lost.code = 143  # 75 would promise that it goes on
        return lost

    def _where(self) -> str:
        return "The last state is kept; run again with --force, which starts over, and a lower --lr or without that data."


def _groups(model: nn.Module, plan: Plan) -> list[dict[str, Any]]:
    """What is trained, by factor of the rate and by whether it decays. Raises ValueError for a rate that nothing has."""
    named = list(model.named_parameters())
    for beginning in plan.rates:
        if not any(name.startswith(beginning) for name, _ in named):
            raise ValueError(f"rates: {beginning!r}: no parameter's name begins so")
    groups: dict[tuple[float, bool], list[nn.Parameter]] = {}
    for name, parameter in named:
        if parameter.requires_grad:
            fitting = [beginning for beginning in plan.rates if name.startswith(beginning)]
            factor = plan.rates[max(fitting, key=len)] if fitting else 1.0
            groups.setdefault((factor, parameter.ndim >= 2), []).append(parameter)
    return [
        {"params": parameters, "factor": factor, "weight_decay": plan.weight_decay if decays else 0.0}
        for (factor, decays), parameters in groups.items()
    ]


def _flat(parameter: nn.Parameter) -> np.ndarray:
    assert parameter.grad is not None, "given before"
    return parameter.grad.detach().cpu().float().numpy().reshape(-1)
