"""`kvtools recgen`: a generator and what users did in, recommendations out."""

import time
from contextlib import suppress
from functools import partial
from typing import Annotated, Literal

import typer

from kvtools.errors import Usage
from kvtools.options import (
    AsJson,
    Columns,
    Compress,
    Device,
    Dtype,
    Force,
    Interactions,
    Output,
    Quiet,
    Seed,
    Shard,
    Stamp,
    Strict,
    Verbose,
    require,
)

EXAMPLES = [
    "kvtools recgen --model shop.safetensors -k 5 --beam 32 clicks.csv --json",
    "kvtools convert clicks.csv | kvtools recgen --model shop.safetensors --beam 32 - | kvtools info --records -",
    "kvtools recgen --baseline co-occurrence --items items.ids --evaluate test clicks.csv",
]
EXIT_CODES = (0, 2, 65, 66, 73, 74, 141)
SEE_ALSO = ("kvtools pretrain onerec", "kvtools semid-build", "kvtools convert", "kvtools-stream(5)")
GROUPS = {
    "Search": ("--within", "--blend", "--sure", "--exact", "--no-trie", "--keep-seen"),
    "Data": ("--table", "--titles", "--column"),
}


def main(
    ctx: typer.Context,
    interactions: Interactions = "-",
    models: Annotated[
        list[str] | None, typer.Option("--model", metavar="M", help="A generator; with --evaluate repeat it for a spread.")
    ] = None,
    k: Annotated[int, typer.Option("-k", metavar="N", min=1, help="Recommendations a user.")] = 10,
    n_beams: Annotated[int, typer.Option("--beam", metavar="N", min=1, help="IDs followed at a time.")] = 512,
    users: Annotated[
        str | None, typer.Option(metavar="LIST", help="Only these: a file, one a line, or names with commas.")
    ] = None,
    table: Annotated[
        str | None, typer.Option("--table", metavar="TABLE", help="What is known of users, as in training.")
    ] = None,
    evaluate: Annotated[
        Literal["valid", "test"] | None, typer.Option(help="Recommend what was held out, and tell how often it was found.")
    ] = None,
    baseline: Annotated[Literal["popular", "co-occurrence"] | None, typer.Option(help="Count instead of generating.")] = None,
    items: Annotated[
        str | None, typer.Option(metavar="IDS", help="The catalogue of a baseline; of a model, to be sure.")
    ] = None,
    within: Annotated[
        Literal["popular", "recent", "random"], typer.Option(help="How items of one ID share its probability.")
    ] = "popular",
    blend: Annotated[
        str | None, typer.Option(metavar="X", help="Mix in co-occurrence by X of 1; auto calibrates on validation.")
    ] = None,
    sure: Annotated[
        bool, typer.Option("--sure", help="Search again, more widely, where better ones can have been missed.")
    ] = False,
    exact: Annotated[bool, typer.Option("--exact", help="Rank all items instead of searching; for small catalogues.")] = False,
    no_trie: Annotated[
        bool, typer.Option("--no-trie", help="Let the model say IDs that no item has; they are dropped.")
    ] = False,
    keep_seen: Annotated[bool, typer.Option("--keep-seen", help="Recommend items that the user had already, too.")] = False,
    titles: Annotated[
        str | None, typer.Option(metavar="FILE", help="With --json: what items are called, CSV or .item.")
    ] = None,
    columns: Columns = None,
    shard: Shard = None,
    as_json: AsJson = False,
    device: Device = "auto",
    dtype: Dtype = "auto",
    seed: Seed = 0,
    output: Output = "-",
    compress: Compress = None,
    force: Force = False,
    strict: Strict = False,
    stamp: Stamp = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> int:
    """Recommend items to users: for each its best semantic IDs by beam search, and the items that have them.

    Nothing but items of the catalogue comes out; what a user had already is left out. A user without history gets what is
    popular, and that is told. Scores are log-probabilities. --evaluate ranks all items for each held-out interaction and
    prints HR, NDCG and Pass@k. The ranks of mpiexec or srun share the users; results do not depend on how many there are.
    """
    from kvtools.artifact.files import refuse_existing
    from kvtools.onerec.interactions.stream import roles
    from kvtools.onerec.recommend.recgen import Serving, write_json, write_stream
    from kvtools.onerec.recommend.recommend import Choice
    from kvtools.train.device import keep_freed_memory, limit_threads, resolve_device
    from kvtools.train.loop import DTYPES

    world = ctx.obj.world
    require(
        bool(models) != (baseline is not None),
        "--model",
        f"{' '.join(models or []) or 'none'} and --baseline {baseline}",
        "one of the two",
    )
    require(len(models or []) <= 1 or evaluate is not None, "--model", "more than one", "--evaluate beside them")
    require(baseline is None or items is not None, "--baseline", f"{baseline} alone", "--items IDS beside it")
    is_wide_enough = k <= n_beams or exact or baseline is not None or evaluate is not None
    require(is_wide_enough, "-k", f"{k} of --beam {n_beams}", "no more than the beam")
    require(not (exact and no_trie), "--exact", "with --no-trie", "one of the two")
    for option, is_given in (("--exact", exact), ("--no-trie", no_trie), ("--blend", blend is not None)):
        require(not (sure and is_given), "--sure", f"with {option}", "one of the two")
    require(not (as_json and output != "-"), "--json", f"with -o {output}", "lines on stdout alone")
    for option, value in (("--users", users), ("--shard", shard), ("--titles", titles), ("-o", output)):
        require(evaluate is None or value in (None, "-"), option, f"{value} with --evaluate", "one of the two")
    require(titles is None or as_json, "--titles", f"{titles} alone", "--json beside it")
    of_models = {"--table": table is not None, "--sure": sure, "--exact": exact, "--no-trie": no_trie}
    unfit = [word for word, is_given in of_models.items() if is_given]
    require(baseline is None or not unfit, "--baseline", f"{baseline} with {' '.join(unfit)}", "a --model")
    require(blend is None or baseline is None, "--blend", f"{blend} with --baseline", "a --model")
    sources = [interactions, items, table, titles, users, *(models or [])]
    require(sources.count("-") <= 1, "-", "named more than once", "one input from stdin")
    require("-" not in sources or world.size == 1, "-", f"on {world.size} ranks", "a file, which every rank reads,")
    weight = _share(blend or "0")
    place, precision = resolve_device(device, dtype, rank=world.rank)
    refuse_existing(output, force=force)
    limit_threads(world.local_size)
    keep_freed_memory()

    def tell(words: str) -> None:
        ctx.obj.log(words, quiet=quiet or not world.is_root)

    choice = Choice(
        k=k, beam=n_beams, sure_of=k, widens=sure, is_exact=exact, is_legal=not no_trie, within=within,
        mask_seen=not keep_seen, blend=weight, seed=seed,
    )  # fmt: skip
    serving = Serving(
        interactions, roles(columns or []), items, table, choice, world,
        device=place, dtype=DTYPES[precision], tell=tell, strict=strict, is_told=verbose, is_quiet=quiet,
        tell_loss=partial(ctx.obj.log, quiet=not world.is_root),
    )  # fmt: skip
    if evaluate is not None:
        lines = [serving.evaluate(model, baseline, evaluate, calibrate=blend == "auto") for model in models or [""]]
        serving.print_figures(lines, as_json=as_json)
        return serving.code
    begun = time.monotonic()
    answers = serving.answers((models or [""])[0], baseline, users, shard, calibrate=blend == "auto")
    if not world.is_root:
        for _ in answers:
            pass
    elif as_json:
        write_json(answers, None if titles is None else serving.titles(titles))
    else:
        write_stream(answers, output, ctx.obj.argv, serving, force=force, level=compress, stamp=stamp)
    if verbose:
        tell(f"{serving.n_users:,} users in {time.monotonic() - begun:.1f} s.")
    return serving.code


def _share(blend: str) -> float:
    """The weight that --blend says; 0 for auto, which is to be found."""
    with suppress(ValueError):
        weight = 0.0 if blend == "auto" else float(blend)
        if 0 <= weight <= 1:
            return weight
    raise Usage(f"--blend {blend}: a share from 0 to 1, or auto, expected.")
