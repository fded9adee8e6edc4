"""The recipe of a training of Keye-VL: the options of `pretrain keye`, checked, and the loop's plan that follows from them."""

import math
from dataclasses import dataclass, fields, replace
from functools import cached_property
from typing import Any

from kvtools.chance import seed_for
from kvtools.errors import Usage, raising
from kvtools.keye.model.config import SIZES, ModelConfig
from kvtools.keye.model.lora import LoraConfig
from kvtools.keye.run.limits import Limits
from kvtools.keye.run.stages import PARTS, STAGES, Stage, peak_lr
from kvtools.option_values import parse_range, refuse_if
from kvtools.train.durations import EpochLength, parse_duration
from kvtools.train.loop import Plan
from kvtools.train.overrides import Allowed, parse_overrides, refuse_bad_values
from kvtools.video.patch import Budget

# the settings that --training may change, with their defaults: all our choice, the report gives none
_SETTINGS: dict[str, Any] = {
    "weight_decay": 0.1,
    "warmup": "5%",
    "rate": "cosine",
    "clip": 1.0,
    # the tower and the projector learn slower than the decoder: at its rate all visual tokens become one (honest.md)
    "tower": 0.1,  # factor of the vision tower's learning rate
    "projector": 0.1,
    "window": 256,  # conversations packed together
    "save": "500",  # time between saved states, beside the ends of epochs
    "patience": "0",
    "checkpoint": False,  # keep only the inputs of layers, and compute the rest twice
    "cut": False,  # conversations longer than a row lose their last messages instead of being left out
    "flip": 0.0,  # fraction of the conversations whose pictures are mirrored, where left and right mean nothing
    "upend": 0.0,  # fraction turned upside down, where top and bottom mean nothing
    "recolour": 0.0,  # fraction recoloured: red, green and blue exchanged, and some inverted
    "jitter": 0.0,  # largest change of contrast, and of brightness
}
_LENGTH = 4096
_DURATIONS = ("warmup", "save", "patience")
_LORA_LR = 10.0  # times the stage's: adapters learn best at about ten times the rate of whole weights
_NO_LORA = {"matching": "which trains another model", "alignment": "which trains the projector alone"}
_ALLOWED: Allowed = {
    "rate": (("cosine", "constant").__contains__, "cosine or constant"),
    "clip": (lambda x: 0 < x < math.inf, "a number above 0"),
    "window": (lambda n: n >= 1, "1 or more"),
    **dict.fromkeys(("flip", "upend", "recolour", "jitter"), (lambda x: 0 <= x <= 1, "a number from 0 to 1")),
}


@dataclass(frozen=True, kw_only=True)
class TrainingRecipe:
    """The options that shape a training, by the names that --config reads. Raises Usage for values that cannot be meant.

    training: overrides NAME=X of the settings; length: by default 4096, or batch_tokens where that is less.
    """

    stage: str
    size: str
    architecture: list[str]
    steps: str
    lr: float | None
    batch_tokens: int
    length: int
    ratio: str | None
    training: list[str]
    seed: int
    frame_tokens: str = "128:768"
    max_tokens: int | None = None
    lora: str | None = None
    valid_every: str | None = None

    def __post_init__(self) -> None:
        refuse_bad_values("--training", self.settings, _ALLOWED, _DURATIONS)
        EpochLength(1, 1).total(self.steps)
        refuse_if(
            (
                self.lr is not None and not 0 < self.lr < math.inf,
                f"--lr {self.lr or 0:g} is not above 0. Give a finite number above 0.",
            ),
            (
                self.length > self.batch_tokens,
                f"--length {self.length} is larger than --batch-tokens {self.batch_tokens}. Raise it, or lower --length.",
            ),
        )
        refuse_if(
            (
                self.lora is not None and self.stage in _NO_LORA,
                f"--lora does not go with --stage {self.stage}, {_NO_LORA.get(self.stage)}. Leave one out.",
            ),
        )
        _ = self.adapters
        if self.valid_every is not None:
            parse_duration(self.valid_every, "--valid-every")
        self.with_overrides(SIZES[self.size])
        parse_range(self.frame_tokens, "--frame-tokens")

    @cached_property
    def settings(self) -> dict[str, Any]:
        """The settings of the training, with its overrides."""
        return parse_overrides(self.training, "--training", _SETTINGS)

    @property
    def budget(self) -> Budget:
        """The visual tokens of a picture or video file: a row has room for them and for the text about them."""
        limit = self.max_tokens or max(1, self.length * 3 // 4)
        return Budget(min(limit, Budget.max_tokens), *parse_range(self.frame_tokens, "--frame-tokens"))

    @cached_property
    def adapters(self) -> LoraConfig | None:
        """What --lora says, a rank or r=16,alpha=32,on=all; None without it."""
        if self.lora is None:
            return None
        words = [f"r={self.lora}"] if self.lora.isdecimal() else self.lora.split(",")
        option = f"--lora {self.lora}"
        given = parse_overrides(words, option, {"r": 0, "alpha": 0.0, "on": "language"})
        refuse_if(
            (not any(word.startswith("r=") for word in words), f"{option} has no rank. Give one, as --lora r=16."),
            (
                any(word.startswith("alpha=") for word in words) and not given["alpha"],
                f"{option}: alpha is 0. Give a number above 0.",
            ),
        )
        with raising(Usage, option, "Give it as r=16,alpha=32,on=language."):
            return LoraConfig(given["r"], given["alpha"], given["on"])

    @property
    def limits(self) -> Limits:
        """What the model is trained with, and carries."""
        return Limits.of_row(self.budget, self.length)

    @property
    def objective(self) -> Stage:
        """What the stage trains, or its adapters."""
        stage = STAGES[self.stage]
        if self.adapters is None:
            return stage
        return replace(stage, summary=f"adapters of rank {self.adapters.rank}", trains=self.adapters.parts, has_adapters=True)

    @property
    def counts_epochs(self) -> bool:
        """Whether any duration is given in epochs or waits for them: an epoch is then measured before the first step."""
        durations = (self.steps, self.valid_every or "", *(self.settings[name] for name in _DURATIONS))
        return self.is_judged or any(x.endswith("ep") for x in durations)

    @property
    def is_judged(self) -> bool:
        """Whether validation decides which weights are best, and when to stop."""
        return parse_duration(self.settings["patience"], "--training patience")[0] > 0

    @property
    def weights_seed(self) -> int:
        """The seed of random weights."""
        return seed_for(self.seed, "weights")

    def with_overrides(self, config: ModelConfig) -> ModelConfig:
        """A model's config changed by --architecture, PART.NAME=N each. Raises Usage for names that it does not have."""
        parts: dict[str, Any] = {"vision": config.vision, "language": config.language}
        defaults = {f"{name}.{f.name}": getattr(part, f.name) for name, part in parts.items() for f in fields(part)}
        values = parse_overrides(self.architecture, "--architecture", defaults)
        with raising(Usage, "--architecture", "Give other values."):
            changed: dict[str, Any] = {
                name: replace(part, **{f.name: values[f"{name}.{f.name}"] for f in fields(part)})
                for name, part in parts.items()
            }
            return replace(config, **changed)

    def to_json(self) -> dict[str, Any]:
        """Option names to values, without those that were not given."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: value for name, value in values.items() if value not in ([], None)}

    def lr_for(self, config: ModelConfig) -> float:
        """The peak learning rate: --lr, or the stage's for the width of what is trained, the tower alone or the decoder."""
        width = (config.vision if self.objective.is_contrastive else config.language).width
        usual = peak_lr(self.stage, width) * (_LORA_LR if self.lora is not None else 1)
        return self.lr if self.lr is not None else usual

    def plan(self, lengths: EpochLength, config: ModelConfig, dtype: Any) -> Plan:
        """The loop's plan, for epochs of these lengths."""
        n_total = lengths.total(self.steps)

        def steps_of(name: str) -> float:
            return lengths.steps(self.settings[name], f"--training {name}", of=n_total)

        factors = {PARTS[part]: float(self.settings[part]) for part in ("tower", "projector")}
        return Plan(
            epochs=n_total,  # each has a step at least, and not all have as many
            n_steps=n_total,
            lr=self.lr_for(config),
            warmup=round(steps_of("warmup")),
            lr_schedule=self.settings["rate"],
            weight_decay=float(self.settings["weight_decay"]),
            clip=float(self.settings["clip"]),
            n_microbatches=-(-self.batch_tokens // self.length),  # a row at a time: memory is that of one
            patience=max(int(self.is_judged), round(steps_of("patience") / lengths.n_steps)),
            save_every=round(steps_of("save")),
            validate_every=0
            if self.valid_every is None
            else max(1, round(lengths.steps(self.valid_every, "--valid-every", of=n_total))),
            lr_factors=factors if "decoder" in self.objective.trains else {},
            dtype=dtype,
            seed=self.seed,
        )


def default_length(batch_tokens: int) -> int:
    """Tokens of a packed row where none are given."""
    return min(_LENGTH, batch_tokens)
