"""`kvtools rl ecpo`: a recommender and interactions in, the recommender moved towards a reward by OneRec's ECPO out."""

from collections.abc import Callable
from typing import Annotated, Literal

from kvtools import options as opt

EXAMPLES = [
    "kvtools rl ecpo --model shop.safetensors clicks.csv --reward hit --group 8 --steps 4 -o better.safetensors",
    "kvtools convert clicks.csv | kvtools rl ecpo --model shop.safetensors - --reward hit --steps 2 --group 8 | kvtools info -",
]
EXIT_CODES = (0, 1, 2, 65, 66, 73, 74, 75, 141)
SEE_ALSO = ("kvtools rl gbpo", "kvtools rl pscore", "kvtools pretrain onerec", "kvtools recgen", "kvtools plot")
COMMON = ("output", "force", "config", "print_config", "strict", "stamp")
GROUPS = {
    "Reward": ("--reward", "--listed"),
    "Data": ("--column", "--users"),
    "Proposals and training": ("--sampling", "--keep-seen", "--training"),
    "What is measured": ("--valid", "--require-gain", "--rollouts"),
}
_HOW = """In each step users are proposed a group of items; the better ones of a group become more probable, the others less,
    and the next item is trained jointly. Training reads the training part alone. Held-out users are measured before, on the way
    and after; the best weights by their reward are kept, those of the start included. A run that was stopped continues when the
    same command is run again. The ranks of mpiexec or srun share each step.
    """


def policy_command(objective: Literal["ecpo", "gbpo"], summary: str) -> Callable[..., int]:
    """The `main` of a command that trains a recommender by this objective; its help is the summary, and _HOW."""

    def main(
        run: opt.Invocation,
        interactions: opt.Interactions = "-",
        model: opt.Recommender = None,
        rewards: opt.ItemRewards = None,
        group: opt.GroupSize = 40,
        steps: opt.Steps = "1ep",
        lr: opt.PolicyLr = 5e-5,
        batch: opt.PolicyBatch = 64,
        valid: opt.HeldOut = None,
        require_gain: opt.RequireGain = False,
        rollouts: opt.RolloutsFile = None,
        users: Annotated[str | None, opt.value("TABLE", "User features: the table that the model was trained with.")] = None,
        sampling: opt.Sampling = "beam",
        listed: opt.Listed = None,
        keep_seen: opt.KeepSeen = False,
        training: opt.Overrides = None,
        columns: opt.Columns = None,
        state: opt.StateDir = None,
        log_file: opt.LogFile = None,
        peak: opt.Peak = None,
        dtype: opt.Dtype = "auto",
        device: opt.Device = "auto",
        seed: opt.Seed = 0,
    ) -> int:
        from kvtools.world import Stop

        stop = Stop() if state or run.output != "-" else False
        from kvtools.onerec.rl.run import PolicyOptions, train_policy

        options = PolicyOptions(
            model, interactions, rewards or [], group, valid, require_gain, rollouts, users, sampling, listed, keep_seen, steps,
            lr, batch, training or [], columns or [], state, log_file, peak, dtype, device, seed,
        )  # fmt: skip
        return train_policy(run, objective, options, stop=stop)

    main.__doc__ = f"{summary}\n\n{_HOW}"
    return main


main = policy_command("ecpo", "Move a recommender towards a reward by ECPO, early-clipped GRPO, as the OneRec report has it.")
