"""How good recommendations are: leave-last-out, all items ranked, figures of items and of IDs, and the spread over models.

Protocol (spec of SASRec, S3-Rec and after): each held-out interaction is asked for with all of its user before it; seen items
are left out unless told otherwise, and a target among them then counts as missed. Popularity and co-occurrence count the
training part alone. Pass@k after OpenOneRec: any of the first k, of what is recommended before the first of a user's held-out
interactions, in the set of all of them; where users have several, Position1_Pass@k and Recall@k of the same lists stand beside.

Legend: B queries, U users, K recommendations.
"""

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from kvtools.onerec.recommend import metrics
from kvtools.onerec.recommend.query import Query, Recommendations
from kvtools.onerec.recommend.recommend import Recommender
from kvtools.world import World

PASS_AT = (1, 8, 32, 128, 512)
LONGEST = 20  # items, of HR and NDCG
_N_WEIGHTS = 21  # weights of a blend that are tried, from 0 to 1

Recommend = Callable[[Query], Recommendations]


@dataclass(frozen=True)
class Ranked:
    """Where the held-out items are in the recommendations."""

    items: np.ndarray  # int64 (B,): the rank of each target among items, -1 where it is missing
    ids: np.ndarray  # int64 (B,): the rank of its ID among distinct IDs
    lists: np.ndarray  # int32 (U, K): what each user was recommended first
    offsets: np.ndarray  # int64 (U+1,) into truths
    truths: np.ndarray  # int32 (B,): held-out items
    legal_fraction: float
    n_proven: int  # queries whose best items are proven


def over_ranks(query: Query, world: World, recommend: Recommend) -> Iterator[tuple[Query, Recommendations]]:
    """Chunks of the query and their recommendations, in order, on rank 0; the ranks share the chunks. A collective."""
    chunks = list(query.chunks())
    for begin in range(0, len(chunks), world.size):
        mine = chunks[begin + world.rank] if begin + world.rank < len(chunks) else query.take(slice(0))
        found = recommend(mine)
        items, scores, ids, is_proven = (world.gather_array(array) for array in found.arrays)
        first = begin * len(chunks[0])
        gathered = Recommendations(items, scores, ids, is_proven, world.sum(found.n_legal), world.sum(found.n_beams))
        yield query.take(slice(first, first + len(items))), gathered


def rank(query: Query, targets: np.ndarray, id_of_item: np.ndarray, world: World, recommend: Recommend) -> Ranked:
    """Recommend, and find the ranks of the targets, int32 (B,). Queries of one user follow one another. A collective."""
    items, ids, lists, done = [], [], [], 0
    n_legal = n_beams = n_proven = 0
    is_first = np.r_[True, query.users[1:] != query.users[:-1]]
    for chunk, found in over_ranks(query, world, recommend):
        wanted = targets[done : done + len(chunk)]
        lists.append(found.items[is_first[done : done + len(chunk)]])
        done += len(chunk)
        items.append(metrics.rank_of(found.items, wanted))
        ids.append(metrics.rank_of(metrics.distinct(found.ids), id_of_item[wanted]))
        n_legal, n_beams = n_legal + found.n_legal, n_beams + found.n_beams
        n_proven += int(found.is_proven.sum())
    offsets = np.append(np.flatnonzero(is_first), len(query))
    legal_fraction = n_legal / n_beams if n_beams else 1.0
    ranks = np.concatenate(items), np.concatenate(ids)
    return Ranked(*ranks, np.concatenate(lists), offsets, targets, legal_fraction, n_proven)


def figures_of(ranked: Ranked, k: int, *, is_bounded: bool) -> dict[str, Any]:
    """The figures that scripts rely on; `pass@n` for n up to k. is_bounded: whether the search could prove its best items."""
    figures: dict[str, Any] = {"users": len(ranked.offsets) - 1, "held_out": len(ranked.items)}
    figures |= metrics.summary(ranked.items)
    figures |= {f"id_{name}": value for name, value in metrics.summary(ranked.ids).items()}
    of_users = {"pass": metrics.pass_at_k}
    if len(ranked.offsets) <= len(ranked.truths):  # some user has several
        of_users |= {"position1_pass": metrics.position1_pass_at_k, "recall": metrics.recall_at_k}
    for name, figure in of_users.items():
        lists = ranked.lists, ranked.offsets, ranked.truths
        figures |= {f"{name}@{n}": figure(*lists, n) for n in PASS_AT if n <= k}
    figures |= {"hr@10_ci95": list(metrics.interval95(ranked.items, 10)), "legal_share": ranked.legal_fraction}
    if is_bounded:
        figures["sure_share"] = ranked.n_proven / len(ranked.items)
    return figures


def spread(lines: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Mean and standard deviation over models, of every figure they share."""
    figures: dict[str, Any] = {"model": f"mean of {len(lines)}", "users": lines[0]["users"], "held_out": lines[0]["held_out"]}
    for name, value in lines[0].items():
        if isinstance(value, float):
            figures[name], figures[f"{name}_sd"] = metrics.mean_and_deviation([line[name] for line in lines])
    return figures


def calibrate(query: Query, targets: np.ndarray, recommender: Recommender) -> float:
    """The weight of a blend with the best NDCG@10 on these targets: those of validation, never of test. Runs on one rank."""
    weights = np.linspace(0, 1, _N_WEIGHTS).round(3).tolist()
    gains = np.zeros(len(weights))
    done = 0
    for chunk in query.chunks():
        wanted = targets[done : done + len(chunk)]
        done += len(chunk)
        for number, found in enumerate(recommender.blends(chunk, weights)):
            gains[number] += metrics.ndcg(metrics.rank_of(found.items, wanted), 10) * len(chunk)
    return float(weights[int(gains.argmax())])


def report_lines(figures: Sequence[dict[str, Any]], *, as_json: bool) -> list[str]:
    """A line for each model or baseline, and one of means where there are several: JSON, or a table for people."""
    figures = [*figures, spread(figures)] if len(figures) > 1 else figures
    return [json.dumps(line) for line in figures] if as_json else as_table(figures)


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
