"""The layouts of published checkpoints: which parts a model has, and which tensors there must then be.

Four: Keye-VL whole, Qwen3 (a decoder), SigLIP whole, and SigLIP's vision model alone.

Not here: files (kvtools.artifact.directory), configurations (huggingface.py) and tensors' contents (checkpoint.py).
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from torch import nn

from kvtools.keye.model.config import LanguageConfig, ModelConfig, TextConfig, VisionConfig, text_of
from kvtools.keye.model.keye import Keye
from kvtools.keye.model.siglip import PooledTower, Siglip
from kvtools.train.meta_init import meta_init

LAYOUTS = ("keye", "qwen3", "siglip", "siglip-vision")
# carried through and never used: what the published model has beside what it computes with
_UNUSED = re.compile(
    r"(visual\.)?vision_model\.(embeddings\.(packing_position_embedding\.weight|position_ids)|head\..*)"
    r"|text_model\.embeddings\.position_ids|model\.rotary_emb\.inv_freq"
)
_LAYER = re.compile(r"(.*\.layers\.)(\d+)\.")
_VISION = "vision_model."


@dataclass(frozen=True)
class Shapes:
    """What a checkpoint's model looks like; a part that the layout does not have is None."""

    layout: str
    vision: VisionConfig | None = None
    language: LanguageConfig | None = None
    text: TextConfig | None = None
    whole: ModelConfig | None = None  # of keye: vision and language are its parts

    def to_json(self) -> dict[str, Any]:
        """What goes into an artifact, to be read by `of`."""
        if self.whole is not None:
            return self.whole.to_json()
        parts = {"vision": self.vision, "language": self.language, "text": self.text}
        return {name: asdict(part) for name, part in parts.items() if part is not None}

    @classmethod
    def of(cls, layout: str, words: Mapping[str, Any]) -> "Shapes":
        """The shapes that `to_json` told. Raises ValueError for others."""
        if layout == "keye":
            whole = ModelConfig.from_json(dict(words))
            return cls(layout, whole.vision, whole.language, None, whole)
        if layout not in LAYOUTS:
            raise ValueError(f"layout {layout!r} found, one of {', '.join(LAYOUTS)} expected")
        parts: dict[str, Any] = dict(words)
        stand_in = ModelConfig(VisionConfig(4, 1, 1, 1), LanguageConfig(2, 1, 1, 1, 1, 2)).to_json()
        both = ModelConfig.from_json({**stand_in, **{k: v for k, v in parts.items() if k != "text"}})
        wanted = {"qwen3": ("language",), "siglip": ("vision", "text"), "siglip-vision": ("vision",)}[layout]
        if sorted(parts) != sorted(wanted):
            raise ValueError(f"{sorted(parts)} found, {sorted(wanted)} of a {layout} expected")
        return cls(
            layout,
            both.vision if "vision" in wanted else None,
            both.language if "language" in wanted else None,
            text_of(parts["text"]) if "text" in wanted else None,
        )

    def model(self) -> nn.Module:
        """A model of these shapes. Qwen3 comes as the decoder of a Keye whose other parts are as small as can be."""
        if self.layout == "siglip":
            assert self.vision is not None, "a siglip has eyes"
            assert self.text is not None, "and words"
            return Siglip(self.vision, self.text)
        if self.layout == "siglip-vision":
            assert self.vision is not None, "a siglip-vision has eyes"
            holder = nn.Module()
            holder.vision_model = PooledTower(self.vision)
            return holder
        return Keye(self.whole or ModelConfig(VisionConfig(4, 1, 1, 1), _given(self.language)))

    def expected(self, names: Iterable[str]) -> dict[str, tuple[int, ...]]:
        """Names and shapes of all tensors that there must be, none allocated. Raises ValueError where the layers found are
        others than the shapes say: a config's word makes no layers."""
        _compare_layers(names, self)
        try:
            with meta_init():
                made = self.model().state_dict()
        except (RuntimeError, OverflowError) as fault:
            raise ValueError(f"sizes that no model can have ({str(fault).splitlines()[0]})") from None
        wanted = {name: tuple(x.shape) for name, x in made.items()}
        if self.layout == "qwen3":
            wanted = {name: shape for name, shape in wanted.items() if name.startswith(("model.", "lm_head."))}
        if self.layout == "siglip-vision" and not any(name.startswith("vision_model.head.") for name in names):
            wanted = {name: shape for name, shape in wanted.items() if not name.startswith("vision_model.head.")}
        return wanted


def _given(shape: LanguageConfig | None) -> LanguageConfig:
    assert shape is not None, "a qwen3 has a decoder"
    return shape


def is_unused(name: str) -> bool:
    """Whether a tensor that the model has no place for belongs to the published layout all the same."""
    return _UNUSED.fullmatch(name) is not None


def canonical(layout: str, names: Iterable[str]) -> dict[str, str]:
    """The name of each of the names found: transformers 5 writes SigLIP's vision model without its prefix, others with."""
    return {name: name if layout != "siglip-vision" or name.startswith(_VISION) else _VISION + name for name in names}


def stacks(names: Iterable[str]) -> dict[str, set[int]]:
    """The numbers of the layers of each stack, by what their names begin with."""
    found: dict[str, set[int]] = {}
    for name in names:
        match = _LAYER.match(name)
        if match:
            found.setdefault(match[1], set()).add(int(match[2][:9]))
    return found


def _compare_layers(names: Iterable[str], shapes: Shapes) -> None:
    found = stacks(names)
    prefix = "visual.vision_model" if shapes.layout == "keye" else "vision_model"
    for stack, part in ((f"{prefix}.encoder.layers.", shapes.vision), ("text_model.encoder.layers.", shapes.text),
                        ("model.layers.", shapes.language)):  # fmt: skip
        if part is not None and len(found.get(stack, ())) != part.layers:
            raise ValueError(f"{stack}: {len(found.get(stack, ()))} layers found, {part.layers} of the config expected")
