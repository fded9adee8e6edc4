"""`kvtools rl mpo`: pairs of a better and a worse answer in, a model that prefers the better ones out."""

from typing import Annotated

from kvtools import options as opt

EXAMPLES = [
    "kvtools rl mpo -q preferences.kvs --model keye.safetensors --steps 2 --batch 4 -o aligned.model",
    "kvtools rl pairs -q rollouts.kvs | kvtools rl mpo -q - --model keye.safetensors --steps 1 --batch 4 | kvtools info -",
]
EXIT_CODES = (0, 1, 2, 65, 66, 73, 74, 75, 141)
SEE_ALSO = ("kvtools rl pairs", "kvtools rl sample", "kvtools rl grpo", "kvtools pretrain keye", "kvtools plot")
COMMON = ("output", "force", "config", "print_config", "strict", "stamp")
GROUPS = {"Training": ("--batch", "--row-tokens", "--lora", "--training")}


def main(
    run: opt.Invocation,
    pairs: Annotated[
        list[str] | None,
        opt.argument("PAIRS", "Pairs of kvtools rl pairs, or JSON with chosen and rejected; - is stdin, the default."),
    ] = None,
    model: opt.Model = None,
    media: opt.Media = None,
    tokenizer: opt.Tokenizer = None,
    valid: Annotated[str | None, opt.value("PAIRS", "Held-out pairs, for figures before, during and after.")] = None,
    require_gain: opt.RequireGain = False,
    weights: Annotated[
        str, opt.value("P,Q,G", "Weights of the preference, the quality and the generation of answers.")
    ] = "0.8,0.2,1",
    beta: Annotated[float, opt.value("X", "Strength of the hold on the start model.")] = 0.1,
    steps: opt.Steps = "1ep",
    lr: opt.LearningRate = None,
    batch: Annotated[int, opt.value("N", "Pairs per step.", least=1)] = 32,
    row_tokens: opt.RowTokens = 4096,
    lora: opt.Lora = None,
    training: opt.Overrides = None,
    state: opt.StateDir = None,
    log: opt.LogFile = None,
    peak: opt.Peak = None,
    dtype: opt.Dtype = "auto",
    device: opt.Device = "auto",
    seed: opt.Seed = 0,
) -> int:
    """Train a model by mixed preference optimisation: better answers more probable than worse ones, and likely by themselves.

    The loss is that of a preference (DPO), of the quality of each answer (BCO), and of generation, weighted. With --valid the
    weights of the highest reward on the held-out pairs are kept, those of the start among them. Run a stopped command again
    to resume it. The ranks of mpiexec or srun share each step.
    """
    from contextlib import ExitStack

    from kvtools.world import Stop

    # before anything slow, such as loading torch: a signal from here on waits until the first step is saved
    stop = Stop() if state or run.output != "-" else False
    from kvtools.artifact.state import lock_folder, state_folder
    from kvtools.keye.data.processor import Processor
    from kvtools.keye.rl.mpo import MpoTask
    from kvtools.keye.rl.recipe import MpoRecipe
    from kvtools.keye.rl.setup import open_pairs, open_policy
    from kvtools.keye.rl.train import frozen_start, prepare, save, steps_of, why_no_gain
    from kvtools.skipped import counted
    from kvtools.train.device import keep_freed_memory, limit_threads, resolve_device
    from kvtools.train.durations import EpochLength
    from kvtools.train.loop import Trainer, log_run, resume_run
    from kvtools.train.resume import train_state

    recipe = MpoRecipe(
        steps=steps, lr=lr, batch=batch, row_tokens=row_tokens, training=training or [], lora=lora, seed=seed, beta=beta,
        weights=weights,
    )  # fmt: skip
    if run.print_config:
        return run.print_recipe(recipe.to_json())
    world, sources = run.world, pairs or ["-"]
    opt.refuse_if((model is None, opt.NO_MODEL), (require_gain and valid is None, opt.GAIN_WITHOUT_VALID))
    run.refuse_shared_stdin(*sources, valid, model)
    compute_on, precision = resolve_device(device, dtype, rank=world.rank)
    run.refuse_existing()
    folder = state or state_folder(run.output)
    limit_threads(world)
    keep_freed_memory()

    with ExitStack() as stack:
        start = open_policy(model or "", tokenizer, device=compute_on, dtype="float32")
        data = stack.enter_context(open_pairs(sources, valid, media or []))
        processor = Processor.for_model(start.model.config, start.template, data.media)
        learnt, held_out = data.read(processor, row_tokens, run.warn, strict=run.strict)
        run.info(data.summary(learnt, held_out))
        prepare(start.model, recipe)
        task = MpoTask(
            start.model, frozen_start(start.model, recipe), learnt, held_out, recipe.objective, batch=batch,
            row_tokens=row_tokens, trains=recipe.trains, world=world, seed=seed,
        )  # fmt: skip
        lengths = EpochLength(task.n_steps, sum(learnt.lengths))
        plan = recipe.plan(lengths, start.model.config, precision, is_judged=held_out is not None)
        config = {**recipe.to_json(), "start": start.digest, "input": data.digest, "dtype": precision}
        stack.enter_context(lock_folder(folder, is_root=world.is_root))
        trainer = Trainer(task, plan, train_state(folder, config), world, device=compute_on, peak=peak)
        about = (
            f"{counted(len(learnt), 'pair')}: {start.n_trained} parameters, {counted(plan.n_steps, 'step')}, lr {plan.lr:.3g}."
        )
        resume_run(trainer, folder, start_over=run.force, log=run.info, summary=about if run.verbose else "")
        task.memory = trainer.progress.task
        log_run(
            trainer, steps_of(trainer, stop), label="rl mpo", log_file=log, log=run.info, quiet=run.quiet,
            verbose=run.verbose, stage="mpo",
        )  # fmt: skip
    if not world.is_root:
        return 0
    code = data.code
    if require_gain and (sentence := why_no_gain(trainer)):
        run.warn(sentence)
        code = 1
    save(run.sink(), start, trainer, recipe, command="mpo", before=data.histories, history=run.history)
    trainer.forget()
    return code
