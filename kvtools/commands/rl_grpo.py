"""`kvtools rl grpo`: prompts and rewards in, a model that earns more of them out."""

from typing import Annotated, Literal

from kvtools import options as opt

EXAMPLES = [
    "kvtools rl grpo sums.jsonl --model keye.safetensors --reward correct --group 4 --max-new 8 --steps 1 -o better.model",
    "kvtools rl grpo -q sums.jsonl --model keye.safetensors --reward length:-1 --max-new 4 --steps 1 | kvtools info -",
]
EXIT_CODES = (0, 1, 2, 65, 66, 73, 74, 75, 141)
SEE_ALSO = ("kvtools rl sample", "kvtools rl mpo", "kvtools pretrain keye", "kvtools plot", "kvtools-stream(5)")
COMMON = ("output", "force", "config", "print_config", "strict", "stamp")
GROUPS = {
    "Sampling": ("--modes", "--group", "--max-new", "--temperature", "--overlong"),
    "Objective and training": ("--objective", "--clip", "--updates", "--kl", "--row-tokens", "--lora", "--training"),
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
    rewards: opt.Rewards = None,
    modes: opt.Modes = None,
    group: opt.Group = 8,
    max_new: opt.MaxNew = 512,
    temperature: Annotated[float, opt.value("X", "Sampling temperature.")] = 1.0,
    overlong: opt.Overlong = "filter",
    valid: Annotated[str | None, opt.value("PROMPTS", "Held-out prompts, for figures before, during and after.")] = None,
    require_gain: opt.RequireGain = False,
    rollouts: opt.RolloutsFile = None,
    steps: opt.Steps = "1ep",
    lr: opt.LearningRate = None,
    batch: Annotated[int, opt.value("N", "Prompts per step.", least=1)] = 16,
    objective: Annotated[
        Literal["grpo", "gspo"], opt.option("A ratio for each token, or one for each whole answer.", "--objective")
    ] = "grpo",
    clip: Annotated[str, opt.value("LOW[:HIGH]", "How far the ratio may move from 1.")] = "0.2",
    updates: Annotated[int, opt.value("N", "Updates for each step of sampling.", least=1)] = 1,
    kl: Annotated[float, opt.value("X", "Weight of the divergence from the start model.")] = 0.0,
    row_tokens: opt.RowTokens = 4096,
    lora: opt.Lora = None,
    training: opt.Overrides = None,
    judge: opt.Judges = None,
    judge_model: opt.JudgeModel = None,
    judge_cache: opt.JudgeCache = None,
    timeout: opt.JudgeTimeout = 60.0,
    state: opt.StateDir = None,
    log: opt.LogFile = None,
    peak: opt.Peak = None,
    dtype: opt.Dtype = "auto",
    device: opt.Device = "auto",
    seed: opt.Seed = 0,
) -> int:
    """Train a model by rewards of its own answers: GRPO, with modes of answering mixed, or GSPO.

    Each step draws a group of answers to each prompt, rewards them, and makes those above their group's mean more probable.
    With --valid the held-out prompts are answered before, between and after epochs, and the best weights by their reward are
    kept, those of the start among them. Run a stopped command again to resume it. The ranks of mpiexec or srun share each step.
    """
    from kvtools.world import Stop

    # before anything slow, such as loading torch: a signal from here on waits until the first step is saved
    stop = Stop() if state or run.output != "-" else False
    from kvtools.keye.rl.recipe import GrpoRecipe
    from kvtools.keye.rl.run import GrpoOptions, train_policy

    recipe = GrpoRecipe(
        steps=steps, lr=lr, batch=batch, row_tokens=row_tokens, training=training or [], lora=lora, seed=seed,
        objective=objective, rewards=rewards or [], modes=modes, group=group, max_new=max_new, temperature=temperature,
        overlong=overlong, kl=kl, clip=clip, updates=updates,
    )  # fmt: skip
    opt.refuse_if(
        (model is None and not run.print_config, opt.NO_MODEL), (require_gain and valid is None, opt.GAIN_WITHOUT_VALID)
    )
    options = GrpoOptions(
        model or "", prompts, media or [], tokenizer, valid, require_gain, rollouts, judge or [], judge_model, judge_cache,
        timeout, state, log, peak, dtype, device,
    )  # fmt: skip
    return train_policy(run, recipe, options, stop=stop)
