"""What a model reads of a conversation: its chat template, tokens, pictures and videos, and positions, made in one place.

Training, `chat`, `answer` and packing use the same `Processor`, so that a model is asked with the inputs it was trained on.
Not here: the template (chat_template.py), where media come from (media.py), rows of several conversations (packing.py).
Legend: S tokens, V pictures and videos.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Self

import numpy as np

from kvtools.keye.data.chat_template import ChatTemplate, Conversation, visuals_of
from kvtools.keye.data.media import Media
from kvtools.keye.model.config import ModelConfig, VisionConfig
from kvtools.keye.model.inputs import Example, Visual
from kvtools.keye.model.positions import mrope_positions
from kvtools.video.patch import PATCH


def require_patch_size(vision: VisionConfig) -> None:
    """Raise ValueError for a tower whose patches are not of the size that pictures and videos are cut into."""
    if vision.patch != PATCH:
        raise ValueError(f"the model's patches have {vision.patch} pixels a side, and pictures are cut into patches of {PATCH}")


class Processor:
    """Turns conversations into examples for one model.

    media: where pictures and videos are; None for text alone. tokens_per_second: steps of the temporal position in a second.
    """

    def __init__(self, template: ChatTemplate, media: Media | None = None, *, tokens_per_second: int = 2) -> None:
        self.template, self.media, self.tokens_per_second = template, media, tokens_per_second

    @classmethod
    def for_model(cls, config: ModelConfig, template: ChatTemplate, media: Media | None = None) -> Self:
        """The processor with the settings of a model."""
        return cls(template, media, tokens_per_second=config.tokens_per_second)

    def example(self, conversation: Conversation, *, key: str = "", max_tokens: int | None = None) -> Example:
        """The whole conversation, with targets where the assistant speaks.

        key: its name, by default its id. max_tokens: a longer conversation loses its last messages until it fits and ends with
        an answer to learn; it stays as it is where that leaves no answer. Raises media.Unreadable for a picture or video that
        cannot be read, ValueError for a conversation that is not of the normal form (conversations.py).
        """
        visuals = self._fetch(conversation)
        n_visual_tokens = [visual.n_tokens for visual in visuals]
        tokens, targets = self.template.encode(conversation, n_visual_tokens)
        if max_tokens is not None and len(tokens) > max_tokens:
            shortened = self._shortened(conversation, n_visual_tokens, max_tokens)
            if shortened is not None:
                return self.example(shortened, key=key)
        key = key or str(conversation.get("id", ""))
        return Example(key, tokens, targets, self.positions(tokens, visuals), visuals, conversation.get("as_is") is True)

    def prompt(self, conversation: Conversation, *, mode: str | None = None) -> Example:
        """The conversation up to where the assistant speaks next, without targets.

        mode: the mode of answering, by default the conversation's own. Raises as `example`.
        """
        visuals = self._fetch(conversation)
        tokens = self.template.prompt(conversation, [visual.n_tokens for visual in visuals], mode=mode)
        targets = np.zeros(len(tokens), np.uint8)
        return Example(str(conversation.get("id", "")), tokens, targets, self.positions(tokens, visuals), visuals)

    def output(self, parts: Sequence[Mapping[str, Any]]) -> tuple[np.ndarray, np.ndarray, tuple[Visual, ...]]:
        """What the sandbox says within an answer: tokens int32 (S,), positions int32 (3, S) from 0 on, and its pictures.

        parts: texts and pictures, as in a message. Raises as `example`.
        """
        visuals = self._fetch({"messages": [{"role": "assistant", "content": parts}]})
        tokens = self.template.encode_output(parts, [visual.n_tokens for visual in visuals])
        return tokens, self.positions(tokens, visuals), visuals

    def _fetch(self, conversation: Conversation) -> tuple[Visual, ...]:
        items = visuals_of(conversation)
        if not items:
            return ()
        if self.media is None:
            raise ValueError(f"it has {len(items)} pictures and videos, and no media were given to find them in")
        return tuple(map(self.media.fetch, items))

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
