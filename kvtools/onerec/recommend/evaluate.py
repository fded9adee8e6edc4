"""How good recommendations are: leave-last-out, all items ranked, figures of items and of IDs, and the spread over models.

Protocol (spec of SASRec, S3-Rec and after): each held-out interaction is asked for with all of its user before it; seen items
are left out by default, and a target among them then counts as missed. Popularity and co-occurrence count the
training part alone. Pass@k after OpenOneRec: any of the first k, of what is recommended before the first of a user's held-out
interactions, in the set of all of them; where users have several, Position1_Pass@k and Recall@k of the same lists stand beside.

Legend: B queries, U users, K recommendations.
"""

import json
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from kvtools.onerec.recommend import metrics
from kvtools.onerec.recommend.query import Query, Recommendations
from kvtools.onerec.recommend.recommend import Recommender
from kvtools.world import World

PASS_AT = (1, 8, 32, 128, 512)
CUTOFFS = (5, 10, 20)  # of HR and NDCG
_N_WEIGHTS = 21  # weights of a blend that are tried, from 0 to 1

Recommend = Callable[[Query], Recommendations]


def over_ranks(
    query: Query, world: World, recommend: Recommend, on_chunk: Callable[[], None]
) -> Iterator[tuple[Query, Recommendations]]:
    """Chunks of the query and their recommendations, in order; the ranks share the chunks, and all get all. A collective.

    on_chunk: called after each chunk of this rank.
    """
    chunks = list(query.chunks())
    for begin in range(0, len(chunks), world.size):
        own = recommend(chunks[begin + world.rank] if begin + world.rank < len(chunks) else query.take(slice(0)))
        on_chunk()
        items, scores, ids, is_proven = (world.gather_array(array) for array in own.arrays)
        first = begin * len(chunks[0])
        gathered = Recommendations(items, scores, ids, is_proven, world.sum(own.n_legal), world.sum(own.n_beams))
        yield query.take(slice(first, first + len(items))), gathered


def cutoffs(k: int) -> tuple[int, ...]:
    """Where HR and NDCG are cut off: at the usual places, and at k."""
    return tuple(sorted({*CUTOFFS, k}))


def evaluate(
    query: Query, targets: np.ndarray, id_of_item: np.ndarray, k: int, recommended: Iterable[tuple[Query, Recommendations]], *,
    at: Sequence[int] = CUTOFFS,
) -> tuple[dict[str, Any], int]:  # fmt: skip
    """The figures that scripts rely on, `pass@n` for n up to k, and the number of queries whose best items are proven.

    targets: int32 (B,), the held-out items; queries of one user follow one another. id_of_item: int64 (N,). recommended: as
    `over_ranks` gives it. at: the cutoffs of HR and NDCG.
    """
    item_ranks, id_ranks, lists, done = [], [], [], 0
    n_legal = n_beams = n_proven = 0
    is_first = np.r_[True, query.users[1:] != query.users[:-1]]
    for chunk, top in recommended:
        here = slice(done, done + len(chunk))
        lists.append(top.items[is_first[here]])
        item_ranks.append(metrics.rank_of(top.items, targets[here]))
        id_ranks.append(metrics.rank_of(metrics.distinct(top.ids), id_of_item[targets[here]]))
        n_legal, n_beams = n_legal + top.n_legal, n_beams + top.n_beams
        n_proven, done = n_proven + int(top.is_proven.sum()), done + len(chunk)
    ranks, offsets = np.concatenate(item_ranks), np.append(np.flatnonzero(is_first), len(query))
    figures: dict[str, Any] = {"users": len(offsets) - 1, "held_out": len(query), **metrics.summary(ranks, at)}
    figures |= {f"id_{name}": value for name, value in metrics.summary(np.concatenate(id_ranks), at).items()}
    of_users = {"pass": metrics.pass_at_k}
    if len(offsets) <= len(targets):  # some user has several
        of_users |= {"position1_pass": metrics.position1_pass_at_k, "recall": metrics.recall_at_k}
    for name, figure in of_users.items():
        figures |= {f"{name}@{n}": figure(np.concatenate(lists), offsets, targets, n) for n in PASS_AT if n <= k}
    figures |= {"hr@10_ci95": list(metrics.interval95(ranks, 10)), "legal_share": n_legal / n_beams if n_beams else 1.0}
    return figures, n_proven


def spread(lines: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Mean and standard deviation over models, of every figure they share."""
    figures: dict[str, Any] = {"model": f"mean of {len(lines)}", "users": lines[0]["users"], "held_out": lines[0]["held_out"]}
    for name, value in lines[0].items():
        if isinstance(value, float):
            figures[name], figures[f"{name}_sd"] = metrics.mean_and_deviation([line[name] for line in lines])
    return figures


def calibrate(query: Query, targets: np.ndarray, recommender: Recommender) -> float:
    """The weight of a blend with the best NDCG@10. targets: int32 (B,), of validation, never of test. Runs on one rank."""
    weights = np.linspace(0, 1, _N_WEIGHTS).round(3).tolist()
    gains = np.zeros(len(weights))
    done = 0
    for chunk in query.chunks():
        wanted = targets[done : done + len(chunk)]
        done += len(chunk)
        for number, blended in enumerate(recommender.blends(chunk, weights)):
            gains[number] += metrics.ndcg(metrics.rank_of(blended.items, wanted), 10) * len(chunk)
    return float(weights[int(gains.argmax())])


def report_lines(figures: Sequence[dict[str, Any]], *, as_json: bool) -> list[str]:
    """A line for each model or baseline, and one of means where there are several: JSON, or a table for people."""
    figures = [*figures, spread(figures)] if len(figures) > 1 else figures
    return [json.dumps(line) for line in figures] if as_json else as_table(figures)


def as_table(lines: Sequence[dict[str, Any]]) -> list[str]:
    """The figures for people: a line a model or baseline."""
    names = [name for name in lines[0] if re.fullmatch(r"(hr|ndcg)@[0-9]+", name)]
    rows = [["", "users", *names, "legal", "s"]]
    for line in lines:
        figures = [f"{line[name]:.4f}" for name in names]
        title = str(line.get("model") or line.get("baseline") or line["predictions"])
        seconds = f"{line['seconds']:.1f}" if "seconds" in line else ""
        rows.append([title, f"{line['users']:,}", *figures, f"{line['legal_share']:.4f}", seconds])
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return [
        "  ".join(x.ljust(w) if n == 0 else x.rjust(w) for n, (x, w) in enumerate(zip(row, widths, strict=True)))
        for row in rows
    ]
