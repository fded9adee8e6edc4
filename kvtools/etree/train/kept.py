"""What a run that was stopped leaves in a folder, `.NAME.state` beside its output: the same command goes on from there."""

import json
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from kvtools.artifact.bag import read_bag, write_bag
from kvtools.artifact.files import Sink, open_source
from kvtools.etree.train.run import Run


class Kept:
    """The state of a run, in a folder; folder None: there is none. `words` tell this run from others."""

    def __init__(self, folder: str | None, words: Mapping[str, Any]) -> None:
        self._words = json.loads(json.dumps(words))
        self._path = None if folder is None else Path(folder) / "train.state"

    def resume(self, run: Run) -> int:
        """Bring a run to where the same one was stopped; the rounds it has done, 0 where there is nothing of it."""
        if self._path is None or not self._path.exists():
            return 0
        bag = read_bag(open_source(str(self._path)), str(self._path))
        if bag.fields.get("config") != self._words:
            return 0
        run.restore(bag.tensors, bag.fields["progress"])
        return run.course.spent.steps // run.course.round_steps

    def save(self, run: Run, *, is_writer: bool) -> None:
        """Keep a run's state, written by one of the ranks. Every rank must call it."""
        tensors, progress = run.state()
        if self._path is not None and is_writer:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            write_bag(Sink(str(self._path), force=True), "model", tensors, config=self._words, history=[], progress=progress)

    def forget(self) -> None:
        """The run is over."""
        if self._path is not None:
            self._path.unlink(missing_ok=True)
            with suppress(OSError):  # not there, or something else is in it
                self._path.parent.rmdir()
