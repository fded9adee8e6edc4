"""What stands beside config.json and the weights of a Keye-VL, without which other programs do not load the directory.

Those are: source files of transformers' classes (transformers_code/), to which the `auto_map` of each JSON leads; how pictures
become patches; the tokenizer's class, special tokens and chat template; how text is generated. Files that came with a model
are kept, but for the fields that lead to classes. Not here: config.json's own fields (huggingface.py).
"""

import json
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from kvtools.artifact.json_text import read_json
from kvtools.errors import Corrupt
from kvtools.keye.checkpoint.formats import CheckpointFormat
from kvtools.keye.data.chat_template import JINJA, ChatTemplate
from kvtools.keye.data.tokenizer import FILE as TOKENIZER

_CODE = Path(__file__).parent / "transformers_code"
CODE_FILES = ("configuration_keye.py", "modeling_keye.py", "processing_keye.py")
PREPROCESSOR, TOKENIZER_CONFIG, GENERATION = "preprocessor_config.json", "tokenizer_config.json", "generation_config.json"
_TEMPLATES = ("chat_template.jinja", "chat_template.json", TOKENIZER_CONFIG)
_MODEL = "modeling_keye.KeyeForConditionalGeneration"
_CLASSES = {
    "AutoConfig": "configuration_keye.KeyeConfig",
    **dict.fromkeys(("AutoModel", "AutoModelForCausalLM", "AutoModelForImageTextToText"), _MODEL),
}
_PROCESSORS = {
    "AutoProcessor": "processing_keye.KeyeProcessor",
    "AutoImageProcessor": "processing_keye.KeyeImageProcessor",
}
_PICTURE = "<|vision_start|>"  # a chat template without it shows no pictures, such as that of a decoder


def companion_files(
    checkpoint: CheckpointFormat, given: Mapping[str, bytes], limits: Mapping[str, Any] | None = None
) -> dict[str, bytes]:  # fmt: skip
    """All small files of a model's directory beside config.json, by name. given: those that the model carries. limits: what it
    was trained with, as keye/run/limits.py has them."""
    if checkpoint.config is None:
        return dict(given)
    files = dict(given) | {name: (_CODE / name).read_bytes() for name in CODE_FILES}
    files[PREPROCESSOR] = _json(
        _preprocessor(checkpoint)
        | _read(given.get(PREPROCESSOR))
        | _trained_limits(limits or {})
        | {"auto_map": _PROCESSORS, "processor_class": "KeyeProcessor", "image_processor_type": "KeyeImageProcessor"}
    )
    template = _template(given)
    if template is not None:
        files |= _tokenizer_files(checkpoint, template, given)
    return files


def config_fields(checkpoint: CheckpointFormat, given: Mapping[str, bytes]) -> dict[str, Any]:
    """The fields of config.json that lead to classes, and the tokenizer's visual tokens as others look them up."""
    if checkpoint.config is None:
        return {}
    template = _template(given)
    tokens = {} if template is None else template.tokenizer.ids
    names = {"vision_start_token_id": _PICTURE, "vision_end_token_id": "<|vision_end|>"}
    return {"auto_map": _CLASSES} | {field: tokens[token] for field, token in names.items() if token in tokens}


def is_ours(path: Path) -> bool:
    """Whether a file is one of the source files that `companion_files` writes."""
    return path.name in CODE_FILES and path.read_bytes() == (_CODE / path.name).read_bytes()


def _preprocessor(checkpoint: CheckpointFormat) -> dict[str, Any]:
    assert checkpoint.config is not None, "the caller has looked"
    return {
        **dict.fromkeys(("do_convert_rgb", "do_resize", "do_rescale", "do_normalize"), True),
        "resample": 3,  # bicubic
        "rescale_factor": 1 / 255,
        "image_mean": [0.5, 0.5, 0.5],
        "image_std": [0.5, 0.5, 0.5],
        "min_pixels": 4 * 28 * 28,
        "max_pixels": 16_384 * 28 * 28,
        "patch_size": checkpoint.config.vision.patch,
        "merge_size": checkpoint.config.merge,
        "temporal_patch_size": 1,
    }


def _trained_limits(limits: Mapping[str, Any]) -> dict[str, Any]:
    """The limits of a training by the names of the image processor."""
    known = {"frame_tokens": "frame", "max_video_tokens": "clip", "max_prompt_tokens": "row"}
    found = {name: limits[field] for name, field in known.items() if limits.get(field) is not None}
    if isinstance(picture := limits.get("picture"), list):
        found |= {name: n * 28 * 28 for name, n in zip(("min_pixels", "max_pixels"), picture, strict=True)}
    return found


def _tokenizer_files(
    checkpoint: CheckpointFormat, template: ChatTemplate, given: Mapping[str, bytes]
) -> dict[str, bytes]:  # fmt: skip
    assert checkpoint.config is not None, "the caller has looked"
    language = checkpoint.config.language
    tokenizer = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": "<|im_end|>",
        "pad_token": "<|endoftext|>",
        "padding_side": "left",  # so that all rows of a batch end where their answers begin
        "model_max_length": language.positions,
        **_read(given.get(TOKENIZER_CONFIG)),
    }
    if not any(_PICTURE.encode() in given.get(name, b"") for name in _TEMPLATES):
        tokenizer["chat_template"] = JINJA
    end, pad = template.stop_tokens
    published = {"do_sample": True, "temperature": 0.6, "top_k": 20, "top_p": 0.95}
    silent = sorted({template.image_token, template.video_token, *range(template.size, language.vocabulary)})
    stops = {"eos_token_id": [end, pad], "pad_token_id": pad, "suppress_tokens": silent}
    files = {TOKENIZER_CONFIG: _json(tokenizer), GENERATION: _json(published | _read(given.get(GENERATION)) | stops)}
    if TOKENIZER_CONFIG in given and json.loads(files[TOKENIZER_CONFIG]) == _read(given[TOKENIZER_CONFIG]):
        files[TOKENIZER_CONFIG] = given[TOKENIZER_CONFIG]  # to the byte as it came
    return files


def _template(given: Mapping[str, bytes]) -> ChatTemplate | None:
    with suppress(Corrupt):
        return ChatTemplate.from_bytes(given[TOKENIZER]) if TOKENIZER in given else None
    return None


def _read(data: bytes | None) -> dict[str, Any]:
    """A JSON object; nothing where it is absent or none."""
    try:
        value = read_json(data or b"{}")
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}


def _json(value: Mapping[str, Any]) -> bytes:
    return json.dumps(value, sort_keys=True, ensure_ascii=False).encode("utf-8")
