"""`kvtools pretrain keye`: conversations about pictures and videos in, a vision-language model out."""

from typing import Annotated, Literal

from kvtools import options as opt

EXAMPLES = [
    "kvtools pretrain keye questions.kvs --media clips.kvs --steps 2 --batch-tokens 1024 -o tiny.safetensors",
    "kvtools quiz -q clips.kvs --frames 3 --choices 2 | kvtools pretrain keye - --media clips.kvs --steps 2 | kvtools info -",
]
EXIT_CODES = (0, 1, 2, 65, 66, 73, 74, 75, 141)
SEE_ALSO = ("kvtools quiz", "kvtools convert", "kvtools merge", "kvtools chat", "kvtools tokenize-video", "kvtools-stream(5)")
COMMON = ("output", "force", "config", "print_config", "strict", "stamp")
GROUPS = {
    "Data": ("--valid-every", "--ratio", "--length", "--max-tokens"),
    "Architecture and training": ("--architecture", "--lora", "--training", "--shard-model", "--shard-optimizer"),
}


def main(
    run: opt.Invocation,
    data: Annotated[
        list[str] | None, opt.argument("DATA", "Conversations, as a stream or JSON, or sequence streams; - is stdin.")
    ] = None,
    stage: Annotated[
        Literal["matching", "alignment", "multitask", "annealing", "sft", "cold-start"],
        opt.option("What is trained, and on what: see kvtools-pretrain-keye(1)."),
    ] = "multitask",
    init: Annotated[
        list[str] | None,
        opt.value("MODEL", "Start from a model or a part of one: a bag or a Hugging Face directory; may be repeated."),
    ] = None,
    size: Annotated[
        Literal["tiny", "small", "0.6b", "8b"],
        opt.option("Model size, where --init does not decide it; tiny is for two cores."),
    ] = "tiny",
    architecture: Annotated[
        list[str] | None, opt.value("PART.NAME=N", "Override the model config, as language.layers=6; may be repeated.")
    ] = None,
    tokenizer: opt.Tokenizer = None,
    media: opt.Media = None,
    ratio: Annotated[str | None, opt.value("A,B,...", "Mixing weights of the inputs. Default: as they are.")] = None,
    valid: Annotated[str | None, opt.value("DATA", "Held-out conversations for validation after each epoch.")] = None,
    valid_every: Annotated[
        str | None, opt.value("DURATION", "Validate every so many steps, too, as 500, 1% or 1e6tok; needs --valid.")
    ] = None,
    steps: opt.Steps = "3ep",
    lr: Annotated[float | None, opt.value("X", "Peak learning rate. Default: the stage's, less for wide models.")] = None,
    batch_tokens: Annotated[int, opt.value("N", "Tokens per step, visual tokens included.", least=2)] = 8192,
    length: Annotated[int | None, opt.value("N", "Tokens per packed row. Default: 4096, or --batch-tokens.", least=2)] = None,
    frame_tokens: opt.FrameTokens = "128:768",
    max_tokens: Annotated[int | None, opt.value("N", "Most visual tokens of a file. Default: 3/4 of a row.", least=1)] = None,
    lora: Annotated[
        str | None,
        opt.value("r=N[,…]", "Train low-rank adapters of --init and write their folder: r=16,alpha=32,on=language|vision|all."),
    ] = None,
    training: opt.Overrides = None,
    state: opt.StateDir = None,
    log: opt.LogFile = None,
    tensorboard: opt.TensorBoard = None,
    peak: opt.Peak = None,
    dtype: opt.Dtype = "auto",
    device: opt.Device = "auto",
    shard_model: opt.ShardModel = False,
    shard_optimizer: opt.ShardOptimizer = False,
    seed: opt.Seed = 0,
) -> int:
    """Train a vision-language model on conversations about pictures and videos, one stage at a time.

    Only the assistant's text carries the loss. Conversations that cannot be read are reported and left out; the exit code is
    then 65. Run a stopped command again to resume it. The ranks of mpiexec or srun share each step. An output that ends in /
    is a Hugging Face directory.
    """
    from contextlib import ExitStack, closing
    from functools import partial

    from kvtools.world import Stop

    # before anything slow, such as loading torch: a signal from here on waits until the first step is saved
    stop = Stop() if state or run.output != "-" else False
    from kvtools.artifact.directory import new_directory
    from kvtools.artifact.state import lock_folder, state_folder
    from kvtools.errors import Usage, raising
    from kvtools.keye.checkpoint import weights as checkpoint
    from kvtools.keye.checkpoint.adapters import write_adapter
    from kvtools.keye.run import setup
    from kvtools.keye.run.recipe import TrainingRecipe, default_length
    from kvtools.keye.run.training_data import open_training_data
    from kvtools.train.board import require_tensorboard
    from kvtools.train.device import keep_freed_memory, limit_threads, resolve_device, return_freed_memory
    from kvtools.train.loop import Trainer, log_run, resume_run
    from kvtools.train.resume import train_state

    recipe = TrainingRecipe(
        stage=stage, size=size, architecture=architecture or [], steps=steps, lr=lr, batch_tokens=batch_tokens,
        length=default_length(batch_tokens) if length is None else length, ratio=ratio, training=training or [], seed=seed,
        frame_tokens=frame_tokens, max_tokens=max_tokens, lora=lora, valid_every=valid_every,
    )  # fmt: skip
    if run.print_config:
        return run.print_recipe(recipe.to_json())
    world = run.world
    sources = data or ["-"]
    run.refuse_shared_stdin(*sources, valid)
    opt.refuse_if(
        (valid is None and recipe.is_judged, "--training patience needs --valid DATA. Give both or neither."),
        (valid is None and valid_every is not None, "--valid-every needs --valid DATA. Give both or neither."),
        (lora is not None and len(init or []) != 1, "--lora adapts a model. Give one whole Keye-VL with --init."),
        (
            shard_model and stage == "matching",
            "--shard-model is not for --stage matching, whose towers are small. Leave it out.",
        ),
        (shard_model and shard_optimizer, opt.TWICE_SHARDED),
        (lora is not None and run.output == "-", "--lora writes a folder, and none is named. Give -o FOLDER."),
    )
    require_tensorboard(tensorboard)
    torch_device, precision = resolve_device(device, dtype, rank=world.rank)
    is_directory = run.output.endswith("/")
    run.refuse_existing(is_directory=is_directory or lora is not None)
    folder = state or state_folder(run.output)
    limit_threads(world)
    is_sharded = shard_model and world.size > 1
    (return_freed_memory if is_sharded else keep_freed_memory)()

    with ExitStack() as stack:
        with raising(Usage, ", ".join(sources) if ratio is None else f"--ratio {ratio}"):
            opened = stack.enter_context(open_training_data(sources, recipe, media=media or [], valid=valid))
        report = partial(opened.report, run.log, is_root=world.is_root, strict=run.strict)
        # a model that is to be cut may not fit on the device as a whole
        start = setup.initial_model(recipe, init or [], tokenizer, "cpu" if is_sharded else torch_device, precision)
        task = setup.make_task(recipe, start, opened, world, torch_device, is_sharded=is_sharded)
        stack.enter_context(closing(task))
        plan = recipe.plan(setup.epoch_length(recipe, task), start.config, precision)
        config = {**recipe.to_json(), "start": start.digest, "input": opened.digest, "dtype": precision}
        stack.enter_context(lock_folder(folder, is_root=world.is_root))
        cut = task.cut if is_sharded else None
        trainer = Trainer(
            task, plan, train_state(folder, config), world, device=torch_device, peak=peak, cut=cut,
            keeps_parts=is_directory and lora is None, shards_optimizer=shard_optimizer,
        )  # fmt: skip
        about = f"{recipe.objective.summary}: {start.n_trained} parameters, {plan.n_steps} steps, lr {plan.lr:.3g}."
        resume_run(trainer, folder, start_over=run.force, log=run.info, summary=about if run.verbose else "")
        report()
        steps_done = opened.strictly(trainer.run(stop)) if run.strict else trainer.run(stop)
        log_run(
            trainer, steps_done, label="pretrain keye", log_file=log, log=run.info, quiet=run.quiet, verbose=run.verbose,
            tensorboard=tensorboard, stage=stage,
        )  # fmt: skip
        code: int = world.max(report())
    writers = trainer.writers
    if not world.is_root and writers is None:
        return 0
    done = trainer.progress
    figures = {"stage": stage, "step": done.step, "loss": done.loss, "validation": done.best_score}
    fields = {"limits": recipe.limits.to_json()} | {name: x for name, x in figures.items() if x is not None}
    history = run.history([*opened.histories, *start.histories])
    if recipe.adapters is not None:
        with new_directory(run.output, force=run.force) as adapter_folder:
            write_adapter(
                adapter_folder, trainer.model, recipe.adapters, base=start.base, dst=run.output, recipe=recipe.to_json(),
                history=history, fields=fields,
            )  # fmt: skip
    else:
        save = partial(
            checkpoint.save, model=trainer.model, tokenizer_json=start.template.to_bytes(), source=start.like,
            files=start.files, history=history, fields={"recipe": recipe.to_json()} | fields, writers=writers,
        )  # fmt: skip
        if is_directory:
            with (new_directory if writers is None else writers.directory)(run.output, force=run.force) as model_folder:
                save(model_folder)
        else:
            save(run.sink())
    if world.is_root:
        trainer.forget()
    return code
