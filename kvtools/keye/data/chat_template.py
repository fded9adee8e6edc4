"""Conversations as tokens: ChatML turns as Keye-VL was trained on them, and which tokens a model learns to say.

What people write never becomes a control token. Marks of speech (`<think>`, `<tool_call>`) become tokens in the assistant's
words only, marks of grounding (boxes, points) in anybody's. Template of the Keye-VL-8B-Preview repository
(chat_template.json, tokenizer_config.json): a system message that is implied, a turn each message, `<|vision_start|>` pads
`<|vision_end|>` where a picture or a video stands; modes are words at the end of the last question, as its model card tells.

Not here: what pictures hold (media.py), where tokens stand (rope.py), other people's forms of conversations
(conversations.py).
"""

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from kvtools.errors import Corrupt
from kvtools.keye.data.tokenizer import CONTROL, FILE, GROUNDING, SPEECH, Tokenizer

Conversation = Mapping[str, Any]

SYSTEM = "You are a helpful assistant."
MODES: dict[str | None, str] = {
    None: "", "auto": "", "think": "/think", "no_think": "/no_think", "auto_think": "/auto_think",
    "agentic": "/agentic_think",
}  # fmt: skip
ROLES = ("system", "user", "assistant", "tool")

# the same for others, in the language of their templates, with one pad for each picture or video, as they have it
JINJA = "".join(
    line.strip()
    for line in r"""
    {%- if messages[0].role != 'system' %}{{ '<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n' }}{% endif %}
    {%- for message in messages %}
    {%- set is_tool = message.role == 'tool' %}
    {%- if is_tool and not loop.first and messages[loop.index0 - 1].role == 'tool' %}{{ '\n' }}
    {%- else %}{{ '<|im_start|>' + ('user' if is_tool else message.role) + '\n' }}{% endif %}
    {%- if is_tool %}{{ '<tool_response>\n' }}{% endif %}
    {%- if message.content is string %}{{ message.content }}
    {%- else %}{% for part in message.content %}
    {%- if part.type == 'text' %}{{ part.text }}
    {%- else %}{{ '<|vision_start|><|' + part.type + '_pad|><|vision_end|>' }}{% endif %}
    {%- endfor %}{% endif %}
    {%- if is_tool %}{{ '\n</tool_response>' }}{% endif %}
    {%- if not is_tool or loop.last or messages[loop.index0 + 1].role != 'tool' %}{{ '<|im_end|>\n' }}{% endif %}
    {%- endfor %}
    {%- if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}
    """.splitlines()
)


@dataclass(frozen=True)
class _Piece:
    """A special token, or plain text in which only `marks` are tokens."""

    text: str
    is_special: bool = False
    is_target: bool = False
    marks: tuple[str, ...] = GROUNDING


class Chat:
    """A tokenizer and the template; `Chat.open` or `Chat.from_bytes` makes one."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer
        self.size = tokenizer.size
        self.image_token, self.video_token = (tokenizer.ids[f"<|{what}_pad|>"] for what in ("image", "video"))
        self.stop_tokens = tokenizer.ids["<|im_end|>"], tokenizer.ids["<|endoftext|>"]

    @staticmethod
    def open(src: str | None) -> "Chat":
        """By a tokenizer.json, a folder with one or with vocab.json and merges.txt, or, with None, the bytes themselves.

        Raises Missing where there is none, Corrupt where it cannot be understood.
        """
        return Chat(Tokenizer.open(src))

    @staticmethod
    def from_bytes(data: bytes, name: str = "tokenizer.json") -> "Chat":
        """By the bytes of a tokenizer.json, such as a model carries."""
        return Chat(Tokenizer.from_bytes(data, name))

    @staticmethod
    def of_model(src: str, files: Mapping[str, bytes]) -> "Chat | None":
        """By what a model's bag or directory src carries, whose small files these are; None where it has no tokenizer."""
        if FILE in files:
            return Chat.from_bytes(files[FILE], f"{src}: {FILE}")
        return Chat.open(src) if os.path.exists(os.path.join(src, "vocab.json")) else None

    def to_bytes(self) -> bytes:
        """A tokenizer.json that holds all the tokens; the same bytes every time."""
        return self.tokenizer.to_bytes()

    def decode(self, ids: Sequence[int] | np.ndarray, *, skip_control: bool = False) -> str:
        """The text of tokens; skip_control leaves out turns, pads and stops."""
        return self.tokenizer.decode(ids, skip_control=skip_control)

    def require_fits(self, vocabulary: int, image_token: int, video_token: int) -> None:
        """Raise Corrupt unless a model of so many tokens, with pictures at these numbers, can have learnt by this tokenizer."""
        remedy = "Give the tokenizer that the model was trained with."
        if self.size > vocabulary:
            raise Corrupt(
                f"{self.tokenizer.name}: {self.size} tokens found, at most the model's {vocabulary} expected. {remedy}"
            )
        if (self.image_token, self.video_token) != (image_token, video_token):
            raise Corrupt(
                f"{self.tokenizer.name}: <|image_pad|> and <|video_pad|> at {self.image_token} and {self.video_token} found, "
                f"the model's {image_token} and {video_token} expected. {remedy}"
            )

    def encode(self, conversation: Conversation, n_visual_tokens: Sequence[int] = ()) -> tuple[np.ndarray, np.ndarray]:
        """Tokens int32 (S,), and uint8 (S,) 1 where the token is the assistant's to say: its words and the end of its turn.

        n_visual_tokens: how many each picture or video has, in the order in which they stand. Raises ValueError where these
        are more or fewer than the conversation has, or a message is not of the normal form.
        """
        return self._encode(_turns(conversation, n_visual_tokens))

    def prompt(self, conversation: Conversation, n_visual_tokens: Sequence[int] = (), *, mode: str | None = None) -> np.ndarray:
        """Tokens int32 (S,) after which the assistant speaks; an answer that the conversation ends with is left out.

        mode: in place of the conversation's own. These are the tokens that `encode` puts before that answer.
        """
        asked = unanswered(conversation)
        if mode is not None:
            asked = {**asked, "mode": mode}
        opening = [_Piece("<|im_start|>", is_special=True), _Piece("assistant\n")]
        return self._encode([*_turns(asked, n_visual_tokens), *opening])[0]

    def _encode(self, pieces: Sequence[_Piece]) -> tuple[np.ndarray, np.ndarray]:
        tokens: list[int] = []
        targets: list[int] = []
        for piece in _joined(pieces):
            given = self.tokenizer.ids[piece.text] if piece.is_special else None
            ids = [given] if given is not None else self.tokenizer.encode(piece.text, piece.marks)
            tokens += ids
            targets += [int(piece.is_target)] * len(ids)
        return np.array(tokens, np.int32), np.array(targets, np.uint8)


def visuals(conversation: Conversation) -> list[Mapping[str, Any]]:
    """The pictures and videos of a conversation, in the order in which they stand."""
    return [part for message in conversation["messages"] for part in _parts(message) if part["type"] != "text"]


def unanswered(conversation: Conversation) -> Conversation:
    """The conversation without the assistant's answer that it ends with, if it does."""
    messages = list(conversation["messages"])
    if messages and messages[-1]["role"] == "assistant":
        messages.pop()
    return {**conversation, "messages": messages}


def _turns(conversation: Conversation, n_visual_tokens: Sequence[int]) -> list[_Piece]:
    messages, mode = conversation["messages"], conversation.get("mode")
    if mode not in MODES:
        raise ValueError(f"mode {mode!r} found, one of {', '.join(map(str, MODES))} expected")
    n_found = len(visuals(conversation))
    if n_found != len(n_visual_tokens):
        raise ValueError(f"{n_found} pictures and videos found, {len(n_visual_tokens)} expected")
    counts = iter(n_visual_tokens)
    last_asked = max((n for n, message in enumerate(messages) if message["role"] == "user"), default=-1)
    pieces = [] if messages and messages[0]["role"] == "system" else _turn("system", [_Piece(SYSTEM)])
    is_in_tools = False
    for number, message in enumerate(messages):
        role = message["role"]
        if role not in ROLES:
            raise ValueError(f"role {role!r} found, one of {', '.join(ROLES)} expected")
        content = list(_content(message, counts))
        if number == last_asked and MODES[mode]:
            content.append(_Piece(MODES[mode]))
        if role == "tool":
            # as Qwen3's template has it: answers of tools are the user's to bring, those in a row in one turn
            follows = number + 1 < len(messages) and messages[number + 1]["role"] == "tool"
            pieces += [_Piece("\n")] if is_in_tools else [_special("<|im_start|>"), _Piece("user\n")]
            pieces += [_special("<tool_response>"), _Piece("\n"), *content, _Piece("\n"), _special("</tool_response>")]
            pieces += [] if follows else [_special("<|im_end|>"), _Piece("\n")]
            is_in_tools = follows
        else:
            pieces += _turn(role, content, is_target=role == "assistant" and message.get("loss", True))
    return pieces


def _turn(role: str, content: Sequence[_Piece], *, is_target: bool = False) -> list[_Piece]:
    said = [replace(piece, is_target=is_target and piece.text not in CONTROL) for piece in content]
    end = replace(_special("<|im_end|>"), is_target=is_target)
    return [_special("<|im_start|>"), _Piece(f"{role}\n"), *said, end, _Piece("\n")]


def _content(message: Mapping[str, Any], counts: Iterator[int]) -> Iterator[_Piece]:
    marks = (*SPEECH, *GROUNDING) if message["role"] == "assistant" else GROUNDING
    for part in _parts(message):
        if part["type"] == "text":
            yield _Piece(part["text"], marks=marks)
        elif part["type"] in ("image", "video"):
            pads = [_special(f"<|{part['type']}_pad|>")] * next(counts)
            yield from [_special("<|vision_start|>"), *pads, _special("<|vision_end|>")]
        else:
            raise ValueError(f"content of type {part['type']!r} found, text, image or video expected")


def _parts(message: Mapping[str, Any]) -> Sequence[Mapping[str, Any]]:
    content = message["content"]
    return [{"type": "text", "text": content}] if isinstance(content, str) else content


def _special(word: str) -> _Piece:
    return _Piece(word, is_special=True)


def _joined(pieces: Sequence[_Piece]) -> Iterator[_Piece]:
    """The same, plain texts that follow one another made one, since letters pair across them; never the assistant's words
    with what comes before, so that a prompt is what comes before them."""
    held: _Piece | None = None
    for piece in pieces:
        if held is not None and not piece.is_special and (piece.is_target, piece.marks) == (held.is_target, held.marks):
            held = replace(held, text=held.text + piece.text)
            continue
        if held is not None:
            yield held
        held = None if piece.is_special else piece
        if piece.is_special:
            yield piece
    if held is not None:
        yield held
