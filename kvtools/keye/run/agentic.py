"""Thinking with pictures: code in an answer runs in the sandbox, and the answer goes on after what it gave.

`CodeRunner.insert` is what `generate` calls after each token (its option of that name): where a piece of code ends with
`</code>`, its output comes back as `<sandbox_output>…</sandbox_output>`, pictures in it as visual tokens, and the cache is
kept. For chat, and for rollouts, whose targets (`with_answer`) are the drawn tokens alone:

    with Sandbox() as sandbox:
        runner = CodeRunner(processor, sandbox)
        prompts = [runner.prompt(conversation) for conversation in conversations]
        for answers in generate(model, prompts, insert=runner.insert, n_answers=8, …): …

Every answer has a session of its own, begun with its first code: the pictures of its conversation under their names and under
the paths in the question, and the first as `image_path`. The answer ends where it asks for one run more than it may have.
Not here: videos, which code does not see.
"""

import base64
import io
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image

from kvtools.keye.data.chat_template import Conversation
from kvtools.keye.data.media import Unreadable
from kvtools.keye.data.processor import Processor
from kvtools.keye.mix.agentic import with_paths_of
from kvtools.keye.model.generate import Insertion
from kvtools.keye.model.inputs import Example
from kvtools.keye.sandbox.session import Sandbox

MAX_RUNS = 5
_MAX_OUTPUT = 4000  # characters of text that a model gets to read of one run
_CODE = re.compile(r"<code>(?P<code>(?:(?!<code>).)*?)</code>", re.DOTALL)
_FENCE = re.compile(r"\s*```(?:python)?[ \t]*\n(?P<code>.*?)\n?```\s*", re.DOTALL)
_END_TOKENS = 16  # the tag at the end of a piece of code has no more tokens, each of them a byte at least


class CodeRunner:
    """Runs the code of answers while they grow. max_runs: pieces of code of one answer."""

    def __init__(self, processor: Processor, sandbox: Sandbox, max_runs: int = MAX_RUNS) -> None:
        self._processor, self._sandbox, self.max_runs = processor, sandbox, max_runs
        self._pictures: dict[str, dict[str, bytes]] = {}  # of each prompt, by path
        self._read: dict[tuple[str, int], int] = {}  # tokens of an answer that need not be looked at again
        self._runs: dict[tuple[str, int], int] = {}
        self.outputs: dict[tuple[str, int], list[list[dict[str, Any]]]] = {}  # of each run of an answer, as parts of a message

    def prompt(self, conversation: Conversation) -> Example:
        """The prompt of a conversation, whose pictures code may open from now on. Raises as `Processor.prompt`."""
        example = self._processor.prompt(conversation)
        parts = [part for message in conversation["messages"] for part in _parts(message)]
        text = "\n".join(part["text"] for part in parts if part["type"] == "text")
        pictures = {_name_of(part, n): self._file_of(part) for n, part in enumerate(p for p in parts if p["type"] == "image")}
        self._forget(example.key)
        self._pictures[example.key] = with_paths_of(text, pictures)
        return example

    def insert(self, key: str, number: int, tokens: Sequence[int]) -> Insertion | None:
        """The output of the code that ends with the last token of an answer; None where none does."""
        answer = key, number
        begin = self._read.get(answer, 0)
        template = self._processor.template
        if "</code>" not in template.decode(tokens[max(begin, len(tokens) - _END_TOKENS) :]):
            return None
        found = _CODE.search(template.decode(tokens[begin:]))
        self._read[answer] = len(tokens)
        if found is None:
            return None
        n_runs = self._runs.get(answer, 0)
        if n_runs == self.max_runs:
            return Insertion(np.empty(0, np.int32), np.empty((3, 0), np.int32), is_end=True)
        self._runs[answer] = n_runs + 1
        session = f"{key}#{number}"
        if n_runs == 0:
            pictures = self._pictures.get(key, {})
            self._sandbox.open(pictures, session=session, image_path=next(iter(pictures), ""))
        fenced = _FENCE.fullmatch(found["code"])
        output = self._sandbox.run(fenced["code"] if fenced else found["code"], session=session)
        insertion = self._insertion(answer, output.parts)
        self._read[answer] += len(insertion.tokens)
        return insertion

    def _insertion(self, answer: tuple[str, int], output: Sequence[str | np.ndarray]) -> Insertion:
        parts = [_part(part) for part in output]
        try:
            insertion = Insertion(*self._processor.output(parts))
        except Unreadable as error:  # a picture too thin to be cut into patches
            parts = [{"type": "text", "text": f"Error: {error.why}"}]
            insertion = Insertion(*self._processor.output(parts))
        self.outputs.setdefault(answer, []).append(parts)
        return insertion

    def _file_of(self, part: Mapping[str, Any]) -> bytes:
        media = self._processor.media
        assert media is not None, "the prompt has been read"
        try:
            return media.file_of(part)
        except Unreadable:  # a frame of a stream
            from kvtools.keye.data.frames import frames_of

            return _png(frames_of(media.fetch(part))[0])

    def _forget(self, key: str) -> None:
        for answer in [answer for answer in self._runs if answer[0] == key]:
            self._sandbox.end(f"{key}#{answer[1]}")
        for known in (self._read, self._runs, self.outputs):
            for answer in [answer for answer in known if answer[0] == key]:
                known.pop(answer)


def _parts(message: Mapping[str, Any]) -> Sequence[Mapping[str, Any]]:
    content = message["content"]
    return [{"type": "text", "text": content}] if isinstance(content, str) else content


def _name_of(part: Mapping[str, Any], number: int) -> str:
    """The path under which code finds a picture: its own, or a number where it has none."""
    name = str(part["image"])
    return f"picture-{number}.png" if name.startswith("data:") else name


def _part(output: str | np.ndarray) -> dict[str, Any]:
    """What a run gave, as a part of a message: text, or a picture uint8 (rows, columns, 3) as a data URL, without loss."""
    if isinstance(output, str):
        return {"type": "text", "text": output if len(output) <= _MAX_OUTPUT else f"{output[:_MAX_OUTPUT]}…"}
    return {"type": "image", "image": f"data:image/png;base64,{base64.b64encode(_png(output)).decode()}"}


def _png(picture_HWC: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(picture_HWC).save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()
