"""A conversation with a model: what is shown and asked becomes a prompt, and the answer text while it comes.

Not here: the terminal (commands/chat.py), the template (chat.py), how tokens are drawn (generate.py).
"""

import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from kvtools.artifact import is_stream
from kvtools.artifact.files import open_source
from kvtools.artifact.stream_index import Index
from kvtools.errors import Corrupt, Missing
from kvtools.keye.checkpoint import weights as checkpoint
from kvtools.keye.data.chat_template import Chat
from kvtools.keye.data.media import Media, Unreadable
from kvtools.keye.data.packing import prompt
from kvtools.keye.model.generate import VisualCache, generate
from kvtools.keye.model.keye import Keye
from kvtools.train.loop import DTYPES
from kvtools.video.order import IMAGE_SUFFIXES
from kvtools.video.patch import Budget

_TORN = "\ufffd"  # what a letter is while some of its bytes are missing
_LONGEST_LETTER = 8  # tokens: no letter is in more pieces, so what is torn by then stays so


@dataclass(frozen=True)
class Manner:
    """How answers are drawn. The defaults are those published with Keye-VL (generation_config.json)."""

    temperature: float = 0.6
    top_k: int = 20
    top_p: float = 0.95
    max_new: int = 1024
    mode: str | None = None
    seed: int = 0


@dataclass(frozen=True)
class Said:
    """An answer: its text, tokens of it, of the prompt and of what was shown, and why it ended."""

    text: str
    n_tokens: int
    n_prompt: int
    n_visual: int
    seconds: float
    ended: Literal["stop", "length"]


class Talk:
    """A model, its words and its eyes; `ask` as often as you like. What was seen last is not looked at again."""

    def __init__(self, model: Keye, chat: Chat, media: Media, manner: Manner) -> None:
        self._model, self._chat, self._media, self._manner = model, chat, media, manner
        self._visual_cache = VisualCache(model)

    def ask(self, messages: Sequence[Mapping[str, Any]], name: str, hear: Callable[[str], None] | None = None) -> Said:
        """The answer to the last message. hear: told the text as it comes. name: of the question, which is part of its chance.

        Raises Unreadable for what cannot be shown, ValueError where the model is not sound.
        """
        model, chat, manner = self._model, self._chat, self._manner
        conversation = {"id": name, "mode": manner.mode, "messages": list(messages)}
        begun = time.perf_counter()
        asked = prompt(conversation, chat, self._media, tokens_per_second=model.config.tokens_per_second)
        text = Unrolled(chat)

        def on_token(_key: str, _number: int, token: int) -> None:
            if hear is not None and token not in chat.stop_tokens:
                hear(text.add(token))

        ((answer,),) = generate(
            model, [asked], max_new=manner.max_new, temperature=manner.temperature, top_k=manner.top_k, top_p=manner.top_p,
            stop_tokens=chat.stop_tokens, seed=manner.seed, never=range(chat.size, model.config.language.vocabulary),
            on_token=on_token, visual_cache=self._visual_cache,
        )  # fmt: skip
        if hear is not None:
            hear(text.rest())
        whole = chat.decode(answer.text_tokens, skip_control=True)
        n_visual = sum(visual.n_tokens for visual in asked.visuals)
        return Said(whole, len(answer.tokens), len(asked), n_visual, time.perf_counter() - begun, answer.ended)


class Unrolled:
    """Text that grows by tokens: gives out what is new once it is whole, since a letter may be in several tokens."""

    def __init__(self, chat: Chat) -> None:
        self._chat = chat
        self._tokens: list[int] = []
        self._begin = self._end = 0  # of the tokens that were given out last: what comes reads as it does after them

    def add(self, token: int) -> str:
        """The text that this token completes; it may be empty."""
        self._tokens.append(token)
        is_overdue = len(self._tokens) - self._end >= _LONGEST_LETTER
        new = self._new()
        return "" if new.endswith(_TORN) and not is_overdue else self._given(new)

    def rest(self) -> str:
        """What was held back; the answer is over."""
        return self._given(self._new())

    def _new(self) -> str:
        known = self._chat.decode(self._tokens[self._begin : self._end], skip_control=True)
        return self._chat.decode(self._tokens[self._begin :], skip_control=True)[len(known) :]

    def _given(self, new: str) -> str:
        self._begin, self._end = self._end, len(self._tokens)
        return new


def open_model(src: str, tokenizer: str | None, *, device: str, dtype: str) -> tuple[Keye, Chat]:
    """The model of a bag or of a Hugging Face directory, and its tokenizer or another.

    Raises Missing for what is not there; Corrupt for damage, for what is no whole Keye-VL, and for a tokenizer that is not its.
    """
    weights = checkpoint.open_weights(src)
    arch = weights.format.config
    if arch is None:
        raise Corrupt(f"{src}: a {weights.format.layout} found, which cannot answer; a whole Keye-VL expected.")
    chat = Chat.open(tokenizer) if tokenizer is not None else Chat.of_model(src, weights.files)
    if chat is None:
        raise Corrupt(f"{src}: no tokenizer in it. Give the one it was trained with: --tokenizer FILE.")
    chat.require_fits(arch.language.vocabulary, arch.image_token, arch.video_token)
    model = checkpoint.build(weights, dtype=DTYPES[dtype])
    assert isinstance(model, Keye), "its shapes say so"
    return model.to(device), chat


def show(names: Sequence[str], *, budget: Budget, fps: float, n_frames: int | None) -> tuple[Media, list[dict[str, Any]]]:
    """Where pictures and videos are, and what each name shows: a file, a folder of frames, or all records of a `video` stream.

    Raises Missing for what is not there, Unreadable for what cannot be shown.
    """
    streams: list[str] = []
    parts: list[dict[str, Any]] = []
    frames = {} if n_frames is None else {"frames": n_frames}
    for name in names:
        if not os.path.exists(name):
            raise Missing(f"{name}: no such file. Put the question in quotes, after the files.")
        if os.path.isfile(name) and _is_stream(name):
            keys = Index(open_source(name), name).keys
            streams.append(name)
            parts += [{"type": "video", "video": key, **frames} for key in keys]
        elif Path(name).suffix.lower() in IMAGE_SUFFIXES:
            parts.append({"type": "image", "image": name})
        else:
            parts.append({"type": "video", "video": name, **frames})
    media = Media(streams=streams, budget=budget, fps=fps)
    try:
        for part in parts:
            media.fetch(part)
    except Unreadable:
        media.close()
        raise
    return media, parts


def _is_stream(name: str) -> bool:
    with open_source(name) as file:
        return is_stream(file)
