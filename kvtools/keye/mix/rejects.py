"""Documents that were left out: kept in a file with their reasons, and told where an input is at fault."""

import json
from typing import Self

from kvtools.artifact.files import Sink
from kvtools.errors import Corrupt
from kvtools.keye.mix.examine import END, NOT_UNDERSTOOD, UNREADABLE, Rejected
from kvtools.skipped import SkippedRows

_TOLD = {  # faults of an input, not of a sample, as they are told
    NOT_UNDERSTOOD: "documents that cannot be understood left out",
    UNREADABLE: "documents whose pictures or videos cannot be read left out",
}
_FIELDS = ("reason", "detail", "mode", "source", "where", "against", "document")


class Rejects:
    """Takes rejected documents; use it in a `with`.

    dst: a file of JSON Lines, or None. is_strict: whether the first fault of an input ends the run.
    """

    def __init__(self, dst: str | None, *, force: bool, is_strict: bool = False) -> None:
        self._is_strict = is_strict
        self._sink = None if dst is None else Sink(dst, force=force)
        self._faults: dict[str, SkippedRows] = {}
        self._ends: list[str] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, error: object, *_: object) -> None:
        if self._sink is not None:
            self._sink.abandon() if error is not None else self._sink.commit()

    def __call__(self, rejected: Rejected) -> None:
        """Keep one. Raises Corrupt for a fault of an input where that ends the run."""
        named = rejected.detail if rejected.where == END else f"{rejected.where}: {rejected.detail}"
        if self._is_strict and rejected.reason in _TOLD:
            raise Corrupt(f"{rejected.source}: {named}. Repair the input, or run without --strict.")
        if rejected.where == END:  # no document
            self._ends.append(f"{rejected.source}: {named}.")
            return
        if rejected.reason in _TOLD:
            self._faults.setdefault(rejected.source, SkippedRows()).skip(_TOLD[rejected.reason], named)
        if self._sink is not None:
            row = {name: getattr(rejected, name) for name in _FIELDS}
            self._sink.write([json.dumps(row, ensure_ascii=False, default=str).encode("utf-8", "surrogatepass") + b"\n"])

    def lines(self) -> list[str]:
        """What is wrong with the sources, a sentence each."""
        return self._ends + [f"{source}: {line}." for source, rows in self._faults.items() for line in rows.lines()]
