"""What was proposed, kept as a stream of kind `rollout`: a record an item, in the order of steps, users and ranks in the group.

All ranks hand in what they proposed, and rank 0 writes it, so that the records do not depend on how many ranks there are. A run
that was stopped leaves its records behind; the same run continues after them, and steps that it repeats are not written again.

Legend: n items, S levels, T terms of the reward.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

import numpy as np

from kvtools.artifact.files import Sink
from kvtools.artifact.history import Step
from kvtools.artifact.stream import Head, Writer
from kvtools.world import World


@dataclass(frozen=True)
class Proposals:
    """Items that were proposed: int64 (n,) each their user, the cut and their rank in the group; codes int32 (n, S) and their
    log-probabilities float32 (n, S); rewards float64 (n, T); their weighted sum and advantage float64 (n,) each; and the item
    that they stand for, int64 (n,), -1 where there is none."""

    users: np.ndarray
    cuts: np.ndarray
    ranks: np.ndarray
    codes: np.ndarray
    logp: np.ndarray
    rewards: np.ndarray
    total: np.ndarray
    advantages: np.ndarray
    items: np.ndarray

    def gather(self, world: World) -> "Proposals":
        """Those of all ranks, by user and rank in the group. A collective."""
        columns = [world.gather_array(x) for x in vars(self).values()]
        order = np.lexsort((columns[2], columns[0]))
        return Proposals(*(x[order] for x in columns))


def joined(parts: Sequence[Proposals], n_levels: int, n_terms: int) -> Proposals:
    """Those of all parts, one after the other; arrays of no items where there is no part."""
    empty: list[np.ndarray] = [np.empty(0, np.int64)] * 3
    empty += [np.empty((0, n_levels), np.int32), np.empty((0, n_levels), np.float32), np.empty((0, n_terms))]
    empty += [np.empty(0), np.empty(0), np.empty(0, np.int64)]
    columns = zip(empty, *(vars(part).values() for part in parts), strict=True)
    return Proposals(*(np.concatenate(arrays) for arrays in columns))


class RolloutStream:
    """A stream of rollouts being written, on rank 0; a context manager. user_keys, item_keys: strings (U,) and (I,).
    terms: names of the T terms. group_size: prompts of a step, by which groups are numbered."""

    def __init__(
        self, dst: str, history: list[Step], config: dict[str, Any], *, user_keys: np.ndarray, item_keys: np.ndarray,
        terms: Sequence[str], group_size: int, force: bool,
    ) -> None:  # fmt: skip
        self._writer = Writer(Sink(dst, force=force, keep_partial=True), Head("rollout", history, config))
        self._done = self._writer.resume(start_over=force)
        self._user_keys, self._item_keys, self._terms, self._group_size = user_keys, item_keys, terms, group_size

    def __enter__(self) -> Self:
        self._writer.__enter__()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._writer.__exit__(kind, error, trace)

    def write(self, step: int, proposals: Proposals) -> None:
        """Append the items of a step. step: from 0."""
        if not len(proposals.users):
            return
        group = np.cumsum(np.r_[0, proposals.users[1:] != proposals.users[:-1]])
        for n in range(len(group)):
            user = str(self._user_keys[proposals.users[n]])
            key = f"{step + 1:08d}/{user}/{proposals.ranks[n]:04d}"
            if key in self._done:
                continue
            tensors = {
                "tokens": proposals.codes[n].astype(np.int32),
                "logprobs": proposals.logp[n].astype(np.float32),
                "reward": np.array(proposals.total[n], np.float32),
                "advantage": np.array(proposals.advantages[n], np.float32),
                "group": np.array(step * self._group_size + group[n], np.int32),
            }
            values = [float(value) if math.isfinite(value) else None for value in proposals.rewards[n]]
            item = str(self._item_keys[proposals.items[n]]) if proposals.items[n] >= 0 else None
            fields = {"step": step + 1, "user": user, "shown": int(proposals.cuts[n]), "item": item}
            self._writer.write(key, tensors, **fields, rewards=dict(zip(self._terms, values, strict=True)))
