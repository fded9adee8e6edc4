"""Histories cut into rows, and rows into batches: what of a user's past each target may look at.

A row is a user and a range of places [begin, end) that are its targets; a target sees what lies before its own place.
With causal attention a row has up to `short` targets and a context of up to 2 * short items, so that each target sees
between `short` and 2 * short of the latest; with full attention, as in the report, each target is a row of its own and sees
exactly the latest `short`. At inference the one target is the place after the history, in the row that training would have
cut there. Lifelong tokens come from what lies before the row's first target.

Legend: R rows, B rows of a batch, P tokens, T targets, N neighbours.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch

from kvtools.chance import rng_for
from kvtools.onerec.interactions.features import Histories, powers
from kvtools.onerec.model.batch import PAD, Batch, Tokens
from kvtools.onerec.model.config import Architecture
from kvtools.onerec.model.lifelong import Clusters, average, compress

_POOL = 64  # batches whose rows are sorted by length together: less padding, and chance enough


@dataclass(frozen=True)
class Rows:
    """Users int64 (R,) and the places [begins, ends) of their targets, int64 (R,)."""

    users: np.ndarray
    begins: np.ndarray
    ends: np.ndarray

    def __len__(self) -> int:
        return len(self.users)

    def take(self, chosen: np.ndarray) -> "Rows":
        return Rows(self.users[chosen], self.begins[chosen], self.ends[chosen])


class Cutter:
    """Makes rows and batches of histories for one architecture.

    near: neighbours of each interaction's past, int32 (n, N) and float32 (n, N), as `leave_own_out` gives them; needed where
    the architecture has them. static: int64 (U, F) features of each user. vectors: float32 (I, D) of the catalogue, for the
    lifelong pathway. time_column: which feature is the time, whose average over a cluster is taken.
    """

    def __init__(
        self,
        histories: Histories,
        arch: Architecture,
        *,
        static: np.ndarray | None = None,
        near: tuple[np.ndarray, np.ndarray] | None = None,
        vectors: np.ndarray | None = None,
        time_column: int | None = None,
        seed: int = 0,
    ) -> None:
        self.histories, self.arch, self.near, self.seed = histories, arch, near, seed
        self.static = np.zeros((len(histories), 0), np.int64) if static is None else static
        self._vectors, self._time_column = vectors, time_column
        self._compressed: dict[tuple[int, int], tuple[np.ndarray, np.ndarray]] = {}
        positives = np.zeros(0, np.int64) if histories.is_positive is None else np.flatnonzero(histories.is_positive)
        self._positives = positives
        self._first_positive = np.searchsorted(positives, histories.offsets)

    # ── rows ─────────────────────────────────────────────────────────────────────────────────────────────────────────
    def training_rows(self, is_target: np.ndarray) -> Rows:
        """Rows for all interactions where is_target, bool (n,), that are not their user's first."""
        offsets = self.histories.offsets
        users = np.repeat(np.arange(len(offsets) - 1), np.diff(offsets))
        places = np.arange(len(users)) - offsets[users]
        wanted = np.flatnonzero(is_target & (places > 0))
        users, places = users[wanted], places[wanted]
        if self.arch.attention == "full":
            return Rows(users, places, places + 1)
        chunk = places // self.arch.short
        is_first = np.ones(len(users), bool)
        is_first[1:] = (users[1:] != users[:-1]) | (chunk[1:] != chunk[:-1]) | (places[1:] != places[:-1] + 1)
        starts = np.flatnonzero(is_first)
        last = np.append(starts, len(users))[1:] - 1
        return Rows(users[starts], places[starts], places[last] + 1)

    def next_rows(self, users: np.ndarray, lengths: np.ndarray | None = None) -> Rows:
        """A row each user whose target comes after the first `lengths` interactions, all of them where None."""
        ends = np.diff(self.histories.offsets)[users] if lengths is None else lengths
        return Rows(users, ends, ends + 1)

    def epoch(self, rows: Rows, n_targets: int, *purpose: int | str) -> Iterator[Rows]:
        """The rows in batches of about n_targets, padding included, shuffled by the seed and the purpose."""
        chance = rng_for(self.seed, "rows", *purpose)
        order = chance.permutation(len(rows))
        # a context of more than four items a target costs more than the targets: tails of long histories have one target
        lengths = np.maximum(rows.ends - rows.begins, -(-self._n_context(rows) // 4))
        pool = np.cumsum(lengths[order]) // (n_targets * _POOL)
        order = order[np.lexsort(((rows.ends - rows.begins)[order], lengths[order], pool))]
        batches = self._cut(lengths[order].tolist(), order, n_targets)
        for number in chance.permutation(len(batches)):
            yield rows.take(batches[number])

    def in_order(self, rows: Rows, n_rows: int) -> Iterator[np.ndarray]:
        """Numbers of the rows, those with alike contexts together, n_rows at a time."""
        order = np.lexsort((np.minimum(rows.ends, 2 * self.arch.short),))
        for begin in range(0, len(order), n_rows):
            yield order[begin : begin + n_rows]

    def _cut(self, lengths: list[int], order: np.ndarray, n_targets: int) -> list[np.ndarray]:
        batches: list[np.ndarray] = []
        begin = longest = 0
        for at, length in enumerate(lengths):
            if at > begin and max(longest, length) * (at - begin + 1) > n_targets:
                batches.append(order[begin:at])
                begin, longest = at, 0
            longest = max(longest, length)
        return [*batches, order[begin:]] if begin < len(order) else batches

    # ── batches ──────────────────────────────────────────────────────────────────────────────────────────────────────
    def batch(self, rows: Rows, near: tuple[np.ndarray, np.ndarray] | None = None) -> Batch:
        """The tensors of some rows of histories with an interaction at least.

        near: at inference, (B, N) neighbours of each row's only target.
        """
        base = self.histories.offsets[rows.users]
        n_targets = int((rows.ends - rows.begins).max(initial=1))
        places = rows.begins[:, None] + np.arange(n_targets)
        is_target = places < rows.ends[:, None]
        index = np.where(is_target, base[:, None] + places, 0)
        is_past = near is not None or bool((rows.ends > np.diff(self.histories.offsets)[rows.users]).any())
        targets = np.full(places.shape, PAD) if is_past else np.where(is_target, self._at(index), PAD)
        found = None
        if self.arch.near:
            if near is not None:
                found = near[0][:, None, : self.arch.near], near[1][:, None, : self.arch.near]
            elif self.near is not None and not is_past:
                pad = ~is_target[:, :, None]
                found = np.where(pad, PAD, self.near[0][index]), np.where(pad, 0, self.near[1][index])
        start = self._context_start(rows)
        return Batch(
            torch.from_numpy(self.static[rows.users]),
            self._short(rows, base, start),
            self._positive(rows, base) if self.arch.positive else None,
            self._lifelong(rows) if self.arch.lifelong else None,
            None if found is None else (torch.from_numpy(found[0].astype(np.int64)), torch.from_numpy(found[1])),
            torch.from_numpy(targets.astype(np.int64)),
            torch.from_numpy(np.where(is_target, places, PAD)),
            torch.from_numpy(np.where(is_target, places - start[:, None], 0)),
        )

    def _at(self, index: np.ndarray) -> np.ndarray:
        items = self.histories.items
        return np.asarray(items[index.clip(max=len(items) - 1)])

    def _chunk(self, rows: Rows) -> np.ndarray:
        """Where the piece of the history that a row belongs to begins, int64 (R,): the same in training and at inference."""
        return np.asarray(rows.begins // self.arch.short * self.arch.short)

    def _context_start(self, rows: Rows) -> np.ndarray:
        begin = rows.begins if self.arch.attention == "full" else self._chunk(rows)
        return np.asarray(np.maximum(0, begin - self.arch.short))

    def _n_context(self, rows: Rows) -> np.ndarray:
        """How many items each row's context has, about: int64 (R,)."""
        n = rows.ends - self._context_start(rows)
        if self.arch.positive and len(self._positives):
            base = self.histories.offsets[rows.users]
            end = np.searchsorted(self._positives, base + rows.ends - 1)
            n = n + np.minimum(end - self._first_positive[rows.users], self.arch.positive + self.arch.short)
        if self.arch.lifelong:
            n = n + np.where(rows.begins > self.arch.short, np.minimum(rows.begins, self.arch.lifelong), 0) // 2
        return np.asarray(n)

    def _short(self, rows: Rows, base: np.ndarray, start: np.ndarray) -> Tokens:
        last = rows.ends - 1  # the last target does not see itself
        places = start[:, None] + np.arange(max(1, int((last - start).max(initial=1))))
        is_there = places < last[:, None]
        slots = last[:, None] - 1 - places if self.arch.attention == "full" else places - start[:, None]
        return self._tokens(np.where(is_there, base[:, None] + places, PAD), places, slots)

    def _positive(self, rows: Rows, base: np.ndarray) -> Tokens:
        first = self._first_positive[rows.users]
        start = rows.begins if self.arch.attention == "full" else self._chunk(rows)
        before = np.searchsorted(self._positives, base + start)
        end = np.searchsorted(self._positives, base + rows.ends - 1)
        begin = np.maximum(first, before - self.arch.positive)
        at = begin[:, None] + np.arange(int((end - begin).max(initial=0)))
        is_there = at < end[:, None]
        index = (
            np.where(is_there, self._positives[at.clip(max=max(0, len(self._positives) - 1))], PAD)
            if len(self._positives)
            else np.full(at.shape, PAD)
        )
        slots = end[:, None] - 1 - at if self.arch.attention == "full" else at - begin[:, None]
        return self._tokens(index, index - base[:, None], slots)

    def _lifelong(self, rows: Rows) -> Tokens | None:
        # what the short pathway shows whole needs no summary
        cuts = [
            self._compress(int(user), int(cut)) if start > 0 else None
            for user, cut, start in zip(rows.users, self._chunk(rows), self._context_start(rows), strict=True)
        ]
        longest = max((len(cut[0]) for cut in cuts if cut), default=0)
        if not longest:
            return None
        items = np.full((len(rows), longest), PAD)
        features = np.zeros((len(rows), longest, self.histories.features.shape[1]), np.int64)
        for row, cut in enumerate(cuts):
            if cut:
                items[row, : len(cut[0])], features[row, : len(cut[0])] = cut
        empty = torch.zeros(items.shape, dtype=torch.int64)
        return Tokens(torch.from_numpy(items.astype(np.int64)), empty, empty, torch.from_numpy(features))

    def _compress(self, user: int, n_past: int) -> tuple[np.ndarray, np.ndarray]:
        """Items and features of a user's first n_past interactions, each told as its cluster is."""
        # chunks begin at multiples of `short`, so training asks for few cuts of a user, and again in every epoch
        key = (user, n_past)
        if key not in self._compressed:
            assert self._vectors is not None, "the lifelong pathway clusters vectors"
            begin = int(self.histories.offsets[user])
            past = slice(begin, begin + n_past)
            items, features = self.histories.items[past], self.histories.features[past]
            found = compress(self._vectors[items], seed=self.seed, key=str(self.histories.user_keys[user]))
            told = self._averaged(found, features, past)
            latest = found.labels[max(0, n_past - self.arch.lifelong) :]
            self._compressed[key] = items[found.representatives[latest]], told[latest]
        return self._compressed[key]

    def _averaged(self, found: Clusters, features: np.ndarray, past: slice) -> np.ndarray:
        """Features of each cluster: the representative's, but the time is the average."""
        told = np.array(features[found.representatives])
        if self._time_column is not None and self.histories.gaps is not None:
            told[:, self._time_column] = powers(average(self.histories.gaps[past], found.labels, len(found)))
        return told

    def _tokens(self, index: np.ndarray, places: np.ndarray, slots: np.ndarray) -> Tokens:
        is_there = index >= 0
        items = np.where(is_there, self._at(index.clip(min=0)), PAD)
        features = np.where(is_there[..., None], self.histories.features[index.clip(min=0)], 0)
        arrays = (items, np.where(is_there, places, PAD), np.where(is_there, slots, PAD), features)
        return Tokens(*(torch.from_numpy(array.astype(np.int64)) for array in arrays))
