"""`kvtools pairs`: interactions in, a stream of pairs of items that go together out."""

import json
from typing import Annotated, Literal

import typer

from kvtools.options import Columns, Compress, Force, Output, Quiet, ReportFile, Seed, Stamp, Strict, Verbose, refuse_if

EXAMPLES = [
    "kvtools pairs clicks.csv -o pairs.kvs",
    "kvtools pairs --method swing --top 5 clicks.inter | kvtools info --records -",
]
EXIT_CODES = (0, 2, 65, 66, 73, 74, 141)
SEE_ALSO = ("kvtools embed", "kvtools info", "kvtools-stream(5)")

_BATCH = 65_536  # pairs a record


def main(
    ctx: typer.Context,
    interactions: Annotated[
        str,
        typer.Argument(
            metavar="INTERACTIONS", help="CSV, TSV, RecBole .inter, lines USER ITEM ITEM ..., or a stream; - is stdin."
        ),
    ] = "-",
    method: Annotated[
        Literal["swing", "u2i", "both"],
        typer.Option(
            help="Pair each item with the most similar ones, each click with the most similar one before it, or both."
        ),
    ] = "both",
    top: Annotated[int, typer.Option(metavar="N", min=1, help="swing: pairs per item, at most.")] = 20,
    latest: Annotated[int, typer.Option(metavar="N", min=1, help="u2i: clicks before each that are compared, at most.")] = 50,
    alpha: Annotated[
        float, typer.Option(metavar="X", min=0, help="Smoothing: a pair of users who share n items counts 1/(X + n).")
    ] = 1.0,
    weigh_users: Annotated[
        bool, typer.Option("--weigh-users", help="Count a user of n items as 1/sqrt(n) instead of 1.")
    ] = False,
    min_count: Annotated[int, typer.Option(metavar="N", min=1, help="Leave out items with fewer clicks.")] = 1,
    min_rating: Annotated[
        float | None, typer.Option(metavar="X", help="Use interactions with a rating of at least X. Default: all.")
    ] = None,
    max_users: Annotated[
        int, typer.Option(metavar="N", min=2, help="Compare a seeded sample of N users of an item that has more.")
    ] = 1000,
    max_items: Annotated[
        int, typer.Option(metavar="N", min=2, help="Compare the latest N clicks of a user who has more.")
    ] = 1000,
    all_parts: Annotated[bool, typer.Option("--all", help="Use all interactions, since they have been split already.")] = False,
    columns: Columns = None,
    seed: Seed = 0,
    report: ReportFile = None,
    output: Output = "-",
    compress: Compress = None,
    force: Force = False,
    strict: Strict = False,
    stamp: Stamp = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> int:
    """Find pairs of items that go together, by Swing similarity, in the training part of interactions.

    A user's last interaction is for testing and the one before for validation; neither is used, nor are those that a `part`
    column marks so. Bad rows are reported and left out; the exit code is then 65. Rows out of time order, and copies, are
    repaired, and reported with -v.
    """
    import numpy as np

    from kvtools.artifact import source_name
    from kvtools.artifact.files import Sink, is_same_file, refuse_existing, write_line
    from kvtools.artifact.history import extend
    from kvtools.artifact.stream import Head, Writer
    from kvtools.artifact.strings import pack
    from kvtools.errors import Corrupt
    from kvtools.onerec.interactions.log import TRAIN, split
    from kvtools.onerec.interactions.stream import open_interactions, roles
    from kvtools.onerec.items import swing

    name = source_name(interactions)
    refuse_if((is_same_file(interactions, output), f"{name} is both input and output. Name another output."))
    for dst in (output, report):
        refuse_existing(dst or "-", force=force)
    log, skipped, history = open_interactions(interactions, columns=roles(columns or []))
    code = skipped.report(name, ctx.obj.log, strict=strict, verbose=verbose)
    refuse_if(
        (
            min_rating is not None and log.ratings is None,
            f"--min-rating needs ratings, and {name} has none. Name their column with --column rating=COL.",
        )
    )
    is_used = np.ones(len(log.items), bool) if all_parts else split(log) == TRAIN
    if min_rating is not None and log.ratings is not None:
        is_used &= log.ratings >= min_rating
    is_used &= np.bincount(log.items[is_used], minlength=len(log.item_keys))[log.items] >= min_count
    log = log.keep(is_used)
    users = log.users()
    kept, cut_users, cut_items = swing.cap(
        users, log.items, log.item_keys.tolist(), max_users=max_users, max_items=max_items, seed=seed
    )
    for reason, keys in (
        (f"users with more than {max_items} clicks, compared by their latest", log.user_keys[cut_users]),
        (f"items with more than {max_users} users, sampled", log.item_keys[cut_items]),
    ):
        skipped.add(reason, len(keys), keys, is_skipped=False)
        if len(keys):
            ctx.obj.log(f"{name}: {skipped.line(reason)}.", quiet=quiet)
    clicks = swing.clicks(users[kept], log.items[kept], len(log.user_keys), len(log.item_keys))
    similar = swing.swing(clicks, alpha=alpha, is_weighted=weigh_users)
    parts = {}
    if method in ("swing", "both"):
        parts["swing"] = swing.neighbours(similar, top)
    if method in ("u2i", "both"):
        parts["u2i"] = swing.targets(log.offsets, log.items, similar, latest)
    pairs, scores = swing.union(list(parts.values()))
    if not len(pairs):
        raise Corrupt(f"{name}: no two users share two items among the {len(log.items)} interactions used. Give more of them.")

    recipe = {
        "method": method, "top": top, "latest": latest, "alpha": alpha, "weigh_users": weigh_users, "min_count": min_count,
        "min_rating": min_rating, "max_users": max_users, "max_items": max_items, "all": all_parts, "seed": seed,
    }  # fmt: skip
    head = Head("pair", extend("pairs", ctx.obj.argv, before=[history], stamp=stamp), recipe)
    with Writer(Sink(output, force=force), head, level=compress) as writer:
        for begin in range(0, len(pairs), _BATCH):
            batch = slice(begin, begin + _BATCH)
            used, local = np.unique(pairs[batch], return_inverse=True)
            tensors = {"pairs": local.reshape(-1, 2).astype(np.int32), "scores": scores[batch]}
            writer.write(f"{writer.n_records:08d}", {**tensors, **pack("keys", log.item_keys[used].tolist())})
    if report:
        counts = {"interactions": len(log.items), "users": int((np.diff(log.offsets) > 0).sum())}
        counts |= {"items": len(np.unique(log.items)), "pairs": len(pairs), "paired_items": len(np.unique(pairs))}
        counts |= {f"{how}_pairs": len(own) for how, (own, _) in parts.items()}
        write_line(report, json.dumps({**counts, "findings": skipped.to_json()}, ensure_ascii=False), force=force)
    return code
