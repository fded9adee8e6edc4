"""Questions written as conversations, for engines of others: what is shown and asked, and nothing of the answers."""

import json
import os
from collections.abc import Sequence
from typing import Any

from kvtools.artifact.files import Sink
from kvtools.artifact.history import Step
from kvtools.artifact.stream import Head, Writer
from kvtools.keye.bench.benchmark import Question
from kvtools.keye.data.conversations import write


def write_prompts(
    dst: str, questions: Sequence[Question], mode: str, frames: int | None, *, force: bool, history: list[Step]
) -> None:
    """A stream of conversations where dst ends in .kvs, else JSON Lines. The id of each is TASK/INDEX, by which predictions are
    read again. Paths of pictures are relative to the folder of dst."""
    folder = os.path.dirname(os.path.abspath(dst)) if dst != "-" else os.getcwd()
    conversations = [_conversation(question, mode, frames, folder) for question in questions]
    sink = Sink(dst, force=force)
    if dst.endswith(".kvs"):
        with Writer(sink, Head("conversation", history, {})) as writer:
            write(conversations, writer)
        return
    sink.write_whole([(json.dumps(each, ensure_ascii=False) + "\n").encode("utf-8", "replace") for each in conversations])


def _conversation(question: Question, mode: str, frames: int | None, folder: str) -> dict[str, Any]:
    (message,) = question.messages(mode)
    for part in message["content"]:
        source = part.get(part["type"])
        if part["type"] != "text" and isinstance(source, str) and not source.startswith("data:"):
            part[part["type"]] = os.path.relpath(source, folder)
        if part["type"] == "video" and frames is not None:
            part["frames"] = frames
    # the switch of the mode stands in the text: an engine that knows no modes needs it there
    name = f"{question.task}/{question.index}"
    return {"id": name, "task": question.task, "index": question.index, "mode": None, "messages": [message]}
