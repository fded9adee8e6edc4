"""Scores by a program of the user's: JSON Lines to its stdin, a line with a score of each from its stdout.

To it, a line a reply: {"id", "question", "mode", "text", "answer", "tokens"}, with the expected answer or null. From it, in
the same order, a number, or {"score": number}, with "id" in any order. It is started once for each batch of replies and reads
to the end of its stdin: a program that prints when it has read all is as good as one that answers at once. It runs with the
rights of the user, who wrote it. A reply that it scores null is set aside.
"""

import json
import math
import os
import shlex
import signal
import subprocess
from collections.abc import Sequence
from typing import Any

from kvtools.errors import Fault, Usage, os_reason
from kvtools.keye.rl.rewards import Reply

_MAX_WORDS = 200  # letters of its stderr that a message repeats


class Program:
    """A term of the reward that a program gives."""

    is_slow, fault = True, None

    def __init__(self, name: str, command: str, timeout_s: float) -> None:
        """Raises Usage for a command line that cannot be split into words."""
        self.name, self._command, self._timeout_s = name, command, timeout_s
        try:
            self._words = shlex.split(command)
        except ValueError as error:
            raise Usage(f"--reward cmd:{command}: {str(error).lower()}. Close the quotes.") from None

    def score(self, replies: Sequence[Reply]) -> list[float | None]:
        """The program's score of each reply; None for null. Raises Fault where it fails, or does not answer each line."""
        if not replies:
            return []
        lines = "".join(json.dumps(_line(reply), ensure_ascii=False) + "\n" for reply in replies)
        try:
            code, out, err = self._run(lines.encode())
        except OSError as error:
            raise Usage(f"--reward cmd:{self._command}: {os_reason(error)}. Name a program that can be run.") from None
        except subprocess.TimeoutExpired:
            raise Fault(
                f"--reward cmd:{self._command}: no end after {self._timeout_s:g} s. Raise --timeout, or mend the program."
            ) from None
        if code:
            text = " ".join(err.decode("utf-8", "replace").split())[-_MAX_WORDS:]
            said = f"; it said: {text}" if text else ""
            raise Fault(f"--reward cmd:{self._command}: the program ended with code {code}. Mend it{said}.")
        return self._scores(out.decode("utf-8", "replace"), [reply.key for reply in replies])

    def _run(self, lines: bytes) -> tuple[int, bytes, bytes]:
        """Exit code, stdout and stderr. A program that takes too long is ended with all that it has started."""
        pipe = subprocess.PIPE
        with subprocess.Popen(self._words, stdin=pipe, stdout=pipe, stderr=pipe, start_new_session=True) as process:
            try:
                out, err = process.communicate(lines, timeout=self._timeout_s)
            except BaseException:
                os.killpg(process.pid, signal.SIGKILL)
                raise
        return process.returncode, out, err

    def _scores(self, text: str, keys: Sequence[str]) -> list[float | None]:
        rows = [line for line in text.split("\n") if line.strip()]  # a reply's own line separators are no ends of lines
        if len(rows) != len(keys):
            raise Fault(f"--reward cmd:{self._command}: {len(rows)} lines came for {len(keys)} replies. Print a line for each.")
        scores: dict[str, float | None] = {}
        for number, row in enumerate(rows):
            try:
                value: Any = json.loads(row)
                key = str(value.get("id", keys[number])) if isinstance(value, dict) else keys[number]
                score = value["score"] if isinstance(value, dict) else value
                if isinstance(score, bool) or not isinstance(score, int | float | None):
                    score = float(bool(score)) if isinstance(score, bool) else float(score)
                scores[key] = None if score is None else float(score)
            except OverflowError:
                scores[key] = math.inf
            except (ValueError, KeyError, TypeError, RecursionError):
                raise Fault(
                    f'--reward cmd:{self._command}: line {number + 1} is {row[:40]!r}. Print a number, or {{"score": number}}.'
                ) from None
        unknown = next((key for key in scores if key not in set(keys)), None)
        if unknown is not None:
            raise Fault(
                f"--reward cmd:{self._command}: there is no reply {unknown[:40]}. Print the ids that were read, or none."
            )
        missing = next((key for key in keys if key not in scores), None)
        if missing is not None:
            raise Fault(f"--reward cmd:{self._command}: there is no score of {missing}. Print a line with a score for each.")
        return [scores[key] if _is_a_number(scores[key]) else math.nan for key in keys]


def _is_a_number(score: float | None) -> bool:
    return score is None or math.isfinite(score)


def _line(reply: Reply) -> dict[str, Any]:
    expected = reply.prompt.expected
    return {
        "id": reply.key,
        "question": reply.prompt.question,
        "mode": reply.prompt.mode,
        "text": reply.text,
        "answer": None if expected is None else expected.text,
        "tokens": reply.n_tokens,
    }
