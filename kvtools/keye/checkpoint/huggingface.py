"""config.json of the Hugging Face hub, read and written; the small files beside it stand in companions.py.

Fields are named as in transformers' configurations, with its defaults where published files leave them out. A config that asks
for what is not built here (other activations, scaled rotations, sliding windows) is refused by the field's name.
"""

from collections.abc import Mapping
from typing import Any

from kvtools.keye.checkpoint.formats import CheckpointFormat
from kvtools.keye.model.config import (
    IMAGE_TOKEN,
    MERGE,
    VIDEO_TOKEN,
    LanguageConfig,
    ModelConfig,
    TextConfig,
    VisionConfig,
    mrope_sections,
)

# our field: config.json's, and transformers' default; None: the field is required
_VISION = {
    "width": ("hidden_size", 768),
    "hidden": ("intermediate_size", 3072),
    "layers": ("num_hidden_layers", 12),
    "heads": ("num_attention_heads", 12),
    "patch": ("patch_size", 16),
    "eps": ("layer_norm_eps", 1e-6),
}
_TEXT = {
    **{ours: _VISION[ours] for ours in ("width", "hidden", "layers", "heads", "eps")},
    "vocabulary": ("vocab_size", 32000),
    "positions": ("max_position_embeddings", 64),
}
_LANGUAGE = {
    "width": ("hidden_size", None),
    "hidden": ("intermediate_size", None),
    "layers": ("num_hidden_layers", None),
    "heads": ("num_attention_heads", None),
    "head_dim": ("head_dim", 128),
    "vocabulary": ("vocab_size", None),
    "positions": ("max_position_embeddings", 40960),
    "eps": ("rms_norm_eps", 1e-6),
    "tied": ("tie_word_embeddings", False),
}
# what config.json has no field of SigLIP's for, and its value in published models; `rope` differs between Keye-VL and SigLIP
_SWITCHES = {"joint": True, "interpolate": True}
_VISION_ACTIVATION = "gelu_pytorch_tanh"
_PUBLISHED_IMAGE_SIZE = 384  # pixels; 27 patches of 14 and 6 pixels over


def format_of_config(config: Mapping[str, Any]) -> CheckpointFormat:
    """The format that a config.json describes. Raises ValueError for models that are not built here, and for bad fields."""
    kind = config.get("model_type")
    if kind == "qwen3":
        return CheckpointFormat("qwen3", language=_read_language(config))
    if kind == "siglip":
        vision, text = _required_part(config, "vision_config"), _required_part(config, "text_config")
        return CheckpointFormat("siglip", vision=_read_vision(vision, rope=False), text=_read_text(text))
    if kind == "siglip_vision_model":
        return CheckpointFormat("siglip-vision", vision=_read_vision(config, rope=False))
    if isinstance(kind, str) and kind.lower() == "keye":
        vision = _required_part(config, "vision_config")
        _refuse_other(vision, "spatial_merge_size", MERGE)
        return CheckpointFormat.of_keye(
            ModelConfig(
                _read_vision(vision, rope=True),
                _read_language(_part(config, "text_config") or config),
                tokens_per_second=_value(vision, "tokens_per_second", 2),
                image_token=_value(config, "image_token_id", IMAGE_TOKEN),
                video_token=_value(config, "video_token_id", VIDEO_TOKEN),
            )
        )
    raise ValueError(f"model_type is {kind!r}, and Keye, qwen3, siglip or siglip_vision_model is needed")


def huggingface_config(checkpoint: CheckpointFormat, source: Mapping[str, Any], dtype: str) -> dict[str, Any]:
    """The config.json of a model: the fields of `source`, where there was one, overridden by the format's and the dtype."""
    base = {name: value for name, value in source.items() if name != "dtype"} | {"torch_dtype": dtype}
    vision, language, text, config = checkpoint.vision, checkpoint.language, checkpoint.text, checkpoint.config
    if vision is None:
        assert language is not None, "what has no tower has a decoder"
        return base | {"model_type": "qwen3", "architectures": ["Qwen3ForCausalLM"]} | _write_language(language, source)
    fields = _write_vision(vision, rope=config is not None)
    if config is None and text is None:
        return base | {"model_type": "siglip_vision_model", "architectures": ["SiglipVisionModel"]} | fields
    fields = _part(source, "vision_config") | fields
    if config is None:
        assert text is not None, "a siglip has both towers"
        fields["model_type"] = "siglip_vision_model"
        texts = _part(source, "text_config") | _write_text(text)
        return base | {
            "model_type": "siglip", "architectures": ["SiglipModel"], "vision_config": fields, "text_config": texts
        }  # fmt: skip
    fields |= {"spatial_merge_size": config.merge, "tokens_per_second": config.tokens_per_second}
    decoder = _write_language(config.language, source)
    sections = {"mrope_section": list(mrope_sections(config.language.head_dim))}
    decoder["rope_scaling"] = {"rope_type": "default", "type": "default"} | _part(source, "rope_scaling") | sections
    if "text_config" in base:
        decoder = {"text_config": _part(source, "text_config") | decoder}
    tokens = {"image_token_id": config.image_token, "video_token_id": config.video_token}
    names = {"model_type": "Keye", "architectures": ["KeyeForConditionalGeneration"]}
    return names | base | decoder | {"vision_config": fields} | tokens


def _read_language(config: Mapping[str, Any]) -> LanguageConfig:
    _refuse_other(config, "hidden_act", "silu")
    _refuse_other(config, "attention_bias", False)
    _refuse_other(config, "use_sliding_window", False)
    rope = _part(config, "rope_scaling") | _part(config, "rope_parameters")
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind not in ("default", "mrope"):
        raise ValueError(f"rope_type is {kind!r}, and only default is built here")
    fields = _read(config, _LANGUAGE)
    _refuse_other(rope, "mrope_section", list(mrope_sections(fields["head_dim"])))
    kv_heads = _value(config, "num_key_value_heads", fields["heads"])
    return LanguageConfig(**fields, kv_heads=kv_heads, theta=_value({**config, **rope}, "rope_theta", 1e6))


def _write_language(config: LanguageConfig, source: Mapping[str, Any]) -> dict[str, Any]:
    fixed = {"num_key_value_heads": config.kv_heads, "hidden_act": "silu", "attention_bias": False}
    theta: dict[str, Any] = {"rope_theta": config.theta}
    if "rope_parameters" in source:  # of transformers 5; before it, the base stood beside the other fields
        theta = {"rope_parameters": _part(source, "rope_parameters") | theta}
    return _write(config, _LANGUAGE) | fixed | theta


def _read_vision(config: Mapping[str, Any], *, rope: bool) -> VisionConfig:
    """rope: whether models of this type rotate. Our switches stand beside SigLIP's fields; absent, they are as published."""
    _refuse_other(config, "hidden_act", _VISION_ACTIVATION)
    _refuse_other(config, "num_channels", 3)
    fields = _read(config, _VISION)
    switches = {name: _value(config, name, usual) for name, usual in {**_SWITCHES, "rope": rope}.items()}
    table_side = _value(config, "image_size", 224) // fields["patch"]
    return VisionConfig(**fields, **switches, table_side=table_side, theta=_value(config, "rope_theta", 1e4))


def _write_vision(config: VisionConfig, *, rope: bool) -> dict[str, Any]:
    usual = {**_SWITCHES, "rope": rope}
    is_published = (config.patch, config.table_side) == (14, 27)
    fields = _write(config, _VISION) | {
        "hidden_act": _VISION_ACTIVATION,
        "num_channels": 3,
        "image_size": _PUBLISHED_IMAGE_SIZE if is_published else config.patch * config.table_side,
    }
    fields |= {name: getattr(config, name) for name in usual if getattr(config, name) != usual[name]}
    return fields | ({"rope_theta": config.theta} if config.theta != 1e4 else {})


def _read_text(config: Mapping[str, Any]) -> TextConfig:
    _refuse_other(config, "hidden_act", _VISION_ACTIVATION)
    fields = _read(config, _TEXT)
    return TextConfig(**fields, output=_value(config, "projection_size", fields["width"]))


def _write_text(config: TextConfig) -> dict[str, Any]:
    return _write(config, _TEXT) | {
        "model_type": "siglip_text_model",
        "projection_size": config.embedding_width,
        "hidden_act": _VISION_ACTIVATION,
    }


def _read(config: Mapping[str, Any], table: Mapping[str, tuple[str, Any]]) -> dict[str, Any]:
    return {ours: _value(config, theirs, default) for ours, (theirs, default) in table.items()}


def _write(config: object, table: Mapping[str, tuple[str, Any]]) -> dict[str, Any]:
    return {theirs: getattr(config, ours) for ours, (theirs, _) in table.items()}


def _value(config: Mapping[str, Any], name: str, default: Any) -> Any:
    """A field of the default's type; None stands for a required whole number. Raises ValueError for another."""
    value = config.get(name)
    value = default if value is None else value
    if isinstance(default, bool):
        return value is True
    if isinstance(default, float):
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < 1e30:
            raise ValueError(f"{name} is {value!r}, and a number above 0 is needed")
        return float(value)
    if type(value) is not int or not 0 < value < 1 << 40:
        raise ValueError(f"{name} is {value!r}, and a whole number of at least 1 is needed")
    return value


def _part(config: Mapping[str, Any], name: str) -> dict[str, Any]:
    """An object within a config; empty where there is none."""
    part = config.get(name)
    return dict(part) if isinstance(part, dict) else {}


def _required_part(config: Mapping[str, Any], name: str) -> dict[str, Any]:
    if not isinstance(config.get(name), dict):
        raise ValueError(f"{name} is missing, or no object")
    return _part(config, name)


def _refuse_other(config: Mapping[str, Any], name: str, built: object) -> None:
    if config.get(name) not in (None, built):
        raise ValueError(f"{name} is {config[name]!r}, and only {built!r} is built here")
