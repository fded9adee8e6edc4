"""The recipe of a generator: what the options of `pretrain onerec` say, checked, and what they leave open."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, Literal, Self

from kvtools.chance import seed_of
from kvtools.faults import Usage
from kvtools.learn.loop import Plan
from kvtools.onerec.preparing import PATHWAYS
from kvtools.onerec.sizes import SIZES, Architecture, dense_twin
from kvtools.options import duration

# what --training may change, with its defaults: chosen on validation of Amazon Beauty and ML-100k (bench/README.md)
_TRAINING: dict[str, Any] = {
    "dropout": 0.2,
    "smoothing": 0.0,  # of labels
    "weight_decay": 0.1,
    "warmup": "5%",
    "rate": "cosine",
    "clip": 1.0,
    "accumulate": 1,
    "patience": "5ep",
    "valid_users": 2000,
    "positive_from": "",  # the rating from which an interaction is positive; empty: the median
}
# what NAME=VALUE may be, where it is not 0 or more: a test, and its words
_MAY_BE: dict[str, tuple[Callable[[Any], bool], str]] = {
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

    arch: Architecture
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
                raise Usage(f"--without {pathway}: one of static, positive, lifelong expected.")
        changed = _named(training, "--training", _TRAINING)
        arch = replace(SIZES[size], decoder=decoder, near=near, dropout=changed["dropout"])
        defaults = {f.name: getattr(arch, f.name) for f in fields(arch)}
        told = _named(architecture, "--architecture", defaults)
        arch = dense_twin(arch) if told["experts"] == 0 and "experts=0" in architecture else arch
        arch = replace(arch, **{name: told[name] for name in told if told[name] != defaults[name]})
        _refuse_nonsense("--architecture", arch.to_json())
        _refuse_nonsense("--training", changed)
        if arch.width % arch.heads or 0 < arch.experts < arch.active or (arch.experts and not arch.expert_hidden):
            raise Usage(
                f"--architecture: width {arch.width}, {arch.heads} heads, {arch.active} of {arch.experts} experts of "
                f"{arch.expert_hidden} found; a width that heads divide, no more active experts than there are, and some width "
                "of theirs expected."
            )
        if not math.isfinite(lr):
            raise Usage(f"--lr {lr}: a finite number expected.")
        said, unit = duration(steps, "--steps")
        if unit == "%" or not said:
            raise Usage(f"--steps {steps}: some steps, epochs or tokens expected.")
        return cls(arch, tuple(without), steps, lr, changed, seed, words)

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
        return seed_of(self.seed, "weights")

    def to_json(self) -> dict[str, Any]:
        """Option names to values, as --config reads them."""
        return {name: value for name, value in self.words.items() if value not in ([], None)}

    def plan(self, n_steps: int, n_tokens: int, dtype: Any) -> Plan:
        """The loop's plan, for epochs of n_steps steps and n_tokens tokens."""
        said, unit = duration(self.steps, "--steps")
        total = {"": said, "ep": said * n_steps, "tok": said / n_tokens * n_steps}[unit]
        n_total = max(1, round(total))

        def steps_of(name: str) -> float:
            value, unit = duration(str(self.training[name]), f"--training {name}")
            return {"": value, "ep": value * n_steps, "%": value / 100 * n_total, "tok": value / n_tokens * n_steps}[unit]

        return Plan(
            epochs=-(-n_total // n_steps) + 1,
            n_steps=n_total,
            rate=self.lr,
            warmup=round(steps_of("warmup")),
            shape=self.training["rate"],
            weight_decay=float(self.training["weight_decay"]),
            clip=float(self.training["clip"]),
            pieces=int(self.training["accumulate"]),
            patience=round(steps_of("patience") / n_steps),
            dtype=dtype,
            seed=self.seed,
        )


def _named(words: Sequence[str], option: str, defaults: dict[str, Any]) -> dict[str, Any]:
    """NAME=VALUE words over defaults, each of its default's type. Raises Usage for another name or type."""
    told = dict(defaults)
    for word in words:
        name, _, value = word.partition("=")
        if name not in defaults:
            raise Usage(f"{option} {word}: one of {', '.join(defaults)} expected.")
        kind = type(defaults[name])
        try:
            told[name] = value.lower() in ("1", "true", "yes") if kind is bool else kind(value)
        except ValueError:
            raise Usage(f"{option} {word}: a value like {defaults[name]!r} expected.") from None
    return told


def _refuse_nonsense(option: str, values: dict[str, Any]) -> None:
    """Raise Usage for a value that its name cannot have."""
    for name, value in values.items():
        if name in ("warmup", "patience"):
            duration(value, f"{option} {name}")
            continue
        is_good, expected = _MAY_BE.get(name, (lambda n: 0 <= n < math.inf, "0 or more"))
        if not is_good(value):
            raise Usage(f"{option} {name}={value}: {expected} expected.")


def _is_number(words: str) -> bool:
    try:
        return math.isfinite(float(words))
    except ValueError:
        return False
