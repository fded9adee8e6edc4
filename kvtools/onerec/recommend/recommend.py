"""From histories to recommendations: IDs by beam search, items of each ID by a stated rule, seen items left out.

An item's score is log P(ID) + log P(item | ID): an ID that several items share is divided among them by `within`.
Our choices, the report being silent: popular divides by (training interactions + 1), recent by 1 / rank of the last time an
item was taken up, random evenly, and ties go by a shuffle by the seed. So scores stay log-probabilities of items.

Legend: B users, N items, U distinct IDs, W beams, k recommendations.
"""

import copy
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from kvtools.chance import rng_for
from kvtools.onerec.interactions.features import Histories
from kvtools.onerec.model import beam
from kvtools.onerec.model.batching import Batcher
from kvtools.onerec.model.trie import Trie
from kvtools.onerec.recommend.cooccurrence import Cooccurrence, top_popular
from kvtools.onerec.run.checkpoint import Counted, Generator

Within = Literal["popular", "recent", "random"]
CHUNK = 256  # users in one pass: the unit that ranks share, so that results do not depend on how many there are
_N_NEAR = 100  # candidates of co-occurrence in a blend
_N_SCORES = 1 << 25  # scores of codes held at a time: 128 MiB, of which a pass holds a few


@dataclass(frozen=True)
class Choice:
    """How to recommend."""

    k: int = 10
    beam: int = 512
    sure_of: int = 10  # the first so many, of which it is found out whether anything better can have been missed
    widens: bool = False  # search again, more widely, where it can
    is_exact: bool = False  # rank all items by full passes; no beams
    is_legal: bool = True  # by the trie; else the model says what it likes, and what no item has is dropped
    within: Within = "popular"
    mask_seen: bool = True
    blend: float = 0.0  # weight of co-occurrence in a mixture with the generator
    seed: int = 0


@dataclass(frozen=True)
class Ask:
    """Whom to recommend to: users of the histories, int64 (B,), and how many of their interactions count, int64 (B,)."""

    users: np.ndarray
    lengths: np.ndarray

    def __len__(self) -> int:
        return len(self.users)

    def chunks(self) -> Iterator["Ask"]:
        for begin in range(0, len(self), CHUNK):
            yield self.only(slice(begin, begin + CHUNK))

    def only(self, which: slice | np.ndarray) -> "Ask":
        """Some of those who ask: a slice, numbers, or bool (B,)."""
        return Ask(self.users[which], self.lengths[which])

    def past(self, histories: Histories) -> tuple[np.ndarray, np.ndarray]:
        """The interactions that count: offsets int64 (B+1,) and items."""
        offsets = np.concatenate([[0], np.cumsum(self.lengths)])
        index = np.arange(offsets[-1]) - np.repeat(offsets[:-1] - histories.offsets[self.users], self.lengths)
        return offsets, histories.items[index]


@dataclass(frozen=True)
class Found:
    """Recommendations, best first: items int32 (B, k), -1 where there are no more; scores float32 (B, k); IDs int64 (B, k)
    by the trie's numbers; how many of the beams were legal, and of how many users the first are certain to be the best."""

    items: np.ndarray
    scores: np.ndarray
    ids: np.ndarray
    n_legal: int = 0
    n_beams: int = 0
    n_sure: int = 0


class Shares:
    """P(item | ID) of items that share one: items by ID, the largest share first. log_share float64 (N,) by item. place: int64
    (N,) by item, by which ties are settled."""

    def __init__(self, trie: Trie, counted: Counted, within: Within, seed: int) -> None:
        n_items = len(trie.id_of_item)
        order = rng_for(seed, "within").permutation(n_items)
        key = np.zeros(n_items)
        if within == "popular":
            key = counted.popularity + 1.0
            order = np.arange(n_items)
        elif within == "recent":
            key, order = counted.latest, np.arange(n_items)
        self.items = (
            order[np.lexsort((order, -key[order], trie.id_of_item[order]))]
            if within != "random"
            else order[np.argsort(trie.id_of_item[order], kind="stable")]
        )
        self.place = np.argsort(order)
        rank = np.arange(n_items) - trie.bucket[trie.id_of_item[self.items]]
        weight = np.empty(n_items)
        weight[self.items] = 1 / (rank + 1.0) if within == "recent" else 1.0
        weight = key if within == "popular" else weight
        total = np.bincount(trie.id_of_item, weight, minlength=trie.n_ids)
        self.log_share = np.log(weight / total[trie.id_of_item])
        self.bucket, self.width = trie.bucket, int(np.diff(trie.bucket).max())

    def spread(self, ids_BW: np.ndarray, scores_BW: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """Items (B, X) of the IDs, -1 padding, and their scores, -inf there; of each ID at most its first k."""
        width = min(self.width, k)
        at = self.bucket[ids_BW][:, :, None] + np.arange(width)
        is_there = (at < self.bucket[ids_BW + 1][:, :, None]) & (ids_BW >= 0)[:, :, None]
        items = np.where(is_there, self.items[at.clip(max=len(self.items) - 1)], -1)
        scores = np.where(is_there, scores_BW[:, :, None] + self.log_share[items], -np.inf)
        return items.reshape(len(ids_BW), -1), scores.reshape(len(ids_BW), -1)


class Recommender:
    """Recommends from one generator. batcher: of the histories asked about. Of a model elsewhere or of another dtype it makes
    a copy."""

    def __init__(self, made: Generator, batcher: Batcher, choice: Choice, device: str, dtype: torch.dtype) -> None:
        self._made, self._batcher, self._choice, self._device = made, batcher, choice, device
        self.trie = Trie(made.ids.codes_NS).to(device)
        self._shares = Shares(self.trie, made.counted, choice.within, choice.seed)
        # weights too, not by autocast, which would cast them anew for every batch; what was given stays as it is
        is_so = all(x.device.type == torch.device(device).type and x.dtype == dtype for x in made.model.parameters())
        self._model = made.model if is_so else copy.deepcopy(made.model).to(device, dtype)

    def recommend(self, ask: Ask) -> Found:
        """For a chunk of users; those without history get what is popular."""
        weight = self._choice.blend
        if not weight:
            k, width = self._choice.k, self._choice.beam
            return self._with_popular(ask, lambda known: self._in_passes(known, self._near(known), k, width))
        return self._with_popular(ask, lambda known: next(self.blends(known, [weight])))

    def blends(self, ask: Ask, weights: Sequence[float]) -> Iterator[Found]:
        """Mixtures with co-occurrence by each of the weights, for users with a history; beams are searched once."""
        near = self._near(ask, _N_NEAR)
        # it chooses among more than it gives
        found = self._in_passes(ask, near, max(self._choice.k, _N_NEAR), self._choice.beam)
        counted = near if self._choice.mask_seen else self._near(ask, _N_NEAR, exclude_seen=False)
        for weight in weights:
            yield blended(found, counted, weight, self._choice.k, self.trie.id_of_item)

    def _with_popular(self, ask: Ask, recommend: Callable[[Ask], Found]) -> Found:
        is_known = ask.lengths > 0
        if is_known.all() and len(ask):
            return recommend(ask)
        k, popularity = self._choice.k, self._made.counted.popularity
        items = np.full((len(ask), k), -1, np.int32)
        scores = np.full((len(ask), k), -np.inf, np.float32)
        order = np.argsort(-popularity, kind="stable")[:k]
        items[:, : len(order)] = order
        scores[:, : len(order)] = np.log((popularity[order] + 1) / (popularity.sum() + len(popularity)))
        n_legal, n_beams, n_sure = 0, 0, int((~is_known).sum())
        if is_known.any():
            found = recommend(ask.only(is_known))
            items[is_known], scores[is_known] = found.items, found.scores
            n_legal, n_beams, n_sure = found.n_legal, found.n_beams, n_sure + found.n_sure
        return Found(items, scores, self._ids_of(items), n_legal, n_beams, n_sure)

    def _near(self, ask: Ask, n: int = 0, *, exclude_seen: bool = True) -> tuple[np.ndarray, np.ndarray]:
        n = min(max(n, self._model.config.near), len(self._made.ids))
        if not n:
            return np.empty((len(ask), 0), np.int32), np.empty((len(ask), 0), np.float32)
        return self._made.counted.near.nearest(*ask.past(self._batcher.histories), n, exclude_seen=exclude_seen)

    def _in_passes(self, ask: Ask, near: tuple[np.ndarray, np.ndarray], k: int, width: int) -> Found:
        """As many users at a time as memory should hold scores for: wide beams over many codes take a few, others all.

        Where it is to be certain, who is not is asked for again with twice the width, as far as memory goes for one user.
        """
        n_stems = len(self.trie.codes[-2]) if self.trie.n_levels > 1 else 1
        n_codes = max(self._model.vocabulary.codes)
        step = max(1, _N_SCORES // ((n_stems if self._choice.is_exact else width) * n_codes))
        parts, sure = [], []
        for begin in range(0, len(ask), step):
            part = slice(begin, begin + step)
            found, is_sure = self._generate(ask.only(part), (near[0][part], near[1][part]), k, width)
            parts.append(found)
            sure.append(is_sure)
        items, scores, ids = (np.concatenate([getattr(p, name) for p in parts]) for name in ("items", "scores", "ids"))
        n_legal, n_beams = sum(p.n_legal for p in parts), sum(p.n_beams for p in parts)
        again = np.flatnonzero(~np.concatenate(sure))
        n_sure = len(ask) - len(again)
        widest = _N_SCORES // n_codes
        if self._choice.widens and len(again) and width < widest:
            wider = self._in_passes(ask.only(again), (near[0][again], near[1][again]), k, min(2 * width, widest))
            items[again], scores[again], ids[again] = wider.items, wider.scores, wider.ids
            n_legal, n_beams, n_sure = n_legal + wider.n_legal, n_beams + wider.n_beams, n_sure + wider.n_sure
        return Found(items, scores, ids, n_legal, n_beams, n_sure)

    def _generate(self, ask: Ask, near: tuple[np.ndarray, np.ndarray], k: int, width: int) -> tuple[Found, np.ndarray]:
        """What is found, and of whom the first are certain to be the best, bool (B,)."""
        seen = None
        if self._choice.mask_seen:
            items = ask.past(self._batcher.histories)[1]
            seen = np.repeat(np.arange(len(ask)), ask.lengths) * len(self._made.ids) + items
        batch = self._batcher.batch(self._batcher.next_rows(ask.users, ask.lengths), near).to(self._device)
        with torch.inference_mode():
            context = self._model.context(batch)
            if self._choice.is_exact:
                return self._exact(beam.rank_all(self._model, context, self.trie), seen, k), np.ones(len(ask), bool)
            if self._choice.is_legal:
                beams = beam.search(self._model, context, self.trie, width, barred_BU=self._barred(len(ask), seen))
                ids_BW, scores_BW = beams.ids.cpu().numpy(), beams.scores.cpu().numpy()
                n_beams = n_legal = int((ids_BW >= 0).sum())
            else:
                beams = beam.search_freely(self._model, context, width)
                codes = beams.codes.cpu().numpy()
                ids_BW = self.trie.find(codes.reshape(-1, codes.shape[2])).reshape(codes.shape[:2])
                scores_BW = np.where(ids_BW >= 0, beams.scores.cpu().numpy(), -np.inf)
                n_beams, n_legal = ids_BW.size, int((ids_BW >= 0).sum())
        # of an ID as many as may be seen already, and as many as are asked for
        n_each = k + (int(ask.lengths.max(initial=0)) if self._choice.mask_seen else 0)
        items, scores = self._shares.spread(ids_BW, scores_BW.astype(np.float64), n_each)
        found = best(items, scores, seen, len(self._made.ids), k, place_N=self._shares.place)
        # an item has at most the score of its ID; where there are too few, nothing may be missing at all
        least_B = found[1][:, min(self._choice.sure_of, k) - 1]
        return Found(*found, self._ids_of(found[0]), n_legal, n_beams), least_B >= beams.missed_B.cpu().numpy()

    def _exact(self, scores_BU: Tensor, seen: np.ndarray | None, k: int) -> Found:
        scores_BN = scores_BU.cpu().numpy().astype(np.float64)[:, self.trie.id_of_item] + self._shares.log_share
        items = np.broadcast_to(np.arange(scores_BN.shape[1]), scores_BN.shape)
        found = best(items, scores_BN, seen, scores_BN.shape[1], k, place_N=self._shares.place)
        return Found(*found, self._ids_of(found[0]), scores_BN.size, scores_BN.size)

    def _barred(self, n_users: int, seen: np.ndarray | None) -> Tensor | None:
        """IDs all of whose items a user has seen, bool (B, U)."""
        if seen is None:
            return None
        rows, items = np.divmod(np.unique(seen), len(self._made.ids))
        met, n_seen = np.unique(rows * self.trie.n_ids + self.trie.id_of_item[items], return_counts=True)
        barred = np.zeros(n_users * self.trie.n_ids, bool)
        barred[met[n_seen >= np.diff(self.trie.bucket)[met % self.trie.n_ids]]] = True
        return torch.from_numpy(barred.reshape(n_users, -1)).to(self._device)

    def _ids_of(self, items_Bk: np.ndarray) -> np.ndarray:
        return np.where(items_Bk >= 0, self.trie.id_of_item[items_Bk], -1)


def best(
    items_BX: np.ndarray, scores_BX: np.ndarray, seen: np.ndarray | None, n_items: int, k: int, *,
    place_N: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray]:  # fmt: skip
    """The k best candidates, int32 (B, k) with -1 where there are no more, and their scores, float32. seen: row * n_items +
    item of what is left out. Ties go to the lower place, which is an item's number if none is given."""
    if seen is not None:
        keys = np.arange(len(items_BX))[:, None] * n_items + items_BX
        scores_BX = np.where(np.isin(keys, seen) | (items_BX < 0), -np.inf, scores_BX)
    places_BX = items_BX if place_N is None else place_N[items_BX]
    order = np.lexsort((places_BX, -scores_BX), axis=1)[:, :k]
    items, scores = np.take_along_axis(items_BX, order, 1), np.take_along_axis(scores_BX, order, 1)
    items = np.where(scores > -math.inf, items, -1)
    short = k - items.shape[1]
    if short > 0:
        items = np.pad(items, ((0, 0), (0, short)), constant_values=-1)
        scores = np.pad(scores, ((0, 0), (0, short)), constant_values=-np.inf)
    return items.astype(np.int32), scores.astype(np.float32)


def blended(found: Found, near: tuple[np.ndarray, np.ndarray], weight: float, k: int, id_of_item: np.ndarray) -> Found:
    """log((1 - weight) P(item by the generator) + weight P(item by co-occurrence)), each normed over its own candidates."""
    top = found.scores.max(axis=1, keepdims=True)
    chance_g = np.exp(found.scores - np.where(np.isfinite(top), top, 0), dtype=np.float64)
    chance_c = np.where(near[0] >= 0, near[1], 0).astype(np.float64)
    items_BX = np.concatenate([found.items, near[0]], axis=1)
    parts = [(1 - weight) * chance_g / np.maximum(chance_g.sum(1, keepdims=True), 1e-300)]
    parts.append(weight * chance_c / np.maximum(chance_c.sum(1, keepdims=True), 1e-300))
    chance_BX = np.concatenate(parts, axis=1)
    # an item that both propose stands twice: the first place takes the sum, the second nothing
    order = np.argsort(items_BX, axis=1, kind="stable")
    ordered, chance = np.take_along_axis(items_BX, order, 1), np.take_along_axis(chance_BX, order, 1)
    twice = (ordered[:, 1:] == ordered[:, :-1]) & (ordered[:, 1:] >= 0)
    chance[:, :-1] += np.where(twice, chance[:, 1:], 0)
    chance[:, 1:][twice] = 0
    with np.errstate(divide="ignore"):
        scores = np.where(ordered >= 0, np.log(chance), -np.inf)
    items, told = best(ordered, scores, None, 0, k)
    return Found(items, told, np.where(items >= 0, id_of_item[items], -1), found.n_legal, found.n_beams, found.n_sure)


def by_counting(
    name: Literal["popular", "co-occurrence"], counted: Counted, ask: Ask, histories: Histories, k: int, *, mask_seen: bool
) -> tuple[np.ndarray, np.ndarray]:
    """The baselines, in the form of `Cooccurrence.nearest`: items int32 (B, k) and scores float32 (B, k)."""
    offsets, items = ask.past(histories)
    if name == "popular":
        return top_popular(counted.popularity, offsets, items, k, exclude_seen=mask_seen)
    found, scores = counted.near.nearest(offsets, items, k, exclude_seen=mask_seen)
    is_cold = ask.lengths == 0
    if is_cold.any():  # nothing goes with nothing: what is popular is all that can be said
        nobody = np.zeros(int(is_cold.sum()) + 1, np.int64)
        found[is_cold], scores[is_cold] = top_popular(counted.popularity, nobody, items[:0], k, exclude_seen=False)
    return found, scores


def count(histories: Histories, is_train: np.ndarray, n_items: int, near: Cooccurrence, times: np.ndarray) -> Counted:
    """What the training part, bool (n,), says of items. times: (n,), when each interaction was."""
    items = histories.items[is_train]
    latest = np.full(n_items, -np.inf)
    np.maximum.at(latest, items, times[is_train].astype(np.float64))
    return Counted(np.bincount(items, minlength=n_items).astype(np.int64), latest, near)
