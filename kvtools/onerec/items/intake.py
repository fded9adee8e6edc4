"""Vectors to be tokenized: every row sound, every key once, or a refusal that names the first that is not."""

from collections.abc import Iterator
from typing import Any

import numpy as np

from kvtools.artifact import is_stream
from kvtools.artifact.files import open_source
from kvtools.artifact.keys import Keys
from kvtools.artifact.stream import Reader
from kvtools.errors import Corrupt, Usage
from kvtools.onerec.items import vectors
from kvtools.skipped import SkippedRows

HUGE = 1e15  # squares of larger values, summed, would come near the end of float32's range


class Intake:
    """An embedding stream, a stream of video records with embeddings, or an .npy with its keys; iterate for the blocks,
    float32 (n, D), once. Afterwards `keys` names every row."""

    def __init__(self, src: str, keys_src: str | None) -> None:
        """Raises Corrupt for other files, Usage for an .npy without keys."""
        self.name = "stdin" if src == "-" else src
        self.keys = Keys()
        self.skipped = SkippedRows()
        self.history: list[dict[str, Any]] = []
        file = open_source(src)
        if is_stream(file):
            reader = Reader(file, self.name)
            if reader.head.kind not in ("embedding", "video"):
                raise Corrupt(f"{self.name}: {reader.head.kind} records found, embedding or video expected.")
            self.history = reader.head.history
            self._blocks = vectors.read_stream(reader, self.name, self.skipped)
        elif vectors.is_npy(file):
            if keys_src is None:
                raise Usage(f"{self.name}: an array without names for its rows. Give them with --keys FILE.")
            self._blocks = vectors.read_npy(file, self.name, vectors.read_keys(keys_src))
        else:
            begin = bytes(file.peek(1)[:1])  # type: ignore[attr-defined]
            found = "neither a stream nor an .npy" if begin else "closed before any record arrived"
            raise Corrupt(f"{self.name}: {found}. Make embeddings with kvtools embed.")

    def __iter__(self) -> Iterator[np.ndarray]:
        is_empty = True
        for keys, x_nD in vectors.batches(self._checked()):
            is_empty = False
            self.keys.append(keys)
            yield x_nD
        if is_empty:
            raise Corrupt(f"{self.name}: no vectors in it. Look at the stage before this one.")
        if (again := self.keys.twice()) is not None:
            raise Corrupt(f"{self.name}: key {again!r} found twice, once expected. Give every item one vector.")

    def _checked(self) -> Iterator[vectors.Block]:
        width = None
        for keys, x_nD in self._blocks:
            width = width or x_nD.shape[1]
            if x_nD.shape[1] != width or width == 0:
                raise Corrupt(f"{self.name}: key {keys[0]!r}: {x_nD.shape[1]} dimensions found, {width or 'some'} expected.")
            # a value that is no number fails every comparison, so one test finds all three faults
            is_bad = ~(np.abs(x_nD).max(axis=1, initial=0.0) < HUGE)
            if is_bad.any():
                row = int(np.flatnonzero(is_bad)[0])
                worst = "NaN" if np.isnan(x_nD[row]).any() else str(float(np.abs(x_nD[row]).max()))
                raise Corrupt(f"{self.name}: key {keys[row]!r}: {worst} found, finite numbers below 1e15 expected.")
            yield keys, np.asarray(x_nD, np.float32)
