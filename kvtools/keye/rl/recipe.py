"""The recipes of `rl mpo` and `rl grpo`: their options, checked, and the loop's plan that follows from them.

The reports give no rates, lengths or batches: those here are our choice, for models of width 128, and fall as models widen.
"""

import math
from dataclasses import dataclass, field, fields
from functools import cached_property
from typing import Any, Literal

from kvtools.errors import Usage, raising
from kvtools.keye.model.config import ModelConfig
from kvtools.keye.rl.grpo import PolicyConfig
from kvtools.keye.run.stages import PARTS
from kvtools.option_values import refuse_if
from kvtools.train.durations import EpochLength
from kvtools.train.loop import Plan
from kvtools.train.objectives.preference import MpoConfig
from kvtools.train.overrides import Allowed, parse_overrides, refuse_bad_values

_SETTINGS: dict[str, Any] = {
    "weight_decay": 0.0,
    "warmup": "5%",
    "rate": "cosine",
    "clip": 1.0,  # norm of the gradients
    "tower": 0.0,  # factor of the vision tower's learning rate; 0: it is frozen, as usual after pretraining
    "projector": 0.1,
    "save": "100",  # time between saved states
    "patience": "0",
    "checkpoint": False,  # keep only the inputs of layers, and compute the rest twice
}
_ROLLOUT_SETTINGS: dict[str, Any] = {
    "chunk": 64,  # answers that grow together: more are faster where there is room, and leave fewer ranks something to do
}
_DURATIONS = ("warmup", "save", "patience")
_ALLOWED: Allowed = {
    "rate": (("cosine", "constant").__contains__, "cosine or constant"),
    "clip": (lambda x: 0 < x < math.inf, "a number above 0"),
    "chunk": (lambda x: x >= 1, "a whole number of at least 1"),
}
_WIDTH = 128  # of the models that the rates are for


@dataclass(frozen=True, kw_only=True)
class AlignmentRecipe:
    """What `rl mpo` and `rl grpo` share. batch: pairs, or prompts, a step. row_tokens: tokens of a packed row: memory is that
    of one. Raises Usage for values that cannot be meant."""

    steps: str
    lr: float | None
    batch: int
    row_tokens: int
    training: list[str]
    lora: int | None
    seed: int

    base_lr = 1e-4  # at a width of 128
    lr_power = 1.0  # of the width, by which it falls
    defaults = _SETTINGS

    def __post_init__(self) -> None:
        refuse_bad_values("--training", self.settings, _ALLOWED, _DURATIONS)
        EpochLength(1, 1).total(self.steps)
        refuse_if(
            (self.lr is not None and not 0 < self.lr < math.inf, f"--lr {self.lr or 0:g} is not above 0. Give one above 0."),
        )

    @cached_property
    def settings(self) -> dict[str, Any]:
        """The settings of the training, with its overrides."""
        return parse_overrides(self.training, "--training", self.defaults)

    def learns(self, name: str) -> bool:
        """Whether the weight of that name is trained: the decoder, and the parts whose factor is above 0."""
        part = next((part for part, prefix in PARTS.items() if name.startswith(prefix)), "decoder")
        return part == "decoder" or self.settings[part] > 0

    @property
    def trains(self) -> frozenset[str]:
        """The parts that learn."""
        return frozenset(part for part, prefix in PARTS.items() if self.learns(prefix))

    def to_json(self) -> dict[str, Any]:
        """Option names to values, without those that were not given."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: value for name, value in values.items() if value not in ([], None)}

    def lr_for(self, config: ModelConfig) -> float:
        """The peak learning rate: --lr, or ours for the width of the decoder."""
        fall = min(1.0, _WIDTH / config.language.width) ** self.lr_power
        return self.lr if self.lr is not None else self.base_lr * fall

    def plan(self, lengths: EpochLength, config: ModelConfig, dtype: Any, *, is_judged: bool) -> Plan:
        """The loop's plan. is_judged: held-out data decide which weights are best."""
        n_total = lengths.total(self.steps)

        def steps_of(name: str) -> float:
            return lengths.steps(self.settings[name], f"--training {name}", of=n_total)

        patience = round(steps_of("patience") / lengths.n_steps) if is_judged else 0
        factors = {PARTS[part]: float(self.settings[part]) for part in ("tower", "projector")}
        return Plan(
            epochs=n_total,
            n_steps=n_total,
            lr=self.lr_for(config),
            warmup=round(steps_of("warmup")),
            lr_schedule=self.settings["rate"],
            weight_decay=float(self.settings["weight_decay"]),
            clip=float(self.settings["clip"]),
            patience=patience,
            save_every=self._save_every(round(steps_of("save"))),
            validates_first=is_judged,
            lr_factors=factors,
            adds_in_order=True,
            dtype=dtype,
            seed=self.seed,
        )

    def _save_every(self, n_steps: int) -> int:
        return n_steps


@dataclass(frozen=True, kw_only=True)
class MpoRecipe(AlignmentRecipe):
    """The recipe of `rl mpo`. weights: of the terms preference, quality and generation."""

    beta: float = 0.1
    weights: str = "0.8,0.2,1"

    base_lr = 1.6e-4  # 5e-6 at the width of the 8b size, as published recipes have

    def __post_init__(self) -> None:
        super().__post_init__()
        _ = self.objective

    @cached_property
    def objective(self) -> MpoConfig:
        """The objective with the weights and beta of the options."""
        with raising(Usage, f"--weights {self.weights}, --beta {self.beta:g}", "Give them as 0.8,0.2,1 and 0.1."):
            words = self.weights.split(",")
            if len(words) != 3:
                raise ValueError(f"there are {len(words)} weights, and preference, quality and generation need one each")
            preference, quality, generation = map(_number, words)
            return MpoConfig(preference, quality, generation, self.beta)


@dataclass(frozen=True, kw_only=True)
class GrpoRecipe(AlignmentRecipe):
    """The recipe of `rl grpo` of a Keye-VL."""

    objective: Literal["grpo", "gspo"] = "grpo"
    rewards: list[str] = field(default_factory=list)
    modes: str | None = None
    group: int = 8
    max_new: int = 512
    temperature: float = 1.0
    overlong: Literal["filter", "keep"] = "filter"
    kl: float = 0.0
    clip: str = "0.2"
    updates: int = 1

    base_lr = 3e-4  # the best of those tried, bench/honest.md
    lr_power = 1.65  # 1e-6 at the width of the 8b size, as published recipes have
    defaults = _SETTINGS | _ROLLOUT_SETTINGS

    def __post_init__(self) -> None:
        super().__post_init__()
        _ = self.policy
        refuse_if(
            (self.group < 2, f"--group {self.group}: a group needs two answers to compare. Give at least 2."),
            (
                self.group % self.updates,
                f"--group {self.group} is not divisible by --updates {self.updates}. Give a divisor of the group.",
            ),
            (not 0 < self.temperature < math.inf, f"--temperature {self.temperature:g} is not above 0. Give a number above 0."),
            (not 0 <= self.kl < math.inf, f"--kl {self.kl:g} is below 0. Give 0 or more."),
        )

    @cached_property
    def policy(self) -> PolicyConfig:
        """The objective with the options' bounds; --clip LOW or LOW:HIGH."""
        with raising(Usage, f"--clip {self.clip}", "Give LOW or LOW:HIGH, as 0.2 or 0.2:0.28."):
            low, *high = map(_number, self.clip.split(":"))
            if len(high) > 1 or not 0 < low < 1 or not all(0 < x < math.inf for x in high):
                raise ValueError("LOW must be above 0 and below 1, and HIGH above 0")
        return PolicyConfig(self.objective, low, high[0] if high else None, self.kl, self.updates)

    @property
    def chunk(self) -> int:
        """Prompts that grow together."""
        return max(1, int(self.settings["chunk"]) // self.group)

    def _save_every(self, n_steps: int) -> int:
        # a state between two updates of one step of sampling would lack the answers
        return -(-n_steps // self.updates) * self.updates


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise ValueError(f"{text!r} is no number") from None
