"""What a model was trained with: tokens of a picture, of a frame and of a clip, and of a row, which it carries with it.

A model beyond its limits sees pictures and positions that it never learnt. So `chat` and `answer` ask it within them, and say
so where they are told to go beyond. Models of others bring the limits of their preprocessor_config.json.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from kvtools.video.patch import PIXELS_A_TOKEN, Budget

if TYPE_CHECKING:
    from kvtools.keye.checkpoint.weights import Weights

FIELD = "limits"  # of the model's artifact
_PREPROCESSOR, _PROCESSOR = "preprocessor_config.json", "processor_config.json"


@dataclass(frozen=True)
class Limits:
    """picture: fewest and most tokens of one. frame: likewise, of a video's frame. clip: most tokens of a video. row: most
    tokens of a conversation; None where it is not known. The defaults are those published with Keye-VL."""

    picture: tuple[int, int] = (4, 16_384)
    frame: tuple[int, int] = (Budget.min_frame_tokens, Budget.max_frame_tokens)
    clip: int = Budget.max_tokens
    row: int | None = None

    @property
    def budget(self) -> Budget:
        """Of a clip."""
        return Budget(self.clip, *self.frame)

    @staticmethod
    def of_row(budget: Budget, row: int) -> "Limits":
        """The limits of a training on rows of so many tokens, with this budget for a clip, which no picture exceeds either."""
        fewest, most = (min(n, budget.max_tokens) for n in Limits.picture)
        return Limits((fewest, most), (budget.min_frame_tokens, budget.max_frame_tokens), budget.max_tokens, row)

    @staticmethod
    def of_model(weights: "Weights") -> "Limits":
        """The limits that a model carries, or else its preprocessor_config.json has, or else the published ones."""
        carried = weights.fields.get(FIELD)
        if isinstance(carried, dict):
            fields: dict[str, Any] = {name: tuple(x) if isinstance(x, list) else x for name, x in carried.items()}
            return Limits(**fields)
        try:
            said = _image_processor(weights.files)
            fewest, most = (max(1, int(said[name]) // PIXELS_A_TOKEN) for name in ("min_pixels", "max_pixels"))
            low, high = map(int, said.get("frame_tokens", Limits.frame))
            row = said.get("max_prompt_tokens")
            clip = int(said.get("max_video_tokens", Limits.clip))
            return Limits((min(fewest, most), most), (low, high), clip, None if row is None else int(row))
        except (ValueError, KeyError, TypeError):
            return Limits()

    def to_json(self) -> dict[str, Any]:
        """The fields, as the model's artifact holds them."""
        return {name: list(x) if isinstance(x, tuple) else x for name, x in asdict(self).items()}

    def narrowed(self, clip: int | None, frame: tuple[int, int] | None, log: Callable[[str], None]) -> "Limits":
        """The limits with those that a user asks for in their place. log: told where they are wider than the model's."""
        asked = {"--max-tokens": (clip, self.clip), "--frame-tokens": (frame and frame[1], self.frame[1])}
        for option, (wanted, known) in asked.items():
            if wanted is not None and wanted > known and self.row is not None:
                log(f"{option} {wanted} goes beyond the {known} tokens that the model was trained with.")
        return Limits(self.picture, frame or self.frame, clip or self.clip, None if clip and clip > self.clip else self.row)


def _image_processor(files: Mapping[str, bytes]) -> dict[str, Any]:
    """The settings of the image processor of a directory: in a file of their own, or, as transformers 5 saves them, in one
    with those of the whole processor."""
    if _PREPROCESSOR in files:
        found: dict[str, Any] = json.loads(files[_PREPROCESSOR])
        return found
    return json.loads(files.get(_PROCESSOR, b"{}"))["image_processor"]  # type: ignore[no-any-return]


def tell_long_prompt(n_tokens: int, limits: Limits, positions: int, log: Callable[[str], None]) -> None:
    """Log where a prompt is longer than the model's positions, or than the rows that it was trained on, with both numbers."""
    if n_tokens > positions:
        log(f"the longest prompt has {n_tokens} tokens, and the model {positions} positions. Answers to it may make no sense.")
    elif limits.row is not None and n_tokens > limits.row:
        log(f"the longest prompt has {n_tokens} tokens, and the model was trained on at most {limits.row}.")


def carried(fields: Mapping[str, Any]) -> dict[str, Any]:
    """The limits among the fields of a model, for a model that is made from it."""
    return {FIELD: fields[FIELD]} if FIELD in fields else {}
