"""Answers to a whole file of conversations: prompts of like lengths grow together, ranks share them, stopped runs resume.

Conversations are sorted by the length of what is written and shown in them, and cut into chunks that are the same for any
number of ranks; the answers are put back into the order of the file. Not here: what a chat or a score is (session.py,
quiz/multiple_choice.py).
"""

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from kvtools.artifact.files import Sink
from kvtools.artifact.state import RunState
from kvtools.errors import Corrupt, Stopped
from kvtools.keye.data.chat_template import visuals_of, without_answer
from kvtools.keye.data.conversations import BAD
from kvtools.keye.data.dataloader import UNREADABLE
from kvtools.keye.data.media import Unreadable
from kvtools.keye.data.processor import Processor
from kvtools.keye.model.generate import Answer, generate
from kvtools.keye.model.keye import Keye
from kvtools.keye.rl.spread import Records, spread
from kvtools.keye.run.session import GenerationConfig
from kvtools.keye.run.stop_text import StopText
from kvtools.progress import Ticker
from kvtools.skipped import SkippedRows
from kvtools.world import World

_CHUNK = 64  # conversations that are read together
_MEDIUM_LETTERS = 1000  # as which a picture or video counts where lengths are compared
_SAVE_S = 60.0  # between two states
_LINES = "lines"


@dataclass
class AnswerCounts:
    """What became of the conversations of a run, those of its stopped part included: on rank 0."""

    answers: int = 0
    tokens: int = 0
    cut: int = 0  # at the most tokens of an answer


class OpenAnswers:
    """One run of `answer --open`; all ranks call `run`."""

    def __init__(
        self, model: Keye, processor: Processor, config: GenerationConfig, conversations: Sequence[Mapping[str, Any]],
        world: World, stop: object, *, name: str, quiet: bool,
    ) -> None:  # fmt: skip
        self._model, self._processor, self._config = model, processor, config
        self._name = name  # of the conversations, for messages
        self._conversations, self._world, self._stop, self._quiet = conversations, world, stop, quiet
        self._stops = StopText(processor.template, config.stop_texts)
        self.skipped = SkippedRows()  # on rank 0
        self.counts = AnswerCounts()

    def run(self, state: RunState, open_sink: Callable[[], Sink], *, start_over: bool) -> None:
        """Answer what a stopped run has not answered, and write all lines. Raises Stopped where a rank was asked to stop, and
        Corrupt where no conversation can be read."""
        kept = state.load(start_over=start_over) if self._world.is_root else None
        lines: dict[int, bytes] = {}
        if kept is not None:
            lines = {
                int(line.split(b" ", 1)[0]): line.split(b" ", 1)[1] for line in kept.tensors[_LINES].tobytes().splitlines()
            }
        chunks = self._world.broadcast([chunk for chunk in self._chunks() if not set(chunk) <= lines.keys()])
        ticker = Ticker(total=len(chunks), unit=f"chunks of {_CHUNK} conversations", label="answer", quiet=self._quiet)
        saved = time.monotonic()
        for records in spread(chunks, self._work, self._world, self._stop):
            if records is not None:
                lines |= {int(number): line for number, line in records}
                ticker()
            if records is None or time.monotonic() - saved > _SAVE_S:
                self._save(state, lines)
                saved = time.monotonic()
            if records is None:
                raise Stopped(
                    f"stopped after {len(lines):,} of {len(self._conversations):,} conversations. Run again to continue."
                )
        if self._world.is_root:
            self._write(lines, open_sink)
            state.forget()

    def _chunks(self) -> list[list[int]]:
        """Numbers of conversations of like lengths, in chunks; the longest first: what does not fit shows at once."""
        lengths = [_length(conversation) for conversation in self._conversations]
        order = sorted(range(len(lengths)), key=lambda number: (-lengths[number], number))
        return [order[begin : begin + _CHUNK] for begin in range(0, len(order), _CHUNK)]

    def _work(self, chunk: Sequence[int]) -> Records:
        """The line of each conversation of a chunk: its answer, or what is the matter with one of its pictures."""
        records: Records = []
        prompts = []
        for number in chunk:
            try:
                prompts.append((number, self._processor.prompt(self._conversations[number], mode=self._config.mode)))
            except (Unreadable, ValueError) as fault:
                reason = UNREADABLE if isinstance(fault, Unreadable) else BAD
                records.append((str(number), json.dumps({"reason": reason, "fault": str(fault)}).encode()))
        prompts.sort(key=lambda prompt: -len(prompt[1]))
        config, template = self._config, self._processor.template
        answered = generate(
            self._model, [prompt for _, prompt in prompts], max_new_tokens=config.max_new, temperature=config.temperature,
            top_k=config.top_k, top_p=config.top_p, repetition_penalty=config.repetition_penalty,
            stop_tokens=template.stop_tokens, seed=config.seed,
            suppress_tokens=range(template.size, self._model.config.language.vocabulary),
            is_over=self._stops.is_over,
        )  # fmt: skip
        for (number, _), (answer,) in zip(prompts, answered, strict=True):
            records.append((str(number), self._line(number, answer)))
        return records

    def _line(self, number: int, answer: Answer) -> bytes:
        text = self._stops.cut(self._processor.template.decode(answer.text_tokens, skip_control=True))
        line = {
            "key": str(self._conversations[number]["id"]),
            "text": text,
            "tokens": len(answer.logprobs),
            "logprob": round(float(answer.logprobs.sum(dtype=np.float64)), 4),
            "ended": "stop" if answer.ended == "insertion" else answer.ended,
        }
        return json.dumps(line, ensure_ascii=False).encode()

    def _save(self, state: RunState, lines: Mapping[int, bytes]) -> None:
        if self._world.is_root:
            text = b"".join(b"%d %s\n" % (number, line) for number, line in sorted(lines.items()))
            state.save({_LINES: np.frombuffer(text, np.uint8)})

    def _write(self, lines: Mapping[int, bytes], open_sink: Callable[[], Sink]) -> None:
        """Write the answers in the order of the file, and count what could not be read."""
        answers = []
        for number in range(len(self._conversations)):
            line = json.loads(lines[number])
            if "fault" in line:
                self.skipped.skip(line["reason"], f"{self._conversations[number]['id']}: {line['fault']}")
                continue
            answers.append(lines[number] + b"\n")
            self.counts.answers += 1
            self.counts.tokens += line["tokens"]
            self.counts.cut += line["ended"] == "length"
        if not answers:
            why = "; ".join(self.skipped.lines())
            raise Corrupt(f"{self._name}: no conversation can be read ({why}). Look at --media and the data.")
        sink = open_sink()
        sink.write(answers)
        sink.commit()


def run_config(config: GenerationConfig, model: str, data: str, **options: object) -> dict[str, Any]:
    """What a resumed run must have in common with the stopped one. model, data: digests."""
    return {**asdict(config), **options, "model": model, "input": data}


def _length(conversation: Mapping[str, Any]) -> int:
    asked = without_answer(conversation)
    parts = [part for message in asked["messages"] for part in _parts(message["content"])]
    return sum(len(part.get("text", "")) for part in parts) + _MEDIUM_LETTERS * len(visuals_of(asked))


def _parts(content: Any) -> Sequence[Mapping[str, Any]]:
    return [{"text": content}] if isinstance(content, str) else content
