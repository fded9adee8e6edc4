"""Conversations from a stream of them or from the JSON of other programs, all brought to one normal form.

The form: {"id", "mode", "messages": [{"role", "content": [{"type": "text", "text"} | {"type": "image", "image"} | {"type":
"video", "video"}, …]}]}, with the words of visual_items.py about pictures and videos, `"loss": false` on messages that are
not learnt, and `"rejected"`, a worse last answer, where there is one. Other fields of a conversation stay with it.

Read: that form; OpenAI's messages; ShareGPT's and LLaVA's conversations; LLaMA-Factory's messages with `<image>` and `<video>`
marks, its alpaca columns, its pairs of answers, and its newer parts with values; prompts, questions and pairs of answers
(prompt_layouts.py); in a JSON list, objects one after another, a table by name, or parquet, compressed or not. Sound is not
read: conversations with sound are left out, and so are those of no known layout, each named. Nothing is fetched.
"""

import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, BinaryIO

import numpy as np

from kvtools.artifact import checked_records, is_stream, raising_at
from kvtools.artifact.blob import canonical
from kvtools.artifact.documents import parsed
from kvtools.artifact.files import open_source
from kvtools.artifact.history import Step
from kvtools.artifact.json_text import read_json
from kvtools.artifact.open import open_stream, source_name
from kvtools.artifact.stream import Reader, Writer
from kvtools.errors import Corrupt, reason_of
from kvtools.keye.data.chat_template import MODES, TOOLS
from kvtools.keye.data.conversation_files import read_conversation_documents
from kvtools.keye.data.prompt_layouts import with_messages
from kvtools.keye.data.visual_items import (
    Sources,
    is_mark,
    item,
    listed_item,
    marked_kinds,
    place_unmarked,
    pop_sources,
    refuse_unresolved,
    split_at_marks,
)
from kvtools.skipped import SkippedRows

BAD = "conversations that cannot be understood left out"

_ROLES = {"system": "system", "user": "user", "human": "user", "assistant": "assistant", "gpt": "assistant", "tool": "tool",
          "observation": "tool", "function": "tool", "function_call": "assistant", "developer": "system"}  # fmt: skip
_JSON_KINDS = {list: "a list", str: "a string", int: "a number", float: "a number", bool: "true or false"}
_END = "its end"  # where what ends a source early is told
_THOUGHT = "<think>\n{}\n</think>\n\n"


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
        documents = _whole(read_conversation_documents(file))
    n_documents = 0
    early_end: ValueError | None = None
    for n_documents, (where, document) in enumerate(documents, start=1):
        if where == _END and isinstance(document, ValueError):
            early_end = document
        try:
            if isinstance(document, ValueError):
                raise document
            conversation = normalise(document)
            canonical(conversation)  # half a letter (a lone surrogate) can be read but not written
        except (ValueError, KeyError, TypeError, AttributeError) as fault:
            source.skipped.skip(BAD, f"{where}: {reason_of(fault)}")
        else:
            source.conversations.append({"id": f"{n_documents - 1:08d}", **conversation})
    source.skipped.n_rows = n_documents
    if early_end is not None and not source.conversations:
        raise Corrupt(f"{source.name}: {early_end}. Give conversations as JSON or parquet.")
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
    sources = pop_sources(rest)
    unread: dict[str, Any] = {}
    normal = [_message(message, sources, unread) for message in messages]
    if any(sources.values()):
        question = next((message for message in normal if message["role"] == "user"), None)
        if question is None:
            raise ValueError("it lists pictures or videos and has no question that they belong to")
        place_unmarked(question["content"], normal, sources)
    if tools := rest.pop("tools", None):
        _add_tools(normal, tools)
    if (rejected := rest.pop("rejected", None)) is not None:
        rest["rejected"] = _message(_as_answer(rejected), sources, unread)
    refuse_unresolved(normal, unread | rest)
    if rest.get("loss_weight", 1) not in (None, 1):
        raise ValueError(f"loss_weight is {rest['loss_weight']!r}, and a conversation is learnt as a whole; weigh its messages")
    rest.update(messages=normal, mode=rest.get("mode"))
    if (identifier := rest.pop("id", None)) is not None:
        rest["id"] = str(identifier)
    if rest["mode"] not in MODES:
        raise ValueError(f"mode is {rest['mode']!r}, and must be one of {', '.join(map(str, MODES))}")
    return rest


def _of_stream(reader: Reader) -> Iterator[tuple[str, Any]]:
    for record in checked_records(reader, made_by="kvtools convert"):
        with raising_at(record, reader.name, made_by="kvtools convert"):
            document = parsed(record.tensors["json"].tobytes())
            if isinstance(document, ValueError):
                raise document
        yield record.key, {"id": record.key, **document} if isinstance(document, dict) else document


def _whole(documents: Iterator[tuple[str, Any]]) -> Iterator[tuple[str, Any]]:
    """The documents, and a fault that ends them early as one more, so that it does not lose those before it."""
    try:
        yield from documents
    except ValueError as fault:
        yield _END, fault


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


def _message(message: Mapping[str, Any], sources: Sources, unread: dict[str, Any]) -> dict[str, Any]:
    """A message in the normal form. sources: of the conversation, of which those that stand here are taken. unread: gets the
    fields of the message that are not read."""
    rest = dict(message)
    role = rest.pop("role", rest.pop("from", None))
    if role is None:
        raise ValueError("a message has no role")
    if role not in _ROLES:
        raise ValueError(f"role is {role!r}, and must be one of {', '.join(_ROLES)}")
    value = rest.pop("value", None)
    content = rest.pop("content", value)
    if isinstance(content, str) and role == "function_call":
        content = _tool_call(content)
    parts = [] if content is None else [content] if isinstance(content, str | dict) else content
    own = pop_sources(rest)
    for part in parts:
        if isinstance(part, dict) and _kind(part) == "text":
            unread |= {name: part[name] for name in part if name not in ("type", "text", "input_text", "value")}
    normal = [normal_part for part in _at_marks(parts, own) for normal_part in _parts(part, sources | own)]
    place_unmarked(normal, [{"content": normal}], own)
    if calls := rest.pop("tool_calls", None):
        normal += [_text(_tool_call(call.get("function", call))) for call in calls]
    if thought := rest.pop("reasoning_content", None):
        normal.insert(0, _text(_THOUGHT.format(thought)))
    if not normal:
        raise ValueError(f"a message of {role} has no content")
    is_unlearnt = _is_unlearnt(rest)
    unread |= rest
    loss = {"loss": False} if _ROLES[role] == "assistant" and is_unlearnt else {}
    return {"role": _ROLES[role], "content": normal, **loss}


def _is_unlearnt(rest: dict[str, Any]) -> bool:
    """Take what says whether a message is learnt. Raises ValueError for weights that are neither 0 nor 1."""
    for name in ("loss_weight", "weight"):
        weight = rest.get(name)
        if weight is not None and weight not in (0, 1):
            raise ValueError(f"{name} is {weight!r}, and only 0 and 1 are understood: a message is learnt, or it is not")
    return rest.pop("loss", None) is False or 0 in (rest.pop("loss_weight", None), rest.pop("weight", None))


def _at_marks(parts: Sequence[Any], own: Sources) -> Sequence[Any]:
    """The parts of a message; pictures and videos among them for which its own texts have marks become `own` sources."""
    texts = [text for part in parts if isinstance(text := part.get("text") if isinstance(part, dict) else part, str)]
    left = list(parts)
    for kind in marked_kinds(texts) - own.keys():
        if items := [part for part in left if isinstance(part, dict) and _kind(part) == kind and len(part) > 1]:
            own[kind] = items
            left = [part for part in left if part not in items]
    return left


def _kind(part: Mapping[str, Any]) -> str:
    return str(part.get("type")).removesuffix("_url").removeprefix("input_")


def _parts(part: Any, sources: Sources) -> Iterator[dict[str, Any]]:
    if isinstance(part, str):
        part = _text(part)
    if not isinstance(part, dict):
        raise ValueError(f"content has {part!r}, and must be text or an object")
    if "type" not in part:
        raise ValueError("a part of the content has no type")
    kind = _kind(part)
    value = next((part[name] for name in (part["type"], kind, "value") if name in part), None)
    if kind == "text" and isinstance(value, str):
        yield from split_at_marks(value, sources)
    elif kind == "reasoning" and isinstance(value, str):
        yield _text(_THOUGHT.format(value))
    elif kind == "tool_call":
        yield _text(_tool_call(value))
    elif kind in ("image", "video") and sources.get(kind) and is_mark(part):
        yield listed_item(kind, sources[kind].pop(0))
    elif kind in ("image", "video"):
        yield item(kind, part)
    else:
        raise ValueError(f"content is of type {part.get('type')!r}, and must be text, image or video")


def _text(text: str) -> dict[str, Any]:
    return {"type": "text", "text": text}


def _tool_call(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    if isinstance(value, dict) and isinstance(arguments := value.get("arguments"), str):
        # OpenAI's are JSON within JSON: their letters are kept, as published templates do
        _require_json(arguments or "{}")
        fields = {name: json.dumps(field, ensure_ascii=False) for name, field in value.items()} | {
            "arguments": arguments or "{}"
        }
        text = "{" + ", ".join(f"{json.dumps(name)}: {field}" for name, field in fields.items()) + "}"
    return f"<tool_call>\n{text}\n</tool_call>"


def _require_json(text: str) -> None:
    if isinstance(fault := parsed(text.encode()), ValueError):
        raise fault


def _add_tools(messages: list[dict[str, Any]], tools: Any) -> None:
    """Describe the tools where the template does: at the end of the system message."""
    listed = read_json(tools) if isinstance(tools, str) else tools
    text = TOOLS.format("\n".join(json.dumps(tool, ensure_ascii=False) for tool in listed))
    if messages[0]["role"] == "system":
        messages[0]["content"].append(_text(f"\n\n{text}"))
    else:
        messages.insert(0, {"role": "system", "content": [_text(text)]})
