"""`kvtools pairs`: interactions in, a stream of pairs of items that go together out."""

import json
from typing import Annotated, Literal

import typer

from kvtools.options import Columns, Compress, Force, Output, Quiet, ReportFile, Seed, Stamp, Strict, Verbose

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
        typer.Option(help="Each item with those most like it, each click with the one before it most like it, or both."),
    ] = "both",
    top: Annotated[int, typer.Option(metavar="N", min=1, help="swing: so many pairs an item.")] = 20,
    latest: Annotated[int, typer.Option(metavar="N", min=1, help="u2i: look so many clicks back.")] = 50,
    alpha: Annotated[
        float, typer.Option(metavar="X", min=0, help="Smoothing: what two users share counts 1/(X + shared).")
    ] = 1.0,
    weigh_users: Annotated[bool, typer.Option("--weigh-users", help="Count a user of n items 1/sqrt(n) instead of 1.")] = False,
    min_count: Annotated[int, typer.Option(metavar="N", min=1, help="Leave out items with fewer clicks.")] = 1,
    min_rating: Annotated[
        float | None, typer.Option(metavar="X", help="A click is a rating of at least X. Default: any.")
    ] = None,
    max_users: Annotated[
        int, typer.Option(metavar="N", min=2, help="Compare a seeded sample of N users of an item that has more.")
    ] = 1000,
    max_items: Annotated[
        int, typer.Option(metavar="N", min=2, help="Compare the latest N clicks of a user who has more.")
    ] = 1000,
    all_parts: Annotated[bool, typer.Option("--all", help="Use all interactions; they have been split already.")] = False,
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
    """Find items that go together, by Swing similarity, in the training part of interactions.

    A user's last interaction is for testing and the one before for validation; neither is looked at, nor is what a `part`
    column keeps for them. Bad rows are told and left out; the exit code is then 65. Rows out of time order, and copies,
    are put right, and told with -v.
    """
    import numpy as np

    from kvtools.artifact.files import Sink, is_same_file, refuse_existing
    from kvtools.artifact.history import extend
    from kvtools.artifact.stream import Head, Writer
    from kvtools.artifact.strings import pack
    from kvtools.errors import Corrupt, Usage
    from kvtools.onerec.interactions.log import TRAIN, split
    from kvtools.onerec.interactions.stream import open_interactions, roles
    from kvtools.onerec.items import swing

    if is_same_file(interactions, output):
        raise Usage(f"{interactions}: both input and output. Name another output.")
    for dst in (output, report):
        refuse_existing(dst or "-", force=force)
    name = "stdin" if interactions == "-" else interactions
    log, skipped, history = open_interactions(interactions, columns=roles(columns or []))
    code = skipped.report(name, ctx.obj.log, strict=strict, verbose=verbose)

    is_used = np.ones(len(log.items), bool) if all_parts else split(log) == TRAIN
    if min_rating is not None:
        if log.ratings is None:
            raise Usage(f"--min-rating {min_rating:g}: {name} has no ratings. Name their column with --column rating=COL.")
        is_used &= log.ratings >= min_rating
    is_used &= np.bincount(log.items[is_used], minlength=len(log.item_keys))[log.items] >= min_count
    log = log.keep(is_used)
    users = log.users()
    near, *capped = swing.cap(users, log.items, log.item_keys.tolist(), max_users=max_users, max_items=max_items, seed=seed)
    for words, keys in zip(
        (
            f"users with more than {max_items} clicks, compared by their latest",
            f"items with more than {max_users} users, sampled",
        ),
        (log.user_keys[capped[0]], log.item_keys[capped[1]]),
        strict=True,
    ):
        skipped.add(words, len(keys), keys, is_skipped=False)
        if len(keys):
            ctx.obj.log(f"{name}: {skipped.line(words)}.", quiet=quiet)
    clicks = swing.clicks(users[near], log.items[near], len(log.user_keys), len(log.item_keys))
    similar = swing.swing(clicks, alpha=alpha, is_weighted=weigh_users)
    found = {}
    if method in ("swing", "both"):
        found["swing"] = swing.nearest(similar, top)
    if method in ("u2i", "both"):
        found["u2i"] = swing.targets(log.offsets, log.items, similar, latest)
    pairs, scores = swing.union(list(found.values()))
    if not len(pairs):
        raise Corrupt(f"{name}: no two users share two items in {len(log.items)} interactions looked at; no pairs to write.")

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
        line = {**counts, **{f"{how}_pairs": len(some) for how, (some, _) in found.items()}, "findings": skipped.to_json()}
        sink = Sink(report, force=force)
        sink.write([json.dumps(line, ensure_ascii=False).encode() + b"\n"])
        sink.commit()
    return code
