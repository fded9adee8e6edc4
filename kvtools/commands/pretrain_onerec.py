"""`kvtools pretrain onerec`: interactions and semantic IDs in, a model that recommends out."""

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
    refuse_if,
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
    items: Annotated[str | None, typer.Option(metavar="IDS", help="Item catalogue: semantic IDs from semid-build.")] = None,
    users: Annotated[str | None, typer.Option(metavar="TABLE", help="Features of users: CSV, TSV or RecBole .user.")] = None,
    size: Annotated[
        Literal["tiny", "0.015b", "0.121b", "0.935b", "2.633b"],
        typer.Option(help="Model size: those of the report, or tiny for two cores."),
    ] = "tiny",
    decoder: Annotated[
        Literal["cross", "lazy"], typer.Option(help="Encoder and decoder (cross), or OneRec-V2's decoder alone (lazy).")
    ] = "cross",
    near: Annotated[
        int, typer.Option(metavar="N", min=0, max=64, help="Neighbours: N items that co-occur with the latest ones; 0 is none.")
    ] = 0,
    without: Annotated[
        list[str] | None,
        typer.Option(metavar="PATHWAY", help="Switch off static, positive, lifelong or near; may be repeated."),
    ] = None,
    architecture: Annotated[
        list[str] | None, typer.Option(metavar="NAME=N", help="Override a setting of the size, as width=256; may be repeated.")
    ] = None,
    steps: Steps = "20ep",
    lr: Annotated[float, typer.Option(metavar="X", min=0, help="Peak learning rate.")] = 3e-3,
    batch: Annotated[int, typer.Option(metavar="N", min=1, help="Targets of a step, padding included.")] = 512,
    training: Overrides = None,
    columns: Columns = None,
    state: StateDir = None,
    log_file: LogFile = None,
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
    """Train a model that predicts a user's next item, code by code.

    Of each user's interactions the last is for testing and never read, and the one before decides when to stop; a `part`
    column overrides this. Pathways whose features are missing are off, and kvtools info says so. A run that was stopped
    continues when the same command is run again. The ranks of mpiexec or srun share each step.
    """
    from kvtools.world import Stop

    # before all that takes long, such as loading torch: a signal from here on waits for the first step to be saved
    stop = Stop() if state or output != "-" else False
    import torch

    from kvtools.artifact import source_name
    from kvtools.artifact.files import Sink, refuse_existing
    from kvtools.artifact.history import extend
    from kvtools.artifact.state import lock_folder, state_folder
    from kvtools.chance import seed_for
    from kvtools.errors import Corrupt
    from kvtools.onerec.interactions.features import join_catalogue
    from kvtools.onerec.interactions.stream import open_interactions, roles
    from kvtools.onerec.interactions.users import open_users
    from kvtools.onerec.run.checkpoint import Checkpoint, new_model
    from kvtools.onerec.run.dataset import build_training_set
    from kvtools.onerec.run.objective import NextItemTask
    from kvtools.onerec.run.recipe import OneRecRecipe
    from kvtools.onerec.semantic_ids.ids import SemanticIds
    from kvtools.skipped import SkippedRows
    from kvtools.train.device import keep_freed_memory, limit_threads, resolve_device
    from kvtools.train.loop import Trainer, log_run, resume_run
    from kvtools.train.resume import train_state

    recipe = OneRecRecipe(
        size, decoder, near, without or [], architecture or [], steps, lr, batch=batch, training=training or [], seed=seed
    )
    if print_config:
        typer.echo(to_toml(recipe.to_json()), nl=False)
        return 0
    world, sources = ctx.obj.world, [interactions, items, users]
    refuse_if(
        (items is None, "--items is missing. Give semantic IDs, from kvtools semid-build."),
        ("-" in sources and world.size > 1, f"an input is -, and {world.size} ranks cannot share stdin. Give a file."),
        (sources.count("-") > 1, "several inputs are -, and stdin can be read only once. Give files for the others."),
    )
    torch_device, precision = resolve_device(device, dtype, rank=world.rank)
    refuse_existing(output, force=force)
    folder = state or state_folder(output)
    limit_threads(world.local_size)
    keep_freed_memory()
    log = partial(ctx.obj.log, quiet=quiet or not world.is_root)
    report = partial(SkippedRows.report, log=partial(ctx.obj.log, quiet=not world.is_root), strict=strict, verbose=verbose)

    name = source_name(interactions)
    ids = SemanticIds.open(items or "")
    read, skipped, before = open_interactions(interactions, columns=roles(columns or []))
    code = report(skipped, name)
    histories, encoder, skipped = join_catalogue(read, ids, items or "", positive_from=recipe.positive_from)
    code = report(skipped, name) or code
    if not len(histories.items):
        raise Corrupt(f"{name}: none of the items is in {items}. Give the interactions that belong to it.")
    table, skipped = open_users(users)
    code = report(skipped, users or "") or code
    data = build_training_set(
        histories, encoder, ids, table, recipe.config, without=recipe.without, n_valid=recipe.settings["valid_users"], seed=seed
    )
    if not len(data.rows):
        raise Corrupt(f"{name}: no user has two interactions in the training part. Give longer histories.")

    torch.manual_seed(seed_for(seed, "weights"))
    vocabularies = list(table.vocabularies) if table is not None and data.pathways["static"] == "on" else []
    model = new_model(data.config, ids, encoder, vocabularies).to(torch_device)
    task = NextItemTask(
        model, data.batcher, data.rows, validation=data.validation, n_targets=batch, smoothing=recipe.settings["smoothing"],
        device=torch_device,
    )  # fmt: skip
    plan = recipe.plan(task.n_steps(), task.n_tokens(), precision)
    run_of = {**recipe.to_json(), "items": ids.digest, "input": data.digest, "dtype": precision}
    run = Trainer(task, plan, train_state(folder, run_of), world, device=torch_device, peak=peak)
    n_parameters = sum(p.numel() for p in model.parameters())
    summary = f"{n_parameters:,} parameters, {plan.n_steps} steps; {data.pathways}." if verbose else ""
    with lock_folder(folder, is_root=world.is_root):
        resume_run(run, folder, start_over=force, log=log, summary=summary)
        log_run(run, run.run(stop), label="pretrain onerec", log_file=log_file, log=log, quiet=quiet, verbose=verbose)
    if not world.is_root:
        return 0
    checkpoint = Checkpoint(model.eval().cpu(), ids, encoder, vocabularies, data.counts, data.pathways, recipe.to_json())
    figures = {"step": run.progress.step, "validation": run.progress.best_score, "loss": run.progress.loss}
    checkpoint.save(
        Sink(output, force=force),
        history=extend("pretrain onerec", ctx.obj.argv, before=[before, ids.history], stamp=stamp),
        **{figure: value for figure, value in figures.items() if value is not None},
    )
    run.forget()
    return code
