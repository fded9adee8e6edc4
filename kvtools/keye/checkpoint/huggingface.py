"""config.json of the Hugging Face hub: shapes from it, and it from shapes; and the small files that go with it.

Fields as transformers' configurations name them, with its defaults where published files leave them out. What a config asks for
beyond what is built here (other activations, scaled rotations, sliding windows) is refused by name.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from kvtools.keye.checkpoint.formats import Shapes
from kvtools.keye.data.chat_template import JINJA
from kvtools.keye.model.config import (
    IMAGE_TOKEN,
    VIDEO_TOKEN,
    LanguageConfig,
    ModelConfig,
    TextConfig,
    VisionConfig,
    mrope_sections,
)


def shapes_of_config(config: Mapping[str, Any]) -> Shapes:
    """The shapes a config.json tells. Raises ValueError for models that are not built here, and fields that cannot be."""
    kind = config.get("model_type")
    if kind == "qwen3":
        return Shapes("qwen3", language=_language(config))
    if kind == "siglip":
        return Shapes(
            "siglip", vision=_vision(_part(config, "vision_config"), rope=False), text=_text(_part(config, "text_config"))
        )
    if kind == "siglip_vision_model":
        return Shapes("siglip-vision", vision=_vision(config, rope=False))
    if isinstance(kind, str) and kind.lower() == "keye":
        seen = _part(config, "vision_config")
        whole = ModelConfig(
            _vision(seen, rope=True),
            _language(_inner(config, "text_config") or config),
            merge=_count(seen, "spatial_merge_size", 2),
            tokens_per_second=_count(seen, "tokens_per_second", 2),
            image_token=_count(config, "image_token_id", IMAGE_TOKEN),
            video_token=_count(config, "video_token_id", VIDEO_TOKEN),
        )
        return Shapes("keye", whole.vision, whole.language, None, whole)
    raise ValueError(f"model_type {kind!r} found, Keye, qwen3, siglip or siglip_vision_model expected")


def config_of(shapes: Shapes, source: Mapping[str, Any], dtype: str) -> dict[str, Any]:
    """The config.json of a model: the source's, where there was one, with what the shapes and the precision say."""
    words: dict[str, Any] = {**source, "torch_dtype": dtype}
    words.pop("dtype", None)
    if shapes.layout == "qwen3":
        assert shapes.language is not None, "a qwen3 has a decoder"
        return {
            **words,
            "model_type": "qwen3",
            "architectures": ["Qwen3ForCausalLM"],
            **_language_words(shapes.language, source),
        }
    assert shapes.vision is not None, "all others have eyes"
    seen = _vision_words(shapes.vision, rope=shapes.layout == "keye")
    if shapes.layout == "siglip-vision":
        return {**words, "model_type": "siglip_vision_model", "architectures": ["SiglipVisionModel"], **seen}
    seen = {**_inner(source, "vision_config"), **seen}
    if shapes.layout == "siglip":
        assert shapes.text is not None, "a siglip has words"
        text = {**_inner(source, "text_config"), **_text_words(shapes.text)}
        seen["model_type"] = "siglip_vision_model"
        return {**words, "model_type": "siglip", "architectures": ["SiglipModel"], "vision_config": seen, "text_config": text}
    assert shapes.whole is not None, "a keye is whole"
    seen |= {"spatial_merge_size": shapes.whole.merge, "tokens_per_second": shapes.whole.tokens_per_second}
    language = _language_words(shapes.whole.language, source)
    language["rope_scaling"] = {
        "rope_type": "default",
        "type": "default",
        **_inner(source, "rope_scaling"),
        "mrope_section": list(mrope_sections(shapes.whole.language.head_dim)),
    }
    if "text_config" in words:
        words["text_config"] = {**_inner(source, "text_config"), **language}
    else:
        words |= language
    return {
        "model_type": "Keye",
        "architectures": ["KeyeForConditionalGeneration"],
        **words,
        "vision_config": seen,
        "image_token_id": shapes.whole.image_token,
        "video_token_id": shapes.whole.video_token,
    }


def companions(shapes: Shapes, *, has_tokenizer: bool) -> dict[str, dict[str, Any]]:
    """Further files without which others cannot load a Keye-VL's directory: how pictures become patches (values as those of the
    published preview), which class reads the tokenizer, and how a conversation becomes text."""
    if shapes.whole is None:
        return {}
    pictures = {
        "image_processor_type": "SiglipImageProcessor",
        "processor_class": "KeyeProcessor",
        **dict.fromkeys(("do_convert_rgb", "do_resize", "do_rescale", "do_normalize"), True),
        "resample": 3,  # bicubic
        "rescale_factor": 1 / 255,
        "image_mean": [0.5, 0.5, 0.5],
        "image_std": [0.5, 0.5, 0.5],
        "min_pixels": 4 * 28 * 28,
        "max_pixels": 1280 * 28 * 28,
        "patch_size": shapes.whole.vision.patch,
        "merge_size": shapes.whole.merge,
        "temporal_patch_size": 1,
    }
    words = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": "<|im_end|>",
        "pad_token": "<|endoftext|>",
        "model_max_length": shapes.whole.language.positions,
        "chat_template": JINJA,
    }
    return {"preprocessor_config.json": pictures} | ({"tokenizer_config.json": words} if has_tokenizer else {})


def _language(config: Mapping[str, Any]) -> LanguageConfig:
    _refuse(config, "hidden_act", "silu")
    _refuse(config, "attention_bias", False)
    _refuse(config, "use_sliding_window", False)
    rope = {**_inner(config, "rope_scaling"), **_inner(config, "rope_parameters")}
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind not in ("default", "mrope"):
        raise ValueError(f"rope_type {kind!r} found, default expected")
    heads, head_dim = _count(config, "num_attention_heads"), _count(config, "head_dim", 128)
    _refuse(rope, "mrope_section", list(mrope_sections(head_dim)))
    theta = rope.get("rope_theta", config.get("rope_theta", 1e6))
    return LanguageConfig(
        width=_count(config, "hidden_size"),
        hidden=_count(config, "intermediate_size"),
        layers=_count(config, "num_hidden_layers"),
        heads=heads,
        kv_heads=_count(config, "num_key_value_heads", heads),
        head_dim=head_dim,
        vocabulary=_count(config, "vocab_size"),
        theta=_number(theta, "rope_theta"),
        eps=_number(config.get("rms_norm_eps", 1e-6), "rms_norm_eps"),
        tied=config.get("tie_word_embeddings", False) is True,
        positions=_count(config, "max_position_embeddings", 40960),
    )


def _language_words(shape: LanguageConfig, source: Mapping[str, Any]) -> dict[str, Any]:
    words: dict[str, Any] = {
        "hidden_size": shape.width,
        "intermediate_size": shape.hidden,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.kv_heads,
        "head_dim": shape.head_dim,
        "vocab_size": shape.vocabulary,
        "rms_norm_eps": shape.eps,
        "tie_word_embeddings": shape.tied,
        "max_position_embeddings": shape.positions,
        "hidden_act": "silu",
        "attention_bias": False,
    }
    if "rope_parameters" in source:  # transformers 5 has the base in there, everybody before beside it
        words["rope_parameters"] = {**_inner(source, "rope_parameters"), "rope_theta": shape.theta}
    else:
        words["rope_theta"] = shape.theta
    return words


def _vision(config: Mapping[str, Any], *, rope: bool) -> VisionConfig:
    """Beside SigLIP's own fields those of ours that change what the tower computes; absent where they are as published."""
    _refuse(config, "hidden_act", "gelu_pytorch_tanh")
    _refuse(config, "num_channels", 3)
    patch = _count(config, "patch_size", 16)
    shape = VisionConfig(
        width=_count(config, "hidden_size", 768),
        hidden=_count(config, "intermediate_size", 3072),
        layers=_count(config, "num_hidden_layers", 12),
        heads=_count(config, "num_attention_heads", 12),
        patch=patch,
        table_side=_count(config, "image_size", 224) // patch,
        eps=_number(config.get("layer_norm_eps", 1e-6), "layer_norm_eps"),
        theta=_number(config.get("rope_theta", 1e4), "rope_theta"),
        rope=False,
    )
    flags = {"rope": rope, "joint": True, "interpolate": True}
    return replace(shape, **{name: config.get(name, usual) is True for name, usual in flags.items()})


def _vision_words(shape: VisionConfig, *, rope: bool) -> dict[str, Any]:
    words: dict[str, Any] = {
        "hidden_size": shape.width,
        "intermediate_size": shape.hidden,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "patch_size": shape.patch,
        "layer_norm_eps": shape.eps,
        "hidden_act": "gelu_pytorch_tanh",
        "num_channels": 3,
        # a size is that of images in pixels: the published 384 has 27 patches a side and 6 pixels over
        "image_size": 384 if (shape.patch, shape.table_side) == (14, 27) else shape.patch * shape.table_side,
    }
    usual = {"rope": rope, "joint": True, "interpolate": True}
    words |= {name: getattr(shape, name) for name, value in usual.items() if getattr(shape, name) != value}
    return words | ({"rope_theta": shape.theta} if shape.theta != 1e4 else {})


def _text(config: Mapping[str, Any]) -> TextConfig:
    _refuse(config, "hidden_act", "gelu_pytorch_tanh")
    width = _count(config, "hidden_size", 768)
    return TextConfig(
        width=width,
        hidden=_count(config, "intermediate_size", 3072),
        layers=_count(config, "num_hidden_layers", 12),
        heads=_count(config, "num_attention_heads", 12),
        vocabulary=_count(config, "vocab_size", 32000),
        positions=_count(config, "max_position_embeddings", 64),
        eps=_number(config.get("layer_norm_eps", 1e-6), "layer_norm_eps"),
        output=_count(config, "projection_size", width),
    )


def _text_words(shape: TextConfig) -> dict[str, Any]:
    return {
        "model_type": "siglip_text_model",
        "hidden_size": shape.width,
        "intermediate_size": shape.hidden,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "vocab_size": shape.vocabulary,
        "max_position_embeddings": shape.positions,
        "layer_norm_eps": shape.eps,
        "projection_size": shape.output or shape.width,
        "hidden_act": "gelu_pytorch_tanh",
    }


def _part(config: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    part = config.get(name)
    if not isinstance(part, dict):
        raise ValueError(f"{name}: {type(part).__name__} found, an object expected")
    return part


def _inner(config: Mapping[str, Any], name: str) -> dict[str, Any]:
    part = config.get(name)
    return dict(part) if isinstance(part, dict) else {}


def _count(config: Mapping[str, Any], name: str, usual: int | None = None) -> int:
    value = config.get(name)
    value = usual if value is None else value
    if type(value) is not int or not 0 < value < 1 << 40:
        raise ValueError(f"{name}: {value!r} found, a count expected")
    return value


def _number(value: Any, name: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < 1e30:
        raise ValueError(f"{name}: {value!r} found, a number above 0 expected")
    return float(value)


def _refuse(config: Mapping[str, Any], name: str, expected: object) -> None:
    if config.get(name) not in (None, expected):
        raise ValueError(f"{name} {config[name]!r} found, {expected!r} expected: another is not built here")
