"""One document at a time into a sample of the mixture, or the reason why it is none.

What does not depend on other samples is decided here, so that workers and ranks may share the documents: the layout, the format
of the mode, media, length, leaks of an evaluation set, and whether code in an agentic sample does what the sample says.

Only the last answer is held against the format; earlier answers of a conversation stay as they are.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Self

from kvtools.artifact.blob import canonical
from kvtools.artifact.documents import parsed
from kvtools.errors import reason_of
from kvtools.keye.data.conversations import normalise
from kvtools.keye.data.media import Unreadable
from kvtools.keye.data.modes import SWITCHES, FormatError, Reply, parse, switch_of
from kvtools.keye.data.processor import Processor
from kvtools.keye.mix.agentic import CodeError, check_code, with_paths_of
from kvtools.keye.mix.contamination import EvaluationSet, fingerprints_of
from kvtools.keye.mix.duplicates import signatures
from kvtools.keye.mix.pool import Sample
from kvtools.keye.mix.repair import enclose, repair
from kvtools.keye.mix.words import words_of
from kvtools.keye.model.inputs import Visual
from kvtools.keye.rl.correct import expected_answer, is_correct
from kvtools.keye.sandbox.session import Sandbox

END = "its end"  # where what is wrong with a whole source is told
PICTURE = "\ufffc"  # stands for a picture within an answer
NOT_UNDERSTOOD = "the document cannot be understood"
UNREADABLE = "a picture or video cannot be read"
BAD_INPUT = (NOT_UNDERSTOOD, UNREADABLE)  # reasons for which the source is at fault, not the sample
_ANSWERS = ("solution", "answer", "response", "completion", "output")
_MOST_WORDS = 5  # of a right answer that other words contradict
_REFERENCES = ("ground_truth", "reference", "reference_answer", "final_answer", "gold", "answer")


@dataclass(frozen=True)
class Rejected:
    """A document that gives no sample: the reason, which is counted, what else is to be said of it, and the document."""

    mode: str
    source: str
    where: str
    reason: str
    detail: str
    document: Any
    against: str | None = None  # which part of an evaluation set it repeats


@dataclass(frozen=True)
class Rules:
    """What samples must be.

    frames: at which numbers of frames each video is used. max_tokens: of a sample, visual ones included. is_packed: whether the
    tokens themselves are wanted, not their number alone.
    """

    is_repaired: bool = False
    max_tokens: int | None = None
    frames: tuple[int, ...] = (16, 32)
    is_code_run: bool = True
    is_packed: bool = False


class _Reject(Exception):
    def __init__(self, reason: str, detail: str = "", against: str | None = None) -> None:
        super().__init__(reason)
        self.reason, self.detail, self.against = reason, detail, against


@dataclass
class Examiner:
    """Holds documents against the rules. evaluation: None where there is nothing to be held apart."""

    rules: Rules
    processor: Processor
    evaluation: EvaluationSet | None = None
    sandbox: Sandbox = field(default_factory=Sandbox)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the processes of the sandbox and of decoders."""
        self.sandbox.close()
        if self.processor.media is not None:
            self.processor.media.close()

    def examine(self, document: Any, mode: str, source: str, where: str) -> Sample | Rejected:
        """The sample that a document gives, or why it gives none. Never raises for what the document holds.

        document: its JSON as bytes, its value, or the ValueError that says why it has none.
        """
        line = document
        if isinstance(document, bytes):
            document = parsed(line)
        try:
            return self._sample(document, mode, source, where)
        except _Reject as no:
            kept = _line_text(line) if isinstance(document, ValueError) else document
            return Rejected(mode, source, where, no.reason, no.detail, kept, no.against)
        except FormatError as error:
            return Rejected(mode, source, where, error.reason, "", document)
        except Unreadable as error:
            return Rejected(mode, source, where, UNREADABLE, str(error), document)

    def _sample(self, document: Any, mode: str, source: str, where: str) -> Sample:
        conversation = _understood(document)
        done: list[str] = []
        question = _last_text(conversation["messages"], "user")
        if question is None:
            raise _Reject("there is no question")
        if conversation["messages"][-1]["role"] != "assistant":
            raise _Reject("the last message is not the assistant's")
        reply = self._reply(conversation, mode, done)
        self._set_switch(conversation, mode, question, reply)
        is_video = any(_is_whole_video(item) for item in _items(conversation))
        visuals = {n: self._visuals(conversation, n) for n in (self.rules.frames if is_video else (0,))}
        self._refuse_leaks(conversation, visuals[max(visuals)])
        if mode == "agentic" and self.rules.is_code_run:
            self._run_code(conversation, reply)
        sizes, encoded = self._encode(conversation, visuals)
        answer = reply.boxed if reply.boxed is not None else reply.answer
        said = json.dumps([conversation, reply.thinking], ensure_ascii=False)
        (signature,) = signatures([_all_text(conversation)])
        return Sample(
            mode, source, where, _digest(canonical(_said(conversation))), _digest(_prompt_of(conversation).encode()), answer,
            _is_correct(conversation, answer), reply.thinking is not None, is_video, sizes, tuple(done), said.encode(),
            signature.tobytes(), encoded,
        )  # fmt: skip

    def _reply(self, conversation: dict[str, Any], mode: str, done: list[str]) -> Reply:
        """The answer taken apart, after it was brought into the format, and repaired where that is allowed."""
        parts = conversation["messages"][-1]["content"]
        text = "".join(part["text"] if part["type"] == "text" else PICTURE for part in parts)
        fixed = text
        if self.rules.is_repaired:
            fixed, done[:] = repair(text)
        if mode == "think" and (enclosed := enclose(fixed)) is not None:
            fixed = enclosed
            done.append("reasoning of another layout")
        reply = parse(fixed, mode)
        if fixed != text:
            conversation["messages"][-1] = {**conversation["messages"][-1], "content": list(_with_pictures(fixed, parts))}
        return reply

    def _set_switch(self, conversation: dict[str, Any], mode: str, question: dict[str, Any], reply: Reply) -> None:
        """The conversation's mode, which the template turns into a switch; a switch in the text goes where it says the same."""
        text, found = switch_of(question["text"])
        said = found or conversation.get("mode")
        wanted = reply.mode if mode == "video" else mode
        if said is not None and said not in (wanted, mode, {"auto_think": "auto"}.get(said)):
            raise _Reject("the question asks for another mode", f"it asks for {said}")
        conversation["mode"] = mode
        question["text"] = text
        if mode == "video":  # whose switch the template cannot know
            question["text"] = text + SWITCHES[wanted]

    def _visuals(self, conversation: Mapping[str, Any], n_frames: int) -> list[Visual]:
        """What the conversation shows, which proves that it can be read."""
        media = self.processor.media
        assert media is not None, "the command opens media even where none are named"
        return [media.fetch(item) for item in _items(with_frames(conversation, n_frames))]

    def _refuse_leaks(self, conversation: Mapping[str, Any], visuals: Sequence[Visual]) -> None:
        if self.evaluation is None:
            return
        texts = [
            (message["role"], part["text"])
            for message in conversation["messages"]
            for part in message["content"]
            if part["type"] == "text"
        ]
        questions, answers = ([text for role, text in texts if (role == "assistant") is said] for said in (False, True))
        if (name := self.evaluation.text_leak(questions, answers)) is not None:
            raise _Reject("a text of an evaluation set", f"repeats {name}", name)
        if len(self.evaluation.pictures):
            name = self.evaluation.picture_leak(shown for visual in visuals for shown in fingerprints_of(visual))
            if name is not None:
                raise _Reject("a picture of an evaluation set", f"looks like {name}", name)

    def _run_code(self, conversation: Mapping[str, Any], reply: Reply) -> None:
        """Hold the code of an agentic answer against what it states; pictures in it are results, those before it inputs."""
        media = self.processor.media
        asked, answered = (
            [part for message in messages for part in message["content"] if part["type"] == "image"]
            for messages in (conversation["messages"][:-1], conversation["messages"][-1:])
        )
        files = iter([media.file_of(item) for item in answered]) if media is not None else iter(())
        stated = [next(files, b"") if PICTURE in output else output for output in reply.outputs]
        inputs = {} if media is None else {str(item["image"]): media.file_of(item) for item in asked}
        texts = [
            part["text"] for message in conversation["messages"][:-1] for part in message["content"] if part["type"] == "text"
        ]
        inputs = with_paths_of("\n".join(texts), inputs)
        try:
            check_code(self.sandbox, reply.code, stated, inputs)
        except CodeError as error:
            raise _Reject(error.reason, error.detail) from None

    def _encode(
        self, conversation: Mapping[str, Any], visuals: Mapping[int, Sequence[Visual]]
    ) -> tuple[dict[int, tuple[int, int]], bytes]:
        """The sizes of the sample, and its tokens and targets where they are wanted and one number of frames is all."""
        sizes, encoded = {}, b""
        for n_frames, shown in visuals.items():
            n_visual = [visual.n_tokens for visual in shown]
            tokens, targets = self.processor.template.encode(conversation, n_visual)
            if self.rules.max_tokens is not None and len(tokens) > self.rules.max_tokens:
                raise _Reject("the sample is too long", f"{len(tokens)} tokens")
            sizes[n_frames] = len(tokens), sum(n_visual)
            if self.rules.is_packed and not shown:
                encoded = tokens.tobytes() + targets.tobytes()
        return sizes, encoded


def _line_text(line: bytes | ValueError) -> str:
    """What a line that is not JSON says, so that it can be found and repaired."""
    return line.decode("utf-8", "replace").rstrip("\r\n") if isinstance(line, bytes) else str(line)


def _understood(document: Any) -> dict[str, Any]:
    try:
        if isinstance(document, ValueError):
            raise document
        conversation = _answered(normalise(document))
        canonical(conversation)  # half a letter (a lone surrogate) can be read but not written
        return conversation
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise _Reject(NOT_UNDERSTOOD, reason_of(error)) from None


def _answered(conversation: dict[str, Any]) -> dict[str, Any]:
    """The conversation whose answer, where it has none, is in a column of its own, as in GSM8K, MATH and TRL's data."""
    messages = conversation["messages"]
    name = next((name for name in _ANSWERS if name in conversation), None)
    if name is not None and messages[-1]["role"] != "assistant":
        told = conversation.pop(name)
        told = told[0] if isinstance(told, list) and len(told) == 1 else told
        answer = told if isinstance(told, dict) else {"role": "assistant", "content": told}
        messages += normalise({"messages": [answer]})["messages"]
    return conversation


def _said(conversation: Mapping[str, Any]) -> dict[str, Any]:
    """What makes a sample another: what is said and shown, not where it stands or what it is called."""
    return {name: conversation[name] for name in ("messages", "rejected") if name in conversation}


def _digest(data: bytes) -> str:
    return hashlib.blake2b(data, digest_size=16).hexdigest()


def _items(conversation: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    return [part for message in conversation["messages"] for part in message["content"] if part["type"] != "text"]


def _is_whole_video(item: Mapping[str, Any]) -> bool:
    return item["type"] == "video" and not {"frames", "seconds", "shown", "fps"} & set(item) and isinstance(item["video"], str)


def with_frames(conversation: Mapping[str, Any], n_frames: int) -> dict[str, Any]:
    """The conversation whose videos are shown by n_frames frames, where it does not choose them itself; 0: as it is."""
    if not n_frames:
        return dict(conversation)
    messages = [
        {**message, "content": [{**part, "frames": n_frames} if part["type"] == "video" and _is_whole_video(part) else part
                                for part in message["content"]]}
        for message in conversation["messages"]
    ]  # fmt: skip
    return {**conversation, "messages": messages}


def _last_text(messages: Sequence[Mapping[str, Any]], role: str) -> dict[str, Any] | None:
    """The last text of the last message of a role; an empty one is added where the message has none."""
    message = next((m for m in reversed(messages) if m["role"] == role), None)
    if message is None:
        return None
    found = next((part for part in reversed(message["content"]) if part["type"] == "text"), None)
    if found is None:
        found = {"type": "text", "text": ""}
        message["content"].append(found)
    return found


def _with_pictures(text: str, parts: Sequence[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Text with marks of pictures as parts again."""
    pictures = iter([part for part in parts if part["type"] != "text"])
    for number, piece in enumerate(text.split(PICTURE)):
        if number:
            yield next(pictures)
        if piece:
            yield {"type": "text", "text": piece}


def _all_text(conversation: Mapping[str, Any]) -> str:
    """All that is said and the names of what is shown, for finding duplicates."""
    parts = [part for message in conversation["messages"] if message["role"] != "system" for part in message["content"]]
    return "\n".join(part["text"] if part["type"] == "text" else f"{part['type']} {part[part['type']]}" for part in parts)


def _prompt_of(conversation: Mapping[str, Any]) -> str:
    """The conversation up to its last answer, as words, by which samples of one prompt are found."""
    parts = [part for message in conversation["messages"][:-1] for part in message["content"]]
    return " ".join(
        " ".join(words_of(part["text"])) if part["type"] == "text" else f"<{part['type']} {part[part['type']]}>"
        for part in parts
    )


def _is_correct(conversation: Mapping[str, Any], answer: str) -> bool | None:
    """Whether the source says that the answer is right, or gives the right one; None where it says nothing."""
    if isinstance(conversation.get("correct"), bool | int):
        return bool(conversation["correct"])
    for name in _REFERENCES:
        if isinstance(conversation.get(name), str | int | float):
            try:
                expected = expected_answer(conversation, conversation[name])
            except ValueError:  # an empty one
                return None
            # a sentence in other words may be right as well
            is_sentence = expected.kind == "text" and len(words_of(expected.text)) > _MOST_WORDS
            return is_correct(expected, answer) or (None if is_sentence else False)
    return None
