"""`kvtools pretrain onerec`: interactions and semantic IDs in, a model that recommends out."""

from dataclasses import replace
from functools import partial
from typing import Annotated, Literal

from kvtools import options as opt

EXAMPLES = [
    "kvtools pretrain onerec clicks.csv --items items.ids --steps 2ep -o small.safetensors",
    "kvtools convert clicks.csv | kvtools pretrain onerec - --items items.ids --near 8 --steps 1ep | kvtools info -",
]
EXIT_CODES = (0, 1, 2, 65, 66, 73, 74, 75, 141)
SEE_ALSO = ("kvtools recgen", "kvtools semid-build", "kvtools pairs", "kvtools convert", "kvtools-stream(5)")
COMMON = ("output", "force", "config", "print_config", "strict", "stamp")
GROUPS = {
    "Data": ("--column", "--split"),
    "Architecture and training": (
        "--decoder", "--without", "--architecture", "--training", "--shard-model", "--shard-optimizer",
    ),
}  # fmt: skip


def main(
    run: opt.Invocation,
    interactions: opt.Interactions = "-",
    items: Annotated[str | None, opt.value("IDS", "Item catalogue: semantic IDs from semid-build.")] = None,
    users: Annotated[str | None, opt.value("TABLE", "Features of users: CSV, TSV or RecBole .user.")] = None,
    size: Annotated[
        Literal["tiny", "0.015b", "0.121b", "0.935b", "2.633b"],
        opt.option("Model size: those of the report, or tiny for two cores."),
    ] = "tiny",
    decoder: Annotated[
        Literal["cross", "lazy"], opt.option("Encoder and decoder (cross), or OneRec-V2's decoder alone (lazy).")
    ] = "cross",
    near: Annotated[
        int, opt.value("N", "Neighbours: N items that co-occur with the latest ones; 0 is none.", least=0, most=64)
    ] = 50,
    without: Annotated[
        list[str] | None, opt.value("PATHWAY", "Switch off static, positive, lifelong or near; may be repeated.")
    ] = None,
    architecture: Annotated[
        list[str] | None, opt.value("NAME=N", "Override a setting of the size, as width=256; may be repeated.")
    ] = None,
    steps: Annotated[
        str | None,
        opt.value(
            "DURATION",
            "Training length: 500 (steps), 3ep (epochs) or 1e9tok (tokens). Default: 4ep, but 8ep without a warm start, and "
            "20ep without neighbours too.",
        ),
    ] = None,
    lr: Annotated[float, opt.value("X", "Peak learning rate.", least=0)] = 3e-3,
    batch: Annotated[
        int | None,
        opt.value("N", "Targets of a step, padding included; a 250th of the data, from 32 to 1024, unless given.", least=1),
    ] = None,
    training: opt.Overrides = None,
    columns: opt.Columns = None,
    split: opt.Split = None,
    state: opt.StateDir = None,
    log_file: opt.LogFile = None,
    peak: opt.Peak = None,
    dtype: opt.Dtype = "auto",
    device: opt.Device = "auto",
    shard_model: opt.ShardModel = False,
    shard_optimizer: opt.ShardOptimizer = False,
    seed: opt.Seed = 0,
) -> int:
    """Train a model that predicts a user's next item, code by code.

    Of each user's interactions the last is for testing and never read, and the one before decides when to stop; a `part`
    column overrides this. Pathways whose features are missing are off, and kvtools info says so. A run that was stopped
    continues when the same command is run again. The ranks of mpiexec or srun share each step.
    """
    from kvtools.world import Stop

    # before all that takes long, such as loading torch: a signal from here on waits for the first step to be saved
    stop = Stop() if state or run.output != "-" else False
    import torch

    from kvtools.artifact import source_name
    from kvtools.artifact.state import lock_folder, state_folder
    from kvtools.chance import seed_for
    from kvtools.errors import Corrupt
    from kvtools.onerec.interactions.account import tell
    from kvtools.onerec.interactions.features import join_catalogue
    from kvtools.onerec.interactions.split import parse_split, refuse_too_few, with_split
    from kvtools.onerec.interactions.stream import open_interactions, roles
    from kvtools.onerec.interactions.users import open_users
    from kvtools.onerec.run.checkpoint import Checkpoint, new_model
    from kvtools.onerec.run.dataset import build_training_set
    from kvtools.onerec.run.objectives import NextItemTask
    from kvtools.onerec.run.recipe import OneRecRecipe
    from kvtools.onerec.run.warm_start import begin_with_counts
    from kvtools.onerec.semantic_ids.ids import SemanticIds
    from kvtools.skipped import SkippedRows
    from kvtools.train.device import add_in_one_order, keep_freed_memory, limit_threads, resolve_device, return_freed_memory
    from kvtools.train.loop import Trainer, log_run, resume_run
    from kvtools.train.outlook import Outlook
    from kvtools.train.resume import train_state

    recipe = OneRecRecipe(
        size, decoder, near, without or [], architecture or [], steps, lr, batch=batch, training=training or [], seed=seed
    )
    if run.print_config:
        return run.print_recipe(recipe.to_json())
    world = run.world
    opt.refuse_if(
        (items is None, "--items is missing. Give semantic IDs, from kvtools semid-build."),
        (shard_model and shard_optimizer, opt.TWICE_SHARDED),
    )
    parse_split(split)
    run.refuse_shared_stdin(interactions, items, users)
    torch_device, precision = resolve_device(device, dtype, rank=world.rank)
    run.refuse_existing()
    folder = state or state_folder(run.output)
    limit_threads(world)
    is_sharded = shard_model and world.size > 1
    (return_freed_memory if is_sharded else keep_freed_memory)()
    add_in_one_order(torch_device)
    report = partial(SkippedRows.report, log=run.warn, strict=run.strict, verbose=run.verbose)

    name = source_name(interactions)
    ids = SemanticIds.open(items or "")
    read, skipped, before = open_interactions(interactions, columns=roles(columns or []))
    read = with_split(read, split, name)
    code = report(skipped, name)
    histories, encoder, skipped = join_catalogue(read, ids, items or "", positive_from=recipe.positive_from)
    code = report(skipped, name) or code
    if not len(histories.items):
        raise Corrupt(f"{name}: none of the items is in {items}. Give the interactions that belong to it.")
    refuse_too_few(histories, name)
    table, skipped = open_users(users)
    code = report(skipped, users or "") or code
    data = build_training_set(
        histories, encoder, ids, table, recipe.config, without=recipe.without, n_valid=recipe.settings["valid_users"], seed=seed
    )

    recipe = recipe.for_data(data.n_targets)
    torch.manual_seed(seed_for(seed, "weights"))
    vocabularies = list(table.vocabularies) if table is not None and data.pathways["static"] == "on" else []
    model = new_model(data.config, ids, encoder, vocabularies).to("cpu" if is_sharded else torch_device)
    model.checkpointing = recipe.settings["checkpoint"]
    if data.config.item_scores:
        model.item_scores.score_popular(data.counts.popularity)
        if recipe.settings["warm_start"]:
            begin_with_counts(model, data.counts, world, seed)
    task = NextItemTask(
        model, data.batcher, data.rows, validation=data.validation, n_targets=recipe.batch or 1,
        smoothing=recipe.settings["smoothing"], device=torch_device,
    )  # fmt: skip
    plan = recipe.plan(task.n_steps(), task.n_tokens(), precision)
    config = {**recipe.to_json(), "items": ids.digest, "input": data.digest, "dtype": precision}
    cut = task.cut if is_sharded else None
    trainer = Trainer(
        task, plan, train_state(folder, config), world, device=torch_device, peak=peak, cut=cut,
        shards_optimizer=shard_optimizer,
    )  # fmt: skip
    n_parameters = sum(p.numel() for p in model.parameters())
    summary = f"{n_parameters:,} parameters, {plan.n_steps} steps; {data.pathways}." if run.verbose else ""
    outlook = Outlook("NDCG@10")
    with lock_folder(folder, is_root=world.is_root):
        resume_run(trainer, folder, start_over=run.force, log=run.info, summary=summary)
        tell(read.account, run.info)
        log_run(
            trainer,
            outlook.watch(trainer.run(stop)),
            label="pretrain onerec",
            log_file=log_file,
            log=run.info,
            quiet=run.quiet,
            verbose=run.verbose,
        )
    if not world.is_root:
        return 0
    if recipe.settings["valid_users"] and (
        words := data.told_of_validation(is_any_found=trainer.progress.best_score is not None)
    ):
        run.info(f"{name}: {words}")
    if words := outlook.told():
        run.info(words)
    model = task.model = trainer.model.to(torch_device)  # whole: the other ranks have left
    share = task.choose_near_share() if recipe.near_share is None else recipe.near_share
    model.config = replace(model.config, near_share=share)
    checkpoint = Checkpoint(
        model.eval().cpu(), ids, encoder, vocabularies, data.counts, data.pathways, recipe.to_json(), seed=seed,
        trained_on=data.trained_on,
    )  # fmt: skip
    figures = {"step": trainer.progress.step, "validation": trainer.progress.best_score, "loss": trainer.progress.loss}
    checkpoint.save(
        run.sink(),
        history=run.history([before, ids.history]),
        **{figure: value for figure, value in figures.items() if value is not None},
    )
    trainer.forget()
    return code
