"""`kvtools rl grpo`: prompts and rewards in, a model that earns more of them out."""

from typing import Annotated, Literal

from kvtools import options as opt

EXAMPLES = [
    "kvtools rl grpo -q sums.jsonl --model keye.safetensors --reward correct --group 4 --max-new 8 --steps 1 -o better.model",
    "kvtools rl grpo -q sums.jsonl --model keye.safetensors --reward length:-1 --max-new 4 --steps 1 | kvtools info -",
]
EXIT_CODES = (0, 1, 2, 65, 66, 73, 74, 75, 141)
SEE_ALSO = (
    "kvtools rl sample", "kvtools rl mpo", "kvtools rl ecpo", "kvtools pretrain keye", "kvtools pretrain onerec",
    "kvtools plot", "kvtools-stream(5)",
)  # fmt: skip
COMMON = ("output", "force", "config", "print_config", "strict", "stamp")
GROUPS = {
    "Sampling": ("--media", "--tokenizer", "--modes", "--max-new", "--temperature", "--overlong"),
    "Objective and training": ("--objective", "--clip", "--updates", "--kl", "--row-tokens", "--lora", "--training"),
    "Judge and programs": ("--judge", "--judge-model", "--judge-cache"),
    "For a model of OneRec": ("--column", "--users", "--sampling", "--listed", "--keep-seen"),
}
# what models of one system alone take
_OF_KEYE = {
    "media", "tokenizer", "modes", "max_new", "temperature", "overlong", "objective", "clip", "updates", "kl", "row_tokens",
    "lora", "judge", "judge_model", "judge_cache", "timeout",
}  # fmt: skip
_OF_ONEREC = {"columns", "users", "sampling", "listed", "keep_seen"}


def main(
    run: opt.Invocation,
    data: Annotated[
        str,
        opt.argument("PROMPTS", "Conversations up to an answer; for a model of OneRec, interactions. - is stdin, the default."),
    ] = "-",
    model: Annotated[str | None, opt.value("M", "A model of Keye-VL or of OneRec.", "--model")] = None,
    media: opt.Media = None,
    tokenizer: opt.Tokenizer = None,
    rewards: opt.Rewards = None,
    modes: opt.Modes = None,
    group: Annotated[int | None, opt.value("N", "Answers to a prompt, or items to a user. Default: 8, or 40.", least=1)] = None,
    max_new: opt.MaxNew = 512,
    temperature: Annotated[float, opt.value("X", "Sampling temperature.")] = 1.0,
    overlong: opt.Overlong = "filter",
    valid: Annotated[str | None, opt.value("PROMPTS", "Held-out prompts, for figures before, during and after.")] = None,
    require_gain: opt.RequireGain = False,
    rollouts: opt.RolloutsFile = None,
    steps: opt.Steps = "1ep",
    lr: opt.LearningRate = None,
    batch: Annotated[int | None, opt.value("N", "Prompts, or users, per step. Default: 16, or 64.", least=1)] = None,
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
    columns: opt.Columns = None,
    users: Annotated[str | None, opt.value("TABLE", "User features: the table that the model was trained with.")] = None,
    sampling: opt.Sampling = "beam",
    listed: opt.Listed = None,
    keep_seen: opt.KeepSeen = False,
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
    A model of OneRec proposes items to users instead: see kvtools rl ecpo.
    """
    from kvtools.world import Stop

    # before anything slow, such as loading torch: a signal from here on waits until the first step is saved
    stop = Stop() if state or run.output != "-" else False
    from kvtools.artifact.bag import fields_of
    from kvtools.errors import Usage

    opt.refuse_if((model is None and not run.print_config, opt.NO_MODEL))
    is_onerec = fields_of(model or "-").get("system") == "onerec"
    foreign = sorted(run.given & (_OF_KEYE if is_onerec else _OF_ONEREC))
    for name in foreign:
        option, system = (
            "--column" if name == "columns" else f"--{name.replace('_', '-')}",
            "OneRec" if is_onerec else "Keye-VL",
        )
        raise Usage(f"{option} is not for a model of {system}. Leave it out.")
    if is_onerec:
        from kvtools.onerec.rl.run import PolicyOptions
        from kvtools.onerec.rl.run import train_policy as train_recommender

        rate = 5e-5 if lr is None else lr
        return train_recommender(run, "grpo", PolicyOptions(
            model, data, rewards or [], group or 40, valid, require_gain, rollouts, users, sampling, listed, keep_seen, steps,
            rate, batch or 64, training or [], columns or [], state, log, peak, dtype, device, seed,
        ), stop=stop)  # fmt: skip
    from kvtools.keye.rl.recipe import GrpoRecipe
    from kvtools.keye.rl.run import GrpoOptions, train_policy

    opt.refuse_if((require_gain and valid is None, opt.GAIN_WITHOUT_VALID))
    recipe = GrpoRecipe(
        steps=steps, lr=lr, batch=batch or 16, row_tokens=row_tokens, training=training or [], lora=lora, seed=seed,
        objective=objective, rewards=rewards or [], modes=modes, group=group or 8, max_new=max_new, temperature=temperature,
        overlong=overlong, kl=kl, clip=clip, updates=updates,
    )  # fmt: skip
    return train_policy(run, recipe, GrpoOptions(
        model or "", data, media or [], tokenizer, valid, require_gain, rollouts, judge or [], judge_model, judge_cache,
        timeout, state, log, peak, dtype, device,
    ), stop=stop)  # fmt: skip
