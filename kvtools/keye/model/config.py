"""Shapes of Keye-VL models: what makes one model's weights fit another's, and four sizes of it.

Source: Keye-VL's published configuration (arXiv 2507.01949 section 2; spec/keye.md 1.2) for `8b`; Qwen3's published 0.6B
configuration for the decoder of `0.6b`. `tiny` and `small` keep the structure, ours in every other way.

Not here: what the parts compute (vision.py, projector.py, language.py), and which weights they hold (checkpoint.py).
"""

from dataclasses import asdict, dataclass, fields
from typing import Any, Self

# the published tokenizer's ids; a tokenizer of one's own decides for itself
IMAGE_TOKEN = 151655
VIDEO_TOKEN = 151656
VOCABULARY = 151936
# patches a side of one visual token. Videos are cut and rows are packed for it, so no other number is built
MERGE = 2


@dataclass(frozen=True)
class VisionConfig:
    """The tower. joint: all frames of a video attend to one another, as in the preview; else each alone, as in 1.5.

    interpolate and rope are the ablation of the report's Table 2: without the first, the table of positions is read in raster
    order up to its end, where later patches all have the last one; without the second, nothing is rotated.
    """

    width: int
    hidden: int
    layers: int
    heads: int
    patch: int = 14  # pixels a side
    table_side: int = 27  # positions a side that the table holds
    eps: float = 1e-6
    theta: float = 1e4
    joint: bool = True
    interpolate: bool = True
    rope: bool = True

    def __post_init__(self) -> None:
        _refuse_less_than_one(self, "width", "hidden", "layers", "heads", "patch", "table_side")
        if self.width % self.heads or (self.rope and self.width // self.heads % 4):
            raise ValueError(
                f"vision: width {self.width} over {self.heads} heads found, heads of a multiple of 4 expected: rows and "
                "columns each turn pairs"
            )

    @property
    def head_dim(self) -> int:
        return self.width // self.heads


@dataclass(frozen=True)
class LanguageConfig:
    """The decoder. positions: the longest row it is meant for; nothing is refused beyond it."""

    width: int
    hidden: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    vocabulary: int = VOCABULARY
    theta: float = 1e6
    eps: float = 1e-6
    tied: bool = False  # whether the output is the table of embeddings
    positions: int = 40960

    def __post_init__(self) -> None:
        _refuse_less_than_one(self, "width", "hidden", "layers", "heads", "kv_heads", "head_dim", "vocabulary")
        if self.heads % self.kv_heads or self.head_dim % 2:
            raise ValueError(
                f"language: {self.heads} heads over {self.kv_heads} of head_dim {self.head_dim} found, a multiple and an even "
                "width expected"
            )


@dataclass(frozen=True)
class TextConfig:
    """The text tower of stage 0. output: the width of what it gives, 0 for its own; the vision tower's must equal it."""

    width: int
    hidden: int
    layers: int
    heads: int
    vocabulary: int = 32000
    positions: int = 64
    eps: float = 1e-6
    output: int = 0

    def __post_init__(self) -> None:
        _refuse_less_than_one(self, "width", "hidden", "layers", "heads", "vocabulary", "positions")
        if self.width % self.heads:
            raise ValueError(f"text: width {self.width} over {self.heads} heads found, a multiple expected")

    @property
    def head_dim(self) -> int:
        return self.width // self.heads


@dataclass(frozen=True)
class ModelConfig:
    """A whole model: tower, decoder, and what lies between. merge: patches a side that become one visual token."""

    vision: VisionConfig
    language: LanguageConfig
    merge: int = MERGE
    tokens_per_second: int = 2  # steps of the temporal position
    image_token: int = IMAGE_TOKEN
    video_token: int = VIDEO_TOKEN

    def __post_init__(self) -> None:
        _refuse_less_than_one(self, "merge", "tokens_per_second")
        if self.merge != MERGE:
            raise ValueError(
                f"merge is {self.merge}, and only {MERGE} is built: a visual token stands for {MERGE} x {MERGE} patches"
            )

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, words: dict[str, Any]) -> Self:
        """The architecture that `to_json` told. Raises ValueError for fields that are not its own, or of other types."""
        parts = dict(words)
        for name, shape in (("vision", VisionConfig), ("language", LanguageConfig)):
            parts[name] = _of(shape, parts.get(name), name)
        made: Self = _of(cls, parts, "architecture")
        return made


def text_of(words: dict[str, Any]) -> TextConfig:
    """The text tower that `dataclasses.asdict` told. Raises as ModelConfig.from_json."""
    made: TextConfig = _of(TextConfig, words, "text")
    return made


def mrope_sections(head_dim: int) -> tuple[int, int, int]:
    """How many of the head_dim / 2 angles turn with time, row and column: 16, 24 and 24 of 64, and in proportion.

    Rows and columns get equal shares, rounded down; time gets the rest: 4, 6 and 6 of 16.
    """
    half = head_dim // 2
    side = half * 3 // 8
    return half - 2 * side, side, side


def _refuse_less_than_one(shape: object, *names: str) -> None:
    for name in names:
        value = getattr(shape, name)
        if type(value) is not int or value < 1:
            raise ValueError(f"{name}: {value!r} found, a count of at least 1 expected")


def _of(shape: Any, words: Any, name: str) -> Any:
    known = {field.name for field in fields(shape)}
    if not isinstance(words, dict) or not set(words) <= known:
        raise ValueError(f"{name}: {sorted(words) if isinstance(words, dict) else words!r} found, {sorted(known)} expected")
    try:
        return shape(**words)
    except TypeError as fault:
        raise ValueError(f"{name}: {fault}") from None


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
