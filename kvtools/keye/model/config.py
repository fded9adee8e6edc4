"""Configurations of Keye-VL's parts: what makes one model's weights fit another's, and four sizes of the whole.

Source: Keye-VL's published configuration (arXiv 2507.01949 section 2; spec/keye.md 1.2) for `8b`; Qwen3's published 0.6B
configuration for the decoder of `0.6b`. `tiny` and `small` keep the structure; their numbers are ours.

Not here: what the parts compute (vision.py, projector.py, language.py), and the names of their weights (checkpoint/formats.py).
"""

from dataclasses import asdict, dataclass, fields
from typing import Any, Self, TypeVar

# the published tokenizer's ids; other tokenizers have their own
IMAGE_TOKEN = 151655
VIDEO_TOKEN = 151656
VOCABULARY = 151936
MERGE = 2  # patches a side of one visual token; videos are cut and rows are packed for it, so no other number is built

_Config = TypeVar("_Config")


@dataclass(frozen=True)
class VisionConfig:
    """The vision tower. joint: all frames of a video attend to one another, as in the preview; else each alone, as in 1.5.

    interpolate and rope are the ablation of the report's Table 2: without the first, the position table is read in raster
    order, and patches beyond its end share the last position; without the second, queries and keys are not rotated. Raises
    ValueError for sizes that no tower can have, as all configurations here do.
    """

    width: int
    hidden: int
    layers: int
    heads: int
    patch: int = 14  # pixels a side
    table_side: int = 27  # positions a side of the position table
    eps: float = 1e-6
    theta: float = 1e4
    joint: bool = True
    interpolate: bool = True
    rope: bool = True

    def __post_init__(self) -> None:
        _require_counts(self, "width", "hidden", "layers", "heads", "patch", "table_side")
        _require_heads(self, "vision", 4 if self.rope else 1)  # rows and columns rotate two numbers each

    @property
    def head_dim(self) -> int:
        """Width of one attention head."""
        return self.width // self.heads


@dataclass(frozen=True)
class LanguageConfig:
    """The decoder. positions: the longest row it is meant for; longer ones are not refused."""

    width: int
    hidden: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    vocabulary: int = VOCABULARY
    theta: float = 1e6
    eps: float = 1e-6
    tied: bool = False  # whether the output matrix is the embedding table
    positions: int = 40960

    def __post_init__(self) -> None:
        _require_counts(self, "width", "hidden", "layers", "heads", "kv_heads", "head_dim", "vocabulary")
        if self.heads % self.kv_heads:
            raise ValueError(f"language: heads is {self.heads}, and a multiple of kv_heads, {self.kv_heads}, is needed")
        if self.head_dim % 2:
            raise ValueError(f"language: head_dim is {self.head_dim}, and an even number is needed")


@dataclass(frozen=True)
class TextConfig:
    """The text tower of stage 0. output: the width of its embeddings, 0 for `width`; the vision tower's must equal it."""

    width: int
    hidden: int
    layers: int
    heads: int
    vocabulary: int = 32000
    positions: int = 64
    eps: float = 1e-6
    output: int = 0

    def __post_init__(self) -> None:
        _require_counts(self, "width", "hidden", "layers", "heads", "vocabulary", "positions")
        _require_heads(self, "text")

    @property
    def embedding_width(self) -> int:
        """Width of a text's embedding."""
        return self.output or self.width


@dataclass(frozen=True)
class ModelConfig:
    """A whole model. merge: patches a side of one visual token. tokens_per_second: temporal positions a second of video."""

    vision: VisionConfig
    language: LanguageConfig
    merge: int = MERGE
    tokens_per_second: int = 2
    image_token: int = IMAGE_TOKEN
    video_token: int = VIDEO_TOKEN

    def __post_init__(self) -> None:
        _require_counts(self, "merge", "tokens_per_second")
        if self.merge != MERGE:
            raise ValueError(
                f"merge is {self.merge}, and only {MERGE} is built: a visual token stands for {MERGE} x {MERGE} patches"
            )

    def to_json(self) -> dict[str, Any]:
        """Fields by name, those of the parts nested, as artifacts store them under `architecture`."""
        return asdict(self)

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Self:
        """The configuration that `to_json` wrote. Raises ValueError for unknown fields and for values of other types."""
        vision = from_fields(VisionConfig, values.get("vision"), "vision")
        language = from_fields(LanguageConfig, values.get("language"), "language")
        return from_fields(cls, {**values, "vision": vision, "language": language}, "architecture")


def from_fields(config: type[_Config], values: Any, name: str) -> _Config:
    """A configuration of one class from its fields by name. name: how messages call it. Raises as ModelConfig.from_json."""
    known = {field.name for field in fields(config)}  # type: ignore[arg-type]
    if not isinstance(values, dict):
        raise ValueError(f"{name} is {values!r}, and an object of fields is needed")
    unknown = sorted(set(values) - known)
    if unknown:
        raise ValueError(f"{name} has no field {unknown[0]}; its fields are {', '.join(sorted(known))}")
    try:
        return config(**values)
    except TypeError as fault:
        raise ValueError(f"{name}: {fault}") from None


def mrope_sections(head_dim: int) -> tuple[int, int, int]:
    """How many of the head_dim / 2 angles belong to time, row and column: 16, 24 and 24 of 64, and in proportion.

    Rows and columns get equal numbers, rounded down, and time the rest: 4, 6 and 6 of 16.
    """
    half = head_dim // 2
    side = half * 3 // 8
    return half - 2 * side, side, side


def _require_counts(config: object, *names: str) -> None:
    for name in names:
        value = getattr(config, name)
        if type(value) is not int or value < 1:
            raise ValueError(f"{name} is {value!r}, and a whole number of at least 1 is needed")


def _require_heads(config: VisionConfig | TextConfig, part: str, divisor: int = 1) -> None:
    n = config.heads * divisor
    if config.width % n:
        raise ValueError(f"{part}: width is {config.width}, and a multiple of {n} is needed for {config.heads} heads")


SIZES: dict[str, ModelConfig] = {
    "tiny": ModelConfig(
        VisionConfig(width=128, hidden=256, layers=2, heads=4, table_side=16),
        LanguageConfig(
            width=128, hidden=256, layers=4, heads=4, kv_heads=2, head_dim=32, vocabulary=6400, theta=1e4, tied=True,
            positions=8192,
        ),
    ),
    "small": ModelConfig(
        VisionConfig(width=384, hidden=1536, layers=6, heads=6, table_side=16),
        LanguageConfig(
            width=512, hidden=1536, layers=8, heads=8, kv_heads=4, head_dim=64, vocabulary=6400, tied=True, positions=16384
        ),
    ),
    "0.6b": ModelConfig(
        VisionConfig(width=768, hidden=3072, layers=12, heads=12),
        LanguageConfig(width=1024, hidden=3072, layers=28, heads=16, kv_heads=8, head_dim=128, tied=True),
    ),
    "8b": ModelConfig(
        VisionConfig(width=1152, hidden=4304, layers=27, heads=16),
        LanguageConfig(width=4096, hidden=12288, layers=36, heads=32, kv_heads=8, head_dim=128),
    ),
}  # fmt: skip
