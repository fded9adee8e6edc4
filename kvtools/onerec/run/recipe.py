"""The recipe of a OneRec model: the options of `pretrain onerec`, checked, and the settings behind them."""

import math
from dataclasses import dataclass, fields, replace
from functools import cached_property
from typing import Any, Literal

from kvtools.errors import Usage
from kvtools.onerec.model.config import SIZES, ModelConfig, dense_twin
from kvtools.onerec.run.dataset import PATHWAYS
from kvtools.option_values import refuse_if
from kvtools.train.durations import EpochLength
from kvtools.train.loop import Plan
from kvtools.train.overrides import Allowed, parse_overrides, refuse_bad_values

# what --training may change, with its defaults: chosen on validation of Amazon Beauty and ML-100k (bench/)
_TRAINING: dict[str, Any] = {
    "dropout": 0.2,
    "smoothing": 0.0,  # of labels
    "near_share": "auto",  # of the probability, straight to neighbours; auto: by the validation set at the end
    "warm_start": True,  # whether embeddings begin with what the training part counts, where items have scores
    "embedding_rate": 0.0,  # of codes and items, as a factor of the others' rate; 0: as below
    "weight_decay": 0.1,
    "warmup": "5%",
    "rate": "cosine",
    "clip": 1.0,
    "accumulate": 1,
    "checkpoint": False,  # keep only the inputs of layers, and compute the rest twice
    "save": "500",  # how often the state is written, beside epochs
    "patience": "5ep",
    "valid_users": 2000,
    "positive_from": "",  # the rating from which an interaction is positive; empty: the median
}
_EMBEDDING_RATE, _EMBEDDING_RATE_COLD = 3.0, 15.0  # where items have scores, with and without a warm start; else 1
# of a training that begins with counts, of one with neighbours, and of others: the more a model is told, the sooner it learns
_LENGTH, _LENGTH_NEAR, _LENGTH_COLD = "4ep", "8ep", "20ep"
_STEPS_AN_EPOCH = 250  # about: the size of a step follows the data
_STEP = (32, 1024)  # targets of such a step, least and most

# what the value of a setting may be, where it is not 0 or more: a test, and the values that pass
_MAY_BE: Allowed = {
    "moe": (("decoder", "both").__contains__, "decoder or both"),
    "decoder": (("cross", "lazy").__contains__, "cross or lazy"),
    "attention": (("causal", "full").__contains__, "causal or full"),
    "rate": (("cosine", "constant").__contains__, "cosine or constant"),
    "near_share": (
        lambda text: text == "auto" or (_is_number(str(text)) and 0 <= float(text) < 1),
        "auto, or a number from 0 to less than 1",
    ),
    "clip": (lambda x: 0 < x < math.inf, "a number above 0"),
    "positive_from": (lambda text: text == "" or _is_number(text), "a rating"),
    **dict.fromkeys(("dropout", "smoothing"), (lambda x: 0 <= x < 1, "a number from 0 to less than 1")),
    **dict.fromkeys(("width", "heads", "decoder_layers", "hidden", "active", "short"), (lambda n: n >= 1, "1 or more")),
    **dict.fromkeys(("queries", "feature_width", "author_width", "static_width"), (lambda n: n >= 1, "1 or more")),
    "accumulate": (lambda n: n >= 1, "1 or more"),
}


@dataclass(frozen=True)
class OneRecRecipe:
    """The options of `pretrain onerec` that shape a model. Raises Usage for values that contradict one another."""

    size: str
    decoder: Literal["cross", "lazy"]
    near: int
    without: list[str]
    architecture: list[str]
    steps: str | None  # None: as many epochs as suit the model
    lr: float
    batch: int | None  # targets of a step; None: as many as suit the data
    training: list[str]
    seed: int

    def __post_init__(self) -> None:
        for pathway in self.without:
            if pathway not in PATHWAYS or pathway == "short":
                raise Usage(f"--without {pathway}: there is no such pathway. Give static, positive, lifelong or near.")
        refuse_bad_values("--training", self.settings, _MAY_BE, ("warmup", "save", "patience"))
        config = self.config  # dropout is of --training
        refuse_bad_values("--architecture", config.to_json(), _MAY_BE)
        refuse_if(
            (
                config.width % config.heads,
                f"--architecture width={config.width} is not divisible by heads={config.heads}. Change one.",
            ),
            (
                0 < config.experts < config.active,
                f"--architecture experts={config.experts} is less than active={config.active}. Lower active.",
            ),
            (
                config.experts and not config.expert_hidden,
                f"--architecture experts={config.experts} needs the width of an expert. Set expert_hidden.",
            ),
            (not math.isfinite(self.lr), f"--lr {self.lr} is not finite. Give a finite number."),
        )
        EpochLength(1, 1).total(self.length)

    @cached_property
    def config(self) -> ModelConfig:
        """The model's size with its changes; pathways that the data lacks are still on."""
        config = replace(SIZES[self.size], decoder=self.decoder, near=self.near, dropout=self.settings["dropout"])
        defaults = vars(config)
        values = parse_overrides(self.architecture, "--architecture", defaults)
        if values["experts"] == 0 and "experts=0" in self.architecture:
            config = dense_twin(config)
        return replace(config, **{name: value for name, value in values.items() if value != defaults[name]})

    @property
    def length(self) -> str:
        """How long to train, a duration."""
        if self.steps:
            return self.steps
        if self.config.item_scores and self.settings["warm_start"]:
            return _LENGTH
        return _LENGTH_NEAR if self.near and "near" not in self.without else _LENGTH_COLD

    @cached_property
    def settings(self) -> dict[str, Any]:
        """The settings of --training, with defaults."""
        return parse_overrides(self.training, "--training", _TRAINING)

    def for_data(self, n_targets: int) -> "OneRecRecipe":
        """The recipe for data of so many targets, with the size of a step where none was given."""
        least, most = _STEP
        return self if self.batch else replace(self, batch=min(most, max(least, n_targets // _STEPS_AN_EPOCH)))

    @property
    def positive_from(self) -> float | None:
        """The rating from which an interaction is positive; None for the median."""
        text = self.settings["positive_from"]
        return float(text) if text else None

    @property
    def near_share(self) -> float | None:
        """The share of the probability that goes straight to neighbours; None to choose it on the validation set."""
        text = str(self.settings["near_share"])
        return None if text == "auto" else float(text)

    @property
    def _lr_factors(self) -> dict[str, float]:
        """Factors of the rates of the embeddings, by the beginnings of their names."""
        with_scores = _EMBEDDING_RATE if self.settings["warm_start"] else _EMBEDDING_RATE_COLD
        factor = float(self.settings["embedding_rate"]) or (with_scores if self.config.item_scores else 1.0)
        return dict.fromkeys(("codes.", "items.") if self.config.item_table else ("codes.",), factor)

    def to_json(self) -> dict[str, Any]:
        """Option names to values, as --config reads them."""
        options = {f.name: getattr(self, f.name) for f in fields(self)}
        options |= {"without": sorted(set(self.without)), "steps": self.length}
        return {name: value for name, value in options.items() if value not in ([], None)}

    def plan(self, n_steps: int, n_tokens: int, dtype: Any) -> Plan:
        """The loop's plan, for epochs of n_steps steps and n_tokens tokens."""
        epoch = EpochLength(n_steps, n_tokens)
        n_total = epoch.total(self.length)

        def steps_of(name: str) -> float:
            return epoch.steps(str(self.settings[name]), f"--training {name}", of=n_total)

        return Plan(
            epochs=-(-n_total // n_steps) + 1,
            n_steps=n_total,
            lr=self.lr,
            warmup=round(steps_of("warmup")),
            lr_schedule=self.settings["rate"],
            weight_decay=float(self.settings["weight_decay"]),
            clip=float(self.settings["clip"]),
            lr_factors=self._lr_factors,
            n_microbatches=int(self.settings["accumulate"]),
            patience=math.ceil(steps_of("patience") / n_steps),  # anything but 0 is an epoch at least
            save_every=math.ceil(steps_of("save")),
            worthless=0.0,  # none of the items that came next was found
            dtype=dtype,
            seed=self.seed,
        )


def _is_number(text: str) -> bool:
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False
