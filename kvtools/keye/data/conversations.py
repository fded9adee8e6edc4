"""Conversations from a stream of them or from the JSON of other programs, all brought to one normal form.

The form: {"id", "mode", "messages": [{"role", "content": [{"type": "text", "text"} | {"type": "image", "image"} | {"type":
"video", "video"}, …]}]}, with the fields of media.py for pictures and videos, `"loss": false` on messages that are not learnt,
and `"rejected"`, a worse last answer, where there is one. Other fields of a conversation stay with it.

Read: that form; OpenAI's messages; ShareGPT's and LLaVA's conversations; LLaMA-Factory's messages with `<image>` and `<video>`
marks, its alpaca columns, its pairs of answers, and its newer parts with values; prompts and pairs of answers
(prompt_layouts.py); as one JSON list, or one object a line. Sound
is not read: conversations with sound are left out, and so are those of no known layout, each named. Nothing is fetched.
"""

import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, BinaryIO
from urllib.parse import unquote

import numpy as np

from kvtools.artifact import checked_records, is_stream, raising_at
from kvtools.artifact.blob import canonical
from kvtools.artifact.delimited import first_letter, read_text
from kvtools.artifact.files import open_source
from kvtools.artifact.history import Step
from kvtools.artifact.open import open_stream, source_name
from kvtools.artifact.stream import Reader, Writer
from kvtools.errors import Corrupt, raising, reason_of
from kvtools.keye.data.chat_template import MODES, TOOLS
from kvtools.keye.data.prompt_layouts import with_messages
from kvtools.skipped import SkippedRows

BAD = "conversations that cannot be understood left out"

_ROLES = {"system": "system", "user": "user", "human": "user", "assistant": "assistant", "gpt": "assistant", "tool": "tool",
          "observation": "tool", "function": "tool", "function_call": "assistant", "developer": "system"}  # fmt: skip
_ITEM_FIELDS = ("seconds", "second", "fps", "frames", "shown", "size")  # of a picture or video, beside its source
_JSON_KINDS = {list: "a list", str: "a string", int: "a number", float: "a number", bool: "true or false"}
_N_SNIFFED = 4096  # a file with a zero among the first letters is not text
_THOUGHT = "<think>\n{}\n</think>\n\n"
_NO_SOUND = "it has sound, and only pictures and videos are read"
_UNDECODED = re.compile("[\udc80-\udcff]")  # what "surrogateescape" makes of bytes that are not UTF-8
_MARK = re.compile(r"(<image>|<video>|<audio>)")


@dataclass
class Conversations:
    """The conversations of a source, and those that were skipped.

    root: the folder in which its relative paths begin. history: of a stream's first part.
    """

    name: str
    root: str
    conversations: list[dict[str, Any]] = field(default_factory=list)
    skipped: SkippedRows = field(default_factory=SkippedRows)
    history: list[Step] = field(default_factory=list)


def looks_like_json(file: BinaryIO) -> bool:
    """Whether a JSON list or object lies ahead; nothing is consumed."""
    return first_letter(file) in ("[", "{")


def open_conversations(src: str, file: BinaryIO | None = None) -> Conversations:
    """The conversations of a path or `-`. file: src already open, of which nothing has been consumed.

    Raises Missing where src cannot be read, Corrupt where it is neither JSON nor a stream of conversations, or empty.
    """
    file = file or open_source(src)
    source = Conversations(source_name(src), "" if src == "-" else os.path.dirname(src))
    if is_stream(file):
        reader = open_stream(src, "conversation", made_by="kvtools convert", file=file)
        source.history = reader.head.history
        documents = _of_stream(reader)
    else:
        text = read_text(file, source.name, errors="surrogateescape")  # a line that is not UTF-8 is skipped alone
        if "\0" in text[:_N_SNIFFED]:
            raise Corrupt(f"{source.name}: this is neither a stream nor JSON. Give conversations in one of these forms.")
        documents = _of_text(text, source.name)
    n_documents = 0
    for n_documents, (where, document) in enumerate(documents, start=1):
        try:
            if isinstance(document, ValueError):
                raise document
            conversation = normalise(document)
            canonical(conversation)  # half a letter (a lone surrogate) can be read but not written
        except (ValueError, KeyError, TypeError, AttributeError) as fault:
            source.skipped.skip(BAD, f"{where}: {reason_of(fault)}")
        else:
            source.conversations.append({"id": f"{n_documents - 1:08d}", **conversation})
    if not n_documents:
        remedy = "Look at the stage before this one." if src == "-" else "Give a file with conversations."
        raise Corrupt(f"{source.name}: there is no conversation in it. {remedy}")
    return source


def write(conversations: Iterable[Mapping[str, Any]], writer: Writer) -> None:
    """Append conversations of the normal form, a record each, keyed by their ids."""
    for conversation in conversations:
        writer.write(str(conversation["id"]), {"json": np.frombuffer(canonical(conversation), np.uint8)})


def normalise(document: Any) -> dict[str, Any]:
    """One conversation in the normal form. Raises ValueError, with what was found, for a document of no known layout."""
    if not isinstance(document, dict):
        raise ValueError(f"it is {_JSON_KINDS.get(type(document), 'null')}, and an object is needed")
    rest = with_messages(document)
    messages = _pop_messages(rest)
    media = {kind: sources for kind in ("image", "video", "audio") if (sources := _pop_sources(rest, kind)) is not None}
    normal = [_message(message, media) for message in messages]
    if media.get("audio"):
        raise ValueError(_NO_SOUND)
    _place_unmarked(normal, media)
    if tools := rest.pop("tools", None):
        _add_tools(normal, tools)
    rejected = rest.pop("rejected", None)
    rest.update(messages=normal, mode=rest.get("mode"))
    if rejected is not None:
        rest["rejected"] = _message(_as_answer(rejected), media)
    if (identifier := rest.pop("id", None)) is not None:
        rest["id"] = str(identifier)
    if rest["mode"] not in MODES:
        raise ValueError(f"mode is {rest['mode']!r}, and must be one of {', '.join(map(str, MODES))}")
    return rest


def _of_stream(reader: Reader) -> Iterator[tuple[str, Any]]:
    for record in checked_records(reader, made_by="kvtools convert"):
        with raising_at(record, reader.name, made_by="kvtools convert"):
            document = _parsed(record.tensors["json"].tobytes().decode("utf-8", "surrogateescape"))
        yield record.key, {"id": record.key, **document} if isinstance(document, dict) else document


def _of_text(text: str, name: str) -> Iterator[tuple[str, Any]]:
    if text.lstrip()[:1] == "[":
        with raising(Corrupt, name, "Give a JSON list of conversations."):
            documents = _parsed(text)
        yield from ((f"entry {n}", document) for n, document in enumerate(documents))
        return
    lines = [(n, line) for n, line in enumerate(text.split("\n"), start=1) if line.strip()]
    try:  # one object over many lines is a conversation too
        if len(lines) > 1 and lines[0][1].strip() == "{":
            yield "entry 0", _parsed(text)
            return
    except ValueError:
        pass
    for n, line in lines:
        try:
            yield f"line {n}", _parsed(line)
        except ValueError as fault:
            yield f"line {n}", fault


def _parsed(text: str) -> Any:
    def refuse(word: str) -> float:
        raise ValueError(f"{word} is no JSON, which has finite numbers only")

    if _UNDECODED.search(text):
        raise ValueError("not UTF-8 text")
    try:
        return json.loads(text, parse_constant=refuse)
    except json.JSONDecodeError as error:
        line = f"line {error.lineno} " if "\n" in text.strip() else ""  # the caller names the only line of others
        raise ValueError(f"not JSON ({error.msg} at {line}column {error.colno})") from None
    except RecursionError as error:
        raise ValueError(f"not JSON ({' '.join(str(error).split())})") from None


def _pop_messages(rest: dict[str, Any]) -> list[dict[str, Any]]:
    """The messages of any of the layouts, in order, taken out of `rest`. Their parts are not yet normalised."""
    if (worse := rest.pop("rejected_messages", None)) is not None:
        rest["rejected"] = worse[-1]
    lists = [rest.pop(name) for name in ("messages", "conversations", "chosen_messages") if name in rest]
    if lists:
        if not isinstance(lists[0], list) or not all(isinstance(message, dict) for message in lists[0]):
            raise ValueError(f"messages are {str(lists[0])[:40]!r}, and must be a list of objects")
        messages = list(lists[0])
    elif "instruction" in rest:
        messages = _pop_alpaca(rest)
    else:
        found = ", ".join([*rest][:5]) or "none"
        raise ValueError(f"fields are {found}; messages, conversations, instruction, prompt or question is needed")
    if (better := rest.pop("chosen", None)) is not None:
        messages.append(_as_answer(better))
    system = rest.pop("system", None)
    if not messages:
        raise ValueError("it has no messages")
    return [{"role": "system", "content": system}, *messages] if system else messages


def _pop_alpaca(rest: dict[str, Any]) -> list[dict[str, Any]]:
    messages = []
    for question, answer in rest.pop("history", None) or []:
        messages += [{"role": "user", "content": question}, _as_answer(answer)]
    instruction = "\n".join(text for text in (rest.pop("instruction"), rest.pop("input", "")) if text)
    messages.append({"role": "user", "content": instruction})
    return [*messages, _as_answer(rest.pop("output"))] if "output" in rest else messages


def _as_answer(answer: Any) -> dict[str, Any]:
    return answer if isinstance(answer, dict) else {"role": "assistant", "content": answer}


def _pop_sources(rest: dict[str, Any], kind: str) -> list[Any] | None:
    """The sources that marks such as `<image>` stand for, in order; None where the conversation does not list any."""
    sources = rest.pop(f"{kind}s", None)
    sources = rest.pop(kind, None) if sources is None else sources
    return [sources] if isinstance(sources, str | dict) else None if sources is None else list(sources)


def _message(message: Mapping[str, Any], media: dict[str, list[Any]]) -> dict[str, Any]:
    role = message.get("role", message.get("from"))
    if role is None:
        raise ValueError("a message has no role")
    if role not in _ROLES:
        raise ValueError(f"role is {role!r}, and must be one of {', '.join(_ROLES)}")
    content = message["content"] if "content" in message else message.get("value")
    if isinstance(content, str) and role == "function_call":
        content = _tool_call(content)
    parts = [] if content is None else [content] if isinstance(content, str | dict) else content
    normal = [normal_part for part in parts for normal_part in _parts(part, media)]
    if calls := message.get("tool_calls"):
        normal += [_text(_tool_call(call.get("function", call))) for call in calls]
    if thought := message.get("reasoning_content"):
        normal.insert(0, _text(_THOUGHT.format(thought)))
    if not normal:
        raise ValueError(f"a message of {role} has no content")
    is_unlearnt = message.get("loss") is False or 0 in (message.get("loss_weight"), message.get("weight"))
    loss = {"loss": False} if _ROLES[role] == "assistant" and is_unlearnt else {}
    return {"role": _ROLES[role], "content": normal, **loss}


def _parts(part: Any, media: dict[str, list[Any]]) -> Iterator[dict[str, Any]]:
    if isinstance(part, str):
        part = _text(part)
    if not isinstance(part, dict):
        raise ValueError(f"content has {part!r}, and must be text or an object")
    if "type" not in part:
        raise ValueError("a part of the content has no type")
    kind = str(part["type"]).removesuffix("_url").removeprefix("input_")
    value = next((part[name] for name in (part["type"], kind, "value", "url", "path") if name in part), None)
    if isinstance(value, dict) and "url" in value:
        value = value["url"]
    if kind == "text" and isinstance(value, str):
        yield from _marked(value, media)
    elif kind == "reasoning" and isinstance(value, str):
        yield _text(_THOUGHT.format(value))
    elif kind == "tool_call":
        yield _text(_tool_call(value))
    elif kind in ("image", "video") and value:
        yield _item(kind, value, part)
    elif kind in ("image", "video"):
        raise ValueError(f"the {kind} has no source")
    else:
        raise ValueError(f"content is of type {part.get('type')!r}, and must be text, image or video")


def _marked(text: str, media: dict[str, list[Any]]) -> Iterator[dict[str, Any]]:
    """Text with marks for the sources that the conversation lists; without such a list a mark is text.

    Raises ValueError for more marks than sources.
    """
    for piece in _MARK.split(text):
        kind = piece[1:-1] if _MARK.fullmatch(piece) else ""
        if kind in media:
            if not media[kind]:
                raise ValueError(f"there are more {piece} marks than {kind}s")
            if kind == "audio":
                raise ValueError(_NO_SOUND)
            yield _listed_item(kind, media[kind].pop(0))
        elif piece:
            yield _text(piece)


def _place_unmarked(messages: Sequence[dict[str, Any]], media: dict[str, list[Any]]) -> None:
    """Put sources without a mark before the first question, if there is no mark at all."""
    items = [_listed_item(kind, source) for kind in ("image", "video") for source in media.get(kind, ())]
    question = next((message for message in messages if message["role"] == "user"), None)
    if not items:
        return
    if question is None or any(part["type"] != "text" for message in messages for part in message["content"]):
        raise ValueError(f"there are {len(items)} pictures or videos more than marks for them")
    question["content"][:0] = items


def _listed_item(kind: str, source: Any) -> dict[str, Any]:
    return _item(kind, source, source if isinstance(source, dict) else {})


def _item(kind: str, value: Any, described: Mapping[str, Any]) -> dict[str, Any]:
    # a dictionary has the source under its kind, or under `path` as datasets of Hugging Face have
    source = next((value[name] for name in (kind, "path") if value.get(name)), None) if isinstance(value, dict) else value
    if isinstance(source, str):
        source = unquote(source.removeprefix("file://")) if source.startswith("file://") else source
    elif not (isinstance(source, list) and source and kind == "video"):
        raise ValueError(f"{kind} is {source!r}, and must be a path or a key")
    options = {name: described[name] for name in _ITEM_FIELDS if described.get(name) is not None}
    if described.get("nframes"):
        options["frames"] = described["nframes"]
    return {"type": kind, kind: source, **options}


def _text(text: str) -> dict[str, Any]:
    return {"type": "text", "text": text}


def _tool_call(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    if isinstance(value, dict) and isinstance(arguments := value.get("arguments"), str):
        # OpenAI's are JSON within JSON: their letters are kept, as published templates do
        _parsed(arguments or "{}")
        fields = {name: json.dumps(field, ensure_ascii=False) for name, field in value.items()} | {
            "arguments": arguments or "{}"
        }
        text = "{" + ", ".join(f"{json.dumps(name)}: {field}" for name, field in fields.items()) + "}"
    return f"<tool_call>\n{text}\n</tool_call>"


def _add_tools(messages: list[dict[str, Any]], tools: Any) -> None:
    """Describe the tools where the template does: at the end of the system message."""
    listed = json.loads(tools) if isinstance(tools, str) else tools
    text = TOOLS.format("\n".join(json.dumps(tool, ensure_ascii=False) for tool in listed))
    if messages[0]["role"] == "system":
        messages[0]["content"].append(_text(f"\n\n{text}"))
    else:
        messages.insert(0, {"role": "system", "content": [_text(text)]})
