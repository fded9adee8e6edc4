"""`kvtools rl pscore`: a recommender and interactions in, a ranker out whose score is a reward for `rl ecpo`."""

from typing import Annotated

from kvtools import options as opt

EXAMPLES = [
    "kvtools rl pscore --model shop.safetensors clicks.csv --steps 5 -o ranker.safetensors",
    "kvtools convert clicks.csv | kvtools rl pscore --model shop.safetensors - --steps 5 | kvtools info -",
]
EXIT_CODES = (0, 1, 2, 65, 66, 73, 74, 75, 141)
SEE_ALSO = ("kvtools rl ecpo", "kvtools rl gbpo", "kvtools pretrain onerec")
COMMON = ("output", "force", "config", "print_config", "strict", "stamp")
GROUPS = {"Data": ("--column",)}


def main(
    run: opt.Invocation,
    interactions: opt.Interactions = "-",
    model: opt.Recommender = None,
    rewards: Annotated[
        list[str] | None,
        opt.value("NAME[:WEIGHT]", "An objective: hit or column:NAME; may be repeated. Default: hit.", "--reward"),
    ] = None,
    steps: opt.Steps = "5ep",
    lr: Annotated[float, opt.value("X", "Peak learning rate.", least=0)] = 2e-3,
    batch: Annotated[int, opt.value("N", "Interactions of a step.", least=1)] = 256,
    columns: opt.Columns = None,
    state: opt.StateDir = None,
    log_file: opt.LogFile = None,
    peak: opt.Peak = None,
    dtype: opt.Dtype = "auto",
    device: opt.Device = "auto",
    seed: opt.Seed = 0,
) -> int:
    """Train a ranker on the training part: a tower for each objective, and one score over all of them.

    The model's catalogue is the ranker's; its weights are not used. The AUC of each objective on the validation part stands in
    the log and in the output. A run that was stopped continues when the same command is run again.
    """
    from kvtools.world import Stop

    stop = Stop() if state or run.output != "-" else False
    from kvtools.onerec.rl.ranker_run import RankerOptions, train_ranker

    options = RankerOptions(
        model, interactions, rewards or [], steps, lr, batch, columns or [], state, log_file, peak, dtype, device, seed
    )
    return train_ranker(run, options, stop=stop)
