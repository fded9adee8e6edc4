"""A training run as those who started it see it: what it goes on from, progress, validations in words, and the log."""

import json
from collections.abc import Callable, Iterable

from kvtools.artifact.files import open_log
from kvtools.progress import Ticker
from kvtools.train.loop import Step, Training


def take_up(
    run: Training, folder: str | None, *, start_over: bool, tell: Callable[[str], None], told: str, is_peak_given: bool
) -> None:
    """Continue the run from its state, where there is one, which is told. told: what a new run is, empty where nothing is to
    be said."""
    if run.take_up(start_over=start_over):
        tell(f"{folder}: goes on after step {run.progress.step}.")
    elif told:
        tell(told)
        where = "given" if is_peak_given else f"measured here in {run.plan.dtype}"
        tell(f"mfu: FLOPs of the model's products / (seconds * {run.peak:.3g} FLOP/s {where}).")


def follow(
    run: Training, steps: Iterable[Step], *, words: str, log: str | None, tell: Callable[[str], None], is_quiet: bool,
    is_told: bool, **fields: object,
) -> None:  # fmt: skip
    """Go through the steps of a run.

    words: what is being done. log: a file for a line of JSON a step and an epoch, each with `fields`. is_quiet: no progress;
    is_told: validations are told.
    """
    ticker = Ticker(total=run.plan.n_steps - run.progress.step, unit="steps", label=words, quiet=is_quiet)
    with open_log(log) as curve:
        for step in steps:
            if step.validation is None:
                ticker()
            elif is_told:
                tell(f"epoch {step.epoch:g}: " + ", ".join(f"{n} {x:.4g}" for n, x in step.validation.items()) + ".")
            line = {**fields, "step": step.step, "epoch": step.epoch, **step.figures, **(step.validation or {})}
            curve.write(json.dumps(line) + "\n")
