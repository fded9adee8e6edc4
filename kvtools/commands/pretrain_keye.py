"""`kvtools pretrain keye`: conversations about pictures and videos in, a vision-language model out."""

from typing import Annotated, Literal

import typer

from kvtools.options import (
    Config,
    Device,
    Dtype,
    Force,
    FrameTokens,
    LogFile,
    Media,
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
    Tokenizer,
    Verbose,
    require,
    to_toml,
)

EXAMPLES = [
    "kvtools pretrain keye questions.kvs --media clips.kvs --steps 2 --batch-tokens 1024 -o tiny.safetensors",
    "kvtools quiz -q clips.kvs --frames 3 --choices 2 | kvtools pretrain keye - --media clips.kvs --steps 2 | kvtools info -",
]
EXIT_CODES = (0, 1, 2, 65, 66, 73, 74, 75, 141)
SEE_ALSO = ("kvtools quiz", "kvtools convert", "kvtools merge", "kvtools chat", "kvtools tokenize-video", "kvtools-stream(5)")
GROUPS = {"Data": ("--ratio", "--length", "--max-tokens"), "Architecture and training": ("--architecture", "--training")}


def main(
    ctx: typer.Context,
    data: Annotated[
        list[str] | None,
        typer.Argument(metavar="DATA", help="Conversations, as a stream or JSON, or sequence streams; - is stdin."),
    ] = None,
    stage: Annotated[
        Literal["matching", "alignment", "multitask", "annealing", "sft", "cold-start"],
        typer.Option(help="What learns, and from what: see kvtools-pretrain-keye(1)."),
    ] = "multitask",
    init: Annotated[
        list[str] | None,
        typer.Option(
            metavar="MODEL", help="Begin with a model, or a Hugging Face directory of one or of a part; may be repeated."
        ),
    ] = None,
    size: Annotated[
        Literal["tiny", "small", "0.6b", "8b"],
        typer.Option(help="The model's size where --init does not say; tiny for two cores."),
    ] = "tiny",
    architecture: Annotated[
        list[str] | None, typer.Option(metavar="PART.NAME=N", help="Change the size, as language.layers=6; may be repeated.")
    ] = None,
    tokenizer: Tokenizer = None,
    media: Media = None,
    ratio: Annotated[
        str | None, typer.Option(metavar="A,B,...", help="Shares of the inputs in what is shown. Default: as they are.")
    ] = None,
    valid: Annotated[
        str | None, typer.Option(metavar="DATA", help="Conversations to look at after each epoch, never to learn.")
    ] = None,
    steps: Steps = "3ep",
    lr: Annotated[
        float | None, typer.Option(metavar="X", help="Learning rate, at its peak. Default: the stage's, less for wide models.")
    ] = None,
    batch_tokens: Annotated[int, typer.Option(metavar="N", min=2, help="Tokens a step, visual ones included.")] = 8192,
    length: Annotated[
        int | None, typer.Option(metavar="N", min=2, help="Tokens a packed row. Default: 4096, or --batch-tokens.")
    ] = None,
    frame_tokens: FrameTokens = "128:768",
    max_tokens: Annotated[
        int | None, typer.Option(metavar="N", min=1, help="Files: tokens each may cost. Default: 3/4 of a row.")
    ] = None,
    training: Overrides = None,
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
    """Train a model that talks about pictures and videos, one stage of the report at a time.

    Answers carry the loss; questions and what is shown do not. What cannot be read is told and left out; the exit code is then
    65. A run that was stopped goes on when the same command is run again. The ranks of mpiexec or srun share each step.
    """
    from contextlib import ExitStack, closing
    from functools import partial

    from kvtools.world import Stop

    # before all that takes long, such as loading torch: a signal from here on waits for the first step to be kept
    stop = Stop() if state or output != "-" else False
    from kvtools.artifact.files import Sink, refuse_existing
    from kvtools.artifact.history import extend
    from kvtools.artifact.state import RunState, lock_folder, state_folder
    from kvtools.keye.checkpoint import weights as checkpoint
    from kvtools.keye.run import setup as starting
    from kvtools.keye.run.recipe import Recipe
    from kvtools.train.device import keep_freed_memory, limit_threads, resolve_device
    from kvtools.train.loop import DTYPES, Trainer, log_run, resume_run
    from kvtools.train.peak_flops import measured_peak
    from kvtools.train.resume import TRAIN_STATE

    recipe = Recipe.of(
        stage=stage, size=size, architecture=architecture or [], steps=steps, lr=lr, batch_tokens=batch_tokens, length=length,
        ratio=ratio, training=training or [], seed=seed, frame_tokens=frame_tokens, max_tokens=max_tokens,
    )  # fmt: skip
    if print_config:
        typer.echo(to_toml(recipe.to_json()), nl=False)
        return 0
    world = ctx.obj.world
    data = data or ["-"]
    require("-" not in data or world.size == 1, "DATA", f"- on {world.size} ranks", "a file, which every rank reads,")
    require([*data, valid].count("-") <= 1, "-", "named more than once", "one input from stdin")
    require(valid is not None or not recipe.is_judged, "--training", "patience without --valid", "conversations to judge by")
    place, chosen = resolve_device(device, dtype, rank=world.rank)
    refuse_existing(output, force=force)
    folder = state or state_folder(output)
    limit_threads(world.local_size)
    keep_freed_memory()

    note = partial(ctx.obj.log, quiet=quiet)
    tell = note if world.is_root else lambda _: None

    with ExitStack() as stack:
        given = stack.enter_context(starting.open_data(data, recipe, media=media or [], valid=valid))
        start = starting.begin(recipe, init or [], tokenizer, place)
        task = stack.enter_context(closing(starting.task_of(recipe, start, given, world, place)))
        plan = recipe.plan(starting.lengths_of(recipe, task), start.arch, chosen)
        made_of = {**recipe.to_json(), "start": start.digest, "input": given.digest, "dtype": chosen}
        kept = RunState(folder, TRAIN_STATE, made_of)
        stack.enter_context(lock_folder(folder, is_root=world.is_root))
        ceiling = peak or measured_peak(place, DTYPES[chosen])
        run = Trainer(task, plan, kept, world, device=place, peak=ceiling)
        told = f"{recipe.what.summary}: {start.n_learning} parameters, {plan.n_steps} steps, rate {plan.lr:.3g}."
        resume_run(run, folder, start_over=force, log=tell, summary=told if verbose else "", is_peak_given=peak is not None)
        given.report(note, is_root=world.is_root, strict=strict)
        log_run(
            run, given.guarded(run.run(stop)) if strict else run.run(stop), label="pretrain keye",
            log_file=log if world.is_root else None, log=tell, quiet=quiet or not world.is_root, verbose=verbose, stage=stage,
        )  # fmt: skip
        code: int = world.max(given.report(note, is_root=world.is_root, strict=strict))
    if not world.is_root:
        return 0
    figures = {"stage": stage, "step": run.progress.step, "loss": run.progress.loss, "validation": run.progress.best_score}
    history = extend("pretrain keye", ctx.obj.argv, before=[*given.histories, *start.histories], stamp=stamp)
    checkpoint.save(
        Sink(output, force=force), start.model.cpu(), tokenizer_json=start.chat.to_bytes(), source=start.like,
        files=start.files, history=history,
        fields={"recipe": recipe.to_json()} | {name: x for name, x in figures.items() if x is not None},
    )  # fmt: skip
    run.forget()
    return code
