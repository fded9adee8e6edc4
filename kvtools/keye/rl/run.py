"""One run of `rl grpo` on a Keye-VL: open, sample and train, measure before and after, write the model."""

import os
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Self

from kvtools.artifact.files import Sink
from kvtools.artifact.state import lock_folder, state_folder
from kvtools.artifact.stream import Head, Writer
from kvtools.keye.data.media import Media
from kvtools.keye.data.processor import Processor
from kvtools.keye.rl.grpo import GrpoTask, StopBetween
from kvtools.keye.rl.prompts import Prompt, Prompts, parse_modes
from kvtools.keye.rl.recipe import GrpoRecipe
from kvtools.keye.rl.records import KIND, to_records
from kvtools.keye.rl.rollouts import Group, Sampler, SamplingPlan
from kvtools.keye.rl.setup import Policy, judge_cache_of, open_policy, open_prompts, open_rewards, open_sandbox, parse_rewards
from kvtools.keye.rl.spread import gather_records
from kvtools.keye.rl.train import frozen_start, in_dtype, prepare, save, steps_of, why_no_gain
from kvtools.option_values import refuse_if
from kvtools.skipped import counted
from kvtools.train.device import add_in_one_order, keep_freed_memory, limit_threads, resolve_device
from kvtools.train.durations import EpochLength
from kvtools.train.loop import Trainer, log_run, resume_run
from kvtools.train.resume import train_state
from kvtools.world import World

if TYPE_CHECKING:
    from kvtools.invocation import Invocation


@dataclass(frozen=True)
class GrpoOptions:
    """The options of a run beside its recipe."""

    model: str
    prompts: str = "-"
    media: Sequence[str] = ()
    tokenizer: str | None = None
    valid: str | None = None
    require_gain: bool = False
    rollouts: str | None = None
    judges: Sequence[str] = ()
    judge_model: str | None = None
    judge_cache: str | None = None
    timeout_s: float = 60.0
    state: str | None = None
    log_file: str | None = None
    peak: float | None = None
    dtype: str = "auto"
    device: str = "auto"


def train_policy(run: "Invocation", recipe: GrpoRecipe, options: GrpoOptions, *, stop: object) -> int:
    """Train and write the model; returns the exit code. stop: as `Trainer.run` takes it."""
    if run.print_config:
        return run.print_recipe(recipe.to_json())
    world = run.world
    run.refuse_shared_stdin(options.prompts, options.valid, options.model)
    device, precision = resolve_device(options.device, options.dtype, rank=world.rank)
    run.refuse_existing(options.rollouts)
    folder = options.state or state_folder(run.output)
    limit_threads(world)
    keep_freed_memory()
    add_in_one_order(device)
    with ExitStack() as stack:
        stack.enter_context(lock_folder(folder, is_root=world.is_root))
        opened = _open(stack, recipe, options, world, folder, device, precision)
        start, source, task = opened.start, opened.source, opened.task
        for read in (source, opened.held_out):
            if read is not None:
                run.info(read.summary(task.shares))
        lengths = EpochLength(task.n_steps, task.n_steps * recipe.batch * recipe.group * recipe.max_new)
        plan = recipe.plan(lengths, start.model.config, precision, is_judged=opened.held_out is not None)
        config = {**recipe.to_json(), "start": start.digest, "input": source.digest, "dtype": precision}
        config |= {"valid": opened.held_out.digest} if opened.held_out else {}
        config |= {"judge": task.sampler.rewards.judge} if options.judges else {}
        trainer = Trainer(task, plan, train_state(folder, config), world, device=device, peak=options.peak)
        size = f"{start.n_trained} parameters, {counted(plan.n_steps, 'step')}"
        about = f"{counted(len(source.prompts), 'prompt')}: {size}, lr {plan.lr:.3g}."
        resume_run(trainer, folder, start_over=run.force, log=run.info, summary=about if run.verbose else "")
        if options.rollouts is not None:
            head = Head(KIND, run.history([source.history, start.weights.history]), config)
            keeper = _Keeper(options.rollouts, head, source.prompts, world, force=run.force)
            task.keep = stack.enter_context(keeper).keep
        log_run(
            trainer, steps_of(trainer, StopBetween(stop, task), lambda: task.figures), label="rl grpo",
            log_file=options.log_file, log=run.info, quiet=run.quiet, verbose=run.verbose, stage="grpo",
        )  # fmt: skip
        code = _report(run, opened)
    if not world.is_root:
        return code
    if options.require_gain and (sentence := why_no_gain(trainer)):
        run.warn(sentence)
        code = 1
    save(run.sink(), start, trainer, recipe, command="grpo", before=[source.history], history=run.history)
    if opened.cache is not None and options.judge_cache is None:
        os.unlink(opened.cache)
    trainer.forget()
    return code


@dataclass(frozen=True)
class _Opened:
    """What a run works on. cache: the file of the judge's answers, if there is one."""

    start: Policy
    source: Prompts
    held_out: Prompts | None
    task: GrpoTask
    cache: str | None


def _open(
    stack: ExitStack, recipe: GrpoRecipe, options: GrpoOptions, world: World, folder: str | None, device: str, precision: str
) -> _Opened:  # fmt: skip
    """The inputs of a run, its rewards and its task; the stack closes what must be closed."""
    specs, shares = parse_rewards(recipe.rewards, options.judges), parse_modes(recipe.modes)
    refuse_if((not specs, "no reward is given. Give --reward correct, or see kvtools-rl-grpo(1) for others."))
    start = open_policy(options.model, options.tokenizer, device=device, dtype="float32")
    source = open_prompts(options.prompts, specs)
    held_out = open_prompts(options.valid, specs) if options.valid is not None else None
    media = stack.enter_context(Media(options.media, roots=[source.root, *([held_out.root] if held_out else [])]))
    cache = judge_cache_of(folder, options.judges, options.judge_cache)
    timeout_s, seed = options.timeout_s, recipe.seed
    scoring = stack.enter_context(
        open_rewards(specs, options.judges, model=options.judge_model, cache=cache, timeout_s=timeout_s, seed=seed)
    )
    processor = Processor.for_model(start.model.config, start.template, media)
    prepare(start.model, recipe)
    plan = SamplingPlan(recipe.group, recipe.max_new, recipe.temperature, overlong=recipe.overlong)
    greedy = replace(plan, n_answers=1, temperature=0.0, overlong="keep")
    held_out_prompts = _in_all_modes(held_out, list(shares))
    sandbox = stack.enter_context(open_sandbox([*source.prompts, *held_out_prompts], shares))
    sampler, judge = (Sampler(start.model, processor, scoring, each, sandbox) for each in (plan, greedy))
    task = GrpoTask(
        start.model, sampler, judge, source.prompts, held_out_prompts, shares, recipe.policy,
        frozen_start(start.model, recipe) if recipe.kl else None, batch=recipe.batch, chunk=recipe.chunk,
        row_tokens=recipe.row_tokens, trains=recipe.trains, world=world, seed=seed,
        in_dtype=partial(in_dtype, device, precision),
    )  # fmt: skip
    return _Opened(start, source, held_out, task, cache)


class _Keeper:
    """Keeps the rollouts of a run in a stream, on rank 0; those of steps that a resumed run does again are there already."""

    def __init__(self, dst: str, head: Head, prompts: Sequence[Prompt], world: World, *, force: bool) -> None:
        self._world, self._force = world, force
        self._numbers = {prompt.key: number for number, prompt in enumerate(prompts)}
        self._writer = Writer(Sink(dst, force=force, keep_partial=True), head) if world.is_root else None
        self._done: set[str] = set()

    def __enter__(self) -> Self:
        if self._writer is not None:
            self._writer.__enter__()
            self._done = self._writer.resume(start_over=self._force)
        return self

    def __exit__(self, *error: object) -> None:
        if self._writer is not None:
            self._writer.__exit__(*error)  # type: ignore[arg-type]

    def keep(self, name: str, groups: Sequence[Group]) -> None:
        """Write the records of a step's groups, of all ranks. Collective."""
        mine = [record for group in groups for record in to_records(group, self._numbers[group.prompt.key], f"{name}/")]
        for key, data in gather_records(mine, self._world):
            if self._writer is not None and key not in self._done:
                self._writer.write_pieces(key, [memoryview(data)])


def _in_all_modes(held_out: Prompts | None, modes: Sequence[str]) -> list[Prompt]:
    """The held-out prompts in each of the modes that are trained, or in their own."""
    prompts = held_out.prompts if held_out is not None else []
    return [prompt.in_mode(mode, f"{prompt.key} {mode}") for mode in modes for prompt in prompts] if modes else list(prompts)


def _report(run: "Invocation", opened: _Opened) -> int:
    """Log what was left out; returns 65, on all ranks, where anything was, else 0."""
    code = 0
    for source in (opened.source, opened.held_out):
        if source is not None:
            code = max(code, source.skipped.report(source.name, run.warn, strict=run.strict))
    task, name = opened.task, opened.source.name
    held_out = f"--valid {opened.held_out.name}" if opened.held_out is not None else ""
    for sampler, src in ((task.sampler, name), (task.held_out_sampler, held_out)):
        code = max(code, sampler.skipped.report(src, run.log, strict=run.strict))
    seen, rewards = task.seen, task.sampler.rewards
    code = max(code, task.seen_held_out.report(held_out, rewards, run.warn))
    unrewarded = seen.report(name, rewards, run.warn)
    if seen.has_no_signal and not unrewarded:
        advice = "Give another reward, other prompts, or a higher --temperature"
        run.info(f"{name}: the answers to each prompt had equal rewards, so nothing was learnt. {advice}.")
    code = max(code, unrewarded)
    return int(run.world.max(code))
