"""Histories as batches for the model: what of a user's past each target may attend to.

A row is a user and a range [begin, end) of positions that are its targets; a target sees what lies before its own position.
With causal attention a row has up to `short` targets and a context of up to 2 * short items, so that each target sees
between `short` and 2 * short of the latest; with full attention, as in the report, each target is a row of its own and sees
exactly the latest `short`. At inference the one target is the position after the history, in the row that training would have
made there. Lifelong tokens come from what lies before the row's first target.

Legend: R rows, B rows of a batch, P tokens of a pathway, F features, T targets, N neighbours of a target, n interactions.
A `position` is the number of an interaction within its user's history, a `slot` the index of a token's learnable embedding
within its pathway. Padding is -1 everywhere.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from kvtools.chance import rng_for
from kvtools.onerec.interactions.histories import Histories, log2_buckets
from kvtools.onerec.model.config import ModelConfig
from kvtools.onerec.model.lifelong import Clusters, average, compress

PAD = -1
ALWAYS_VISIBLE = -1  # the position of a token that every target may see
_POOL = 64  # batches whose rows are sorted by length together: less padding, and still enough shuffling

Neighbours = tuple[
    np.ndarray, np.ndarray
]  # items int32 (..., N), -1 where there are no more; their similarity float32 (..., N)


@dataclass(frozen=True)
class PathwayTokens:
    """Items of one pathway."""

    items: Tensor  # int64 (B, P), or PAD
    positions: Tensor  # int64 (B, P)
    slots: Tensor  # int64 (B, P)
    features: Tensor  # int64 (B, P, F): in the order of the model's features, 0 where unknown

    def to(self, device: str) -> "PathwayTokens":
        """The same tokens on a device."""
        return PathwayTokens(*(x.to(device) for x in vars(self).values()))


@dataclass(frozen=True)
class Batch:
    """The model's input for one pass."""

    static: Tensor  # int64 (B, U): the user's features
    short: PathwayTokens
    positive: PathwayTokens | None
    lifelong: PathwayTokens | None
    neighbours: tuple[Tensor, Tensor] | None  # items int64 (B, T, N), and their similarity float32 (B, T, N)
    targets: Tensor  # int64 (B, T): items, or PAD; at inference PAD everywhere
    target_positions: Tensor  # int64 (B, T)
    target_slots: Tensor  # int64 (B, T): the distance from the first item of the row's context

    def to(self, device: str) -> "Batch":
        """The same batch on a device."""
        moved: dict[str, Any] = {name: x.to(device) for name, x in vars(self).items() if isinstance(x, Tensor | PathwayTokens)}
        neighbours = self.neighbours and (self.neighbours[0].to(device), self.neighbours[1].to(device))
        return replace(self, neighbours=neighbours, **moved)

    @property
    def n_targets(self) -> int:
        """Targets in all rows, without padding."""
        return int((self.targets >= 0).sum())


@dataclass(frozen=True)
class HistoryRows:
    """Users int64 (R,) and the positions [begins, ends) of their targets, int64 (R,) each."""

    users: np.ndarray
    begins: np.ndarray
    ends: np.ndarray

    def __len__(self) -> int:
        return len(self.users)

    def take(self, index: np.ndarray) -> "HistoryRows":
        """The rows of these numbers, int (R',)."""
        return HistoryRows(self.users[index], self.begins[index], self.ends[index])


class Batcher:
    """Makes rows and batches of histories for one model.

    neighbours: those of each interaction's past, (n, N), as `cooccurrence.leave_own_out` gives them; needed where the model has
    them. static: int64 (U, F) features of each user. vectors: float32 (I, D) of the catalogue, for the lifelong pathway.
    time_column: which feature is the time, whose average over a cluster is taken.
    """

    def __init__(
        self,
        histories: Histories,
        config: ModelConfig,
        *,
        static: np.ndarray | None = None,
        neighbours: Neighbours | None = None,
        vectors: np.ndarray | None = None,
        time_column: int | None = None,
        seed: int = 0,
    ) -> None:
        self.histories, self.config, self.neighbours, self.seed = histories, config, neighbours, seed
        self.static = np.zeros((len(histories), 0), np.int64) if static is None else static
        self._vectors, self._time_column = vectors, time_column
        self._compressed: dict[tuple[int, int], tuple[np.ndarray, np.ndarray]] = {}
        is_positive = histories.is_positive
        self._positives = np.zeros(0, np.int64) if is_positive is None else np.flatnonzero(is_positive)
        self._first_positive = np.searchsorted(self._positives, histories.offsets)

    # ── rows ─────────────────────────────────────────────────────────────────────────────────────────────────────────
    def training_rows(self, is_target: np.ndarray) -> HistoryRows:
        """Rows for all interactions where is_target, bool (n,), that are not their user's first."""
        offsets = self.histories.offsets
        users = np.repeat(np.arange(len(offsets) - 1), np.diff(offsets))
        positions = np.arange(len(users)) - offsets[users]
        wanted = np.flatnonzero(is_target & (positions > 0))
        users, positions = users[wanted], positions[wanted]
        if self.config.attention == "full":
            return HistoryRows(users, positions, positions + 1)
        chunk = positions // self.config.short
        is_first = np.ones(len(users), bool)
        is_first[1:] = (users[1:] != users[:-1]) | (chunk[1:] != chunk[:-1]) | (positions[1:] != positions[:-1] + 1)
        starts = np.flatnonzero(is_first)
        last = np.append(starts, len(users))[1:] - 1
        return HistoryRows(users[starts], positions[starts], positions[last] + 1)

    def next_rows(self, users: np.ndarray, lengths: np.ndarray | None = None) -> HistoryRows:
        """A row for each of the users, int64 (R,), whose target follows the first `lengths` interactions, int64 (R,); all of
        them where None."""
        ends = np.diff(self.histories.offsets)[users] if lengths is None else lengths
        return HistoryRows(users, ends, ends + 1)

    def epoch(self, rows: HistoryRows, n_targets: int, *purpose: int | str) -> Iterator[HistoryRows]:
        """The rows in batches of about n_targets targets, padding included, shuffled by the seed and the purpose."""
        rng = rng_for(self.seed, "rows", *purpose)
        order = rng.permutation(len(rows))
        # a context of more than four items a target costs more than the targets: tails of long histories have one target
        lengths = np.maximum(rows.ends - rows.begins, -(-self._n_context(rows) // 4))
        pool = np.cumsum(lengths[order]) // (n_targets * _POOL)
        order = order[np.lexsort(((rows.ends - rows.begins)[order], lengths[order], pool))]
        batches = _batches_of(lengths[order].tolist(), order, n_targets)
        for number in rng.permutation(len(batches)):
            yield rows.take(batches[number])

    def by_length(self, rows: HistoryRows, n_rows: int) -> Iterator[np.ndarray]:
        """Numbers of the rows, int64 (n_rows,) at a time; rows with contexts of similar length come together."""
        order = np.argsort(np.minimum(rows.ends, 2 * self.config.short), kind="stable")
        return (order[begin : begin + n_rows] for begin in range(0, len(order), n_rows))

    # ── batches ──────────────────────────────────────────────────────────────────────────────────────────────────────
    def batch(self, rows: HistoryRows, neighbours: Neighbours | None = None) -> Batch:
        """The tensors of rows of users that have at least one interaction.

        neighbours: at inference, (B, N) of each row's only target.
        """
        base = self.histories.offsets[rows.users]
        n_targets = int((rows.ends - rows.begins).max(initial=1))
        positions = rows.begins[:, None] + np.arange(n_targets)
        is_target = positions < rows.ends[:, None]
        index = np.where(is_target, base[:, None] + positions, 0)
        is_next = neighbours is not None or bool((rows.ends > np.diff(self.histories.offsets)[rows.users]).any())
        targets = np.full(positions.shape, PAD) if is_next else np.where(is_target, self._items_at(index), PAD)
        if neighbours is not None:
            neighbours = neighbours[0][:, None, : self.config.near], neighbours[1][:, None, : self.config.near]
        elif self.neighbours is not None and not is_next:
            is_pad = ~is_target[:, :, None]
            neighbours = np.where(is_pad, PAD, self.neighbours[0][index]), np.where(is_pad, 0, self.neighbours[1][index])
        start = self._context_start(rows)
        return Batch(
            torch.from_numpy(self.static[rows.users]),
            self._short(rows, base, start),
            self._positive(rows, base) if self.config.positive else None,
            self._lifelong(rows) if self.config.lifelong else None,
            (torch.from_numpy(neighbours[0].astype(np.int64)), torch.from_numpy(neighbours[1]))
            if neighbours is not None and self.config.near
            else None,
            torch.from_numpy(targets.astype(np.int64)),
            torch.from_numpy(np.where(is_target, positions, PAD)),
            torch.from_numpy(np.where(is_target, positions - start[:, None], 0)),
        )

    def _items_at(self, index: np.ndarray) -> np.ndarray:
        items = self.histories.items
        return np.asarray(items[index.clip(max=len(items) - 1)])

    def _chunk(self, rows: HistoryRows) -> np.ndarray:
        """Where the piece of the history that a row belongs to begins, int64 (R,): the same in training and at inference."""
        return np.asarray(rows.begins // self.config.short * self.config.short)

    def _context_start(self, rows: HistoryRows) -> np.ndarray:
        begin = rows.begins if self.config.attention == "full" else self._chunk(rows)
        return np.asarray(np.maximum(0, begin - self.config.short))

    def _n_context(self, rows: HistoryRows) -> np.ndarray:
        """How many items each row's context has, about: int64 (R,)."""
        n = rows.ends - self._context_start(rows)
        if self.config.positive and len(self._positives):
            base = self.histories.offsets[rows.users]
            end = np.searchsorted(self._positives, base + rows.ends - 1)
            n = n + np.minimum(end - self._first_positive[rows.users], self.config.positive + self.config.short)
        if self.config.lifelong:
            n = n + np.where(rows.begins > self.config.short, np.minimum(rows.begins, self.config.lifelong), 0) // 2
        return np.asarray(n)

    def _short(self, rows: HistoryRows, base: np.ndarray, start: np.ndarray) -> PathwayTokens:
        last = rows.ends - 1  # the last target does not see itself
        positions = start[:, None] + np.arange(max(1, int((last - start).max(initial=1))))
        is_token = positions < last[:, None]
        slots = last[:, None] - 1 - positions if self.config.attention == "full" else positions - start[:, None]
        return self._tokens(np.where(is_token, base[:, None] + positions, PAD), positions, slots)

    def _positive(self, rows: HistoryRows, base: np.ndarray) -> PathwayTokens:
        first = self._first_positive[rows.users]
        start = rows.begins if self.config.attention == "full" else self._chunk(rows)
        before = np.searchsorted(self._positives, base + start)
        end = np.searchsorted(self._positives, base + rows.ends - 1)
        begin = np.maximum(first, before - self.config.positive)
        number = begin[:, None] + np.arange(int((end - begin).max(initial=0)))
        index = np.full(number.shape, PAD)
        if len(self._positives):
            index = np.where(number < end[:, None], self._positives[number.clip(max=len(self._positives) - 1)], PAD)
        slots = end[:, None] - 1 - number if self.config.attention == "full" else number - begin[:, None]
        return self._tokens(index, index - base[:, None], slots)

    def _lifelong(self, rows: HistoryRows) -> PathwayTokens | None:
        # what the short pathway shows whole needs no summary
        pasts = [
            self._compress(int(user), int(cut)) if start > 0 else None
            for user, cut, start in zip(rows.users, self._chunk(rows), self._context_start(rows), strict=True)
        ]
        longest = max((len(past[0]) for past in pasts if past), default=0)
        if not longest:
            return None
        items = np.full((len(rows), longest), PAD)
        features = np.zeros((len(rows), longest, self.histories.features.shape[1]), np.int64)
        for row, past in enumerate(pasts):
            if past:
                items[row, : len(past[0])], features[row, : len(past[0])] = past
        empty = torch.zeros(items.shape, dtype=torch.int64)
        return PathwayTokens(torch.from_numpy(items.astype(np.int64)), empty, empty, torch.from_numpy(features))

    def _compress(self, user: int, n_past: int) -> tuple[np.ndarray, np.ndarray]:
        """Items and features of a user's first n_past interactions, each replaced by those of its cluster."""
        # chunks begin at multiples of `short`, so training asks for few cuts of a user, and again in every epoch
        key = (user, n_past)
        if key not in self._compressed:
            assert self._vectors is not None, "the lifelong pathway clusters vectors"
            begin = int(self.histories.offsets[user])
            past = slice(begin, begin + n_past)
            items = self.histories.items[past]
            clusters = compress(self._vectors[items], seed=self.seed, key=str(self.histories.user_keys[user]))
            latest = clusters.labels[max(0, n_past - self.config.lifelong) :]
            self._compressed[key] = items[clusters.representatives[latest]], self._cluster_features(clusters, past)[latest]
        return self._compressed[key]

    def _cluster_features(self, clusters: Clusters, past: slice) -> np.ndarray:
        """int64 (C, F): the representative's features, but the time is the average."""
        features = np.array(self.histories.features[past][clusters.representatives])
        if self._time_column is not None and self.histories.gaps is not None:
            features[:, self._time_column] = log2_buckets(average(self.histories.gaps[past], clusters.labels, len(clusters)))
        return features

    def _tokens(self, index: np.ndarray, positions: np.ndarray, slots: np.ndarray) -> PathwayTokens:
        is_token = index >= 0
        items = np.where(is_token, self._items_at(index.clip(min=0)), PAD)
        features = np.where(is_token[..., None], self.histories.features[index.clip(min=0)], 0)
        arrays = (items, np.where(is_token, positions, PAD), np.where(is_token, slots, PAD), features)
        return PathwayTokens(*(torch.from_numpy(array.astype(np.int64)) for array in arrays))


def _batches_of(lengths: list[int], order: np.ndarray, n_targets: int) -> list[np.ndarray]:
    """The row numbers in order, cut so that the longest row times the rows of a batch is at most n_targets, or one row."""
    batches: list[np.ndarray] = []
    begin = longest = 0
    for row, length in enumerate(lengths):
        if row > begin and max(longest, length) * (row - begin + 1) > n_targets:
            batches.append(order[begin:row])
            begin, longest = row, 0
        longest = max(longest, length)
    return [*batches, order[begin:]] if begin < len(order) else batches
