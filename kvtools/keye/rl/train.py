"""What `rl mpo` and `rl grpo` share of a training: the parts that learn, the frozen start model, what is written at the end."""

import copy
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from kvtools.artifact.files import Sink
from kvtools.artifact.history import Step
from kvtools.chance import seed_for
from kvtools.keye.checkpoint import weights as checkpoint
from kvtools.keye.model.inputs import PackedRow
from kvtools.keye.model.keye import Keye
from kvtools.keye.model.log_probs import log_probabilities
from kvtools.keye.model.lora import LoraConfig, add_adapters, merge, without_adapters
from kvtools.keye.rl.recipe import AlignmentRecipe
from kvtools.keye.rl.setup import Policy
from kvtools.keye.run.limits import carried
from kvtools.train.loop import DTYPES, Trainer, TrainStep

_NO_UPDATE = {"loss": 0.0}  # of a step in which nothing was to be learnt


def prepare(model: Keye, recipe: AlignmentRecipe) -> None:
    """Freeze what does not learn, and give the decoder adapters where --lora asks for them."""
    model.float()
    model.checkpointing = recipe.settings["checkpoint"]
    if recipe.lora is not None:
        torch.manual_seed(seed_for(recipe.seed, "lora"))
        add_adapters(model, LoraConfig(recipe.lora))
        return
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(recipe.learns(name))


def frozen_start(model: Keye, recipe: AlignmentRecipe) -> Callable[[PackedRow], Tensor]:
    """Gives the log-probabilities of a row's targets, float32 (S,), under the model as it is now, whatever it learns. Costs
    a copy of the model, or nothing where adapters learn."""
    if recipe.lora is not None:

        def adapted(row: PackedRow) -> Tensor:
            with torch.no_grad(), without_adapters(model):
                return log_probabilities(model, row)

        return adapted
    start = copy.deepcopy(model).requires_grad_(False).eval()

    def copied(row: PackedRow) -> Tensor:
        with torch.no_grad():
            return log_probabilities(start, row)

    return copied


def steps_of(
    trainer: Trainer, stop: object, figures: Callable[[], dict[str, float]] = dict
) -> Iterator[TrainStep]:  # fmt: skip
    """The steps of a run, each with more `figures`, and after them the held-out figures of the weights that are kept."""
    for step in trainer.run(stop):
        yield step if step.validation is not None else replace(step, metrics=_NO_UPDATE | step.metrics | figures())
    if (kept := kept_figures(trainer)) is not None:
        yield TrainStep(trainer.progress.step, trainer.progress.epoch, {}, kept)


def kept_figures(trainer: Trainer) -> dict[str, float] | None:
    """The held-out figures of the weights that are kept; None without held-out data."""
    best = trainer.progress.best
    return {**best, "kept_epoch": float(trainer.progress.best_epoch)} if best else None


def why_no_gain(trainer: Trainer) -> str | None:
    """None where the weights that are kept have a higher held-out reward than those of the start, else a sentence that says so.
    A reward that is unknown before training cannot have risen."""
    first, best = (figures.get("score") for figures in (trainer.progress.first, trainer.progress.best))
    if first is not None and best is not None and best > first:
        return None
    before, after = ("none" if x is None else f"{x:.4g}" for x in (first, best))
    return f"the held-out reward has not risen: {before} before, {after} with the best weights."


def save(
    dst: Sink, start: Policy, trainer: Trainer, recipe: AlignmentRecipe, *, command: str, before: Iterable[list[Step]],
    history: Callable[[Iterable[list[Step]]], list[Step]],
) -> None:  # fmt: skip
    """Write the model, its adapters merged, and what is known of the run."""
    model = start.model
    merge(model)
    done = trainer.progress
    figures: dict[str, Any] = {"stage": command, "step": done.step, "loss": done.loss, "start": done.first, "kept": done.best}
    checkpoint.save(
        dst, model.cpu(), tokenizer_json=start.template.to_bytes(), source=start.weights,
        history=history([*before, start.weights.history]),
        fields={"recipe": recipe.to_json(), **carried(start.weights.fields)}
        | {name: x for name, x in figures.items() if x not in (None, {})},
    )  # fmt: skip


def in_dtype(device: str, dtype: str) -> torch.autocast:
    """Products in the dtype of the training, as the loop computes its losses."""
    return torch.autocast(torch.device(device).type, DTYPES[dtype], enabled=dtype != "float32")
