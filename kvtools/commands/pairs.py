"""`kvtools pairs`: interactions in, a stream of pairs of items that go together out."""

from typing import Annotated, Literal

from kvtools import options as opt

EXAMPLES = [
    "kvtools pairs clicks.csv -o pairs.kvs",
    "kvtools pairs --method swing --top 5 clicks.inter | kvtools info --records -",
]
EXIT_CODES = (0, 2, 65, 66, 73, 74, 141)
SEE_ALSO = ("kvtools embed", "kvtools info", "kvtools-stream(5)")
COMMON = ("output", "compress", "force", "strict", "stamp")
GROUPS = {"Data": ("--column", "--split", "--all")}

_BATCH = 65_536  # pairs a record


def main(
    run: opt.Invocation,
    interactions: Annotated[
        str, opt.argument("INTERACTIONS", "CSV, TSV, RecBole .inter, lines USER ITEM ITEM ..., or a stream; - is stdin.")
    ] = "-",
    method: Annotated[
        Literal["swing", "u2i", "both"],
        opt.option("Pair each item with the most similar ones, each click with the most similar one before it, or both."),
    ] = "both",
    top: Annotated[int, opt.value("N", "swing: pairs per item, at most.", least=1)] = 20,
    latest: Annotated[int, opt.value("N", "u2i: clicks before each that are compared, at most.", least=1)] = 50,
    alpha: Annotated[float, opt.value("X", "Smoothing: a pair of users who share n items counts 1/(X + n).", least=0)] = 1.0,
    weigh_users: Annotated[bool, opt.option("Count a user of n items as 1/sqrt(n) instead of 1.", "--weigh-users")] = False,
    min_count: Annotated[int, opt.value("N", "Leave out items with fewer clicks.", least=1)] = 1,
    min_rating: Annotated[float | None, opt.value("X", "Use interactions with a rating of at least X. Default: all.")] = None,
    max_users: Annotated[int, opt.value("N", "Compare a seeded sample of N users of an item that has more.", least=2)] = 1000,
    max_items: Annotated[int, opt.value("N", "Compare the latest N clicks of a user who has more.", least=2)] = 1000,
    all_parts: Annotated[bool, opt.option("Use all interactions, since they have been split already.", "--all")] = False,
    columns: opt.Columns = None,
    split: opt.Split = None,
    seed: opt.Seed = 0,
    report: opt.ReportFile = None,
) -> int:
    """Find pairs of items that go together, by Swing similarity, in the training part of interactions.

    A user's last interaction is for testing and the one before for validation; neither is used, nor are those that a `part`
    column or --split marks so. Bad rows are reported and left out; the exit code is then 65. Rows out of time order, and
    copies, are repaired, and reported with -v.
    """
    import numpy as np

    from kvtools.artifact import source_name
    from kvtools.artifact.strings import pack
    from kvtools.errors import Corrupt
    from kvtools.onerec.interactions.account import tell
    from kvtools.onerec.interactions.log import TRAIN, parts_of
    from kvtools.onerec.interactions.split import parse_split, with_split
    from kvtools.onerec.interactions.stream import open_interactions, roles
    from kvtools.onerec.items import swing

    name = source_name(interactions)
    run.refuse_own_input(interactions, report=report)
    run.refuse_existing(report)
    opt.refuse_if((all_parts and split, "--all uses all parts, and --split leaves two out. Leave one of them out."))
    parse_split(split)
    read, skipped, history = open_interactions(interactions, columns=roles(columns or []))
    log = with_split(read, split, name)
    code = skipped.report(name, run.log, strict=run.strict, verbose=run.verbose)
    tell(log.account, run.info)
    no_ratings = f"--min-rating needs ratings, and {name} has none. Name their column with --column rating=COL."
    opt.refuse_if((min_rating is not None and log.ratings is None, no_ratings))
    is_used = np.ones(len(log.items), bool) if all_parts else parts_of(log) == TRAIN
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
            run.info(f"{name}: {skipped.line(reason)}.")
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
        "min_rating": min_rating, "max_users": max_users, "max_items": max_items, "all": all_parts, "split": split,
        "seed": seed,
    }  # fmt: skip
    with run.writer("pair", recipe, before=[history]) as writer:
        for begin in range(0, len(pairs), _BATCH):
            batch = slice(begin, begin + _BATCH)
            used, local = np.unique(pairs[batch], return_inverse=True)
            tensors = {"pairs": local.reshape(-1, 2).astype(np.int32), "scores": scores[batch]}
            writer.write(f"{writer.n_records:08d}", {**tensors, **pack("keys", log.item_keys[used].tolist())})
    counts = {"interactions": len(log.items), "users": int((np.diff(log.offsets) > 0).sum())}
    counts |= {"items": len(np.unique(log.items)), "pairs": len(pairs), "paired_items": len(np.unique(pairs))}
    counts |= {f"{how}_pairs": len(own) for how, (own, _) in parts.items()}
    account = {"read": log.account.to_json()} if log.account else {}
    run.write_report(report, {**counts, "findings": skipped.to_json(), **account})
    return code
