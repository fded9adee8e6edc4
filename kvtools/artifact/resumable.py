"""A stream made of files that are there to be read again: what a stopped run wrote is compared with them, and continued.

Not here: runs whose records are dear to make, which trust what is kept (tokenize-video, recgen).
"""

import os
from collections.abc import Iterable, Sequence
from itertools import chain

from kvtools.artifact.state import state_folder
from kvtools.artifact.stream import Record, Writer
from kvtools.errors import NothingDone, Stopped
from kvtools.world import Stop


def stop_between(sources: Sequence[str], dst: str) -> Stop | None:
    """When to stop between two records. None where a signal ends the run at once, and nothing is kept: what was read from a
    pipe cannot be read again, and a pipe cannot be continued."""
    return Stop() if state_folder(dst) is not None and all(map(os.path.isfile, sources)) else None


def write_all(writer: Writer, records: Iterable[tuple[str, Sequence[memoryview]]], stop: Stop | None) -> None:
    """Write records, each a key and its encoded pieces, after those of a stopped run that are the same.

    Raises Stopped once `stop` is true; NothingDone where it has written none by then.
    """
    made, differing = iter(records), []

    def keep(kept: Record) -> bool:
        record = next(made, None)
        if record is not None and kept.key == record[0] and kept.raw == b"".join(record[1]):
            return True
        differing.extend([] if record is None else [record])
        return False

    writer.resume(start_over=True, keep=keep)
    n_kept = writer.n_records
    for key, pieces in chain(differing, made):
        if stop and writer.n_records == n_kept:
            raise NothingDone("stopped before a record was written. Give the job more time.")
        if stop:
            raise Stopped(f"stopped after record {writer.n_records}. Run again to continue.")
        writer.write_pieces(key, pieces)
