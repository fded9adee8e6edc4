"""`kvtools semid-build`: embeddings in, semantic IDs out."""

import json
import time
from typing import Annotated, Literal

import typer

from kvtools.options import (
    AsJson,
    Config,
    Device,
    Force,
    KeysFile,
    Memory,
    Output,
    PrintConfig,
    Quiet,
    ReportFile,
    Seed,
    Stamp,
    Verbose,
    parse_size,
    refuse_if,
    to_toml,
)

EXAMPLES = [
    "kvtools semid-build --codes 64 items.kvs -o plain.ids",
    "kvtools embed --dim 16 keywords.json | kvtools semid-build --codes 32 - -o words.ids",
]
EXIT_CODES = (0, 2, 65, 66, 73, 74, 75, 141)
SEE_ALSO = ("kvtools embed", "kvtools pairs", "kvtools plot", "kvtools-stream(5)")
GROUPS = {"Fitting and alignment": ("--epochs", "--init", "--captions", "--align-steps")}


def main(
    ctx: typer.Context,
    embeddings: Annotated[
        str, typer.Argument(metavar="EMBEDDINGS", help="A stream of embeddings, or an .npy with --keys; - is stdin.")
    ] = "-",
    levels: Annotated[int, typer.Option(metavar="N", min=1, max=16, help="Codes per ID.")] = 3,
    codes: Annotated[int, typer.Option(metavar="K", min=1, max=1 << 24, help="Size of each level's codebook.")] = 8192,
    iterations: Annotated[int, typer.Option(metavar="N", min=1, help="Lloyd iterations per level, at most.")] = 25,
    method: Annotated[
        Literal["rq-kmeans", "balanced", "rq-vae"],
        typer.Option(help="How codebooks are fitted; the OneRec report has rq-kmeans."),
    ] = "rq-kmeans",
    epochs: Annotated[int, typer.Option(metavar="N", min=1, help="Epochs of rq-vae.")] = 200,
    init: Annotated[
        Literal["k-means++", "random"], typer.Option(help="Initial centroids of a level: by k-means++, or random rows.")
    ] = "k-means++",
    collisions: Annotated[
        Literal["keep", "extend", "nearest"],
        typer.Option(help="Items that share an ID: keep it, add one more token, or move to the nearest free code."),
    ] = "keep",
    pairs: Annotated[
        str | None, typer.Option(metavar="PAIRS", help="Align the items by these pairs first; see kvtools pairs.")
    ] = None,
    captions: Annotated[
        str | None, typer.Option(metavar="ITEMS", help="With --pairs: a caption loss on the item text in ITEMS.")
    ] = None,
    align_steps: Annotated[int | None, typer.Option(metavar="N", min=1, help="Steps of alignment. Default: 1000.")] = None,
    codebook: Annotated[
        str | None,
        typer.Option("--codebook", metavar="IDS", help="Assign IDs to new items by the codebooks of IDS; nothing is fitted."),
    ] = None,
    append: Annotated[
        bool, typer.Option("--append", help="Write the items of --codebook before the new ones, unchanged.")
    ] = False,
    keys: KeysFile = None,
    report: ReportFile = None,
    as_json: AsJson = False,
    memory: Memory = None,
    seed: Seed = 0,
    device: Device = "auto",
    output: Output = "-",
    force: Force = False,
    config: Config = None,
    print_config: PrintConfig = False,
    stamp: Stamp = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> int:
    """Turn embeddings into semantic IDs: a few codes per item, coarse to fine, by which a generator names it.

    The ranks of mpiexec or srun share the work of rq-kmeans; IDs and codebooks do not depend on how many there are, nor on
    the device. A report tells how good the IDs are: the error of reconstruction, how evenly codes are used, how many items
    share one ID. It is kept with the IDs, where kvtools info shows it. A fit into a file that was stopped is resumed when the
    same command is run again.
    """
    from kvtools.artifact.files import Sink, refuse_existing, write_line
    from kvtools.artifact.history import extend
    from kvtools.onerec.items.vectors import VectorSource
    from kvtools.onerec.semantic_ids.align import AlignConfig
    from kvtools.onerec.semantic_ids.aligned_vectors import AlignedSource
    from kvtools.onerec.semantic_ids.assign import assign
    from kvtools.onerec.semantic_ids.fit import METHODS, Fitting, SemidRecipe
    from kvtools.onerec.semantic_ids.ids import SemanticIds
    from kvtools.train.device import limit_threads, resolve_device
    from kvtools.world import World

    aligning = None if pairs is None else AlignConfig(n_steps=align_steps or AlignConfig().n_steps)
    recipe = SemidRecipe(
        levels, codes, iterations, method, init, collisions, seed,
        epochs=epochs if method == "rq-vae" else None, align_steps=aligning.n_steps if aligning else None,
    )  # fmt: skip
    if print_config:
        typer.echo(to_toml(recipe.to_json()), nl=False)
        return 0
    refuse_if(
        (pairs and codebook, "--pairs cannot be combined with --codebook, whose items are aligned already. Leave it out."),
        (captions and not pairs, "--captions is of use only with --pairs. Give --pairs PAIRS, or leave it out."),
        (align_steps and not pairs, "--align-steps is of use only with --pairs. Give --pairs PAIRS, or leave it out."),
        (append and not codebook, "--append is of use only with --codebook. Give --codebook IDS, or leave it out."),
        (as_json and output == "-", "--json would mix the report with the IDs on stdout. Give -o FILE for the IDs."),
        (
            [embeddings, keys, pairs, captions, codebook].count("-") > 1,
            "only one input can come from stdin. Name files for the others.",
        ),
    )
    world = ctx.obj.world
    on, _ = resolve_device(device, rank=world.rank)
    limit_threads(world.local_size)
    if codebook or not METHODS[method].is_parallel:
        if not world.is_root:
            return 0
        world = World()
    for dst in (output, report or "-"):
        refuse_existing(dst, force=force)
    begun = time.monotonic()
    old = SemanticIds.open(codebook) if codebook else None
    source: VectorSource | None = None
    if aligning and pairs and world.is_root:
        source = AlignedSource(embeddings, keys, pairs, captions, aligning, seed, quiet=quiet)
    elif world.is_root:
        source = VectorSource(embeddings, keys, taken=old.keys if old and append else None)
    if old and source:
        ids: SemanticIds | None = assign(old, codebook or "", source, device=on, remedy=collisions, is_appended=append)
    else:
        limit_bytes = parse_size(memory, "--memory") if memory else None
        fitting = Fitting(recipe, output, limit_bytes, on, ctx.obj.log, quiet, verbose)
        ids = fitting.run(source, world, start_over=force)
    if not ids or not source:
        return 0
    before = [source.history, old.history if old else []]
    ids.save(Sink(output, force=force), history=extend("semid-build", ctx.obj.argv, before=before, stamp=stamp))
    line = json.dumps({**ids.report, "seconds": round(time.monotonic() - begun, 3)})
    if report:
        write_line(report, line, force=force)
    if as_json:
        typer.echo(line)
    return source.skipped.report(source.name, ctx.obj.log, strict=False)
