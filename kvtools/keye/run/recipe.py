"""The recipe of a training of Keye-VL: what the options of `pretrain keye` say, checked, and what they leave open."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, Self

from kvtools.chance import seed_for
from kvtools.errors import Usage
from kvtools.keye.model.config import SIZES, ModelConfig
from kvtools.keye.run.stages import PARTS, STAGES, Stage, rate_of
from kvtools.options import parse_range
from kvtools.train.durations import EpochLength, parse_duration
from kvtools.train.loop import Plan
from kvtools.train.overrides import Allowed, parse_overrides, refuse_bad_values
from kvtools.video.patch import Budget

# what --training may change, with its defaults: all our choice, the report gives none
_TRAINING: dict[str, Any] = {
    "weight_decay": 0.1,
    "warmup": "5%",
    "rate": "cosine",
    "clip": 1.0,
    # what learns to see goes slower than what learns to talk: at the decoder's rate all visual tokens grow into one (honest.md)
    "tower": 0.1,  # the vision tower's rate, of the decoder's
    "projector": 0.1,
    "window": 256,  # conversations packed together
    "save": "500",  # how often a state is put aside, beside epochs
    "patience": "0",
    "checkpointing": False,  # keep only the inputs of layers, and compute the rest twice
    "cut": False,  # conversations longer than a row lose their last turns instead of being left out
    "flip": 0.0,  # share of the conversations whose pictures are mirrored, where left and right mean nothing
    "upend": 0.0,  # stood on their head, where above and below mean nothing
    "recolour": 0.0,  # in other colours: red, green and blue exchanged, and some turned into negatives
    "jitter": 0.0,  # largest change of their contrast, and of their brightness
}
_LENGTH = 4096
_FRAME_TOKENS = "128:768"
_DURATIONS = ("warmup", "save", "patience")
_MAY_BE: Allowed = {
    "rate": (("cosine", "constant").__contains__, "cosine or constant"),
    "clip": (lambda x: 0 < x < math.inf, "more than 0"),
    "window": (lambda n: n >= 1, "1 or more"),
    **dict.fromkeys(("flip", "upend", "recolour", "jitter"), (lambda x: 0 <= x <= 1, "from 0 to 1")),
}


@dataclass(frozen=True)
class Recipe:
    """Everything that shapes a training. `words` are the options as they were given."""

    stage: str
    size: str
    lr: float | None
    steps: str
    batch_tokens: int
    length: int
    training: dict[str, Any]
    seed: int
    words: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def of(
        cls, *, stage: str, size: str, architecture: Sequence[str], steps: str, lr: float | None, batch_tokens: int,
        length: int | None, ratio: str | None, training: Sequence[str], seed: int, frame_tokens: str = _FRAME_TOKENS,
        max_tokens: int | None = None,
    ) -> Self:  # fmt: skip
        """Raises Usage for what cannot be meant."""
        length = min(_LENGTH, batch_tokens) if length is None else length
        words = {
            "stage": stage, "size": size, "architecture": [*architecture], "steps": steps, "lr": lr, "ratio": ratio,
            "batch_tokens": batch_tokens, "length": length, "training": [*training], "seed": seed,
            "frame_tokens": frame_tokens, "max_tokens": max_tokens,
        }  # fmt: skip
        changed = parse_overrides(training, "--training", _TRAINING)
        refuse_bad_values("--training", changed, _MAY_BE, _DURATIONS)
        EpochLength(1, 1).total(steps)
        if lr is not None and not (0 < lr < math.inf):
            raise Usage(f"--lr {lr}: a finite number above 0 expected.")
        if length > batch_tokens:
            raise Usage(f"--length {length}: at most --batch-tokens, {batch_tokens}, expected.")
        recipe = cls(stage, size, lr, steps, batch_tokens, length, changed, seed, words)
        recipe.shaped(SIZES[size])
        parse_range(frame_tokens, "--frame-tokens")
        return recipe

    @property
    def budget(self) -> Budget:
        """What a picture or a video of a file may cost: a row has room for it, and for what is said of it."""
        most = self.words["max_tokens"] or max(1, self.length * 3 // 4)
        return Budget(min(most, Budget.max_tokens), *parse_range(self.words["frame_tokens"], "--frame-tokens"))

    @property
    def what(self) -> Stage:
        return STAGES[self.stage]

    @property
    def counts_epochs(self) -> bool:
        """Whether anything is told in epochs, or waits for them, so that one has to be measured before the first step."""
        return self.is_judged or any(x.endswith("ep") for x in (self.steps, *(self.training[name] for name in _DURATIONS)))

    @property
    def is_judged(self) -> bool:
        """Whether validation says which weights are best, and when to stop."""
        return parse_duration(self.training["patience"], "--training patience")[0] > 0

    @property
    def weights_seed(self) -> int:
        return seed_for(self.seed, "weights")

    def shaped(self, arch: ModelConfig) -> ModelConfig:
        """An architecture with what --architecture changes of it. Raises Usage for what it does not have."""
        return _changed(arch, self.words["architecture"])

    def to_json(self) -> dict[str, Any]:
        """Option names to values, as --config reads them."""
        return {name: value for name, value in self.words.items() if value not in ([], None)}

    def rate(self, arch: ModelConfig) -> float:
        """The peak rate for a model of that architecture: by the width of the tower where that is what learns."""
        width = (arch.vision if self.what.is_contrastive else arch.language).width
        return self.lr if self.lr is not None else rate_of(self.stage, width)

    def plan(self, lengths: EpochLength, arch: ModelConfig, dtype: Any) -> Plan:
        """The loop's plan, for epochs of those lengths."""
        n_total = lengths.total(self.steps)

        def steps_of(name: str) -> float:
            return lengths.steps(self.training[name], f"--training {name}", of=n_total)

        lr_factors = {PARTS[part]: float(self.training[part]) for part in ("tower", "projector")}
        return Plan(
            epochs=n_total,  # each has a step at least, and not all have as many
            n_steps=n_total,
            lr=self.rate(arch),
            warmup=round(steps_of("warmup")),
            lr_schedule=self.training["rate"],
            weight_decay=float(self.training["weight_decay"]),
            clip=float(self.training["clip"]),
            n_microbatches=-(-self.batch_tokens // self.length),  # a row at a time: memory is that of one
            patience=max(int(self.is_judged), round(steps_of("patience") / lengths.n_steps)),
            save_every=round(steps_of("save")),
            lr_factors=lr_factors if "decoder" in self.what.trains else {},
            dtype=dtype,
            seed=self.seed,
        )


def _changed(arch: ModelConfig, words: Sequence[str]) -> ModelConfig:
    """An architecture with PART.NAME=N changes, as language.layers=6 or vision.joint=false. Raises Usage for others."""
    defaults = {
        f"{part}.{f.name}": getattr(shape, f.name)
        for part, shape in (("vision", arch.vision), ("language", arch.language))
        for f in fields(shape)
    }
    told = parse_overrides(words, "--architecture", defaults)
    shapes: dict[str, dict[str, Any]] = {part: {} for part in ("vision", "language")}
    for name, value in told.items():
        part, _, which = name.partition(".")
        shapes[part][which] = value
    try:
        return replace(
            arch, vision=replace(arch.vision, **shapes["vision"]), language=replace(arch.language, **shapes["language"])
        )
    except ValueError as fault:
        raise Usage(f"--architecture: {fault}.") from None
