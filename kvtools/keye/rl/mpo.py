"""The task of `rl mpo`: pairs of a better and a worse answer, and the frozen model that training starts from.

A step is so many pairs; both answers of a pair stand in one packed row. The start model's log-probabilities are computed for
the same row, so that rewards begin at exactly 0. The mean of all rewards so far, BCO's shift, is kept with the run's progress.
Legend: S tokens, B pairs.
"""

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from kvtools.chance import rng_for
from kvtools.errors import reason_of
from kvtools.keye.data.conversations import BAD
from kvtools.keye.data.dataloader import TOO_LONG, UNREADABLE
from kvtools.keye.data.media import Unreadable
from kvtools.keye.data.packing import collate
from kvtools.keye.data.processor import Processor
from kvtools.keye.model.flops import RowShape, row_flops
from kvtools.keye.model.inputs import Example, PackedRow
from kvtools.keye.model.keye import Keye
from kvtools.keye.model.log_probs import log_probabilities
from kvtools.keye.rl.pairs import Pair
from kvtools.skipped import SkippedRows
from kvtools.train import packing
from kvtools.train.loop import Loss
from kvtools.train.objectives.preference import MpoConfig, MpoTerms, RunningMean, mpo, segment_sums
from kvtools.world import World

Reference = Callable[[PackedRow], Tensor]
_MAX_NAMES = 8


class PairSet:
    """Pairs that can be read and fit a row; the others are in `skipped`. Text is kept as tokens, pixels are not."""

    def __init__(self, pairs: Sequence[Pair], processor: Processor, row_tokens: int) -> None:
        self.skipped = SkippedRows()
        self._processor = processor
        self._kept: dict[int, tuple[Example, Example]] = {}
        self.pairs: list[Pair] = []
        self.lengths: list[int] = []
        for pair in pairs:
            examples = self._read(pair, row_tokens)
            if examples is not None:
                if not examples[0].visuals:
                    self._kept[len(self.pairs)] = examples
                self.pairs.append(pair)
                self.lengths.append(sum(map(len, examples)))

    def __len__(self) -> int:
        return len(self.pairs)

    def row(self, indices: Sequence[int]) -> PackedRow:
        """The pairs as one row: the better answer of each, then the worse one."""
        return collate([example for index in indices for example in self._examples(index)])

    def _examples(self, index: int) -> tuple[Example, Example]:
        return self._kept.get(index) or self._built(self.pairs[index])

    def _built(self, pair: Pair) -> tuple[Example, Example]:
        chosen, rejected = (self._processor.example(side, key=pair.key) for side in (pair.chosen, pair.rejected))
        return chosen, rejected

    def _read(self, pair: Pair, row_tokens: int) -> tuple[Example, Example] | None:
        try:
            examples = self._built(pair)
        except Unreadable as fault:
            self.skipped.skip(UNREADABLE, f"{pair.key}: {fault}")
        except (ValueError, KeyError, TypeError) as fault:
            self.skipped.skip(BAD, f"{pair.key}: {reason_of(fault)}")
        else:
            n_tokens = sum(map(len, examples))
            if n_tokens <= row_tokens:
                return examples
            self.skipped.skip(TOO_LONG, f"{pair.key}: {n_tokens} tokens")
        return None


class MpoTask:
    """Steps of pairs: a `train.loop.Task`. reference: the start model's log-probabilities of a row. memory: of the run's
    progress, where sums over steps are kept."""

    def __init__(
        self, model: Keye, reference: Reference, pairs: PairSet, held_out: PairSet | None, config: MpoConfig, *, batch: int,
        row_tokens: int, trains: frozenset[str], world: World, seed: int,
    ) -> None:  # fmt: skip
        self.model, self._reference, self._pairs, self._held_out = model, reference, pairs, held_out
        self._config, self._batch, self._row_tokens, self._trains = config, batch, row_tokens, trains
        self._world, self._seed = world, seed
        self.memory: dict[str, float] = {}
        self._rewards = RunningMean()  # of this step, on this rank

    @property
    def n_steps(self) -> int:
        """Steps of an epoch."""
        return -(-len(self._pairs) // self._batch)

    def epoch(self, number: int) -> Iterator[list[int]]:
        """The pairs of each step, in an order of the epoch's own."""
        order = rng_for(self._seed, "pairs", number).permutation(len(self._pairs)).tolist()
        for begin in range(0, len(order), self._batch):
            yield order[begin : begin + self._batch]

    def microbatches(self, batch: Sequence[int], _n: int, _own: slice, /) -> Sequence[list[int]]:
        """The pairs in rows, those of each rank at every size-th place."""
        size, lengths = self._world.size, self._pairs.lengths
        rows_of_ranks = []
        for mine in packing.balance([lengths[index] for index in batch], size):
            own = [batch[place] for place in sorted(mine)]
            rows_of_ranks.append(
                [[own[place] for place in row] for row in packing.pack([lengths[i] for i in own], self._row_tokens)]
            )
        n_rows = max(map(len, rows_of_ranks))
        return [rows[number] if number < len(rows) else [] for number in range(n_rows) for rows in rows_of_ranks]

    def loss(self, batch: Sequence[int]) -> Loss:
        """The summed loss of a row of pairs."""
        if not batch:
            return Loss(next(p for p in self.model.parameters() if p.requires_grad).sum() * 0, 0)
        row = self._pairs.row(batch)
        terms = self._terms(row)
        self._rewards.add(float((terms.chosen_reward_B + terms.rejected_reward_B).sum()), 2 * len(batch))
        shape = RowShape(row.lengths, row.grid.tolist(), int(row.targets.sum()))
        flops = row_flops(self.model.config, shape)
        logged: dict[str, Tensor | float] = {**_sums(terms)}
        return Loss(
            terms.loss_B.sum(), len(batch), logged, tokens=len(row), flops=flops.training(self._trains) + flops.forward
        )  # fmt: skip

    def after_step(self, world: World) -> dict[str, float]:
        """Add the step's rewards to the running mean, over all ranks."""
        total, count = float(world.sum(self._rewards.total)), int(world.sum(self._rewards.count))
        self._rewards = RunningMean()
        shift = self._shift()
        shift.add(total, count)
        self.memory.update(reward_total=shift.total, reward_count=shift.count)
        return {"shift": shift.value}

    @torch.no_grad()
    def validate(self) -> dict[str, float] | None:
        """Loss, margin and accuracy on the held-out pairs; the score is the reward: the mean margin."""
        held_out = self._held_out
        if held_out is None or not len(held_out):
            return None
        sums: dict[str, float] = {}
        for indices in packing.pack(held_out.lengths, self._row_tokens):
            for name, total in _sums(self._terms(held_out.row(indices))).items():
                sums[name] = sums.get(name, 0.0) + float(total)
        means = {name: total / len(held_out) for name, total in sums.items()}
        figures = {f"valid_{name}": means[name] for name in ("loss", "accuracy", "preference", "quality", "generation")}
        return {**figures, "valid_reward": means["margin"], "score": means["margin"]}

    def describe(self, batch: Sequence[int]) -> str:
        """The keys of the first pairs of the batch."""
        keys = [self._pairs.pairs[index].key for index in batch]
        return ", ".join(keys[:_MAX_NAMES]) + (f" and {len(keys) - _MAX_NAMES} more" if len(keys) > _MAX_NAMES else "")

    def _shift(self) -> RunningMean:
        return RunningMean(self.memory.get("reward_total", 0.0), int(self.memory.get("reward_count", 0)))

    def _terms(self, row: PackedRow) -> MpoTerms:
        """The terms of a row of pairs, better and worse answers in turn."""
        segments = torch.from_numpy(row.segments.astype(np.int64))
        device = self.model.output_VD.device
        with torch.no_grad():
            start_G = segment_sums(self._reference(row), segments.to(device))
        sums_G = segment_sums(log_probabilities(self.model, row), segments.to(device))
        n_G = torch.from_numpy(np.add.reduceat(row.targets.astype(np.int64), row.segments)).to(device)
        return mpo(
            sums_G[::2], sums_G[1::2], start_G[::2], start_G[1::2], n_G[::2], config=self._config, shift=self._shift().value
        )


def _sums(terms: MpoTerms) -> dict[str, Tensor]:
    margin_B = terms.chosen_reward_B - terms.rejected_reward_B
    return {
        "loss": terms.loss_B.detach().sum(),
        "preference": terms.preference_B.detach().sum(),
        "quality": terms.quality_B.detach().sum(),
        "generation": terms.generation_B.detach().sum(),
        "margin": margin_B.sum(),
        "accuracy": (margin_B > 0).float().sum(),
        "reward": (terms.chosen_reward_B + terms.rejected_reward_B).sum() / 2,
    }
