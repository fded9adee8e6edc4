"""The log of a training: JSON Lines that continue where its state continues, whatever ended the run before.

Not here: what a line holds, and drawing it (draw/).
"""

import json
import os
from collections.abc import Mapping
from typing import Any, Self

from kvtools.artifact.json_text import read_json
from kvtools.errors import unwritable
from kvtools.names import naming

_BLOCK_BYTES = 1 << 16


class TrainingLog:
    """A log to append to, each line on the disk's way once it is written; a context manager.

    dst None: lines are dropped. at: the step (`key` names it) whose state the run continues from; lines after it are removed
    first, as is a last line that was cut. None: a new run, whose lines carry `"run": N` in a log that has lines, from 2 on.

    Raises CannotCreate where the file cannot be written.
    """

    def __init__(self, dst: str | None, *, at: int | None = None, key: str = "step") -> None:
        self._run = 1
        try:
            self._dst = os.devnull if dst is None else dst
            self._file = open(self._dst, "a+b", buffering=0)  # noqa: SIM115 closed by __exit__
            if dst is not None and os.path.isfile(dst):
                self._continue(at, key)
        except OSError as error:
            raise unwritable(str(dst), error) from None

    def write(self, line: Mapping[str, Any]) -> None:
        """Append a line."""
        run = {} if self._run == 1 else {"run": self._run}
        left = memoryview(json.dumps({**run, **line}, ensure_ascii=False).encode() + b"\n")
        with naming(self._dst):
            while left:  # a disk that fills takes a part of it, and refuses the rest
                left = left[self._file.write(left) :]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def _continue(self, at: int | None, key: str) -> None:
        """Remove what the continued run will write again, and number the run."""
        end, last_run = self._file.seek(0, os.SEEK_END), 0
        while end:
            text = self._last_line(end)
            line = _parsed(text)
            number = int((line or {}).get("run", 1))
            last_run = last_run or (number if text.endswith(b"\n") else 0)
            is_cut = text.startswith(b"{") and not text.endswith(b"\n")
            is_later = line is not None and at is not None and isinstance(line.get(key), int) and line[key] > at
            if not is_cut and not (is_later and number == last_run):
                break
            end -= len(text)
        self._run = max(1, last_run + (at is None))
        self._file.truncate(end)

    def _last_line(self, end: int) -> bytes:
        """The line that ends at `end`, with its line feed if it has one."""
        tail, begin = b"", end
        while begin and tail.count(b"\n", 0, -1) == 0:
            begin = max(0, begin - _BLOCK_BYTES)
            self._file.seek(begin)
            tail = self._file.read(end - begin)
        return tail[tail.rfind(b"\n", 0, -1) + 1 :]


def _parsed(text: bytes) -> dict[str, Any] | None:
    """A line of a log; None for anything else."""
    try:
        line = read_json(text)
    except ValueError:
        return None
    return line if isinstance(line, dict) else None
