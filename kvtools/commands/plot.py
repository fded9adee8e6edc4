"""`kvtools plot`: training logs and semantic-ID statistics as pictures."""

from typing import Annotated, Any, BinaryIO

from kvtools import options as opt

EXAMPLES = ["kvtools plot items.ids -o items.png", "kvtools semid-build --codes 64 items.kvs | kvtools plot - -o items.svg"]
EXIT_CODES = (0, 2, 65, 66, 73, 74, 141)
SEE_ALSO = ("kvtools semid-build", "kvtools pretrain keye", "kvtools pretrain onerec", "kvtools etree-train", "kvtools info")
COMMON = ("output", "force")


def main(
    run: opt.Invocation,
    inputs: Annotated[
        list[str] | None,
        opt.argument("INPUT", "A semantic-id bag, logs of training, or a report of coldstart-mix; - is stdin."),
    ] = None,
) -> int:
    """Plot training logs, the statistics of semantic IDs, or a mixture.

    Of semantic IDs: how evenly each level uses its codes, and how many items share an ID. They are read from a bag, a
    safetensors file with a kind. Of etree-train: accuracy against rounds, local epochs, bytes and simulated seconds. Of
    pretraining: loss and accuracy against steps, several logs one after the other. Of rl: reward, legality, drift and length
    against steps, several logs in one picture. Of coldstart-mix: records and tokens by mode, and what was left out. The suffix
    of the output is the format: .png, .svg or .pdf; on stdout it is PNG. The same input gives the same bytes.
    """
    from kvtools.artifact import open_bag, source_name
    from kvtools.artifact.files import open_source
    from kvtools.draw.codes import draw_codes
    from kvtools.draw.page import FORMATS, image
    from kvtools.errors import Corrupt

    suffix = run.output.rpartition(".")[2].lower() if run.output != "-" and "." in run.output else "png"
    sources = inputs or ["-"]
    opt.refuse_if((suffix not in FORMATS, f"-o {run.output} does not end in .png, .svg or .pdf. Give such a name."))
    file = open_source(sources[0])
    if bytes(file.peek(1)[:1]) == b"{":  # type: ignore[attr-defined]
        logs = {source_name(src): file if src == sources[0] else open_source(src) for src in sources}
        figure = _draw_logs({name: _read_log(log, name) for name, log in logs.items()})
    else:
        opt.refuse_if((len(sources) > 1, f"{len(sources)} inputs are given, and only logs are plotted together. Give one bag."))
        bag = open_bag(sources[0], "semantic-id", made_by="kvtools semid-build", file=file)
        if "quality" not in bag.fields:
            raise Corrupt(f"{source_name(sources[0])}: it has no quality report. Make one with kvtools semid-build.")
        n_levels, n_codes, _ = bag.tensors["codebooks"].shape
        figure = draw_codes(bag.tensors["codes"], n_levels, n_codes, bag.fields["quality"])
    run.sink().write_whole([image(figure, suffix)])
    return 0


def _draw_logs(logs: dict[str, list[dict[str, Any]]]) -> Any:
    from kvtools.draw.accuracies import draw_accuracies, is_of_accuracies
    from kvtools.draw.curves import draw_curves
    from kvtools.draw.losses import draw_losses, split_stages
    from kvtools.draw.mixture import draw_mixture
    from kvtools.draw.rewards import draw_rewards, is_of_rewards
    from kvtools.errors import Corrupt

    try:
        name, lines = next(iter(logs.items()))
        if "by_mode" in lines[0]:
            return draw_mixture(lines[0], name)
        if all(is_of_rewards(lines) for lines in logs.values()):
            return draw_rewards(logs)
        if all(is_of_accuracies(lines) for lines in logs.values()):
            return draw_accuracies(logs)
        if all("loss" in lines[0] and "step" in lines[0] for lines in logs.values()):
            return draw_losses([stage for name, lines in logs.items() for stage in split_stages(lines, name)])
        return draw_curves([line for lines in logs.values() for line in lines])
    except ValueError as fault:
        raise Corrupt(f"{', '.join(logs)}: {fault}. Give logs of kvtools pretrain, rl or etree-train.") from None


def _read_log(file: BinaryIO, name: str) -> list[dict[str, Any]]:
    from kvtools.artifact.json_text import read_json
    from kvtools.errors import Corrupt

    try:
        lines = [read_json(line) for line in file if line.strip()]
    except ValueError as fault:
        raise Corrupt(f"{name}: this is not JSON Lines ({fault}). Give the log of a training.") from None
    if not lines or not all(isinstance(line, dict) for line in lines):
        raise Corrupt(f"{name}: its lines are not JSON objects. Give the log of a training.")
    return lines
