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
    refuse_if,
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
        typer.Option(help="What is trained, and on what: see kvtools-pretrain-keye(1)."),
    ] = "multitask",
    init: Annotated[
        list[str] | None,
        typer.Option(
            metavar="MODEL", help="Start from a model or a part of one: a bag or a Hugging Face directory; may be repeated."
        ),
    ] = None,
    size: Annotated[
        Literal["tiny", "small", "0.6b", "8b"],
        typer.Option(help="Model size, where --init does not decide it; tiny is for two cores."),
    ] = "tiny",
    architecture: Annotated[
        list[str] | None,
        typer.Option(metavar="PART.NAME=N", help="Override the model config, as language.layers=6; may be repeated."),
    ] = None,
    tokenizer: Tokenizer = None,
    media: Media = None,
    ratio: Annotated[
        str | None, typer.Option(metavar="A,B,...", help="Mixing weights of the inputs. Default: as they are.")
    ] = None,
    valid: Annotated[
        str | None, typer.Option(metavar="DATA", help="Held-out conversations for validation after each epoch.")
    ] = None,
    steps: Steps = "3ep",
    lr: Annotated[
        float | None, typer.Option(metavar="X", help="Peak learning rate. Default: the stage's, less for wide models.")
    ] = None,
    batch_tokens: Annotated[int, typer.Option(metavar="N", min=2, help="Tokens per step, visual tokens included.")] = 8192,
    length: Annotated[
        int | None, typer.Option(metavar="N", min=2, help="Tokens per packed row. Default: 4096, or --batch-tokens.")
    ] = None,
    frame_tokens: FrameTokens = "128:768",
    max_tokens: Annotated[
        int | None, typer.Option(metavar="N", min=1, help="Most visual tokens of a file. Default: 3/4 of a row.")
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
    """Train a vision-language model on conversations about pictures and videos, one stage at a time.

    Only the assistant's text carries the loss. Conversations that cannot be read are reported and left out; the exit code is
    then 65. Run a stopped command again to resume it. The ranks of mpiexec or srun share each step.
    """
    from contextlib import ExitStack, closing
    from functools import partial

    from kvtools.world import Stop

    # before anything slow, such as loading torch: a signal from here on waits until the first step is saved
    stop = Stop() if state or output != "-" else False
    from kvtools.artifact.files import Sink, refuse_existing
    from kvtools.artifact.history import extend
    from kvtools.artifact.state import lock_folder, state_folder
    from kvtools.keye.checkpoint import weights as checkpoint
    from kvtools.keye.run import setup
    from kvtools.keye.run.recipe import TrainingRecipe, default_length
    from kvtools.keye.run.training_data import open_training_data
    from kvtools.train.device import keep_freed_memory, limit_threads, resolve_device
    from kvtools.train.loop import Trainer, log_run, resume_run
    from kvtools.train.resume import train_state

    recipe = TrainingRecipe(
        stage=stage, size=size, architecture=architecture or [], steps=steps, lr=lr, batch_tokens=batch_tokens,
        length=default_length(batch_tokens) if length is None else length, ratio=ratio, training=training or [], seed=seed,
        frame_tokens=frame_tokens, max_tokens=max_tokens,
    )  # fmt: skip
    if print_config:
        typer.echo(to_toml(recipe.to_json()), nl=False)
        return 0
    world = ctx.obj.world
    sources = data or ["-"]
    refuse_if(
        (
            "-" in sources and world.size > 1,
            f"DATA - cannot be read by {world.size} ranks. Give a file that every rank reads.",
        ),
        ([*sources, valid].count("-") > 1, "- is given more than once, and stdin can be read only once. Give files."),
        (
            valid is None and recipe.is_judged,
            "--training patience needs --valid DATA. Give both or neither.",
        ),
    )
    torch_device, precision = resolve_device(device, dtype, rank=world.rank)
    refuse_existing(output, force=force)
    folder = state or state_folder(output)
    limit_threads(world.local_size)
    keep_freed_memory()
    log_here = partial(ctx.obj.log, quiet=quiet)
    log_once = log_here if world.is_root else lambda _: None
    report = {"log": log_here, "is_root": world.is_root, "strict": strict}

    with ExitStack() as stack:
        opened = stack.enter_context(open_training_data(sources, recipe, media=media or [], valid=valid))
        start = setup.initial_model(recipe, init or [], tokenizer, torch_device)
        task = stack.enter_context(closing(setup.make_task(recipe, start, opened, world, torch_device)))
        plan = recipe.plan(setup.epoch_length(recipe, task), start.config, precision)
        made_of = {**recipe.to_json(), "start": start.digest, "input": opened.digest, "dtype": precision}
        stack.enter_context(lock_folder(folder, is_root=world.is_root))
        run = Trainer(task, plan, train_state(folder, made_of), world, device=torch_device, peak=peak)
        about = f"{recipe.objective.summary}: {start.n_trained} parameters, {plan.n_steps} steps, lr {plan.lr:.3g}."
        resume_run(run, folder, start_over=force, log=log_once, summary=about if verbose else "")
        opened.report(**report)
        log_run(
            run, opened.strictly(run.run(stop)) if strict else run.run(stop), label="pretrain keye", log_file=log,
            log=log_once, quiet=quiet, verbose=verbose, stage=stage,
        )  # fmt: skip
        code: int = world.max(opened.report(**report))
    if not world.is_root:
        return 0
    figures = {"stage": stage, "step": run.progress.step, "loss": run.progress.loss, "validation": run.progress.best_score}
    history = extend("pretrain keye", ctx.obj.argv, before=[*opened.histories, *start.histories], stamp=stamp)
    checkpoint.save(
        Sink(output, force=force), start.model.cpu(), tokenizer_json=start.template.to_bytes(), source=start.like,
        files=start.files, history=history,
        fields={"recipe": recipe.to_json()} | {name: x for name, x in figures.items() if x is not None},
    )  # fmt: skip
    run.forget()
    return code
