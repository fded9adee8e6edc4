"""The tasks that the training loop runs for Keye-VL: the next token of answers, and pictures against texts.

A step is some packed rows; they are spread over the ranks by their FLOPs, the largest first, and each rank's rows are split
into microbatches likewise. Rows of the next step are built while this one is computed. Visual tokens and questions carry no
loss. Not here: which conversations make a row (data/dataloader.py), and what is trained in which stage (stages.py).
Legend: S tokens, B pairs of a picture or video and a text, D width.
"""

from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import chain
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from kvtools.chance import rng_for
from kvtools.keye.data.augment import Augment
from kvtools.keye.data.dataloader import ConversationLoader, PackedRowLoader, RowPlan, steps
from kvtools.keye.data.packing import conversation_indices, filler_row, joined
from kvtools.keye.model.config import ModelConfig
from kvtools.keye.model.flops import RowShape, pair_flops, row_flops
from kvtools.keye.model.inputs import PackedRow
from kvtools.keye.model.keye import Keye, to_tensor
from kvtools.keye.model.siglip import Siglip
from kvtools.keye.run.stages import Stage
from kvtools.train.cross_entropy import IGNORED, linear_cross_entropy
from kvtools.train.loop import Loss
from kvtools.train.packing import balance, max_over_mean, round_robin
from kvtools.train.sharded import Cut
from kvtools.world import World

StepRows = list[RowPlan]
Loader = ConversationLoader | PackedRowLoader
_MAX_NAMES = 8  # conversations named in a message


class RowLoss(NamedTuple):
    """The sum of the losses of a row's predictions, how many there are; and how many are right of those that are counted, all
    but the ends of turns, which are easy."""

    total: Tensor
    n_right: Tensor
    n: int
    n_counted: int


class PackedRowTask:
    """Steps of packed rows, built ahead of their use: a `train.loop.Task` whose subclasses say what the loss of a row is.

    held_out: rows for validation; is_judged: whether they decide which weights are best, and when to stop. is_sharded: whether
    each rank has a part of the model: then all ranks compute as many rows, all with pictures, some of them fillers.
    """

    model: nn.Module
    cut: Cut | None = None

    def __init__(
        self, loader: Loader, config: ModelConfig, stage: Stage, *, batch_tokens: int, world: World, device: str, seed: int,
        augment: Augment, held_out: Loader | None = None, is_judged: bool = False, is_sharded: bool = False,
    ) -> None:  # fmt: skip
        self.loader, self._held_out, self._is_judged = loader, held_out, is_judged
        self._config, self._stage, self._batch_tokens, self._device = config, stage, batch_tokens, device
        self._visual_tokens = config.image_token, config.video_token
        self._world, self._seed, self._augment = world, seed, augment
        self._is_lockstep = is_sharded
        self._builder = ThreadPoolExecutor(1)  # one thread: building a row takes far less time than computing with it
        self._built: dict[tuple[int, ...], Future[PackedRow]] = {}
        self._next: StepRows = []
        self._epoch = 0
        self._balance: dict[str, float] = {}

    def row_loss(self, row: PackedRow) -> RowLoss | None:
        """The loss of a row; None where it has nothing to learn."""
        raise NotImplementedError

    def flops(self, plan: RowPlan) -> float:
        """FLOPs of a row's matrix products, forward and backward."""
        raise NotImplementedError

    def epoch(self, number: int) -> Iterator[StepRows]:
        """The rows of each step of an epoch."""
        self._epoch, self._next = number, []
        for rows in chain(steps(self.loader.epoch(number), self._batch_tokens), [[]]):
            due, self._next = self._next, rows
            if due:
                yield due

    def n_steps(self) -> int:
        """Steps of the first epoch, which stands for all. Measures every conversation."""
        return sum(1 for _ in steps(self.loader.epoch(0), self._batch_tokens))

    def microbatches(self, rows: StepRows, n: int, own: slice) -> Sequence[StepRows]:
        """The rows in n parts of nearly equal FLOPs, some of which may be empty where there are several ranks.

        From here on the rows of this rank's own parts of the step are built, and those of the next step.
        """
        parts = self._split(rows, n)
        for plan in (plan for step in (parts, self._split(self._next, n)) for part in step[own] for plan in part):
            if plan.indices not in self._built:
                self._built[plan.indices] = self._builder.submit(self.loader.build, plan)
        self._balance = self._load_balance(rows, n)
        return parts if self._world.size > 1 else [part for part in parts if part]

    def loss(self, rows: StepRows) -> Loss:
        """The summed loss of the rows, with the loss and the accuracy as figures."""
        built: Iterable[tuple[RowPlan, PackedRow]] = ((plan, self._row(plan)) for plan in rows)
        if self._is_lockstep:
            built = list(built)
            nothing = self._fillers(sum(bool(row.targets.any()) for _, row in built))
        else:  # an unreadable row may leave nothing, and rows of text alone do not reach a projector that is trained alone
            nothing = next(p for p in self.model.parameters() if p.requires_grad).sum() * 0
        losses: list[RowLoss] = []
        n_tokens, flops = 0, 0.0
        for plan, row in built:
            if (loss := self.row_loss(row)) is not None:
                losses.append(loss)
                n_tokens, flops = n_tokens + len(row), flops + self.flops(plan)
        if not losses:
            return Loss(nothing, 0, {"loss": 0.0, "accuracy": 0.0, "accuracy_of": 0.0})
        total, n_right = (torch.stack(sums).sum() for sums in ([x.total for x in losses], [x.n_right for x in losses]))
        n_counted = sum(loss.n_counted for loss in losses)
        figures: dict[str, Tensor | float] = {"loss": total.detach(), "accuracy": n_right, "accuracy_of": n_counted}
        total = total + nothing if self._is_lockstep or not total.requires_grad else total
        return Loss(total, sum(loss.n for loss in losses), figures, tokens=n_tokens, flops=flops)

    @torch.no_grad()
    def validate(self) -> dict[str, float] | None:
        """Loss and accuracy on the held-out rows, and the negative loss as the score; None without any."""
        held_out = self._held_out
        rows = (held_out.build(plan) for plan in held_out.epoch(0)) if held_out is not None else ()
        losses = [loss for row in rows if (loss := self.row_loss(row)) is not None]
        if not losses:
            return None
        total, n_right, n, n_counted = (float(sum(values)) for values in zip(*losses, strict=True))
        figures = {"valid_loss": total / n, "valid_accuracy": n_right / max(1.0, n_counted)}
        return figures | ({"score": -total / n} if self._is_judged else {})

    def after_step(self, _world: World) -> dict[str, float]:
        """How evenly the step's work was spread."""
        return self._balance

    def describe(self, rows: StepRows) -> str:
        """The keys of the first conversations of the rows."""
        keys = [key for plan in rows for key in plan.keys]
        return ", ".join(keys[:_MAX_NAMES]) + (f" and {len(keys) - _MAX_NAMES} more" if len(keys) > _MAX_NAMES else "")

    def close(self) -> None:
        """Stop building rows."""
        self._builder.shutdown(wait=True, cancel_futures=True)

    def _split(self, rows: StepRows, n: int) -> list[StepRows]:
        """The rows split over the ranks, and each rank's rows over its parts: part i is of rank i modulo their number."""
        n_ranks, flops = self._world.size, [self.flops(plan) for plan in rows]
        n_of_rank = -(-n // n_ranks)
        of_ranks = balance(flops, n_ranks)
        of_parts = [balance([flops[index] for index in mine], n_of_rank) for mine in of_ranks]
        return [
            [rows[mine[k]] for k in sorted(parts[number])]
            for number in range(n_of_rank)
            for mine, parts in zip(of_ranks, of_parts, strict=True)
        ]

    def _load_balance(self, rows: StepRows, n: int) -> dict[str, float]:
        """The largest load over the mean, of the ranks, or of the microbatches of one rank; and the same had rows been dealt in
        turn."""
        n_workers = self._world.size if self._world.size > 1 else min(n, len(rows))
        flops = [self.flops(plan) for plan in rows]
        parts = {"load_max_over_mean": balance(flops, n_workers), "in_turn_max_over_mean": round_robin(len(rows), n_workers)}
        return {name: max_over_mean(flops, part) for name, part in parts.items()}

    def filler_loss(self) -> Tensor:
        """Of a row with nothing to learn, a scalar that is 0, with gradients that are 0."""
        raise NotImplementedError

    def _fillers(self, n_rows: int) -> Tensor:
        """The loss of as many fillers as another rank has rows more than this one; a collective."""
        n_fillers = self._world.max(n_rows) - n_rows
        return torch.zeros((), device=self._device) + sum(self.filler_loss() for _ in range(n_fillers))

    def _row(self, plan: RowPlan) -> PackedRow:
        built = self._built.pop(plan.indices, None)
        row = built.result() if built is not None else self.loader.build(plan)
        return self._augment(row, self._visual_tokens, lambda key: rng_for(self._seed, "augment", self._epoch, key))


class NextToken(PackedRowTask):
    """Next-token prediction of the assistant's text, for every stage but the first. end_token: of a turn. cut: of the model."""

    def __init__(self, model: Keye, *args: Any, end_token: int = IGNORED, **options: Any) -> None:
        super().__init__(*args, **options)
        self.model: Keye = model
        self.cut = Cut([*model.tower.encoder.layers, *model.model.layers], ("encode_row",))
        self._end_token = end_token
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(self._stage.learns(name))

    def flops(self, plan: RowPlan) -> float:
        """FLOPs of a row's matrix products, of what is trained forward and backward, of the rest forward."""
        shape = RowShape(plan.lengths, plan.grid.tolist(), plan.n_targets)
        return row_flops(self._config, shape).training(self._stage.trains, has_adapters=self._stage.has_adapters)

    def row_loss(self, row: PackedRow) -> RowLoss | None:
        """Cross-entropy of the row's targets; None where it has none."""
        if not row.targets.any():
            return None
        if self._is_lockstep and row.pixels is None:
            row = joined(row, filler_row(self._config))
        # the first token of a conversation is never a target, so that no prediction crosses from one to the next
        labels = np.where(row.targets == 1, row.tokens, IGNORED).astype(np.int64)[1:]
        hidden_SD = self.model.encode_row(row)
        targets = to_tensor(labels, self._device)
        loss, n_right = linear_cross_entropy(hidden_SD[:-1], self.model.output_VD, targets, uncounted=self._end_token)
        n = int(row.targets.sum())
        return RowLoss(loss, n_right, n, n - int((labels == self._end_token).sum()) if self._end_token != IGNORED else n)

    def filler_loss(self) -> Tensor:
        """As PackedRowTask.filler_loss."""
        return self.model.encode_row(filler_row(self._config)).sum() * 0


class SigmoidContrastive(PackedRowTask):
    """Stage 0: the first picture or video of each conversation against the assistant's text, within each row (SigLIP's loss).

    A row is a batch of pairs, the same for any number of ranks; equal texts are positives for each other's pictures.
    """

    def __init__(self, model: Siglip, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.model: Siglip = model

    def flops(self, plan: RowPlan) -> float:
        """FLOPs of a row's matrix products, forward and backward."""
        return pair_flops(self._config.vision, self.model.text_model.config, plan.grid.tolist(), plan.n_targets)

    def row_loss(self, row: PackedRow) -> RowLoss | None:
        """The contrastive loss of the row's pairs; None where it has none."""
        visuals, texts = _pairs(row, self._visual_tokens, self.model.text_model.config.positions)
        if row.pixels is None or not texts:
            return None
        device = self._device
        images_BD = self.model.encode_images(to_tensor(row.pixels, device), row.grid.tolist())[visuals]
        starts = np.cumsum([0, *map(len, texts)])[:-1].tolist()
        texts_BD = self.model.encode_texts(to_tensor(np.concatenate(texts).astype(np.int64), device), starts)
        number_of = {text.tobytes(): n for n, text in enumerate(texts)}
        text_B = torch.tensor([number_of[text.tobytes()] for text in texts], device=device)
        is_same_BB = text_B[:, None] == text_B[None, :]
        nearest_B = (images_BD @ texts_BD.T).argmax(1)
        n_right = is_same_BB[torch.arange(len(texts), device=device), nearest_B].sum()
        return RowLoss(self.model.loss(images_BD, texts_BD, is_same_BB) * len(texts), n_right, len(texts), len(texts))


def _pairs(row: PackedRow, visual_tokens: tuple[int, int], max_tokens: int) -> tuple[list[int], list[np.ndarray]]:
    """For each conversation with pictures and targets, the index of its first picture or video, and its targets' tokens.

    A text is cut to max_tokens tokens, of which the last is always the one that ends the turn.
    """
    conversations = conversation_indices(row, visual_tokens)
    ends = [*row.segments[1:].tolist(), len(row)]
    visuals, texts = [], []
    for index in sorted(set(conversations)):
        span = slice(row.segments[index], ends[index])
        text = row.tokens[span][row.targets[span] == 1]
        if len(text):
            visuals.append(conversations.index(index))
            texts.append(text if len(text) <= max_tokens else np.concatenate([text[: max_tokens - 1], text[-1:]]))
    return visuals, texts
