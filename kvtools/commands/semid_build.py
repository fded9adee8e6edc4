"""`kvtools semid-build`: items become semantic IDs."""

import json
import time
from typing import Annotated, Any, Literal

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
    require,
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
    levels: Annotated[int, typer.Option(metavar="N", min=1, max=16, help="Codes an ID is made of.")] = 3,
    codes: Annotated[int, typer.Option(metavar="K", min=1, max=1 << 24, help="Codes to choose from on each level.")] = 8192,
    iterations: Annotated[int, typer.Option(metavar="N", min=1, help="Lloyd iterations a level, at most.")] = 25,
    method: Annotated[
        Literal["rq-kmeans", "balanced", "rq-vae"], typer.Option(help="How codebooks are fitted; the report's is rq-kmeans.")
    ] = "rq-kmeans",
    epochs: Annotated[int, typer.Option(metavar="N", min=1, help="Epochs of rq-vae.")] = 200,
    init: Annotated[
        Literal["k-means++", "random"], typer.Option(help="How the first codes of a level are drawn.")
    ] = "k-means++",
    collisions: Annotated[
        Literal["keep", "extend", "nearest"],
        typer.Option(help="Items with one ID: keep it, tell them apart by one more token, or move to the nearest free code."),
    ] = "keep",
    pairs: Annotated[
        str | None, typer.Option(metavar="PAIRS", help="Align the items by these pairs first, from kvtools pairs.")
    ] = None,
    captions: Annotated[
        str | None, typer.Option(metavar="ITEMS", help="With --pairs: keep to what is said there of each item.")
    ] = None,
    align_steps: Annotated[int | None, typer.Option(metavar="N", min=1, help="Steps of alignment. Default: 1000.")] = None,
    codebook: Annotated[
        str | None, typer.Option("--codebook", metavar="IDS", help="Fit nothing: give new items IDs by these codebooks.")
    ] = None,
    append: Annotated[bool, typer.Option("--append", help="Write the items of --codebook too, first and unchanged.")] = False,
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
    """Turn embeddings into semantic IDs: a few codes an item, coarse to fine, by which a generator can name it.

    The ranks of mpiexec or srun share the work of rq-kmeans; IDs and codebooks do not depend on how many there are, nor on
    the device. A report tells whether the IDs are any good: the error of reconstruction, how evenly codes are used, how many
    items share one ID. It is kept with the IDs, where kvtools info shows it. A fit into a file that was stopped goes on when
    the same command is run again.
    """
    from kvtools.artifact import open_artifact
    from kvtools.artifact.bag import write_bag
    from kvtools.artifact.files import Sink, refuse_existing
    from kvtools.artifact.history import extend
    from kvtools.onerec.items.intake import Intake
    from kvtools.onerec.semantic_ids.align import Settings
    from kvtools.onerec.semantic_ids.aligning import Aligned
    from kvtools.onerec.semantic_ids.assign import Encoder
    from kvtools.onerec.semantic_ids.fit import Fitting
    from kvtools.onerec.semantic_ids.method import Recipe
    from kvtools.train.device import limit_threads, resolve_device
    from kvtools.world import World

    steps = None if pairs is None else align_steps or Settings().n_steps
    recipe = Recipe(levels, codes, iterations, method, init, collisions, seed, epochs if method == "rq-vae" else None, steps)
    if print_config:
        typer.echo(to_toml(recipe.to_json()), nl=False)
        return 0
    require(pairs is None or codebook is None, "--pairs", "with --codebook", "one of the two")
    for option, value in (("--captions", captions), ("--align-steps", align_steps)):
        require(value is None or pairs is not None, option, "alone", "--pairs PAIRS beside it")
    require(codebook is not None or not append, "--append", "alone", "--codebook IDS beside it")
    require(not (as_json and output == "-"), "--json", "with IDs on stdout", "-o FILE beside it")
    world = ctx.obj.world
    place, _ = resolve_device(device, rank=world.rank)
    limit_threads(world.local_size)
    if method != "rq-kmeans" or codebook is not None:  # the work of one
        if not world.is_root:
            return 0
        world = World()
    for dst in (output, report or "-"):
        refuse_existing(dst, force=force)
    begun = time.monotonic()
    intake: Intake | Aligned | None = Intake(embeddings, keys) if world.is_root else None
    if pairs is not None and steps is not None and isinstance(intake, Intake):
        intake = Aligned(intake, pairs, captions, Settings(n_steps=steps), seed, is_quiet=quiet)
    before: list[dict[str, Any]] = []
    if codebook is None:
        fitting = Fitting(recipe, output, parse_size(memory, "--memory") if memory else None, place, ctx.obj.log)
        ids = fitting.run(intake, world, start_over=force, is_quiet=quiet, is_told=verbose)
    elif intake is not None:
        encoder = Encoder.of(open_artifact(codebook), codebook)
        before = encoder.history
        if append:
            intake.keys.append(encoder.keys)
        ids = encoder.encode(intake, device=place, way_out=collisions, is_appended=append)
    if intake is None:
        return 0
    history = extend("semid-build", ctx.obj.argv, before=[intake.history, before], stamp=stamp)
    is_narrow = int(ids.codes_NS.max()) < 1 << 16
    tensors = {
        "codebooks": ids.codebooks_LKD,
        "codes": ids.codes_NS.astype("uint16" if is_narrow else "int32"),
        **intake.keys.column("keys"),
        **ids.weights,
    }
    words = {"quality": ids.report} | ({"encoder": ids.encoder} if ids.encoder else {})
    made = recipe.to_json() if codebook is None else encoder.config
    write_bag(Sink(output, force=force), "semantic-id", tensors, config=made, history=history, **words)
    line = json.dumps({**ids.report, "seconds": round(time.monotonic() - begun, 3)})
    if report:
        sink = Sink(report, force=force)
        sink.write([line.encode() + b"\n"])
        sink.commit()
    if as_json:
        typer.echo(line)
    return intake.skipped.report(embeddings, ctx.obj.log, strict=False)
