"""The tasks that the shared loop runs for Keye-VL: the next token of answers, and pictures against texts.

A step is some packed rows; they are spread over the ranks by their FLOPs, the largest first, and each rank's share is cut into
pieces likewise. Rows of the next step are built while this one is computed. Visual tokens and questions carry no loss. Not
here: which conversations make a row (feed.py), and what learns in which stage (stages.py).
"""

from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from kvtools.chance import rng_for
from kvtools.keye.data import dataloader as feed
from kvtools.keye.data.augment import Augment
from kvtools.keye.data.dataloader import Feed, Load, PackedFeed
from kvtools.keye.data.packing import owners
from kvtools.keye.model.config import ModelConfig
from kvtools.keye.model.flops import RowShape, pair_flops, row_flops
from kvtools.keye.model.inputs import PackedRow
from kvtools.keye.model.keye import Keye
from kvtools.keye.model.siglip import Siglip
from kvtools.keye.run.stages import Stage
from kvtools.train.cross_entropy import IGNORED, linear_cross_entropy
from kvtools.train.loop import Loss
from kvtools.train.packing import balance, max_over_mean, round_robin
from kvtools.world import World

Rows = list[Load]
_N_NAMED = 8


class Task:
    """Steps of a feed, their rows built ahead of their use: a `learn.loop.Task` but for what a row's loss is.

    held: rows for validation; is_judged: whether they say which weights are best, and when to stop.
    """

    model: nn.Module

    def __init__(
        self, source: Feed | PackedFeed, arch: ModelConfig, stage: Stage, *, batch_tokens: int, world: World, device: str,
        seed: int, augment: Augment, held: Feed | PackedFeed | None = None, is_judged: bool = False,
    ) -> None:  # fmt: skip
        self.source, self._held, self._is_judged = source, held, is_judged
        self._arch, self._stage, self._batch_tokens, self._device = arch, stage, batch_tokens, device
        self._visual_tokens = arch.image_token, arch.video_token
        self._world, self._seed, self._augment = world, seed, augment
        self._builder = ThreadPoolExecutor(1)  # one: it only has to keep ahead of products that take far longer
        self._ahead: dict[tuple[int, ...], Future[PackedRow]] = {}
        self._coming: Rows = []
        self._epoch = 0
        self._loads: dict[str, float] = {}

    def measure(self, row: PackedRow) -> tuple[Tensor, Tensor, int] | None:
        """(sum of the losses of what a row is about, how many were got right, how many there are); None where none are."""
        raise NotImplementedError

    def flops(self, load: Load) -> float:
        """Of a row's products, forward and backward."""
        raise NotImplementedError

    def epoch(self, number: int) -> Iterator[Rows]:
        self._epoch, self._coming = number, []
        for loads in feed.steps(self.source.epoch(number), self._batch_tokens):
            due, self._coming = self._coming, loads
            if due:
                yield due
        due, self._coming = self._coming, []
        if due:
            yield due

    def n_steps(self) -> int:
        """Steps an epoch; that of the first stands for all. Measures every conversation."""
        return sum(1 for _ in feed.steps(self.source.epoch(0), self._batch_tokens))

    def microbatches(self, rows: Rows, n: int) -> Sequence[Rows]:
        """The rows in as many parts a rank as n has for each, of which the loop gives rank r every size-th; some may be empty.
        This rank's rows are built from here on, and those of the step after this one."""
        parts = self._parts(rows, n)
        for step in (parts, self._parts(self._coming, n)):
            for load in (load for part in self._world.shard(step) for load in part):
                if load.numbers not in self._ahead:
                    self._ahead[load.numbers] = self._builder.submit(self.source.build, load)
        self._loads = self._told_loads(rows, n)
        return parts if self._world.size > 1 else [part for part in parts if part]

    def loss(self, rows: Rows) -> Loss:
        told = [(found, load, row) for load in rows if (found := self.measure(row := self._row(load))) is not None]
        # what became unreadable since it was counted may leave nothing; and rows of text alone do not reach a projector that
        # learns by itself
        nothing = next(p for p in self.model.parameters() if p.requires_grad).sum() * 0
        if not told:
            return Loss(nothing, 0, {"loss": 0.0, "accuracy": 0.0})
        total = torch.stack([found[0] for found, _, _ in told]).sum()
        right = torch.stack([found[1] for found, _, _ in told]).sum()
        count, tokens = sum(found[2] for found, _, _ in told), sum(len(row) for _, _, row in told)
        flops = sum(self.flops(load) for _, load, _ in told)
        figures: dict[str, Tensor | float] = {"loss": total.detach(), "accuracy": right}
        return Loss(total if total.requires_grad else total + nothing, count, figures, tokens=tokens, flops=flops)

    @torch.no_grad()
    def validate(self) -> dict[str, float] | None:
        rows = (self._held.build(load) for load in self._held.epoch(0)) if self._held is not None else iter(())
        told = [found for row in rows if (found := self.measure(row)) is not None]
        if not told:
            return None
        total, right, count = (float(sum(found[place] for found in told)) for place in range(3))
        figures = {"valid_loss": total / count, "valid_accuracy": right / count}
        return figures | ({"score": -total / count} if self._is_judged else {})

    def after_step(self, _world: World) -> dict[str, float]:
        return self._loads

    def describe(self, rows: Rows) -> str:
        keys = [key for load in rows for key in load.keys]
        return ", ".join(keys[:_N_NAMED]) + (f" and {len(keys) - _N_NAMED} more" if len(keys) > _N_NAMED else "")

    def close(self) -> None:
        """Leave off building ahead."""
        self._builder.shutdown(wait=True, cancel_futures=True)

    def _parts(self, rows: Rows, n: int) -> list[Rows]:
        n_ranks, flops = self._world.size, [self.flops(load) for load in rows]
        n_each = -(-n // n_ranks)
        shares = balance(flops, n_ranks)
        cuts = [balance([flops[place] for place in share], n_each) for share in shares]
        return [
            [rows[share[k]] for k in sorted(cut[number])]
            for number in range(n_each)
            for share, cut in zip(shares, cuts, strict=True)
        ]

    def _told_loads(self, rows: Rows, n: int) -> dict[str, float]:
        """How even the work of a step is over the ranks, or over the pieces where there is one rank: as it is, and as it would
        be were rows dealt out in turn."""
        n_workers = self._world.size if self._world.size > 1 else min(n, len(rows))
        flops = [self.flops(load) for load in rows]
        parts = {"load_max_over_mean": balance(flops, n_workers), "in_turn_max_over_mean": round_robin(len(rows), n_workers)}
        return {name: max_over_mean(flops, part) for name, part in parts.items()}

    def _row(self, load: Load) -> PackedRow:
        built = self._ahead.pop(load.numbers, None)
        row = built.result() if built is not None else self.source.build(load)
        return self._augment(row, self._visual_tokens, lambda key: rng_for(self._seed, "augment", self._epoch, key))


class Answering(Task):
    """Next-token training, for every stage but the first."""

    def __init__(self, model: Keye, *given: Any, **named: Any) -> None:
        super().__init__(*given, **named)
        self.model: Keye = model
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(self._stage.learns(name))

    def flops(self, load: Load) -> float:
        shape = RowShape(load.lengths, load.grid.tolist(), load.n_targets)
        return row_flops(self._arch, shape).training(self._stage.trains)

    def measure(self, row: PackedRow) -> tuple[Tensor, Tensor, int] | None:
        if not row.targets.any():
            return None
        model, device = self.model, self._device
        wanted = np.where(row.targets == 1, row.tokens, IGNORED).astype(np.int64)
        visual = None
        if row.pixels is not None:
            visual = model.encode_images(_tensor(row.pixels, device), row.grid.tolist())
        tokens, positions = _tensor(row.tokens.astype(np.int64), device), _tensor(row.positions, device)
        hidden = model.hidden(tokens, positions, row.segments.tolist(), visual)
        # the first token of a conversation is never a target, so that no prediction crosses from one to the next
        loss, right = linear_cross_entropy(hidden[:-1], model.output_VD, _tensor(wanted[1:], device))
        return loss, right, int(row.targets.sum())


class Contrasting(Task):
    """Stage 0: the first picture or video of each conversation against what its assistant says, within each row.

    A row is a batch of pairs, the same for any number of ranks; texts that are equal belong to each other's pictures too.
    """

    def __init__(self, model: Siglip, *given: Any, **named: Any) -> None:
        super().__init__(*given, **named)
        self.model: Siglip = model

    def flops(self, load: Load) -> float:
        return pair_flops(self._arch.vision, self.model.text_model.config, load.grid.tolist(), load.n_targets)

    def measure(self, row: PackedRow) -> tuple[Tensor, Tensor, int] | None:
        places, texts = _pairs(row, self._visual_tokens, self.model.text_model.config.positions)
        if row.pixels is None or not texts:
            return None
        device = self._device
        images = self.model.encode_images(_tensor(row.pixels, device), row.grid.tolist())[places]
        starts = np.cumsum([0, *map(len, texts)])[:-1].tolist()
        words = self.model.encode_texts(_tensor(np.concatenate(texts).astype(np.int64), device), starts)
        numbers = {text.tobytes(): n for n, text in enumerate(texts)}
        which = torch.tensor([numbers[text.tobytes()] for text in texts], device=device)
        is_same = which[:, None] == which[None, :]
        nearest = (images @ words.T).argmax(1)
        right = is_same[torch.arange(len(texts), device=device), nearest].sum()
        return self.model.loss(images, words, is_same) * len(texts), right, len(texts)


def _tensor(array: np.ndarray, device: str) -> Tensor:
    # records are views of what was read, which torch does not want to be shown: it could not keep from writing to them
    return torch.from_numpy(np.require(array, requirements="W")).to(device)


def _pairs(row: PackedRow, visual_tokens: tuple[int, int], longest: int) -> tuple[list[int], list[np.ndarray]]:
    """The number of the first visual item of each conversation that has one and says something, and what it says.

    A text is cut to `longest` tokens, of which the last is always the one that ends turns.
    """
    whose = owners(row, visual_tokens)
    ends = [*row.segments[1:].tolist(), len(row)]
    places, texts = [], []
    for owner in sorted(set(whose)):
        span = slice(row.segments[owner], ends[owner])
        said = row.tokens[span][row.targets[span] == 1]
        if len(said):
            places.append(whose.index(owner))
            texts.append(said if len(said) <= longest else np.concatenate([said[: longest - 1], said[-1:]]))
    return places, texts
