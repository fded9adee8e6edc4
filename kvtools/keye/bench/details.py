"""Details of an evaluation: one line of JSON a question, appended as answers arrive, so that a stopped run loses none.

Lines are those of predictions, so that details of shards or of an earlier run can be scored again. At the end the file is
written once more, whole, in the order of the questions, with verdicts. The one invariant: a file is continued only by a run
that asks the same in the same way, which `run` in each line says. Not here: what is right.
"""

import hashlib
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from typing import Any

from kvtools.artifact.files import Sink, open_claimed
from kvtools.artifact.json_text import read_json
from kvtools.errors import CannotCreate, unwritable
from kvtools.keye.bench.benchmark import Key, Question
from kvtools.keye.bench.predictions import Prediction


def run_digest(settings: Mapping[str, Any]) -> str:
    """A short name for all that answers depend on."""
    return hashlib.blake2b(json.dumps(settings, sort_keys=True).encode(), digest_size=6).hexdigest()


def question_digest(question: Question) -> str:
    """A short name for what is asked, so that an answer to another text of the same index is not taken for one to this."""
    return hashlib.blake2b(question.parts[-1]["text"].encode("utf-8", "surrogatepass"), digest_size=4).hexdigest()


class Details:
    """The file of details; path None: nothing is kept. force: what another run has written is replaced.

    Raises CannotCreate where the file cannot be written, is in use, or belongs to another run.
    """

    def __init__(self, path: str | None, run: str, *, force: bool) -> None:
        self.path, self._run, self._fd = path, run, -1
        self.answers: dict[tuple[Key, str], Prediction] = {}  # of a stopped run, by key and question_digest
        if path is None:
            return
        try:
            fd = open_claimed(path)
        except OSError as error:
            raise unwritable(str(path), error) from None
        if fd is None:
            raise CannotCreate(f"{path}: another run is writing it. Wait for it, or name another file.")
        self._fd = fd
        self._take_over(force=force)

    def close(self) -> None:
        """Let go of the file."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def add(self, question: Question, prediction: Prediction) -> None:
        """Keep an answer, at once."""
        if self._fd >= 0:
            line = json.dumps(self._line(question, prediction), ensure_ascii=False) + "\n"
            os.write(self._fd, line.encode("utf-8", "replace"))

    def finish(self, rows: Iterable[tuple[Question, Prediction, Mapping[str, Any]]]) -> None:
        """Write the file whole: each question, its answer, and what else is known."""
        if self.path is None:
            return
        lines = [
            json.dumps(self._line(question, prediction) | dict(more), ensure_ascii=False).encode("utf-8", "replace")
            for question, prediction, more in rows
        ]
        if os.path.isfile(self.path):
            Sink(self.path, force=True).write_whole([b"".join(line + b"\n" for line in lines)])
        else:  # a device, such as /dev/stderr
            os.write(self._fd, b"".join(line + b"\n" for line in lines))

    def _line(self, question: Question, prediction: Prediction) -> dict[str, Any]:
        known = {"tokens": prediction.tokens, "seconds": prediction.seconds}
        return {
            "task": question.task, "index": question.index, "prediction": prediction.text,
            **{name: value for name, value in known.items() if value is not None},
            "run": self._run, "question": question_digest(question),
        }  # fmt: skip

    def _take_over(self, *, force: bool) -> None:
        """Read what a stopped run of the same settings has kept; cut an unfinished last line."""
        if not os.path.isfile(self.path or ""):
            return
        with os.fdopen(os.dup(self._fd), "rb") as file:
            data = file.read()
        whole = data[: data.rfind(b"\n") + 1]
        for line in whole.splitlines():
            with suppress(ValueError, KeyError, TypeError):
                row = read_json(line)
                if row["run"] == self._run:
                    prediction = Prediction(row["prediction"], row.get("tokens"), row.get("seconds"))
                    self.answers[(row["task"], row["index"]), row["question"]] = prediction
        if data and not self.answers and not force:
            os.close(self._fd)
            self._fd = -1
            raise CannotCreate(f"{self.path}: this is of another run, or no details at all. Give --force to overwrite it.")
        kept = whole if self.answers else b""
        os.ftruncate(self._fd, len(kept))
        os.lseek(self._fd, len(kept), os.SEEK_SET)


def unanswered(questions: Sequence[Question], details: Details) -> tuple[dict[Key, Prediction], list[Question]]:
    """The answers that a stopped run has left for these questions, and the questions that have none."""
    known: dict[Key, Prediction] = {}
    rest = []
    for question in questions:
        prediction = details.answers.get((question.key, question_digest(question)))
        if prediction is None:
            rest.append(question)
        else:
            known[question.key] = prediction
    return known, rest
