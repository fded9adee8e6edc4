"""The recipe of a generator: what the options of `pretrain onerec` say, checked, and what they leave open."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, Literal, Self

from kvtools.chance import seed_for
from kvtools.errors import Usage
from kvtools.onerec.model.config import SIZES, ModelConfig, dense_twin
from kvtools.onerec.run.dataset import PATHWAYS
from kvtools.train.durations import EpochLength
from kvtools.train.loop import Plan
from kvtools.train.overrides import Allowed, parse_overrides, refuse_bad_values

# what --training may change, with its defaults: chosen on validation of Amazon Beauty and ML-100k (bench/README.md)
_TRAINING: dict[str, Any] = {
    "dropout": 0.2,
    "smoothing": 0.0,  # of labels
    "weight_decay": 0.1,
    "warmup": "5%",
    "rate": "cosine",
    "clip": 1.0,
    "accumulate": 1,
    "save": "500",  # how often a state is put aside, beside epochs
    "patience": "5ep",
    "valid_users": 2000,
    "positive_from": "",  # the rating from which an interaction is positive; empty: the median
}
# what NAME=VALUE may be, where it is not 0 or more: a test, and its words
_MAY_BE: Allowed = {
    "moe": (("decoder", "both").__contains__, "decoder or both"),
    "decoder": (("cross", "lazy").__contains__, "cross or lazy"),
    "attention": (("causal", "full").__contains__, "causal or full"),
    "rate": (("cosine", "constant").__contains__, "cosine or constant"),
    "clip": (lambda x: 0 < x < math.inf, "more than 0"),
    "positive_from": (lambda words: words == "" or _is_number(words), "a rating"),
    **dict.fromkeys(("dropout", "smoothing"), (lambda x: 0 <= x < 1, "from 0 to less than 1")),
    **dict.fromkeys(("width", "heads", "decoder_layers", "hidden", "active", "short"), (lambda n: n >= 1, "1 or more")),
    **dict.fromkeys(("queries", "feature_width", "author_width", "static_width"), (lambda n: n >= 1, "1 or more")),
    "accumulate": (lambda n: n >= 1, "1 or more"),
}


@dataclass(frozen=True)
class Recipe:
    """Everything that shapes a generator. `words` are the options as they were given."""

    config: ModelConfig
    without: tuple[str, ...]
    steps: str
    lr: float
    training: dict[str, Any]
    seed: int
    words: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def of(
        cls,
        *,
        size: str,
        decoder: Literal["cross", "lazy"],
        near: int,
        without: Sequence[str],
        architecture: Sequence[str],
        steps: str,
        lr: float,
        batch: int,
        training: Sequence[str],
        seed: int,
    ) -> Self:
        """Raises Usage for what cannot be meant."""
        words = {
            "size": size, "decoder": decoder, "near": near, "without": sorted(set(without)), "architecture": [*architecture],
            "steps": steps, "lr": lr, "batch": batch, "training": [*training], "seed": seed,
        }  # fmt: skip
        for pathway in without:
            if pathway not in PATHWAYS or pathway == "short":
                raise Usage(f"--without {pathway}: one of static, positive, lifelong, near expected.")
        changed = parse_overrides(training, "--training", _TRAINING)
        config = replace(SIZES[size], decoder=decoder, near=near, dropout=changed["dropout"])
        defaults = {f.name: getattr(config, f.name) for f in fields(config)}
        told = parse_overrides(architecture, "--architecture", defaults)
        config = dense_twin(config) if told["experts"] == 0 and "experts=0" in architecture else config
        config = replace(config, **{name: told[name] for name in told if told[name] != defaults[name]})
        refuse_bad_values("--architecture", config.to_json(), _MAY_BE)
        refuse_bad_values("--training", changed, _MAY_BE, ("warmup", "save", "patience"))
        if config.width % config.heads or 0 < config.experts < config.active or (config.experts and not config.expert_hidden):
            raise Usage(
                f"--architecture: width {config.width}, {config.heads} heads, {config.active} of {config.experts} experts of "
                f"{config.expert_hidden} found; a width that heads divide, no more active experts than there are, and "
                "some width of theirs expected."
            )
        if not math.isfinite(lr):
            raise Usage(f"--lr {lr}: a finite number expected.")
        EpochLength(1, 1).total(steps)
        return cls(config, tuple(without), steps, lr, changed, seed, words)

    @property
    def smoothing(self) -> float:
        return float(self.training["smoothing"])

    @property
    def valid_users(self) -> int:
        return int(self.training["valid_users"])

    @property
    def positive_from(self) -> float | None:
        words = self.training["positive_from"]
        return float(words) if words != "" else None

    @property
    def weights_seed(self) -> int:
        return seed_for(self.seed, "weights")

    def to_json(self) -> dict[str, Any]:
        """Option names to values, as --config reads them."""
        return {name: value for name, value in self.words.items() if value not in ([], None)}

    def plan(self, n_steps: int, n_tokens: int, dtype: Any) -> Plan:
        """The loop's plan, for epochs of n_steps steps and n_tokens tokens."""
        lengths = EpochLength(n_steps, n_tokens)
        n_total = lengths.total(self.steps)

        def steps_of(name: str) -> float:
            return lengths.steps(str(self.training[name]), f"--training {name}", of=n_total)

        return Plan(
            epochs=-(-n_total // n_steps) + 1,
            n_steps=n_total,
            lr=self.lr,
            warmup=round(steps_of("warmup")),
            lr_schedule=self.training["rate"],
            weight_decay=float(self.training["weight_decay"]),
            clip=float(self.training["clip"]),
            n_microbatches=int(self.training["accumulate"]),
            patience=math.ceil(steps_of("patience") / n_steps),  # anything but 0 is an epoch at least
            save_every=math.ceil(steps_of("save")),
            dtype=dtype,
            seed=self.seed,
        )


def _is_number(words: str) -> bool:
    try:
        return math.isfinite(float(words))
    except ValueError:
        return False
