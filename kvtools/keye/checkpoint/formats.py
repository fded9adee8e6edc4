"""The formats of published checkpoints: which parts a model has, and which tensors its checkpoint must hold.

Four: Keye-VL whole, Qwen3 (a decoder), SigLIP whole, and SigLIP's vision model alone.

Not here: files (kvtools.artifact.directory), config.json (huggingface.py) and the contents of tensors (weights.py).
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Self

from torch import nn

from kvtools.keye.model.config import LanguageConfig, ModelConfig, TextConfig, VisionConfig, from_fields
from kvtools.keye.model.keye import Keye
from kvtools.keye.model.siglip import PooledVisionTower, Siglip
from kvtools.train.meta_init import meta_init

_CONFIGS = {"vision": VisionConfig, "language": LanguageConfig, "text": TextConfig}
_PARTS = {"qwen3": ("language",), "siglip": ("vision", "text"), "siglip-vision": ("vision",)}
LAYOUTS = ("keye", *_PARTS)
# published tensors that the published model does not compute with: kept in the artifact, never used
_UNUSED = re.compile(
    r"(visual\.)?vision_model\.(embeddings\.(packing_position_embedding\.weight|position_ids)|head\..*)"
    r"|text_model\.embeddings\.position_ids|model\.rotary_emb\.inv_freq"
)
_LAYER = re.compile(r"(.*\.layers\.)(\d+)\.")
_VISION = "vision_model."
_VISION_HEAD = "vision_model.head."


@dataclass(frozen=True)
class CheckpointFormat:
    """A checkpoint's layout and the configurations of its parts; a part that the layout does not have is None."""

    layout: str
    vision: VisionConfig | None = None
    language: LanguageConfig | None = None
    text: TextConfig | None = None
    config: ModelConfig | None = None  # of keye: vision and language are its parts

    @classmethod
    def of_keye(cls, config: ModelConfig) -> Self:
        """The format of a whole Keye-VL."""
        return cls("keye", config.vision, config.language, None, config)

    @classmethod
    def of_model(cls, model: Keye | Siglip) -> Self:
        """The format of a whole model."""
        if isinstance(model, Keye):
            return cls.of_keye(model.config)
        return cls("siglip", vision=model.vision_model.config, text=model.text_model.config)

    def to_json(self) -> dict[str, Any]:
        """The configurations as artifacts store them under `architecture`; `from_json` reads them."""
        if self.config is not None:
            return self.config.to_json()
        return {name: asdict(getattr(self, name)) for name in _PARTS[self.layout]}

    @classmethod
    def from_json(cls, layout: str, architecture: Mapping[str, Any]) -> Self:
        """The format that `to_json` wrote. Raises ValueError for another layout, and for parts that are not the layout's."""
        if layout == "keye":
            return cls.of_keye(ModelConfig.from_json(dict(architecture)))
        if layout not in _PARTS:
            raise ValueError(f"layout is {layout!r}, and one of {', '.join(LAYOUTS)} is needed")
        parts = _PARTS[layout]
        if sorted(architecture) != sorted(parts):
            raise ValueError(
                f"architecture has {', '.join(sorted(architecture)) or 'nothing'}, and a {layout} has {', '.join(parts)}"
            )
        return cls(layout, **{name: from_fields(_CONFIGS[name], architecture[name], name) for name in parts})

    def build(self) -> nn.Module:
        """A model of random weights. A Qwen3 comes as the decoder of a Keye whose other parts are as small as can be."""
        if self.language is not None:
            return Keye(self.config or ModelConfig(VisionConfig(4, 1, 1, 1), self.language))
        assert self.vision is not None, "what has no decoder has a tower"
        if self.text is not None:
            return Siglip(self.vision, self.text)
        holder = nn.Module()
        holder.vision_model = PooledVisionTower(self.vision)
        return holder

    def expected_tensors(self, names: Iterable[str]) -> dict[str, tuple[int, ...]]:
        """Names and shapes of all tensors of the format, none allocated. names: those in the checkpoint.

        Raises ValueError where the checkpoint has another number of layers than the configuration: nothing is made of a size
        that only a configuration claims.
        """
        self._require_layers(names)
        try:
            with meta_init():
                state = self.build().state_dict()
        except (RuntimeError, OverflowError):
            raise ValueError("the sizes in the config are too large for any model") from None
        shapes = {name: tuple(x.shape) for name, x in state.items()}
        if self.layout == "qwen3":
            return {name: shape for name, shape in shapes.items() if name.startswith(("model.", "lm_head."))}
        if self.layout == "siglip-vision" and not any(name.startswith(_VISION_HEAD) for name in names):
            return {name: shape for name, shape in shapes.items() if not name.startswith(_VISION_HEAD)}
        return shapes

    def _require_layers(self, names: Iterable[str]) -> None:
        stored = layer_numbers(names)
        vision = ("visual." if self.layout == "keye" else "") + "vision_model.encoder.layers."
        parts = {vision: self.vision, "text_model.encoder.layers.": self.text, "model.layers.": self.language}
        for stack, part in parts.items():
            n_stored = len(stored.get(stack, ()))
            if part is not None and n_stored != part.layers:
                raise ValueError(f"{stack} has {n_stored} layers, and the config says {part.layers}")


def is_unused(name: str) -> bool:
    """Whether a tensor is part of a published layout though no model computes with it."""
    return _UNUSED.fullmatch(name) is not None


def canonical_name(layout: str, name: str) -> str:
    """The name by which a tensor is known here: transformers 5 writes SigLIP's vision model without its prefix, others with."""
    return _VISION + name if layout == "siglip-vision" and not name.startswith(_VISION) else name


def layer_numbers(names: Iterable[str]) -> dict[str, set[int]]:
    """The numbers of the layers of each stack, by the prefix of its tensors' names, as `model.layers.`."""
    numbers: dict[str, set[int]] = {}
    for name in names:
        match = _LAYER.match(name)
        if match:
            numbers.setdefault(match[1], set()).add(int(match[2][:9]))
    return numbers
