"""The results of examined documents, kept beside the output while a mixture is made, so that a stopped run goes on.

A record a batch, or several where it is large, appended as soon as that batch and all before it are examined; its key is a
digest of the batch. A run that goes on reads all sources again and compares. Without a folder nothing is kept. Rank 0's.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from itertools import chain
from types import TracebackType
from typing import Self

import numpy as np

from kvtools.artifact.files import Sink
from kvtools.artifact.state import lock_folder
from kvtools.artifact.stream import Head, Record, Writer
from kvtools.artifact.stream_part import Part, Torn
from kvtools.errors import Corrupt, Usage
from kvtools.keye.mix.batches import Batch, Result, digest_of, unpacked
from kvtools.world import World

_PIECE_BYTES = 64 << 20  # of a record
_DIGEST = 32  # letters


@contextmanager
def open_journal(folder: str | None, head: Head, world: World, *, start_over: bool) -> Iterator["Journal"]:
    """Rank 0's journal in a folder that this run has for itself; other ranks keep nothing. See Journal for the arguments."""
    with (
        lock_folder(folder, is_root=world.is_root),
        Journal(folder if world.is_root else None, head, start_over=start_over) as journal,
    ):
        yield journal


class Journal:
    """Use it in a `with`: what is kept is gone at its normal end, and where an input is at fault, since that will be mended."""

    def __init__(self, folder: str | None, head: Head, *, start_over: bool) -> None:
        """head: what the run is made of. Raises Usage where the stopped run had other options or another version."""
        self._folder, self._is_forced = folder, start_over
        self._digests: list[str] = []  # of the batches that a stopped run examined
        if folder is None:
            return
        self._sink = Sink(os.path.join(folder, "examined"), keep_partial=True)
        self._writer = Writer(self._sink, head)
        try:
            self._writer.resume(start_over=start_over, keep=self._keep)
        except BaseException:
            self._sink.abandon()
            raise

    def __len__(self) -> int:
        """Batches that a stopped run examined."""
        return len(self._digests)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None) -> None:
        if self._folder is None:
            return
        if kind is None or issubclass(kind, Corrupt):
            self._sink.resume_at(0)  # an empty file is not kept
        self._sink.abandon()

    def results(self) -> Iterator[Result]:
        """What a stopped run found, in the order of the documents."""
        partial = self._sink.partial() if self._digests else None
        if partial is None:
            return
        pieces: list[bytes] = []
        with partial, suppress(Torn):  # the stream has no end
            for record in Part(partial, 0, is_partial=True).records():
                # a batch whose last piece is missing was examined again: it begins anew
                pieces = [*pieces[: record.fields["piece"]], record.tensors["results"].tobytes()]
                if record.fields["is_last"]:
                    yield from unpacked(b"".join(pieces))

    def after_kept(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        """The batches after those that a stopped run examined.

        Raises Usage where that run had others; where this one starts over, it keeps those before the first that differs.
        """
        for number, digest in enumerate(self._digests):
            batch = next(batches, None)
            if batch is not None and digest_of(batch) == digest:
                continue
            if not self._is_forced:
                raise Usage(
                    f"{self._folder}: the stopped run had other documents. Give the same files to resume it, or --force to "
                    "start over."
                )
            self._digests = []
            self._writer.resume(keep=lambda record: len(self._digests) < number and self._keep(record))  # noqa: B023
            return batches if batch is None else chain([batch], batches)
        return batches

    def add(self, message: bytes | bytearray) -> list[Result]:
        """Keep the results of the next batch, and return them. message: the digest of the batch, and its results, packed."""
        key, data = message[:_DIGEST].decode(), bytes(message[_DIGEST:])
        if self._folder is not None:
            n_pieces = -(-len(data) // _PIECE_BYTES)
            for piece in range(n_pieces):
                part = np.frombuffer(data, np.uint8)[piece * _PIECE_BYTES : (piece + 1) * _PIECE_BYTES]
                self._writer.write(key, {"results": part}, piece=piece, is_last=piece == n_pieces - 1)
        return unpacked(data)

    def _keep(self, record: Record) -> bool:
        if record.fields["is_last"]:
            self._digests.append(record.key)
        return True
