"""What a model reads of a conversation: its chat template, tokens, pictures and videos, and positions, made in one place.

Training, `chat`, `answer` and packing use the same `Processor`, so that a model is asked with the inputs it was trained on.
Not here: the template (chat_template.py), where media come from (media.py), rows of several conversations (packing.py).
Legend: S tokens, V pictures and videos.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Self

import numpy as np

from kvtools.keye.data.chat_template import ChatTemplate, Conversation, visuals_of
from kvtools.keye.data.media import Media
from kvtools.keye.model.config import ModelConfig, VisionConfig
from kvtools.keye.model.inputs import Example, Visual
from kvtools.keye.model.positions import mrope_positions
from kvtools.video.patch import PATCH

_LEAST = 4  # pictures and videos keep this part of a row, one in 4, before the text is too long


def require_patch_size(vision: VisionConfig) -> None:
    """Raise ValueError for a tower whose patches are not of the size that pictures and videos are cut into."""
    if vision.patch != PATCH:
        raise ValueError(f"the model's patches have {vision.patch} pixels a side, and pictures are cut into patches of {PATCH}")


class Processor:
    """Turns conversations into examples for one model.

    media: where pictures and videos are; None for text alone. tokens_per_second: steps of the temporal position in a second.
    max_prompt: tokens of a prompt, of which its pictures and videos give way as in `example`.
    """

    def __init__(
        self, template: ChatTemplate, media: Media | None = None, *, tokens_per_second: int = 2, max_prompt: int | None = None
    ) -> None:
        self.template, self.media, self.tokens_per_second, self.max_prompt = template, media, tokens_per_second, max_prompt
        self.longest = 0  # prompt so far, in tokens

    @classmethod
    def for_model(
        cls, config: ModelConfig, template: ChatTemplate, media: Media | None = None, *, max_prompt: int | None = None
    ) -> Self:
        """The processor with the settings of a model."""
        return cls(template, media, tokens_per_second=config.tokens_per_second, max_prompt=max_prompt)

    def example(
        self, conversation: Conversation, *, key: str = "", max_tokens: int | None = None, truncates: bool = False
    ) -> Example:
        """The whole conversation, with targets where the assistant speaks.

        key: its name, by default its id. max_tokens: its pictures and videos give way, each in proportion, until it has no more
        tokens, or until they have a quarter of them. truncates: a conversation that is still longer loses its last messages
        until it fits and ends with an answer to learn; it stays as it is where that leaves no answer. Raises media.Unreadable
        for a picture or video that cannot be read, ValueError for a conversation that is not of the normal form
        (conversations.py).
        """
        encode = self.template.encode
        visuals = self._fetch(conversation, lambda counts: len(encode(conversation, counts)[0]), max_tokens)
        n_visual_tokens = [visual.n_tokens for visual in visuals]
        tokens, targets = encode(conversation, n_visual_tokens)
        if truncates and max_tokens is not None and len(tokens) > max_tokens:
            shortened = self._shortened(conversation, n_visual_tokens, max_tokens)
            if shortened is not None:
                return self.example(shortened, key=key, max_tokens=max_tokens)
        key = key or str(conversation.get("id", ""))
        return Example(key, tokens, targets, self.positions(tokens, visuals), visuals, conversation.get("as_is") is True)

    def prompt(self, conversation: Conversation, *, mode: str | None = None) -> Example:
        """The conversation up to where the assistant speaks next, without targets.

        mode: the mode of answering, by default the conversation's own. Raises as `example`.
        """
        encode = partial(self.template.prompt, conversation, mode=mode)
        visuals = self._fetch(conversation, lambda counts: len(encode(counts)), self.max_prompt)
        tokens = encode([visual.n_tokens for visual in visuals])
        self.longest = max(self.longest, len(tokens))
        targets = np.zeros(len(tokens), np.uint8)
        return Example(str(conversation.get("id", "")), tokens, targets, self.positions(tokens, visuals), visuals)

    def output(self, parts: Sequence[Mapping[str, Any]]) -> tuple[np.ndarray, np.ndarray, tuple[Visual, ...]]:
        """What the sandbox says within an answer: tokens int32 (S,), positions int32 (3, S) from 0 on, and its pictures.

        parts: texts and pictures, as in a message. Raises as `example`.
        """
        visuals = self._fetch({"messages": [{"role": "assistant", "content": parts}]})
        tokens = self.template.encode_output(parts, [visual.n_tokens for visual in visuals])
        return tokens, self.positions(tokens, visuals), visuals

    def _fetch(
        self, conversation: Conversation, length: Callable[[Sequence[int]], int] = sum, max_tokens: int | None = None
    ) -> tuple[Visual, ...]:
        """What a conversation shows. length: of the conversation with so many visual tokens. max_tokens: of all of it; where it
        is longer, each picture and video gives way in proportion to what it has alone."""
        items = visuals_of(conversation)
        if not items:
            return ()
        if self.media is None:
            raise ValueError(f"it has {len(items)} pictures and videos, and no media were given to find them in")
        visuals = tuple(map(self.media.fetch, items))
        counts = [visual.n_tokens for visual in visuals]
        if max_tokens is None or (n_tokens := length(counts)) <= max_tokens:
            return visuals
        room = max(max_tokens - (n_tokens - sum(counts)), max_tokens // _LEAST)
        shares = [max(1, min(n, room * n // sum(counts))) for n in counts]
        return tuple(self.media.fetch(item, max_tokens=share) for item, share in zip(items, shares, strict=True))

    def positions(self, tokens_S: np.ndarray, visuals: Sequence[Visual] = ()) -> np.ndarray:
        """The positions of the tokens of a conversation with these pictures and videos, int32 (3, S)."""
        return mrope_positions(
            tokens_S, self.template.image_token, self.template.video_token, [visual.grid.tolist() for visual in visuals],
            [visual.seconds for visual in visuals], tokens_per_second=self.tokens_per_second,
        )  # fmt: skip

    def _shortened(self, conversation: Conversation, n_visual_tokens: Sequence[int], max_tokens: int) -> Conversation | None:
        messages = list(conversation["messages"])
        answers = (n for n, message in enumerate(messages) if message["role"] == "assistant" and message.get("loss", True))
        for last in sorted(answers, reverse=True):
            shorter = {**conversation, "messages": messages[: last + 1]}
            if len(self.template.encode(shorter, n_visual_tokens[: len(visuals_of(shorter))])[0]) <= max_tokens:
                return shorter
        return None
