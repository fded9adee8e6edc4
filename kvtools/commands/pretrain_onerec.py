"""`kvtools pretrain onerec`: interactions and semantic IDs in, a generator of recommendations out."""

from functools import partial
from typing import Annotated, Literal

import typer

from kvtools.options import (
    Columns,
    Config,
    Device,
    Dtype,
    Force,
    Interactions,
    LogFile,
    Output,
    Overrides,
    Peak,
    PrintConfig,
    Quiet,
    Seed,
    Stamp,
    StateDir,
    Steps,
    Strict,
    Verbose,
    require,
    to_toml,
)

EXAMPLES = [
    "kvtools pretrain onerec clicks.csv --items items.ids --steps 2ep -o small.safetensors",
    "kvtools convert clicks.csv | kvtools pretrain onerec - --items items.ids --near 8 --steps 1ep | kvtools info -",
]
EXIT_CODES = (0, 1, 2, 65, 66, 73, 74, 75, 141)
SEE_ALSO = ("kvtools recgen", "kvtools semid-build", "kvtools pairs", "kvtools convert", "kvtools-stream(5)")
GROUPS = {"Data": ("--column",), "Architecture and training": ("--decoder", "--without", "--architecture", "--training")}


def main(
    ctx: typer.Context,
    interactions: Interactions = "-",
    items: Annotated[str | None, typer.Option(metavar="IDS", help="The catalogue: semantic IDs from semid-build.")] = None,
    users: Annotated[
        str | None, typer.Option(metavar="TABLE", help="What is known of users: CSV, TSV or RecBole .user.")
    ] = None,
    size: Annotated[
        Literal["tiny", "0.015b", "0.121b", "0.935b", "2.633b"], typer.Option(help="The report's sizes; tiny for two cores.")
    ] = "tiny",
    decoder: Annotated[
        Literal["cross", "lazy"], typer.Option(help="Decoder with an encoder, or OneRec-V2's, without one.")
    ] = "cross",
    near: Annotated[
        int, typer.Option(metavar="N", min=0, max=64, help="Show N items that go with the last ones, from training counts.")
    ] = 0,
    without: Annotated[
        list[str] | None, typer.Option(metavar="PATHWAY", help="Switch off static, positive or lifelong; may be repeated.")
    ] = None,
    architecture: Annotated[
        list[str] | None, typer.Option(metavar="NAME=N", help="Change the size, as width=256; may be repeated.")
    ] = None,
    steps: Steps = "20ep",
    lr: Annotated[float, typer.Option(metavar="X", min=0, help="Learning rate, at its peak.")] = 3e-3,
    batch: Annotated[int, typer.Option(metavar="N", min=1, help="Size of a step: its rows times the longest.")] = 512,
    training: Overrides = None,
    columns: Columns = None,
    state: StateDir = None,
    log: LogFile = None,
    peak: Peak = None,
    dtype: Dtype = "auto",
    device: Device = "auto",
    seed: Seed = 0,
    output: Output = "-",
    force: Force = False,
    config: Config = None,
    print_config: PrintConfig = False,
    strict: Strict = False,
    stamp: Stamp = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> int:
    """Train a generator that names the next item of a user, code by code.

    Of each user's interactions the last is for testing and never looked at, and the one before says when to stop; a `part`
    column overrides this. Pathways whose features are missing are off, and kvtools info says so. A run that was stopped goes
    on when the same command is run again. The ranks of mpiexec or srun share each step.
    """
    from kvtools.world import Stop

    # before all that takes long, such as loading torch: a signal from here on waits for the first step to be kept
    stop = Stop() if state or output != "-" else False
    import torch

    from kvtools.artifact.files import Sink, refuse_existing
    from kvtools.artifact.history import extend
    from kvtools.artifact.state import RunState, lock_folder, state_folder
    from kvtools.errors import Corrupt
    from kvtools.onerec.interactions.features import join
    from kvtools.onerec.interactions.stream import open_interactions, roles
    from kvtools.onerec.interactions.users import open_users
    from kvtools.onerec.run import checkpoint as generator
    from kvtools.onerec.run.dataset import prepare
    from kvtools.onerec.run.objective import Pretraining
    from kvtools.onerec.run.recipe import Recipe
    from kvtools.onerec.semantic_ids.ids import SemanticIds
    from kvtools.train.device import keep_freed_memory, limit_threads, resolve_device
    from kvtools.train.loop import DTYPES, Trainer, log_run, resume_run
    from kvtools.train.peak_flops import measured_peak
    from kvtools.train.resume import TRAIN_STATE

    recipe = Recipe.of(
        size=size, decoder=decoder, near=near, without=without or [], architecture=architecture or [], steps=steps, lr=lr,
        batch=batch, training=training or [], seed=seed,
    )  # fmt: skip
    if print_config:
        typer.echo(to_toml(recipe.to_json()), nl=False)
        return 0
    world = ctx.obj.world
    require(items is not None, "--items", "missing", "semantic IDs, from kvtools semid-build,")
    sources = [interactions, items, users]
    require("-" not in sources or world.size == 1, "-", f"on {world.size} ranks", "a file, which every rank reads,")
    require(sources.count("-") <= 1, "-", "named more than once", "one input from stdin")
    place, chosen = resolve_device(device, dtype, rank=world.rank)
    refuse_existing(output, force=force)
    folder = state or state_folder(output)
    limit_threads(world.local_size)
    keep_freed_memory()

    def tell(words: str) -> None:
        ctx.obj.log(words, quiet=quiet or not world.is_root)

    tell_loss = partial(ctx.obj.log, quiet=not world.is_root)
    name = "stdin" if interactions == "-" else interactions
    ids = SemanticIds.open(items or "")
    log_of, skipped, before = open_interactions(interactions, columns=roles(columns or []))
    code = skipped.report(name, tell_loss, strict=strict, verbose=verbose)
    histories, codings, skipped = join(log_of, ids, items or "", positive_from=recipe.positive_from)
    code = skipped.report(name, tell_loss, strict=strict, verbose=verbose) or code
    if not len(histories.items):
        raise Corrupt(f"{name}: not one item that {items} knows. Give the interactions that belong to it.")
    table, skipped = open_users(users)
    code = skipped.report(users or "", tell_loss, strict=strict, verbose=verbose) or code
    made = prepare(histories, codings, ids, table, recipe.config, without=recipe.without, n_valid=recipe.valid_users, seed=seed)
    if not len(made.rows):
        raise Corrupt(f"{name}: no two interactions of a user in the training part, a history to learn from expected.")

    torch.manual_seed(recipe.weights_seed)
    static = list(table.vocabularies) if table is not None and made.pathways["static"] == "on" else []
    model = generator.make(made.config, ids, codings, static).to(place)
    task = Pretraining(
        model, made.batcher, made.rows, held=made.held, n_targets=batch, smoothing=recipe.smoothing, device=place
    )  # fmt: skip
    plan = recipe.plan(task.n_steps(), task.n_tokens(), chosen)
    ceiling = peak or measured_peak(place, DTYPES[chosen])
    made_of = {**recipe.to_json(), "items": ids.digest, "input": made.digest, "dtype": chosen}
    kept = RunState(folder, TRAIN_STATE, made_of)
    run = Trainer(task, plan, kept, world, device=place, peak=ceiling)
    told = (
        f"{sum(p.numel() for p in model.parameters()):,} parameters, {plan.n_steps} steps; {made.pathways}." if verbose else ""
    )
    with lock_folder(folder, is_root=world.is_root):
        resume_run(run, folder, start_over=force, log=tell, summary=told, is_peak_given=peak is not None)
        log_run(
            run, run.run(stop), label="pretrain onerec", log_file=log if world.is_root else None, log=tell,
            quiet=quiet or not world.is_root, verbose=verbose,
        )  # fmt: skip
    if not world.is_root:
        return 0
    model.eval()
    figures = {"step": run.progress.step, "validation": run.progress.best_score, "loss": run.progress.loss}
    history = extend("pretrain onerec", ctx.obj.argv, before=[before, ids.history], stamp=stamp)
    whole = generator.Generator(model.cpu(), ids, codings, static, made.counted, made.pathways, recipe.to_json())
    generator.save(Sink(output, force=force), whole, told={k: v for k, v in figures.items() if v is not None}, history=history)
    run.forget()
    return code
