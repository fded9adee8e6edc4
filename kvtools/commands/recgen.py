"""`kvtools recgen`: a model and interactions in, recommendations or their quality out."""

import time
from contextlib import suppress
from typing import Annotated, Any, Literal

from kvtools import options as opt
from kvtools.errors import Usage

EXAMPLES = [
    "kvtools recgen --model shop.safetensors -k 5 --beam 32 clicks.csv --json",
    "kvtools convert clicks.csv | kvtools recgen --model shop.safetensors --beam 32 - | kvtools info --records -",
    "kvtools recgen -q --baseline co-occurrence --items items.ids --evaluate test clicks.csv",
]
EXIT_CODES = (0, 2, 65, 66, 73, 74, 75, 141)
SEE_ALSO = ("kvtools pretrain onerec", "kvtools semid-build", "kvtools convert", "kvtools-stream(5)")
COMMON = ("output", "compress", "force", "strict", "stamp")
_NARROW, _LISTS, _WIDE = 64, 128, 512  # beams unless --beam is given: the first width, that of an evaluation, the widest
GROUPS = {
    "Search": ("--within", "--blend", "--sure", "--exact", "--no-trie", "--keep-seen"),
    "Data": ("--table", "--titles", "--column", "--split"),
}


def main(
    run: opt.Invocation,
    interactions: opt.Interactions = "-",
    models: Annotated[
        list[str] | None,
        opt.value("M", "Model from pretrain onerec; repeat it with --evaluate for mean and spread.", "--model"),
    ] = None,
    k: Annotated[int, opt.value("N", "Recommendations per user.", "-k", least=1)] = 10,
    n_beams: Annotated[
        int | None,
        opt.value("N", "Beam width of the search over IDs; unless given, as wide as a user needs.", "--beam", least=1),
    ] = None,
    users: Annotated[
        str | None, opt.value("LIST", "Only these users: a file with one a line, or names with commas between.")
    ] = None,
    table: Annotated[
        str | None, opt.value("TABLE", "User features: the table that the model was trained with.", "--table")
    ] = None,
    evaluate: Annotated[
        Literal["valid", "test"] | None, opt.option("Evaluate on this part: HR, NDCG and Pass@k of held-out items.")
    ] = None,
    predictions: Annotated[
        str | None,
        opt.value("FILE", "With --evaluate: score these instead of a model: CSV, TSV or JSON Lines.", "--predictions"),
    ] = None,
    baseline: Annotated[
        Literal["popular", "co-occurrence"] | None, opt.option("Recommend by counts instead of a model.")
    ] = None,
    items: Annotated[
        str | None, opt.value("IDS", "Item catalogue of --baseline; with --model its own, or one with later items.")
    ] = None,
    within: Annotated[
        Literal["popular", "recent", "random"], opt.option("How items of one ID share its probability.")
    ] = "popular",
    blend: Annotated[
        str | None, opt.value("X", "Weight of co-occurrence in a mixture, 0 to 1; auto tunes it on the validation part.")
    ] = None,
    sure: Annotated[bool, opt.option("Widen the beam for users whose top k is not proven best.", "--sure")] = False,
    exact: Annotated[bool, opt.option("Rank all items instead of a beam search; for small catalogues.", "--exact")] = False,
    no_trie: Annotated[bool, opt.option("Search without the trie; IDs that no item has are dropped.", "--no-trie")] = False,
    keep_seen: Annotated[bool, opt.option("Recommend items of the user's history, too.", "--keep-seen")] = False,
    titles: Annotated[str | None, opt.value("FILE", "Titles beside the items of --json, --csv and --parquet.")] = None,
    columns: opt.Columns = None,
    split: opt.Split = None,
    shard: opt.Shard = None,
    as_json: opt.AsJson = False,
    as_csv: Annotated[bool, opt.option("Write CSV, a row an item.", "--csv")] = False,
    as_parquet: Annotated[bool, opt.option("Write parquet, a row an item.", "--parquet")] = False,
    device: opt.Device = "auto",
    dtype: opt.Dtype = "auto",
    seed: opt.Seed = 0,
) -> int:
    """Recommend items to users: the best semantic IDs by beam search, and the items that have them.

    Only items of the catalogue are recommended, and none of the user's own. A user without a history gets popular items, and
    a note says so. Scores are log-probabilities. --evaluate ranks all items for each held-out interaction and prints HR, NDCG
    and Pass@k. The ranks of mpiexec or srun share the users; results do not depend on how many ranks there are.
    """
    from kvtools.artifact.row_tables import write_rows
    from kvtools.artifact.stream import Head
    from kvtools.onerec.interactions.split import parse_split
    from kvtools.onerec.interactions.stream import roles
    from kvtools.onerec.recommend.evaluate import report_lines
    from kvtools.onerec.recommend.recgen import RecgenRun
    from kvtools.onerec.recommend.recommend import SearchOptions
    from kvtools.onerec.recommend.record_stream import write_stream
    from kvtools.train.device import keep_freed_memory, limit_threads, resolve_device
    from kvtools.train.loop import DTYPES

    world = run.world
    alone = {"--exact": exact, "--no-trie": no_trie, "--blend": blend is not None}
    of_models = {"--table": table is not None, "--sure": sure, **alone}
    forms = [name for name, is_given in (("--json", as_json), ("--csv", as_csv), ("--parquet", as_parquet)) if is_given]
    others = {"--model": bool(models), "--baseline": baseline is not None}
    given = {"--users": users, "--shard": shard, "--titles": titles, "-o": None if run.output == "-" else run.output}
    not_evaluated = [f"{name} {value}" for name, value in given.items() if value is not None]
    not_evaluated += [form for form in forms if form != "--json"]
    opt.refuse_if(
        (
            not models and baseline is None and predictions is None,
            "--model is missing. Give a model from kvtools pretrain onerec, or --baseline.",
        ),
        (predictions is not None and evaluate is None, "--predictions is of use only with --evaluate. Give --evaluate test."),
        *(
            (predictions is not None and is_given, f"--predictions cannot be combined with {name}. Drop one of them.")
            for name, is_given in {**others, **of_models}.items()
        ),
        (len(forms) > 1, f"{' and '.join(forms)} are different forms of output. Give one of them."),
        (models and baseline is not None, f"--model cannot be combined with --baseline {baseline}. Drop one of them."),
        (len(models or []) > 1 and evaluate is None, "several --model are allowed only with --evaluate. Give one of them."),
        (baseline is not None and items is None, f"--baseline {baseline} needs a catalogue. Give --items IDS."),
        (
            n_beams is not None and k > n_beams and not (exact or baseline or evaluate),
            f"-k {k} is larger than --beam {n_beams}. Raise --beam or lower -k.",
        ),
        (exact and no_trie, "--exact cannot be combined with --no-trie. Drop one of them."),
        *((sure and is_given, f"--sure cannot be combined with {name}. Drop one of them.") for name, is_given in alone.items()),
        (
            as_json and run.output != "-",
            f"--json prints on stdout and cannot be combined with -o {run.output}. Drop one of them.",
        ),
        *((evaluate, f"{option} cannot be combined with --evaluate. Drop one of them.") for option in not_evaluated),
        (titles is not None and not forms, "--titles is allowed only with --json, --csv or --parquet. Give one of them."),
        *(
            (
                baseline is not None and is_given,
                f"{name} cannot be combined with --baseline {baseline}. Leave it out, or give --model.",
            )
            for name, is_given in of_models.items()
        ),
    )
    parse_split(split)
    run.refuse_shared_stdin(interactions, items, table, titles, users, predictions, *(models or []))
    weight = _blend_weight(blend or "0")
    torch_device, precision = resolve_device(device, dtype, rank=world.rank)
    run.refuse_existing()
    limit_threads(world)
    keep_freed_memory()

    is_plain = not (exact or no_trie or weight or blend == "auto")
    options = SearchOptions(
        k=k, certify=k, **_widths(max(k, _LISTS if evaluate else _NARROW), n_beams, is_plain=is_plain, sure=sure),
        is_exact=exact, use_trie=not no_trie, within=within, exclude_seen=not keep_seen, blend=weight, seed=seed,
    )  # fmt: skip
    recgen = RecgenRun(
        interactions, roles(columns or []), items, table, options, world, split=split, device=torch_device,
        dtype=DTYPES[precision], log=run.info, report=run.warn, strict=run.strict, verbose=run.verbose, quiet=run.quiet,
    )  # fmt: skip
    is_auto = blend == "auto"
    if evaluate is not None:
        figures = [
            recgen.evaluate(model, baseline, evaluate, calibrate=is_auto, predictions=predictions) for model in models or [""]
        ]
        for line in report_lines(figures, as_json=as_json) if world.is_root else []:
            run.print(line)
        return recgen.code
    start = time.monotonic()
    names = recgen.titles(titles) if titles is not None and world.is_root else None
    recommendations = recgen.recommend((models or [""])[0], baseline, users, shard, calibrate=is_auto)
    if not forms:
        head = Head("recommendation", run.history(recgen.history), {})
        write_stream(run.output, head, recgen, recommendations, world, level=run.compress, force=run.force)
    elif as_json or not world.is_root:  # every rank takes part, and rank 0 alone gets recommendations
        for recommendation in recommendations:
            run.print_json(recommendation.to_json(names))
    elif as_csv or as_parquet:
        rows = (row for recommendation in recommendations for row in recommendation.rows(names))
        columns_of = {"user": str, "rank": int, "item": str, **({"title": str} if names is not None else {}), "score": float}
        write_rows(run.sink(is_text=as_csv), rows, columns_of, form="csv" if as_csv else "parquet")
    if run.verbose:
        run.info(f"{recgen.n_users:,} users in {time.monotonic() - start:.1f} s.")
    return recgen.code


def _widths(first: int, n_beams: int | None, *, is_plain: bool, sure: bool) -> dict[str, Any]:
    """The widths of beams, for SearchOptions. is_plain: whether the search knows a bound on what it missed; unless a width is
    given it then begins with `first`, and widens where that is not enough."""
    beam = n_beams or (first if is_plain else max(first, _WIDE))
    return {"beam": beam, "widen": sure or (is_plain and n_beams is None), "widest": None if sure else _WIDE}


def _blend_weight(text: str) -> float:
    """The weight that --blend gives; 0 for auto, which is tuned later."""
    with suppress(ValueError):
        weight = 0.0 if text == "auto" else float(text)
        if 0 <= weight <= 1:
            return weight
    raise Usage(f"--blend {text} is no weight. Give a number from 0 to 1, or auto.")
