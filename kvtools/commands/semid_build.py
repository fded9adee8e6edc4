"""`kvtools semid-build`: embeddings in, semantic IDs out."""

import time
from typing import Annotated, Literal

from kvtools import options as opt

EXAMPLES = [
    "kvtools semid-build --codes 64 items.kvs -o plain.ids",
    "kvtools embed --dim 16 keywords.json | kvtools semid-build --codes 32 - -o words.ids",
]
EXIT_CODES = (0, 2, 65, 66, 73, 74, 75, 141)
SEE_ALSO = ("kvtools embed", "kvtools pairs", "kvtools plot", "kvtools-stream(5)")
COMMON = ("output", "force", "config", "print_config", "stamp")
GROUPS = {"New items": ("--other-fit",), "Fitting and alignment": ("--epochs", "--init", "--captions", "--align-steps")}


def main(
    run: opt.Invocation,
    embeddings: Annotated[str, opt.argument("EMBEDDINGS", "A stream of embeddings, or an .npy with --keys; - is stdin.")] = "-",
    levels: Annotated[int, opt.value("N", "Codes per ID.", least=1, most=16)] = 3,
    codes: Annotated[int, opt.value("K", "Size of each level's codebook.", least=1, most=1 << 24)] = 8192,
    iterations: Annotated[int, opt.value("N", "Lloyd iterations per level, at most.", least=1)] = 25,
    method: Annotated[
        Literal["rq-kmeans", "balanced", "rq-vae"], opt.option("How codebooks are fitted; the OneRec report has rq-kmeans.")
    ] = "rq-kmeans",
    epochs: Annotated[int, opt.value("N", "Epochs of rq-vae.", least=1)] = 200,
    init: Annotated[
        Literal["k-means++", "random"], opt.option("Initial centroids of a level: by k-means++, or random rows.")
    ] = "k-means++",
    collisions: Annotated[
        Literal["keep", "extend", "nearest"],
        opt.option("Items that share an ID: keep it, add one more token, or move to the nearest free code."),
    ] = "keep",
    pairs: Annotated[str | None, opt.value("PAIRS", "Align the items by these pairs first; see kvtools pairs.")] = None,
    captions: Annotated[str | None, opt.value("ITEMS", "With --pairs: a caption loss on the item text in ITEMS.")] = None,
    align_steps: Annotated[int | None, opt.value("N", "Steps of alignment. Default: 1000.", least=1)] = None,
    codebook: Annotated[
        str | None, opt.value("IDS", "Assign IDs to new items by the codebooks of IDS; nothing is fitted.", "--codebook")
    ] = None,
    append: Annotated[bool, opt.option("Write the items of --codebook before the new ones, unchanged.", "--append")] = False,
    other_fit: Annotated[
        bool,
        opt.option("Take vectors of another fit than those of --codebook, whose codes they can only guess.", "--other-fit"),
    ] = False,
    keys: opt.KeysFile = None,
    report: opt.ReportFile = None,
    as_json: opt.AsJson = False,
    memory: opt.Memory = None,
    seed: opt.Seed = 0,
    device: opt.Device = "auto",
) -> int:
    """Turn embeddings into semantic IDs: a few codes per item, from coarse to fine, which a generator predicts.

    The ranks of mpiexec or srun share the work of rq-kmeans; IDs and codebooks do not depend on how many there are, nor on
    the device. A report tells how good the IDs are: the error of reconstruction, how evenly codes are used, how many items
    share one ID. It is kept with the IDs, where kvtools info shows it. A fit into a file that was stopped is resumed when the
    same command is run again.
    """
    from kvtools.artifact import source_name
    from kvtools.errors import Corrupt, Usage, raising
    from kvtools.onerec.items.vectors import VectorSource
    from kvtools.onerec.semantic_ids.align import AlignConfig
    from kvtools.onerec.semantic_ids.aligned_vectors import AlignedSource, advice_on_pairs
    from kvtools.onerec.semantic_ids.assign import assign, note_on_fit
    from kvtools.onerec.semantic_ids.fit import METHODS, Fitting, SemidRecipe, TooFewVectors
    from kvtools.onerec.semantic_ids.ids import SemanticIds
    from kvtools.onerec.semantic_ids.rqkmeans import OtherVectors
    from kvtools.train.device import limit_threads, resolve_device
    from kvtools.world import World

    aligning = None if pairs is None else AlignConfig(n_steps=align_steps or AlignConfig().n_steps)
    recipe = SemidRecipe(
        levels, codes, iterations, method, init, collisions, seed,
        epochs=epochs if method == "rq-vae" else None, align_steps=aligning.n_steps if aligning else None,
    )  # fmt: skip
    if run.print_config:
        return run.print_recipe(recipe.to_json())
    opt.refuse_if(
        (pairs and codebook, "--pairs cannot be combined with --codebook, whose items are aligned already. Leave it out."),
        (captions and not pairs, "--captions is of use only with --pairs. Give --pairs PAIRS, or leave it out."),
        (align_steps and not pairs, "--align-steps is of use only with --pairs. Give --pairs PAIRS, or leave it out."),
        (append and not codebook, "--append is of use only with --codebook. Give --codebook IDS, or leave it out."),
        (other_fit and not codebook, "--other-fit is of use only with --codebook. Give --codebook IDS, or leave it out."),
        (as_json and run.output == "-", "--json would mix the report with the IDs on stdout. Give -o FILE for the IDs."),
    )
    run.refuse_shared_stdin(embeddings, keys, pairs, captions, codebook)
    world = run.world
    on, _ = resolve_device(device, rank=world.rank)
    limit_threads(world)
    if codebook or not METHODS[method].is_parallel:
        if not world.is_root:
            return 0
        world = World()
    run.refuse_existing(report)
    begun = time.monotonic()
    old = SemanticIds.open(codebook) if codebook else None
    source: VectorSource | None = None
    fit_note = ""
    if aligning and pairs and world.is_root:
        source = AlignedSource(embeddings, keys, pairs, captions, aligning, seed, quiet=run.quiet)
    elif world.is_root:
        source = VectorSource(embeddings, keys, taken=old.keys if old and append else None)
    if old and source:
        remedy = "Give --collisions keep or nearest." if collisions == "extend" else "Give --collisions extend."
        fit_note = note_on_fit(old, source_name(codebook or ""), source, is_other_allowed=other_fit)
        with raising(Corrupt, source_name(codebook or ""), remedy):
            ids: SemanticIds | None = assign(old, codebook or "", source, device=on, remedy=collisions, is_appended=append)
    else:
        limit_bytes = opt.parse_size(memory, "--memory") if memory else None
        fitting = Fitting(recipe, run.output, limit_bytes, on, run.warn, run.quiet, run.verbose)
        try:
            ids = fitting.run(source, world, start_over=run.force)
        except OtherVectors as fault:
            raise Usage(f"{fault}. Give the same vectors to resume it, or --force to start over.") from None
        except ValueError as fault:
            is_few = isinstance(fault, TooFewVectors)
            remedy = "fewer --codes, or more items" if is_few else "another --seed, or look at the sizes of the vectors"
            raise Corrupt(f"{source.name if source else embeddings}: {fault}. Give {remedy}.") from None
        fit_note = advice_on_pairs(ids)
    if not ids or not source:
        return 0
    before = [source.history, old.history if old else []]
    ids.save(run.sink(), history=run.history(before))
    figures = {**ids.report, "seconds": round(time.monotonic() - begun, 3)}
    run.write_report(report, figures)
    if as_json:
        run.print_json(figures)
    if fit_note:
        run.info(fit_note)
    return source.skipped.report(source.name, run.log, strict=False)
