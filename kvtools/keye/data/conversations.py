"""Conversations in, from a stream of them or from the JSON that other programs keep, all brought to one form.

The form: {"id", "mode", "messages": [{"role", "content": [{"type": "text", "text"} | {"type": "image", "image"} | {"type":
"video", "video"}, …]}]}, with the words of media.py on pictures and videos, `"loss": false` on messages not to be learnt, and
`"rejected"`, a worse last answer, where there is one. What else a conversation says of itself stays with it.

Read: that form; OpenAI's messages; ShareGPT's and LLaVA's conversations; LLaMA-Factory's messages with `<image>` and `<video>`
marks, its alpaca columns, its pairs of answers, and its newer parts with values; as one JSON list, or a line each. Sound is not
read: conversations with it are left out, and so is what cannot be understood, each named. Nothing is fetched.
"""

import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, BinaryIO
from urllib.parse import unquote

import numpy as np

from kvtools.artifact import is_stream, kinds
from kvtools.artifact.blob import canonical
from kvtools.artifact.files import open_source
from kvtools.artifact.history import Step
from kvtools.artifact.stream import Reader, Writer
from kvtools.errors import Corrupt
from kvtools.keye.data.chat_template import MODES
from kvtools.skipped import SkippedRows

BAD = "conversations that cannot be understood left out"

_ROLES = {"system": "system", "user": "user", "human": "user", "assistant": "assistant", "gpt": "assistant", "tool": "tool",
          "observation": "tool", "function": "tool", "function_call": "assistant", "developer": "system"}  # fmt: skip
_WORDS = ("seconds", "second", "fps", "frames", "shown", "size")  # what an item says beside its source
_LOOKED = 4096  # bytes in which what is no text has a zero
_MARK = re.compile(r"(<image>|<video>|<audio>)")
_TOOLS = (
    "# Tools\n\nYou may call one or more functions to assist with the user query.\n\nYou are provided with function "
    "signatures within <tools></tools> XML tags:\n<tools>\n{}\n</tools>\n\nFor each function call, return a json object with "
    "function name and arguments within <tool_call></tool_call> XML tags:\n<tool_call>\n"
    '{{"name": <function-name>, "arguments": <args-json-object>}}\n</tool_call>'
)  # how Qwen3's template tells a model of its tools


@dataclass
class Conversations:
    """What a source holds: `root` is the folder in which its relative paths begin; `history` that of a stream's first part."""

    found: list[dict[str, Any]] = field(default_factory=list)
    skipped: SkippedRows = field(default_factory=SkippedRows)
    root: str = ""
    history: list[Step] = field(default_factory=list)


def looks_like_json(file: BinaryIO) -> bool:
    """Whether a JSON list or object lies ahead; nothing is consumed."""
    return file.peek(64)[:64].removeprefix(b"\xef\xbb\xbf").lstrip()[:1] in (b"[", b"{")  # type: ignore[attr-defined]


def open_conversations(src: str, file: BinaryIO | None = None) -> Conversations:
    """The conversations of a path or `-`. file: src already open, of which nothing has been consumed.

    Raises Corrupt for a source that is neither JSON nor a stream of conversations, or holds none.
    """
    file = file or open_source(src)
    name = "stdin" if src == "-" else src
    made = Conversations(root="" if src == "-" else os.path.dirname(src))
    if is_stream(file):
        reader = Reader(file, name)
        if reader.head.kind != "conversation":
            raise Corrupt(f"{name}: {reader.head.kind} records found, conversation expected.")
        made.history = reader.head.history
        documents = _of_stream(reader, name)
    else:
        data = file.read()
        if b"\0" in data[:_LOOKED]:
            raise Corrupt(f"{name}: bytes that are neither a stream nor JSON found, conversations expected.")
        documents = _of_text(data, name)
    n_met = 0
    for n_met, (where, document) in enumerate(documents, start=1):
        try:
            if isinstance(document, ValueError):
                raise document
            conversation = normal(document)
            canonical(conversation)  # half a letter (a lone surrogate) can be read but not written
        except (ValueError, KeyError, TypeError, AttributeError) as fault:
            made.skipped.skip(BAD, f"{where}: {' '.join(str(fault).split())}")
        else:
            made.found.append({"id": f"{n_met - 1:08d}", **conversation})
    if not n_met:
        raise Corrupt(f"{name}: no conversation in it; look at the stage before this one.")
    return made


def write(conversations: Iterable[Mapping[str, Any]], writer: Writer) -> None:
    """Append conversations of the one form, a record each, named by their ids."""
    for conversation in conversations:
        writer.write(str(conversation["id"]), {"json": np.frombuffer(canonical(conversation), np.uint8)})


def normal(document: Any) -> dict[str, Any]:
    """One conversation in the one form. Raises ValueError, with what was found, for what has no known layout."""
    if not isinstance(document, dict):
        raise ValueError(f"a JSON {type(document).__name__} found, an object expected")
    rest = dict(document)
    turns = _taken_turns(rest)
    media = {kind: sources for kind in ("image", "video", "audio") if (sources := _sources(rest, kind)) is not None}
    messages = [_message(turn, media) for turn in turns]
    if media.get("audio"):
        raise ValueError("sound found, pictures and videos expected")
    _place_unmarked(messages, media)
    if tools := rest.pop("tools", None):
        _tell_tools(messages, tools)
    worse = rest.pop("rejected", None)
    rest.update(messages=messages, mode=rest.get("mode"))
    if worse is not None:
        rest["rejected"] = _message(worse if isinstance(worse, dict) else {"role": "assistant", "content": worse}, media)
    if (named := rest.pop("id", None)) is not None:
        rest["id"] = str(named)
    if rest["mode"] not in MODES:
        raise ValueError(f"mode {rest['mode']!r} found, one of {', '.join(map(str, MODES))} expected")
    return rest


def _of_stream(reader: Reader, name: str) -> Iterator[tuple[str, Any]]:
    for record in reader:
        try:
            kinds.check("conversation", "stream", record.tensors, record.fields)
            document = _parsed(record.tensors["json"].tobytes())
        except ValueError as fault:
            raise Corrupt(f"{name}: record {record.number}: {fault}.") from None
        yield record.key, {"id": record.key, **document} if isinstance(document, dict) else document


def _of_text(data: bytes, name: str) -> Iterator[tuple[str, Any]]:
    data = data.removeprefix(b"\xef\xbb\xbf")
    if data.lstrip()[:1] == b"[":
        try:
            documents = _parsed(data)
        except ValueError as fault:
            raise Corrupt(f"{name}: {fault}; a JSON list of conversations expected.") from None
        yield from ((f"entry {n}", document) for n, document in enumerate(documents))
        return
    lines = [(n, line) for n, line in enumerate(data.split(b"\n"), start=1) if line.strip()]
    try:  # one object over many lines is a conversation too
        if len(lines) > 1 and lines[0][1].strip() == b"{":
            yield "entry 0", _parsed(data)
            return
    except ValueError:
        pass
    for n, line in lines:
        try:
            yield f"line {n}", _parsed(line)
        except ValueError as fault:
            yield f"line {n}", fault


def _parsed(data: bytes) -> Any:
    def refused(word: str) -> float:
        raise ValueError(f"{word} found, JSON has finite numbers only")

    try:
        return json.loads(data.decode("utf-8"), parse_constant=refused)
    except (UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        raise ValueError(f"not JSON ({' '.join(str(error).split())})") from None


def _taken_turns(rest: dict[str, Any]) -> list[dict[str, Any]]:
    """The messages as they stand in any of the layouts, in order; taken out of `rest`. Parts are normalised later."""
    turns: list[dict[str, Any]]
    if (worse := rest.pop("rejected_messages", None)) is not None:
        rest["rejected"] = worse[-1]
    listed = [rest.pop(name) for name in ("messages", "conversations", "chosen_messages") if name in rest]
    if listed:
        if not isinstance(listed[0], list) or not all(isinstance(turn, dict) for turn in listed[0]):
            raise ValueError(f"messages {str(listed[0])[:40]!r} found, a list of objects expected")
        turns = list(listed[0])
    elif "instruction" in rest:
        turns = []
        for asked, answered in rest.pop("history", None) or []:
            turns += [{"role": "user", "content": asked}, {"role": "assistant", "content": answered}]
        asked = "\n".join(word for word in (rest.pop("instruction"), rest.pop("input", "")) if word)
        turns.append({"role": "user", "content": asked})
        if "output" in rest:
            turns.append({"role": "assistant", "content": rest.pop("output")})
    else:
        raise ValueError(f"{', '.join([*rest][:5]) or 'nothing'} found, messages, conversations or instruction expected")
    better = rest.pop("chosen", None)
    if better is not None:
        turns.append(better if isinstance(better, dict) else {"role": "assistant", "content": better})
    system = rest.pop("system", None)
    if not turns:
        raise ValueError("no messages found, one at least expected")
    return [{"role": "system", "content": system}, *turns] if system else turns


def _sources(rest: dict[str, Any], kind: str) -> list[Any] | None:
    """What the `<image>` marks and their like stand for, in order; None where nothing is said of it."""
    found = rest.pop(f"{kind}s", None)
    found = rest.pop(kind, None) if found is None else found
    return [found] if isinstance(found, str | dict) else None if found is None else list(found)


def _message(turn: Mapping[str, Any], media: dict[str, list[Any]]) -> dict[str, Any]:
    told = turn["role"] if "role" in turn else turn["from"]
    if told not in _ROLES:
        raise ValueError(f"role {told!r} found, one of {', '.join(_ROLES)} expected")
    content = turn["content"] if "content" in turn else turn.get("value")
    if isinstance(content, str) and told == "function_call":
        content = f"<tool_call>\n{content}\n</tool_call>"
    parts = [] if content is None else [content] if isinstance(content, str | dict) else content
    made = [normal_part for part in parts for normal_part in _parts(part, media)]
    if calls := turn.get("tool_calls"):
        made += [{"type": "text", "text": _call(call.get("function", call))} for call in calls]
    if thought := turn.get("reasoning_content"):
        made.insert(0, {"type": "text", "text": f"<think>\n{thought}\n</think>\n\n"})
    if not made:
        raise ValueError(f"a message of {told} without content found")
    message: dict[str, Any] = {"role": _ROLES[told], "content": made}
    if message["role"] == "assistant" and (turn.get("loss") is False or 0 in (turn.get("loss_weight"), turn.get("weight"))):
        message["loss"] = False
    return message


def _parts(part: Any, media: dict[str, list[Any]]) -> Iterator[dict[str, Any]]:
    if isinstance(part, str):
        part = {"type": "text", "text": part}
    if not isinstance(part, dict):
        raise ValueError(f"content {part!r} found, text or an object expected")
    kind = str(part.get("type", "")).removesuffix("_url").removeprefix("input_")
    value = next((part[name] for name in (part["type"], kind, "value", "url", "path") if name in part), None)
    if isinstance(value, dict) and "url" in value:
        value = value["url"]
    if kind == "text" and isinstance(value, str):
        yield from _marked(value, media)
    elif kind == "reasoning" and isinstance(value, str):
        yield {"type": "text", "text": f"<think>\n{value}\n</think>\n\n"}
    elif kind == "tool_call":
        yield {"type": "text", "text": _call(value)}
    elif kind in ("image", "video") and value:
        yield _item(kind, value, part)
    else:
        raise ValueError(f"content of type {part.get('type')!r} found, text, image or video expected")


def _marked(words: str, media: dict[str, list[Any]]) -> Iterator[dict[str, Any]]:
    """Text with marks for what the conversation lists apart; without such a list a mark is text. Raises ValueError for more
    marks than it has."""
    for piece in _MARK.split(words):
        kind = piece[1:-1] if _MARK.fullmatch(piece) else ""
        if kind in media:
            if not media[kind]:
                raise ValueError(f"more {piece} marks found than there are {kind}s")
            source = media[kind].pop(0)
            if kind == "audio":
                raise ValueError("sound found, pictures and videos expected")
            yield _item(kind, source, source if isinstance(source, dict) else {})
        elif piece:
            yield {"type": "text", "text": piece}


def _place_unmarked(messages: Sequence[dict[str, Any]], media: dict[str, list[Any]]) -> None:
    """Put what no mark stands for before the first question, if there was no mark at all."""
    left = [(kind, source) for kind in ("image", "video") for source in media.get(kind, ())]
    asked = next((message for message in messages if message["role"] == "user"), None)
    if not left:
        return
    if asked is None or any(part["type"] != "text" for message in messages for part in message["content"]):
        raise ValueError(f"{len(left)} pictures or videos more than there are marks for them")
    asked["content"][:0] = [_item(kind, source, source if isinstance(source, dict) else {}) for kind, source in left]


def _item(kind: str, value: Any, told: Mapping[str, Any]) -> dict[str, Any]:
    # a dictionary says where under its kind, or as datasets of Hugging Face do
    source = next((value[name] for name in (kind, "path") if value.get(name)), None) if isinstance(value, dict) else value
    if isinstance(source, str):
        source = unquote(source.removeprefix("file://")) if source.startswith("file://") else source
    elif not (isinstance(source, list) and source and kind == "video"):
        raise ValueError(f"{kind} {source!r} found, a path or a key expected")
    words = {name: told[name] for name in _WORDS if told.get(name) is not None}
    if told.get("nframes"):
        words["frames"] = told["nframes"]
    return {"type": kind, kind: source, **words}


def _call(value: Any) -> str:
    if isinstance(value, dict) and isinstance(value.get("arguments"), str):  # OpenAI's are JSON within JSON
        value = {**value, "arguments": _parsed(value["arguments"].encode() or b"{}")}
    words = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return f"<tool_call>\n{words}\n</tool_call>"


def _tell_tools(messages: list[dict[str, Any]], tools: Any) -> None:
    """Tell the tools where the template does: after what the system message says."""
    listed = json.loads(tools) if isinstance(tools, str) else tools
    words = _TOOLS.format("\n".join(json.dumps(tool, ensure_ascii=False) for tool in listed))
    if messages[0]["role"] == "system":
        messages[0]["content"].append({"type": "text", "text": f"\n\n{words}"})
    else:
        messages.insert(0, {"role": "system", "content": [{"type": "text", "text": words}]})
