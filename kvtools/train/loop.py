"""The training loop that all models share: steps, microbatches, ranks, validation, stopping, resuming, the log.

A task brings batches and a loss. The batch of a step does not depend on the number of ranks or microbatches: a step is cut
into microbatches, rank r takes every size-th of them, and gradients are summed over ranks by an engine (engine.py), so that all
ranks hold the same weights to the bit; other numbers of ranks differ by the rounding of sums, unless the plan adds in order,
and, with dropout, by its draw for each microbatch.
Parameters that want no gradient when a run is made get none: they are kept as they are.

Random numbers come from (seed, step, microbatch), never from a generator's state, so that a resumed run equals an uninterrupted
one. AdamW after Loshchilov and Hutter 2019, torch's own; matrices decay, vectors do not.
"""

import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from kvtools.artifact.state import RunState
from kvtools.artifact.training_log import TrainingLog
from kvtools.chance import seed_for
from kvtools.errors import Fault, Stopped
from kvtools.progress import Ticker
from kvtools.train.board import Board
from kvtools.train.lr_schedule import LrSchedule
from kvtools.train.parts import ModelWriters
from kvtools.train.peak_flops import measured_peak
from kvtools.train.resume import Progress, changing_tensors, restore, state_tensors
from kvtools.train.sharded import Cut, open_engine
from kvtools.world import World

Batch = TypeVar("Batch")

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


@dataclass(frozen=True)
class Loss:
    """The loss of a microbatch, summed over what it counts.

    total: float32 scalar, to be differentiated. count: over how many terms it is summed. logged: more sums over the same terms,
    which the log shows as means; NAME_of among them says over how many terms NAME is summed, where they are others. tokens: how
    many went in. flops: of the products, forward and backward.
    """

    total: Tensor
    count: int
    logged: dict[str, Tensor | float] = field(default_factory=dict)
    tokens: int = 0
    flops: float = 0.0


class Task(Protocol[Batch]):
    """What a model brings to the loop."""

    @property
    def model(self) -> nn.Module:
        """The model that is trained."""

    def epoch(self, number: int) -> Iterator[Batch]:
        """The batch of each step, the same every time for the same number."""

    def microbatches(self, batch: Batch, n: int, own: slice, /) -> Sequence[Batch]:
        """The batch in at most n parts of nearly equal work. own: those that this rank will ask the loss of."""

    def loss(self, batch: Batch) -> Loss:
        """The loss of a microbatch; called under autocast."""

    def after_step(self, world: World) -> dict[str, float]:
        """Do what follows an update, such as balancing experts; a collective. Returns metrics for the log."""

    def validate(self) -> dict[str, float] | None:
        """Metrics on held-out data, of which "score" is better when larger; None where there are none."""

    def describe(self, batch: Batch) -> str:
        """The batch in words, for an error message."""


@dataclass(frozen=True)
class Plan:
    """How long and how fast to train. All but what the command's options set is our choice."""

    epochs: int
    n_steps: int  # in all: what the cosine spans
    lr: float = 1e-3
    warmup: int = 200  # steps
    lr_schedule: Literal["cosine", "constant"] = "cosine"
    weight_decay: float = 0.1
    betas: tuple[float, float] = (0.9, 0.98)
    clip: float = 1.0  # norm of the gradients, at most
    n_microbatches: int = 1  # a step: gradient accumulation
    patience: int = 0  # epochs without a better score until the run ends; 0: never
    save_every: int = 0  # steps between states saved within an epoch, for what gives no warning; 0: none
    worthless: float = -math.inf  # a score that tells nothing: such weights are not kept while there is no better score
    validates_first: bool = False  # whether the weights that the run begins with are validated too, and may be the best
    adds_in_order: bool = False  # whether gradients are added as one rank would: an exchange a microbatch, not a step
    validate_every: int = 0  # steps between validations within an epoch, beside those at its end; 0: none
    lr_factors: dict[str, float] = field(default_factory=dict)  # prefix of names -> factor of the rate; the longest that fits
    dtype: Literal["float32", "bfloat16"] = "float32"
    seed: int = 0


@dataclass(frozen=True)
class TrainStep:
    """One update, or the end of an epoch (`validation` is then set): what is logged."""

    step: int
    epoch: float
    metrics: dict[str, float]
    validation: dict[str, float] | None = None


class Trainer:
    """A run over a task; iterate `run` for its steps. Afterwards `model` has the best weights found, on rank 0 all of them.

    peak: FLOP/s of the device, for mfu; None: measured here; 0: no mfu. cut: how the model is cut into parts, one a rank; None:
    every rank has the whole model. keeps_parts: whether a model in parts remains so in the end, for `writers` to write.
    shards_optimizer: whether each rank updates a part of the weights, and has the optimiser's state of these only.
    """

    def __init__(
        self, task: Task[Any], plan: Plan, state: RunState, world: World, *, device: str = "cpu", peak: float | None = 0.0,
        cut: Cut | None = None, keeps_parts: bool = False, shards_optimizer: bool = False,
    ) -> None:  # fmt: skip
        self._keeps_parts = keeps_parts
        self.writers: ModelWriters | None = None
        self.task, self.plan, self.is_root, self._state, self._world, self._device = (
            task, plan, world.is_root, state, world, device,
        )  # fmt: skip
        self.peak = measured_peak(device, DTYPES[plan.dtype]) if peak is None else peak
        self.is_peak_measured = peak is None
        self.progress, self.is_resumed = Progress(threads=torch.get_num_threads()), False
        self.best: dict[str, Tensor] = {}
        self.model: Any = task.model  # the task says what it is
        # before the optimiser, which takes the parts of weights
        self._engine = open_engine(
            task.model, world, device, in_order=plan.adds_in_order, cut=cut, shards_optimizer=shards_optimizer
        )
        groups = _parameter_groups(task.model, plan, self._engine.updated)
        self._optimizer = torch.optim.AdamW(groups, lr=plan.lr, betas=plan.betas, fused=True)
        self._schedule = LrSchedule(plan.lr, plan.n_steps, plan.warmup, plan.lr_schedule)

    def resume(self, *, start_over: bool) -> bool:
        """Continue from the saved state, if there is one; whether there was. Raises Usage and Corrupt as RunState.load does."""
        bag = self._state.load(start_over=start_over)
        if bag is not None:
            self.progress, self.best = restore(bag, self._state.parts_of(bag), self.task.model, self._optimizer)
            if self.progress.threads:  # sums over another number of threads would have other rounding
                torch.set_num_threads(self.progress.threads)
        self.is_resumed = bag is not None
        return self.is_resumed

    def run(self, stop: object) -> Iterator[TrainStep]:
        """Train to the end. The state stays until `forget`: weights that cannot be written are not lost.

        Raises Stopped, everything saved where there is a folder, when any rank is asked to stop; Fault for a loss that is not
        finite, naming the rows, with the last saved state kept.
        """
        with self._world.explaining_failures():
            yield from self._run(stop)

    def _run(self, stop: object) -> Iterator[TrainStep]:
        at = self.progress
        is_first = self.plan.validates_first and at.step == 0 and at.best_score is None
        if is_first and (validation := self._validate()) is not None:
            yield TrainStep(0, 0, {}, validation)
        # a run stopped after its last step has that epoch's validation before it still
        while at.epoch < self.plan.epochs and (at.step < self.plan.n_steps or at.batch) and not at.is_over:
            for number, batch in enumerate(self.task.epoch(at.epoch)):
                if number < at.batch:
                    continue
                if at.step >= self.plan.n_steps:
                    break
                yield self._step(batch)
                at.batch, at.step = number + 1, at.step + 1
                is_due = self.plan.validate_every and at.step % self.plan.validate_every == 0 and at.step < self.plan.n_steps
                if is_due and (validation := self._validate()) is not None:  # before a stop, which saves what it found
                    yield TrainStep(at.step, at.epoch, {}, validation)
                if self._world.any(stop):
                    raise self._stopped()
                if self.plan.save_every and at.step % self.plan.save_every == 0:
                    self._save()
            at.epoch, at.batch = at.epoch + 1, 0
            validation = self._validate()
            self._save()
            if validation is not None:
                yield TrainStep(at.step, at.epoch, {}, validation)
        if self.best:
            self.task.model.load_state_dict(self.best, strict=False)
        self._engine.clear_gradients()
        self._optimizer.state.clear()
        self.writers = self._engine.writers() if self._keeps_parts else None
        if self.writers is None:
            self.model = self._engine.close()

    def forget(self) -> None:
        """Remove the saved state: the weights are where they belong."""
        self._state.forget()

    def _step(self, batch: Any) -> TrainStep:
        """One update by the mean gradient of a batch; none where nothing in the batch could be read."""
        start = time.perf_counter()
        lr = self._schedule.at(self.progress.step)
        for group in self._optimizer.param_groups:
            group["lr"] = lr * group["factor"]
        sums = self._backward(batch)
        count, tokens, flops = (sums.pop(name) for name in ("count", "tokens", "flops"))
        metrics = self._update(batch, sums, count) if count else {}
        seconds = time.perf_counter() - start
        self.progress.tokens += int(tokens)
        self.progress.loss = metrics.get("loss", self.progress.loss)
        metrics |= {"rate": lr, "tokens": self.progress.tokens, "tokens_per_s": tokens / seconds, "seconds": seconds}
        if self.peak and count:
            metrics["mfu"] = flops / (seconds * self.peak * self._world.size)
        return TrainStep(self.progress.step + 1, self.progress.epoch + 1, metrics)

    def _backward(self, batch: Any) -> dict[str, float]:
        """Add up the gradients of this rank's microbatches; returns the sums over all ranks of what their losses hold."""
        self.task.model.train()
        self._engine.clear_gradients()
        size = self._world.size
        own = slice(self._world.rank, None, size)
        microbatches = self.task.microbatches(batch, max(self.plan.n_microbatches, size), own)
        sums: dict[str, float] = {"count": 0.0, "tokens": 0.0, "flops": 0.0}
        for begin in range(0, len(microbatches), size):
            number, total = begin + self._world.rank, None
            if number < len(microbatches):
                loss = self._loss(microbatches[number], number)
                total = loss.total
                for name, value in {"count": loss.count, "tokens": loss.tokens, "flops": loss.flops, **loss.logged}.items():
                    sums[name] = sums.get(name, 0.0) + float(value)
            elif self._engine.is_lockstep:
                self.task.model.eval()  # it only keeps the others company: experts do not count its tokens
                total = self._loss(microbatches[-1], number).total * 0
            self._engine.backward(total, is_last=begin + size >= len(microbatches))
        self._engine.sum_gradients()
        # ranks without a microbatch know no names; rank 0 always has one
        names = self._world.broadcast(sorted(sums))
        totals = self._world.sum_array(np.array([sums.get(name, 0.0) for name in names])).tolist()
        return dict(zip(names, totals, strict=True))

    def _loss(self, microbatch: Any, number: int) -> Loss:
        """The loss of a step's microbatch of that number."""
        torch.manual_seed(seed_for(self.plan.seed, "step", self.progress.step, number))
        with torch.autocast(torch.device(self._device).type, DTYPES[self.plan.dtype], enabled=self.plan.dtype != "float32"):
            return self.task.loss(microbatch)

    def _update(self, batch: Any, sums: dict[str, float], count: float) -> dict[str, float]:
        """Step the optimiser by the mean gradient over all ranks; returns the metrics."""
        metrics = {name: value / (sums.get(f"{name}_of") or count) for name, value in sums.items() if not name.endswith("_of")}
        self._require_finite("loss", metrics.values(), batch)
        self._engine.average_gradients(count)
        metrics["grad_norm"] = self._engine.clip_gradients(self.plan.clip)
        # a finite loss can have a gradient that is not, and an update by it would leave no weight whole
        self._require_finite("gradient", [metrics["grad_norm"]], batch)
        self._optimizer.step()
        self._engine.share_weights()
        return metrics | self.task.after_step(self._world)

    def _require_finite(self, what: str, values: Iterable[float], batch: Any) -> None:
        """Raise Fault, naming the batch, unless all are finite; called with the same values on all ranks."""
        if not all(map(math.isfinite, values)):
            step = f"step {self.progress.step + 1}: the {what} of {self.task.describe(batch)} is not finite."
            kept = " The last saved state is kept, and a run with other options must start over." if self._state.is_kept else ""
            raise Fault(f"{step} Lower the learning rate, or leave that data out.{kept}")

    def _validate(self) -> dict[str, float] | None:
        """Metrics of the validation, the same on all ranks; keeps the weights where its score is the best so far."""
        self.task.model.eval()
        metrics = self._engine.validate(self.task.validate)
        if metrics is None:
            return None
        at = self.progress
        at.first = at.first or metrics  # even where it has no score: a later one is not that of the first weights
        if not metrics.get("score", math.nan) > (self.plan.worthless if at.best_score is None else -math.inf):
            return metrics
        if at.best_score is None or metrics["score"] > at.best_score:
            at.best_score, at.best_epoch, at.best = metrics["score"], at.epoch, metrics
            self.best = {name: x.detach().clone() for name, x in changing_tensors(self.task.model).items()}
        at.is_over = bool(self.plan.patience) and at.epoch - at.best_epoch >= self.plan.patience
        return metrics

    def _save(self) -> None:
        if self._state.path is not None:
            tensors = state_tensors(self.task.model, self.best, self._optimizer)
            self._engine.save(self._state, tensors, vars(self.progress))

    def _stopped(self) -> Stopped:
        self._save()
        if self._state.path is not None:
            return Stopped(f"stopped after step {self.progress.step}. Run again to continue.")
        lost = Stopped(f"stopped after step {self.progress.step}, and nothing is saved. Name a folder to keep the state in.")
        lost.code = 143  # 75 would promise that it resumes
        return lost


def resume_run(run: Trainer, folder: str | None, *, start_over: bool, log: Callable[[str], None], summary: str) -> None:
    """Resume a run from its state, if there is one, and log that; else log the summary of a new run, unless it is empty."""
    if run.resume(start_over=start_over):
        log(f"{folder}: resumes after step {run.progress.step}.")
    elif summary:
        log(summary)
        source = f"measured here in {run.plan.dtype}" if run.is_peak_measured else "given"
        log(f"mfu: FLOPs of the model's products / (seconds * {run.peak:.3g} FLOP/s {source}).")


def log_run(
    run: Trainer, steps: Iterable[TrainStep], *, label: str, log_file: str | None, log: Callable[[str], None], quiet: bool,
    verbose: bool, tensorboard: str | None = None, **fields: object,
) -> None:  # fmt: skip
    """Go through the steps of a run; rank 0 shows progress unless `quiet`, and logs validations if `verbose`.

    log_file: gets a line of JSON per step and per epoch, each with `fields`. tensorboard: a folder that gets the same numbers.
    """
    ticker = Ticker(total=run.plan.n_steps - run.progress.step, unit="steps", label=label, quiet=quiet or not run.is_root)
    at = run.progress.step if run.is_resumed else None
    with (
        TrainingLog(log_file if run.is_root else None, at=at) as curve,
        Board(tensorboard if run.is_root else None, at) as board,
    ):
        for step in steps:
            if step.validation is None:
                ticker()
            elif verbose:
                log(f"epoch {step.epoch:g}: " + ", ".join(f"{name} {x:.4g}" for name, x in step.validation.items()) + ".")
            board.write(step.step, {**step.metrics, **(step.validation or {})})
            curve.write({**fields, "step": step.step, "epoch": step.epoch, **step.metrics, **(step.validation or {})})


def _parameter_groups(model: nn.Module, plan: Plan, updated: set[nn.Parameter]) -> list[dict[str, Any]]:
    """The parameters to update here, by factor of the learning rate and by whether they decay. Raises ValueError for a prefix
    that no name has."""
    named = list(model.named_parameters())
    for prefix in plan.lr_factors:
        if not any(name.startswith(prefix) for name, _ in named):
            raise ValueError(f"lr_factors: no parameter's name begins with {prefix!r}")
    groups: dict[tuple[float, bool], list[nn.Parameter]] = {}
    for name, parameter in named:
        if parameter.requires_grad:
            fitting = [prefix for prefix in plan.lr_factors if name.startswith(prefix)]
            factor = plan.lr_factors[max(fitting, key=len)] if fitting else 1.0
            groups.setdefault((factor, parameter.ndim >= 2), []).extend({parameter} & updated)
    return [
        {"params": parameters, "factor": factor, "weight_decay": plan.weight_decay if decays else 0.0}
        for (factor, decays), parameters in groups.items()
    ]
