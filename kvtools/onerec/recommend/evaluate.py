"""How good recommendations are: leave-last-out, all items ranked, figures of items and of IDs, and the spread over models.

Protocol (spec of SASRec, S3-Rec and after): each held-out interaction is asked for with all of its user before it; seen items
are left out unless told otherwise, and a target among them then counts as missed. Popularity and co-occurrence count the
training part alone. Pass@k after OpenOneRec: any of the first k, of what is recommended before the first of a user's held-out
interactions, in the set of all of them; where users have several, Position1_Pass@k and Recall@k of the same lists stand beside.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from kvtools.onerec.recommend import metrics
from kvtools.onerec.recommend.recommend import Ask, Found, Recommender
from kvtools.world import World

PASSES = (1, 8, 32, 128, 512)
LONGEST = 20  # items, of HR and NDCG
_GRID = 21  # weights of a blend that are tried, 0 to 1


@dataclass(frozen=True)
class Ranked:
    """Where each target stood, int64 (B,), -1 where it did not: among items, and among distinct IDs; what was legal; and
    for how many targets nothing better can have been missed.

    lists: int32 (U, K), what each user was recommended first; truths: int32 (B,) items held out, from `offsets` (U+1,) on.
    """

    items: np.ndarray
    ids: np.ndarray
    lists: np.ndarray
    offsets: np.ndarray
    truths: np.ndarray
    n_legal: int
    n_beams: int
    n_sure: int


def over_ranks(ask: Ask, world: World, recommend: Callable[[Ask], Found]) -> Iterator[tuple[Ask, Found]]:
    """Chunks of users and what is recommended to them, in order, on rank 0; the ranks share the chunks. A collective."""
    chunks = list(ask.chunks())
    for begin in range(0, len(chunks), world.size):
        mine = chunks[begin + world.rank] if begin + world.rank < len(chunks) else ask.only(slice(0))
        found = recommend(mine)
        arrays = [world.gather_array(array) for array in (found.items, found.scores, found.ids)]
        counts = [world.sum(n) for n in (found.n_legal, found.n_beams, found.n_sure)]
        if world.is_root:
            users = slice(begin * len(chunks[0]), begin * len(chunks[0]) + len(arrays[0]))
            yield ask.only(users), Found(arrays[0], arrays[1], arrays[2], *counts)
        else:
            yield mine, found


def rank(ask: Ask, targets: np.ndarray, id_of_item: np.ndarray, world: World, recommend: Callable[[Ask], Found]) -> Ranked:
    """Ask, and look where the targets stand; asks of one user follow one another. Meaningful on rank 0."""
    items, ids, lists, done = [], [], [], 0
    counts = np.zeros(3, np.int64)
    is_first = np.r_[True, ask.users[1:] != ask.users[:-1]]
    for some, found in over_ranks(ask, world, recommend):
        wanted = targets[done : done + len(some)]
        lists.append(found.items[is_first[done : done + len(some)]])
        done += len(some)
        items.append(metrics.rank_of(found.items, wanted))
        ids.append(metrics.rank_of(metrics.distinct(found.ids), id_of_item[wanted]))
        counts += (found.n_legal, found.n_beams, found.n_sure)
    offsets = np.append(np.flatnonzero(is_first), len(ask))
    ranks = np.concatenate(items), np.concatenate(ids)
    return Ranked(*ranks, np.concatenate(lists), offsets, targets, *counts.tolist())


def describe(ranked: Ranked, k: int, *, tells_sure: bool) -> dict[str, Any]:
    """The figures that scripts rely on; `pass@k` as far as k items were asked for. tells_sure: of a search by beams alone."""
    told: dict[str, Any] = {"users": len(ranked.offsets) - 1, "held_out": len(ranked.items), **metrics.summary(ranked.items)}
    told |= {f"id_{name}": value for name, value in metrics.summary(ranked.ids).items()}
    of_users = {"pass": metrics.pass_at_k}
    if len(ranked.offsets) <= len(ranked.truths):  # somebody has several
        of_users |= {"position1_pass": metrics.position1_pass_at_k, "recall": metrics.recall_at_k}
    for name, figure in of_users.items():
        told |= {f"{name}@{n}": figure(ranked.lists, ranked.offsets, ranked.truths, n) for n in PASSES if n <= k}
    lo, hi = metrics.interval95(ranked.items, 10)
    told |= {"hr@10_ci95": [lo, hi], "legal_share": ranked.n_legal / ranked.n_beams if ranked.n_beams else 1.0}
    if tells_sure:
        told["sure_share"] = ranked.n_sure / len(ranked.items)
    return told


def spread(lines: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Mean and standard deviation over models, of every figure they share."""
    told: dict[str, Any] = {"model": f"mean of {len(lines)}", "users": lines[0]["users"], "held_out": lines[0]["held_out"]}
    for name, value in lines[0].items():
        if isinstance(value, float):
            over = metrics.over_seeds([line[name] for line in lines])
            told |= {name: over.mean, f"{name}_sd": over.deviation}
    return told


def calibrate(ask: Ask, targets: np.ndarray, recommender: Recommender) -> float:
    """The weight of a blend with the best NDCG@10 on these targets: those of validation, never of test. The work of one."""
    weights = np.linspace(0, 1, _GRID).round(3).tolist()
    gains = np.zeros(len(weights))
    done = 0
    for some in ask.chunks():
        wanted = targets[done : done + len(some)]
        done += len(some)
        for number, found in enumerate(recommender.blends(some, weights)):
            gains[number] += metrics.ndcg(metrics.rank_of(found.items, wanted), 10) * len(some)
    return float(weights[int(gains.argmax())])


def as_table(lines: Sequence[dict[str, Any]]) -> list[str]:
    """The figures for people: a line a model or baseline."""
    names = ["hr@5", "hr@10", "hr@20", "ndcg@5", "ndcg@10", "ndcg@20"]
    rows = [["", "users", *names, "legal", "s"]]
    for line in lines:
        figures = [f"{line[name]:.4f}" for name in names]
        title = str(line.get("model") or line["baseline"])
        seconds = f"{line['seconds']:.1f}" if "seconds" in line else ""
        rows.append([title, f"{line['users']:,}", *figures, f"{line['legal_share']:.4f}", seconds])
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return [
        "  ".join(x.ljust(w) if n == 0 else x.rjust(w) for n, (x, w) in enumerate(zip(row, widths, strict=True)))
        for row in rows
    ]
