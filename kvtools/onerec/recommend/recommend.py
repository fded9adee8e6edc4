"""From histories to recommendations: IDs by beam search, items of each ID by a stated rule, seen items left out.

An item's score is log P(ID) + log P(item | ID): the probability of an ID that several items share is divided among them by
`within`. Our choices, the report being silent: popular divides by (training interactions + 1), recent by 1 / rank of the
item's last interaction, random evenly, with ties in an order that the seed shuffles. So scores stay log-probabilities of items.

Legend: B users, N items, U distinct IDs, W beams, X candidates of a user, k recommendations.
"""

import copy
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from kvtools.chance import rng_for
from kvtools.onerec.model import beam
from kvtools.onerec.model.batching import Batcher, Neighbours
from kvtools.onerec.model.onerec import Context
from kvtools.onerec.model.trie import Trie
from kvtools.onerec.recommend.item_counts import ItemCounts
from kvtools.onerec.recommend.query import Query, Recommendations, seen_ids
from kvtools.onerec.run.checkpoint import Checkpoint

Within = Literal["popular", "recent", "random"]
_N_BLENDED = 100  # candidates of co-occurrence in a blend
_N_SCORES = 1 << 25  # scores of codes held at a time: 128 MiB, of which a pass holds a few


@dataclass(frozen=True)
class SearchOptions:
    """How to recommend."""

    k: int = 10
    beam: int = 512  # the first width
    certify: int = 10  # the first so many, which are checked for having missed nothing better
    widen: bool = False  # search again with a wider beam where that is not proven
    widest: int | None = None  # of those beams; None: as wide as memory holds for one user
    is_exact: bool = False  # rank all items by full passes; no beams
    use_trie: bool = True  # else every code may follow, and IDs that no item has are dropped
    within: Within = "popular"
    exclude_seen: bool = True
    blend: float = 0.0  # weight of co-occurrence in a mixture with the model
    seed: int = 0

    @property
    def is_sure(self) -> bool:
        """Whether beams are widened as far as it takes."""
        return self.widen and self.widest is None


class ItemGivenId:
    """P(item | ID) of items that share an ID.

    items: int64 (N,), by ID, the most probable first. log_p: float64 (N,) by item. tie_order: int64 (N,), lower first.
    """

    def __init__(self, trie: Trie, counts: ItemCounts, within: Within, seed: int) -> None:
        id_of_item, n_items = trie.id_of_item, len(trie.id_of_item)
        order = rng_for(seed, "within").permutation(n_items) if within == "random" else np.arange(n_items)
        key = {"popular": counts.popularity + 1.0, "recent": counts.latest, "random": np.ones(n_items)}[within]
        self.items = order[np.lexsort((-key[order], id_of_item[order]))]
        self.tie_order = np.argsort(order)
        weight = key
        if within == "recent":
            weight = np.empty(n_items)
            weight[self.items] = 1 / (np.arange(n_items) - trie.bucket[id_of_item[self.items]] + 1.0)
        total = np.bincount(id_of_item, weight, minlength=trie.n_ids)
        self.log_p = np.log(weight / total[id_of_item])
        self._bucket, self._width = trie.bucket, int(np.diff(trie.bucket).max())

    def candidates(self, ids_BW: np.ndarray, scores_BW: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """Items (B, X) of IDs int64 (B, W), -1 padding, and their scores, -inf there; of each ID at most its first k."""
        number = self._bucket[ids_BW][:, :, None] + np.arange(min(self._width, k))
        is_there = (number < self._bucket[ids_BW + 1][:, :, None]) & (ids_BW >= 0)[:, :, None]
        items = np.where(is_there, self.items[number.clip(max=len(self.items) - 1)], -1)
        scores = np.where(is_there, scores_BW[:, :, None] + self.log_p[items], -np.inf)
        return items.reshape(len(ids_BW), -1), scores.reshape(len(ids_BW), -1)


class Recommender:
    """Recommends by one model. batcher: of the histories that the queries mean.

    The checkpoint's model stays as it is: one on another device or of another dtype is copied.
    """

    def __init__(
        self, checkpoint: Checkpoint, batcher: Batcher, options: SearchOptions, device: str, dtype: torch.dtype
    ) -> None:
        self._counts, self._batcher, self._options, self._device = checkpoint.counts, batcher, options, device
        self.trie = checkpoint.ids.trie.to(device)
        self._n_items = len(checkpoint.ids)
        self._given_id = ItemGivenId(self.trie, checkpoint.counts, options.within, options.seed)
        # weights too, not by autocast, which would cast them anew for every batch
        model = checkpoint.model
        is_ready = all(x.device.type == torch.device(device).type and x.dtype == dtype for x in model.parameters())
        self._model = model if is_ready else copy.deepcopy(model).to(device, dtype)

    def recommend(self, query: Query) -> Recommendations:
        """Recommendations for a chunk of users; users without a history get what is popular."""
        is_known = query.lengths > 0
        if not is_known.any():
            return self._popular(query)
        known, weight = query.take(is_known), self._options.blend
        results = (
            next(self.blends(known, [weight])) if weight else self._search(known, self._neighbours(known), self._options.k)
        )
        return results if is_known.all() else self._popular(query).replaced(np.flatnonzero(is_known), results)

    def blends(self, query: Query, weights: Sequence[float]) -> Iterator[Recommendations]:
        """Mixtures with co-occurrence by each of the weights, for users with a history; beams are searched once."""
        neighbours = self._neighbours(query, _N_BLENDED)
        # a mixture chooses among more items than it gives
        results = self._search(query, neighbours, max(self._options.k, _N_BLENDED))
        counted = neighbours if self._options.exclude_seen else self._neighbours(query, _N_BLENDED, exclude_seen=False)
        return (blend(results, counted, weight, self._options.k, self.trie.id_of_item) for weight in weights)

    def _popular(self, query: Query) -> Recommendations:
        k, best = self._options.k, self._most_popular
        items = np.full((len(query), k), -1, np.int32)
        scores = np.full((len(query), k), -np.inf, np.float32)
        items[:, : len(best)] = best
        popularity = self._counts.popularity
        scores[:, : len(best)] = np.log((popularity[best] + 1) / (popularity.sum() + len(popularity)))
        return Recommendations(items, scores, self._ids_of(items), np.ones(len(query), bool))

    @cached_property
    def _most_popular(self) -> np.ndarray:
        return np.argsort(-self._counts.popularity, kind="stable")[: self._options.k]

    def _neighbours(self, query: Query, n: int = 0, *, exclude_seen: bool = True) -> Neighbours:
        n = min(max(n, self._model.config.near), self._n_items)
        if not n:
            return np.empty((len(query), 0), np.int32), np.empty((len(query), 0), np.float32)
        return self._counts.cooccurrence.nearest(*query.past(self._batcher.histories), n, exclude_seen=exclude_seen)

    def _search(self, query: Query, neighbours: Neighbours, k: int) -> Recommendations:
        """The k best items of each user. With `widen`, users whose best are not proven are searched again with twice the width,
        and again, up to the widest."""
        width, held = self._options.beam, _N_SCORES // max(self._model.vocabulary.codes)
        widest = min(held, self._options.widest or held)
        results = self._in_passes(query, neighbours, k, width)
        while self._options.widen and width < widest and not results.is_proven.all():
            width = min(2 * width, widest)
            rows = np.flatnonzero(~results.is_proven)
            wider = self._in_passes(query.take(rows), (neighbours[0][rows], neighbours[1][rows]), k, width)
            results = results.replaced(rows, wider)
        return results

    def _in_passes(self, query: Query, neighbours: Neighbours, k: int, width: int) -> Recommendations:
        """Results of one width, for as many users at a time as memory should hold scores for."""
        if self._options.is_exact:
            width = len(self.trie.codes[-2]) if self.trie.n_levels > 1 else 1
        step = beam.n_users_at_once(self.trie, max(self._model.vocabulary.codes), width, _N_SCORES)
        parts = [slice(begin, begin + step) for begin in range(0, len(query), step)]
        return Recommendations.concat(
            [self._one_pass(query.take(part), (neighbours[0][part], neighbours[1][part]), k, width) for part in parts]
        )

    @torch.inference_mode()
    def _one_pass(self, query: Query, neighbours: Neighbours, k: int, width: int) -> Recommendations:
        seen = None
        if self._options.exclude_seen:
            seen = np.repeat(np.arange(len(query)), query.lengths) * self._n_items + query.past(self._batcher.histories)[1]
        batch = self._batcher.batch(self._batcher.next_rows(query.users, query.lengths), neighbours).to(self._device)
        context = self._model.context(batch)
        if self._options.is_exact:
            log_p_BU = beam.rank_all(self._model, context, self.trie).cpu().numpy().astype(np.float64)
            scores = log_p_BU[:, self.trie.id_of_item] + self._given_id.log_p
            items = np.broadcast_to(np.arange(self._n_items), scores.shape)
            n_legal = n_beams = scores.size
            missed_B = np.full(len(query), -np.inf)
        else:
            ids_BW, scores_BW, missed_B = self._beams(context, width, seen)
            # of an ID as many items as may be seen already, and as many as are asked for
            n_each = k + (int(query.lengths.max(initial=0)) if self._options.exclude_seen else 0)
            items, scores = self._given_id.candidates(ids_BW, scores_BW.astype(np.float64), n_each)
            n_legal = int((ids_BW >= 0).sum())
            n_beams = n_legal if self._options.use_trie else ids_BW.size
        items, scores = top_k(items, scores, seen, self._n_items, k, tie_order=self._given_id.tie_order)
        # an item has at most the score of its ID; where there are too few items, nothing at all may have been missed
        is_proven = scores[:, min(self._options.certify, k) - 1] >= missed_B
        return Recommendations(items, scores, self._ids_of(items), is_proven, n_legal, n_beams)

    def _beams(self, context: Context, width: int, seen: np.ndarray | None) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """IDs int64 (B, W), -1 where there is none, their scores float32 (B, W), and the bound of what was missed, (B,)."""
        if self._options.use_trie:
            beams = beam.search(self._model, context, self.trie, width, barred_BU=self._barred(len(context.mask_BTC), seen))
            return beams.ids.cpu().numpy(), beams.scores.cpu().numpy(), beams.missed_B.cpu().numpy()
        beams = beam.search_freely(self._model, context, width)
        codes = beams.codes.cpu().numpy()
        ids_BW = self.trie.find(codes.reshape(-1, codes.shape[2])).reshape(codes.shape[:2])
        return ids_BW, np.where(ids_BW >= 0, beams.scores.cpu().numpy(), -np.inf), beams.missed_B.cpu().numpy()

    def _barred(self, n_users: int, seen: np.ndarray | None) -> Tensor | None:
        """IDs all of whose items a user has seen, bool (B, U)."""
        if seen is None:
            return None
        return torch.from_numpy(seen_ids(*np.divmod(seen, self._n_items), n_users, self.trie)).to(self._device)

    def _ids_of(self, items_Bk: np.ndarray) -> np.ndarray:
        return np.where(items_Bk >= 0, self.trie.id_of_item[items_Bk], -1)


def top_k(
    items_BX: np.ndarray, scores_BX: np.ndarray, seen: np.ndarray | None, n_items: int, k: int, *,
    tie_order: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray]:  # fmt: skip
    """The k best candidates, int32 (B, k), -1 where there are no more, and their scores, float32 (B, k).

    seen: row * n_items + item of what is left out, int64. Ties go to the lower tie_order, int (N,), or to the lower item.
    """
    if seen is not None:
        keys = np.arange(len(items_BX))[:, None] * n_items + items_BX
        scores_BX = np.where(np.isin(keys, seen) | (items_BX < 0), -np.inf, scores_BX)
    ties_BX = items_BX if tie_order is None else tie_order[items_BX]
    order = np.lexsort((ties_BX, -scores_BX), axis=1)[:, :k]
    items, scores = np.take_along_axis(items_BX, order, 1), np.take_along_axis(scores_BX, order, 1)
    items = np.where(scores > -math.inf, items, -1)
    n_lacking = max(0, k - items.shape[1])
    items = np.pad(items, ((0, 0), (0, n_lacking)), constant_values=-1)
    scores = np.pad(scores, ((0, 0), (0, n_lacking)), constant_values=-np.inf)
    return items.astype(np.int32), scores.astype(np.float32)


def blend(results: Recommendations, counted: Neighbours, weight: float, k: int, id_of_item: np.ndarray) -> Recommendations:
    """The k best by log((1 - weight) P(item by the model) + weight P(item by co-occurrence)), each normed over its own
    candidates. counted: items int32 (B, N') and scores float32 (B, N'). id_of_item: int64 (N,)."""
    top = results.scores.max(axis=1, keepdims=True)
    p_model = np.exp(results.scores - np.where(np.isfinite(top), top, 0), dtype=np.float64)
    p_counts = np.where(counted[0] >= 0, counted[1], 0).astype(np.float64)
    items_BX = np.concatenate([results.items, counted[0]], axis=1)
    parts = [(1 - weight) * p_model / np.maximum(p_model.sum(1, keepdims=True), 1e-300)]
    parts.append(weight * p_counts / np.maximum(p_counts.sum(1, keepdims=True), 1e-300))
    # an item that both propose stands twice: the first takes the sum, the second nothing
    order = np.argsort(items_BX, axis=1, kind="stable")
    items_BX, p_BX = np.take_along_axis(items_BX, order, 1), np.take_along_axis(np.concatenate(parts, axis=1), order, 1)
    is_twice = (items_BX[:, 1:] == items_BX[:, :-1]) & (items_BX[:, 1:] >= 0)
    p_BX[:, :-1] += np.where(is_twice, p_BX[:, 1:], 0)
    p_BX[:, 1:][is_twice] = 0
    with np.errstate(divide="ignore"):
        scores_BX = np.where(items_BX >= 0, np.log(p_BX), -np.inf)
    items, scores = top_k(items_BX, scores_BX, None, 0, k)
    ids = np.where(items >= 0, id_of_item[items], -1)
    return Recommendations(items, scores, ids, results.is_proven, results.n_legal, results.n_beams)
