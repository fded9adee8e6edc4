"""`kvtools rl sample`: prompts and a model in, several rewarded answers to each prompt out."""

from typing import Annotated

from kvtools import options as opt

EXAMPLES = [
    "kvtools rl sample -q sums.jsonl --model keye.safetensors --group 4 --max-new 8 --reward correct -o answers.kvs",
    "kvtools rl sample -q sums.jsonl --model keye.safetensors --group 4 --max-new 8 --reward repetition:-1 | kvtools info -",
]
EXIT_CODES = (0, 1, 2, 65, 66, 73, 74, 75, 141)
SEE_ALSO = ("kvtools rl pairs", "kvtools rl mpo", "kvtools rl grpo", "kvtools chat", "kvtools-stream(5)")
COMMON = ("output", "compress", "force", "strict", "stamp")
GROUPS = {
    "Sampling": ("--max-new", "--temperature", "--top-k", "--top-p", "--overlong"),
    "Judge and programs": ("--judge", "--judge-model", "--judge-cache"),
}


def main(
    run: opt.Invocation,
    prompts: Annotated[
        str, opt.argument("PROMPTS", "Conversations up to an answer, as a stream or JSON Lines; - is stdin, the default.")
    ] = "-",
    model: opt.Model = None,
    media: opt.Media = None,
    tokenizer: opt.Tokenizer = None,
    group: opt.Group = 8,
    rewards: opt.Rewards = None,
    modes: opt.Modes = None,
    max_new: opt.MaxNew = 512,
    temperature: Annotated[float, opt.value("X", "Sampling temperature; 0 is greedy.")] = 1.0,
    top_k: Annotated[int, opt.value("N", "Sample from the N most probable tokens; 0 is all.", least=0)] = 0,
    top_p: Annotated[float, opt.value("P", "Sample from the fewest tokens with a total probability of P.")] = 1.0,
    overlong: opt.Overlong = "filter",
    report: opt.ReportFile = None,
    judge: opt.Judges = None,
    judge_model: opt.JudgeModel = None,
    judge_cache: opt.JudgeCache = None,
    timeout: opt.JudgeTimeout = 60.0,
    device: opt.Device = "auto",
    dtype: opt.Dtype = "auto",
    seed: opt.Seed = 0,
) -> int:
    """Draw several answers to each prompt, and reward each by the terms asked for.

    Each answer is a record: its tokens, their log-probabilities, its rewards by term, and its advantage within the group. What
    is drawn depends on the seed, the prompt and the answer's number, not on the number of ranks. A run that writes a file and
    was stopped or killed resumes when it is run again.
    """
    import os
    from contextlib import ExitStack

    from kvtools.world import Stop

    stop = Stop()  # before anything slow: a signal from here on waits for the end of a chunk
    from kvtools.artifact.state import lock_folder, state_folder
    from kvtools.artifact.stream import Head
    from kvtools.errors import Corrupt, Usage, raising
    from kvtools.keye.data.media import Media
    from kvtools.keye.data.processor import Processor
    from kvtools.keye.model.sampling import SamplingConfig
    from kvtools.keye.rl.prompts import deal_modes, parse_modes
    from kvtools.keye.rl.records import KIND
    from kvtools.keye.rl.rollouts import Sampler, SamplingPlan
    from kvtools.keye.rl.sample import SampleRun
    from kvtools.keye.rl.setup import judge_cache_of, open_policy, open_prompts, open_rewards, open_sandbox, parse_rewards
    from kvtools.train.device import keep_freed_memory, limit_threads, resolve_device

    world, name = run.world, model or ""
    opt.refuse_if((model is None, opt.NO_MODEL))
    run.refuse_shared_stdin(prompts, model)
    run.refuse_existing(report)
    specs, shares = parse_rewards(rewards or [], judge or []), parse_modes(modes)
    with raising(Usage, "--temperature, --top-k, --top-p", "Give other values."):
        SamplingConfig(temperature, top_k, top_p)
    compute_on, precision = resolve_device(device, dtype, rank=world.rank)
    limit_threads(world)
    keep_freed_memory()
    source = open_prompts(prompts, specs)
    plan = SamplingPlan(group, max_new, temperature, top_k, top_p, overlong)
    folder = state_folder(run.output) if judge else None
    cache = judge_cache_of(folder, judge or [], judge_cache)
    with ExitStack() as stack:
        stack.enter_context(lock_folder(folder, is_root=world.is_root))
        policy = open_policy(name, tokenizer, device=compute_on, dtype=precision)
        opened = stack.enter_context(Media(media or [], roots=[source.root]))
        scoring = stack.enter_context(
            open_rewards(specs, judge or [], model=judge_model, cache=cache, timeout_s=timeout, seed=seed)
        )
        processor = Processor.for_model(policy.model.config, policy.template, opened)
        sandbox = stack.enter_context(open_sandbox(source.prompts, shares))
        sampler = Sampler(policy.model, processor, scoring, plan, sandbox)
        config = {**vars(plan), "rewards": [vars(spec) for spec in specs], "seed": seed, "dtype": precision}
        config |= {
            "modes": modes,
            "model": policy.digest,
            "prompts": source.digest,
            **({"judge": scoring.judge} if judge else {}),
        }
        head = Head(KIND, run.history([source.history, policy.weights.history]), config)
        sampling = SampleRun(sampler, list(deal_modes(source.prompts, shares)), world, stop, seed=seed, quiet=run.is_silent)
        run.info(source.summary(shares))
        with raising(Corrupt, name, "Give another model."):
            if world.is_root:
                sampling.write(run.output, head, level=run.compress, force=run.force)
            else:
                sampling.serve()
        if cache is not None and judge_cache is None and world.is_root:
            os.unlink(cache)
        code = sampling.report(source, run.log, strict=run.strict)
        total = sampling.total()
    if world.is_root:
        run.write_report(report, sampling.figures(total))
    return max(code, total.report(source.name, scoring, run.warn))  # it was written all the same
