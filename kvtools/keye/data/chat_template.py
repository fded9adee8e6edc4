"""The chat template: a conversation as ChatML tokens, as Keye-VL was trained on them, and which tokens a model learns to say.

Text that people write never becomes a control token. The markers `<think>` and `<tool_call>` become tokens only in the
assistant's text, the markers of grounding (boxes, points) in any text. The template is that of the Keye-VL-8B-Preview
repository (chat_template.json, tokenizer_config.json): an implied system message, a turn for each message, and
`<|vision_start|>` pads `<|vision_end|>` for a picture or a video. A mode is a word after the last question, as the model
card says.

Not here: what pictures hold (media.py), positions (model/positions.py), other layouts of conversations (conversations.py).
Legend: S tokens.
"""

import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from itertools import accumulate, groupby, pairwise
from typing import Any, NamedTuple

import numpy as np

from kvtools.errors import Corrupt
from kvtools.keye.data.tokenizer import CONTROL, FILE, GROUNDING, SPEECH, Tokenizer

Conversation = Mapping[str, Any]

SYSTEM = "You are a helpful assistant."
MODES: dict[str | None, str] = {
    None: "", "auto": "", "think": "/think", "no_think": "/no_think", "auto_think": "/auto_think",
    "agentic": "/agentic_think", "video": "",
}  # fmt: skip
ROLES = ("system", "user", "assistant", "tool")

_PICTURE = "\ufffc"  # stands for a picture or a video among the texts of a message
_OUTPUT = re.compile(r"</code>(?P<output>\s*<sandbox_output>.*?</sandbox_output>)", re.DOTALL)

TOOLS = (
    "# Tools\n\nYou may call one or more functions to assist with the user query.\n\nYou are provided with function "
    "signatures within <tools></tools> XML tags:\n<tools>\n{}\n</tools>\n\nFor each function call, return a json object with "
    "function name and arguments within <tool_call></tool_call> XML tags:\n<tool_call>\n"
    '{{"name": <function-name>, "arguments": <args-json-object>}}\n</tool_call>'
)  # for str.format with the tools, a line each; as in Qwen3's template

# the template in Jinja, for other programs, with one pad for each picture or video, as they have it; it renders tools, their
# calls and answers, and thoughts to the letters that conversations.py makes of them
JINJA = "".join(
    line.strip()
    for line in r"""
    {%- macro pad(kind) %}{{ '<|vision_start|><|' + kind + '_pad|><|vision_end|>' }}{% endmacro %}
    {%- macro render(content) %}
    {%- if content is string %}{{ content }}
    {%- else %}{% for part in content or [] %}
    {%- if part is string %}{{ part }}
    {%- elif 'image' in part.type %}{{ pad('image') }}
    {%- elif 'video' in part.type %}{{ pad('video') }}
    {%- else %}{{ part.text }}{% endif %}
    {%- endfor %}{% endif %}
    {%- endmacro %}
    {%- macro call(function) %}{{ '<tool_call>\n{' }}
    {%- for name, value in function.items() %}
    {{- ('' if loop.first else ', ') + name | tojson + ': ' }}
    {{- (value or '{}') if name == 'arguments' and value is string else value | tojson }}
    {%- endfor %}{{ '}\n</tool_call>' }}{% endmacro %}
    {%- set has_system = messages[0].role in ['system', 'developer'] %}
    {%- if tools %}
    {{- '<|im_start|>system\n' + (render(messages[0].content) + '\n\n' if has_system else '') + TOOLS_BEFORE }}
    {%- for tool in tools %}{{ ('' if loop.first else '\n') + tool | tojson }}{% endfor %}
    {{- TOOLS_AFTER + '<|im_end|>\n' }}
    {%- elif not has_system %}{{ '<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n' }}{% endif %}
    {%- for message in messages %}
    {%- set is_tool = message.role == 'tool' %}
    {%- if tools and loop.first and has_system %}
    {%- else %}
    {%- if is_tool and not loop.first and messages[loop.index0 - 1].role == 'tool' %}{{ '\n' }}
    {%- else %}{{ '<|im_start|>' + {'tool': 'user', 'developer': 'system'}.get(message.role, message.role) + '\n' }}{% endif %}
    {%- if is_tool %}{{ '<tool_response>\n' }}{% endif %}
    {%- if message.reasoning_content %}{{ '<think>\n' + message.reasoning_content + '\n</think>\n\n' }}{% endif %}
    {{- render(message.content) }}
    {%- for each in message.tool_calls or [] %}{{ call(each.function or each) }}{% endfor %}
    {%- if is_tool %}{{ '\n</tool_response>' }}{% endif %}
    {%- if not is_tool or loop.last or messages[loop.index0 + 1].role != 'tool' %}{{ '<|im_end|>\n' }}{% endif %}
    {%- endif %}
    {%- endfor %}
    {%- if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}
    """.splitlines()
)
for _name, _text in zip(("TOOLS_BEFORE", "TOOLS_AFTER"), TOOLS.format("\0").split("\0"), strict=True):
    JINJA = JINJA.replace(_name, json.dumps(_text))


class _Piece(NamedTuple):
    """A special token, or plain text in which only `marks` are tokens."""

    text: str
    is_special: bool = False
    is_target: bool = False
    marks: tuple[str, ...] = GROUNDING
    is_read: bool = False  # in the assistant's turn, and not said by it


class ChatTemplate:
    """A tokenizer with the template. `stop_tokens` end an answer; `size` counts the token ids."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer
        self.size = tokenizer.size
        self.image_token, self.video_token = (tokenizer.ids[f"<|{kind}_pad|>"] for kind in ("image", "video"))
        self.stop_tokens = tokenizer.ids["<|im_end|>"], tokenizer.ids["<|endoftext|>"]

    @staticmethod
    def open(src: str | None) -> "ChatTemplate":
        """The template with the tokenizer of Tokenizer.open; None: tokens are bytes. Raises as that does."""
        return ChatTemplate(Tokenizer.open(src))

    @staticmethod
    def from_bytes(data: bytes, name: str = FILE) -> "ChatTemplate":
        """The template with the tokenizer of these bytes, such as a model carries. Raises Corrupt for other bytes."""
        return ChatTemplate(Tokenizer.from_bytes(data, name))

    @staticmethod
    def of_model(src: str, files: Mapping[str, bytes]) -> "ChatTemplate":
        """The template with the tokenizer of the model src, a bag or a directory with these small files.

        Raises Corrupt where the model has none.
        """
        if FILE in files:
            return ChatTemplate(Tokenizer.from_bytes(files[FILE], f"{src}: {FILE}", files))
        if os.path.exists(os.path.join(src, "vocab.json")):
            return ChatTemplate.open(src)
        raise Corrupt(f"{src}: this model has no tokenizer. Give the one it was trained with: --tokenizer FILE.")

    def to_bytes(self) -> bytes:
        """A tokenizer.json that holds all the tokens; the same bytes every time."""
        return self.tokenizer.to_bytes()

    def decode(self, ids: Sequence[int] | np.ndarray, *, skip_control: bool = False) -> str:
        """The text of tokens (S,); skip_control leaves out control tokens, such as those of turns, pads and stops."""
        return self.tokenizer.decode(ids, skip_control=skip_control)

    def require_fits(self, vocabulary: int, image_token: int, video_token: int) -> None:
        """Raise Corrupt unless a model with so many token ids and these visual tokens can be trained with this tokenizer."""
        remedy = "Give the tokenizer that the model was trained with."
        name, mine, its = self.tokenizer.name, (self.image_token, self.video_token), (image_token, video_token)
        if self.size > vocabulary:
            raise Corrupt(f"{name}: this tokenizer has {self.size} tokens, and the model only {vocabulary}. {remedy}")
        if mine != its:
            raise Corrupt(
                f"{name}: <|image_pad|> and <|video_pad|> are tokens {mine[0]} and {mine[1]} here, and {its[0]} and {its[1]} "
                f"in the model. {remedy}"
            )

    def encode(self, conversation: Conversation, n_visual_tokens: Sequence[int] = ()) -> tuple[np.ndarray, np.ndarray]:
        """Tokens int32 (S,), and targets uint8 (S,): 1 for the assistant's text and the end of its turn, else 0.

        n_visual_tokens: visual tokens of each picture or video, in order. Raises ValueError where there are more or fewer of
        them than the conversation has, or where a message is not of the normal form (conversations.py).
        """
        return self._encode(_pieces(conversation, n_visual_tokens))

    def prompt(self, conversation: Conversation, n_visual_tokens: Sequence[int] = (), *, mode: str | None = None) -> np.ndarray:
        """Tokens int32 (S,) after which the assistant speaks: those that `encode` puts before an answer at the end.

        mode: used in place of the conversation's own. Raises ValueError as `encode`.
        """
        unanswered = without_answer(conversation)
        if mode is not None:
            unanswered = {**unanswered, "mode": mode}
        return self._encode([*_pieces(unanswered, n_visual_tokens), _special("<|im_start|>"), _Piece("assistant\n")])[0]

    def encode_output(self, parts: Sequence[Mapping[str, Any]], n_visual_tokens: Sequence[int] = ()) -> np.ndarray:
        """Tokens int32 (S,) of what the sandbox says after `</code>`, as `encode` has them. parts: texts and pictures."""
        begin, end = ({"type": "text", "text": text} for text in ("\n<sandbox_output>", "</sandbox_output>"))
        message = {"role": "user", "content": [begin, *parts, end]}
        return self._encode(list(_content(message, iter(n_visual_tokens))))[0]

    def _encode(self, pieces: Sequence[_Piece]) -> tuple[np.ndarray, np.ndarray]:
        tokens: list[int] = []
        targets: list[int] = []
        for piece in _merged(pieces):
            ids = [self.tokenizer.ids[piece.text]] if piece.is_special else self.tokenizer.encode(piece.text, piece.marks)
            tokens += ids
            targets += [int(piece.is_target)] * len(ids)
        return np.array(tokens, np.int32), np.array(targets, np.uint8)


def visuals_of(conversation: Conversation) -> list[Mapping[str, Any]]:
    """The pictures and videos of a conversation, in order."""
    return [part for message in conversation["messages"] for part in _parts(message) if part["type"] != "text"]


def without_answer(conversation: Conversation) -> Conversation:
    """The conversation without the assistant's message at its end, if it has one."""
    messages = list(conversation["messages"])
    if messages and messages[-1]["role"] == "assistant":
        messages.pop()
    return {**conversation, "messages": messages}


def _pieces(conversation: Conversation, n_visual_tokens: Sequence[int]) -> list[_Piece]:
    messages, mode = conversation["messages"], conversation.get("mode")
    if mode not in MODES:
        raise ValueError(f"mode is {mode!r}, and must be one of {', '.join(map(str, MODES))}")
    n_visuals = len(visuals_of(conversation))
    if n_visuals != len(n_visual_tokens):
        raise ValueError(f"{n_visuals} pictures and videos in the messages, and {len(n_visual_tokens)} were read")
    counts = iter(n_visual_tokens)
    last_question = max((n for n, message in enumerate(messages) if message["role"] == "user"), default=-1)
    pieces = [] if messages and messages[0]["role"] == "system" else _turn("system", [_Piece(SYSTEM)])
    for number, message in enumerate(messages):
        role = message["role"]
        if role not in ROLES:
            raise ValueError(f"role is {role!r}, and must be one of {', '.join(ROLES)}")
        content = list(_content(message, counts))
        if number == last_question and MODES[mode]:
            content.append(_Piece(MODES[mode]))
        if role == "tool":
            is_first, is_last = (
                not 0 <= neighbour < len(messages) or messages[neighbour]["role"] != "tool"
                for neighbour in (number - 1, number + 1)
            )
            pieces += _tool_response(content, is_first=is_first, is_last=is_last)
        else:
            pieces += _turn(role, content, is_target=role == "assistant" and message.get("loss", True))
    return pieces


def _turn(role: str, content: Sequence[_Piece], *, is_target: bool = False) -> list[_Piece]:
    text = [piece._replace(is_target=is_target and not piece.is_read and not _is_control(piece)) for piece in content]
    end = _special("<|im_end|>")._replace(is_target=is_target)
    return [_special("<|im_start|>"), _Piece(f"{role}\n"), *text, end, _Piece("\n")]


def _is_control(piece: _Piece) -> bool:
    return piece.is_special and piece.text in CONTROL


def _tool_response(content: Sequence[_Piece], *, is_first: bool, is_last: bool) -> list[_Piece]:
    # as in Qwen3's template: a tool's answer is a turn of the user, and neighbouring answers share one turn
    begin = [_special("<|im_start|>"), _Piece("user\n")] if is_first else [_Piece("\n")]
    end = [_special("<|im_end|>"), _Piece("\n")] if is_last else []
    return [*begin, _special("<tool_response>"), _Piece("\n"), *content, _Piece("\n"), _special("</tool_response>"), *end]


def _content(message: Mapping[str, Any], counts: Iterator[int]) -> Iterator[_Piece]:
    marks = (*SPEECH, *GROUNDING) if message["role"] == "assistant" else GROUNDING
    parts = _parts(message)
    for part in _split_outputs(parts) if message["role"] == "assistant" else parts:
        if part["type"] == "text":
            is_read = part.get("is_read", False)
            yield _Piece(part["text"], marks=GROUNDING if is_read else marks, is_read=is_read)
        elif part["type"] in ("image", "video"):
            pads = [_special(f"<|{part['type']}_pad|>")] * next(counts)
            yield from [_special("<|vision_start|>"), *pads, _special("<|vision_end|>")]
        else:
            raise ValueError(f"content is of type {part['type']!r}, and must be text, image or video")


def _split_outputs(parts: Sequence[Mapping[str, Any]]) -> Iterator[Mapping[str, Any]]:
    """The parts of an assistant's message, with what the sandbox said in parts of its own: a model reads it, never says it."""
    texts = [part["text"] if part["type"] == "text" else _PICTURE for part in parts]
    ends = [0, *accumulate(map(len, texts))]
    cuts = {border for match in _OUTPUT.finditer("".join(texts)) for border in match.span("output")}
    is_read = False
    for part, text, begin, end in zip(parts, texts, ends, ends[1:], strict=False):
        borders = [begin, *sorted(cut for cut in cuts if begin <= cut < end), end]
        for first, last in pairwise(borders):
            is_read ^= first in cuts
            cuts.discard(first)
            if part["type"] != "text":
                yield part
            elif last > first:
                yield {"type": "text", "text": text[first - begin : last - begin], "is_read": is_read}


def _parts(message: Mapping[str, Any]) -> Sequence[Mapping[str, Any]]:
    content = message["content"]
    return [{"type": "text", "text": content}] if isinstance(content, str) else content


def _special(word: str) -> _Piece:
    return _Piece(word, is_special=True)


def _merged(pieces: Sequence[_Piece]) -> Iterator[_Piece]:
    """The same pieces, with neighbouring plain texts merged, since byte pairs cross their border.

    The assistant's text is never merged with what stands before it, so that a prompt has the tokens that stand before it.
    """
    is_alike = lambda piece: (piece.is_special, piece.is_target, piece.marks)
    for (is_special, is_target, marks), run in groupby(pieces, is_alike):
        if is_special:
            yield from run
        else:
            yield _Piece("".join(piece.text for piece in run), is_target=is_target, marks=marks)
