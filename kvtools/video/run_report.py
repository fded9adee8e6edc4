"""What became of the clips of a run: counted as they pass, told at the end, and written as JSON."""

import os
import stat
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from kvtools.artifact.files import Sink
from kvtools.artifact.stream import Record, Writer
from kvtools.errors import Corrupt, Died, Missing, NothingDone, Stopped
from kvtools.names import printable
from kvtools.video.digest import digest_of
from kvtools.video.inputs import Clip, Search
from kvtools.video.pool import Outcome

REMEDIES = {
    "damaged": "Repair or fetch the file again.",
    "unreadable": "Look at its name and its permissions.",
    "no-file": "Save it as a file, and name that.",
    "unfit": "Give other limits of time, frames or tokens, or leave it out.",
    "mixed": "Give --mixed pad, or leave it out.",
    "model": "Give another model.",
    "late": "Give a longer --timeout, or leave it out.",
    "line": "Correct the line, or remove it.",
}
_LONG_S = 10  # as of progress.py, which is silent until then
_SKEW_S = 3600


@dataclass
class RunReport:
    """Counts, faults and notes. log: prints a line about a fault; a fault is also kept for the report."""

    log: Callable[[str], None]
    is_strict: bool = False
    is_search: bool = False  # whether the clips are others than the files that stand on the command line
    began: float = field(default_factory=time.monotonic)
    n_written: int = 0
    n_frames: int = 0
    seconds: float = 0.0
    n_kept: int = 0  # of a stopped run
    passed_over: Counter[str] = field(default_factory=Counter)
    faults: list[dict[str, Any]] = field(default_factory=list)
    salvaged: list[dict[str, Any]] = field(default_factory=list)

    def code(self, *, has_records: bool) -> int:
        """The exit code: that of the faults where they agree and there is no record; else that of damage."""
        codes = {fault["code"] for fault in self.faults}
        return 0 if not codes else Corrupt.code if has_records or len(codes) > 1 else int(codes.pop())

    def fault(self, where: str, reason: str, cause: str, path: str | None = None) -> None:
        """Print and keep a fault. path: that of the clip, where it is one. Raises Died where the run is strict."""
        code = Missing.code if cause in ("unreadable", "no-file") else Corrupt.code
        self.log(f"{where}: {reason}. {REMEDIES[cause]}")
        self.faults.append({"where": where, "path": path, "fault": reason, "cause": cause, "code": code})
        if self.is_strict:
            raise Died(code)

    def found(self, search: Search, *, is_search: bool) -> None:
        """Note what a search passed over and could not read. is_search: whether the clips are others than the files that stand
        on the command line."""
        self.is_search = is_search
        self.passed_over += search.passed_over
        for where, reason in search.faults:
            self.fault(where, reason, "unreadable" if os.path.isdir(where) else "damaged")

    def keeps(self, clips: Sequence[Clip], sink: Sink) -> Callable[[Record], bool]:
        """For `Writer.resume`: whether a record of the stopped run is what this run would write; tells of one that is not."""
        by_key = {clip.key: clip for clip in clips}
        partial = sink.partial()
        if partial is None:
            return lambda _: True
        with partial:
            since = os.fstat(partial.fileno()).st_mtime

        def keep(record: Record) -> bool:
            if is_current(record.fields, by_key.get(record.key), since):
                return True
            self.log(
                f"{record.key}: its input is gone or has changed since the run that was stopped. Its record and those after it "
                "are dropped."
            )
            return False

        return keep

    def write(self, writer: Writer, outcomes: Iterable[Outcome], clips: Sequence[Clip]) -> Stopped | None:
        """Write the records and report the faults, in the order of the clips; returns what to raise if the work was stopped."""
        is_stopped = False
        paths = {clip.key: printable(clip.path) for clip in clips}
        for outcome in outcomes:
            if not outcome.is_done:
                is_stopped = True  # later records are of ranks that were not asked to stop; the next run makes them again
            elif is_stopped:
                if outcome.record is not None:
                    outcome.record.close()
            elif outcome.record is not None:
                with outcome.record as record:
                    self._wrote(outcome)
                    if outcome.compressed is None:
                        writer.write_pieces(outcome.key, record)
                    else:
                        writer.write_frame(outcome.key, record, outcome.compressed.raw)
            else:
                self.fault(outcome.key, str(outcome.fault), outcome.cause, paths[outcome.key])
        if not is_stopped:
            return None
        if self.n_written == 0 and not self.faults:
            return NothingDone("stopped before a clip was done. Give the job more time.")
        return Stopped(f"stopped after {writer.n_records} of {len(clips)} clips. Run again to continue.")

    def _wrote(self, outcome: Outcome) -> None:
        """Count a record, and tell what is missing in it."""
        shapes, fields = outcome.head()
        self.n_written += 1
        self.n_frames += shapes["seconds"][0]
        self.seconds += fields["duration"]
        missing = fields.get("missing")
        if missing:
            frames = "1 frame that is" if missing["frames"] == 1 else f"{missing['frames']} frames that are"
            parts = [f"{frames} not whole"] if missing["frames"] else []
            parts += [f"what is damaged after {at:.3f} s" for at in missing["damaged_after_s"][:1]]
            reasons = "; ".join(missing["reasons"])
            self.log(f"{outcome.key}: its record lacks {' and '.join(parts)} ({reasons}). Fetch the file again for all of it.")
            self.salvaged.append({"key": outcome.key, **missing})

    def tell_summary(self, info: Callable[[str], None]) -> None:
        """Print one line of counts, where it says more than the command line and the faults, or there was something to wait
        for; short work without a fault stays silent."""
        has_several = self.n_written + self.n_kept + len(self.faults) > 1
        is_long = time.monotonic() - self.began > _LONG_S
        if self.passed_over or (has_several and (is_long or (self.is_search and (self.faults or self.n_kept)))):
            info(self._summary())

    def _summary(self) -> str:
        parts = [f"{self.n_written} written"]
        if self.n_kept:
            parts.append(f"{self.n_kept} kept of the stopped run")
        parts.append(f"{len(self.faults)} bad")
        if self.passed_over:
            parts.append(f"passed over: {_counted(self.passed_over)}")
        return f"clips: {'; '.join(parts)}; {self.n_frames} frames of {self.seconds:.1f} s."

    def to_json(self) -> dict[str, Any]:
        """What --report writes."""
        return {
            "written": self.n_written,
            "kept": self.n_kept,
            "bad": len(self.faults),
            "frames": self.n_frames,
            "seconds": self.seconds,
            "passed_over": dict(sorted(self.passed_over.items())),
            "faults": self.faults,
            "salvaged": self.salvaged,
        }


def _counted(suffixes: Counter[str]) -> str:
    return ", ".join(f"{n} {suffix}" for suffix, n in sorted(suffixes.items(), key=lambda item: (-item[1], item[0])))


def is_current(fields: Mapping[str, Any], clip: Clip | None, since: float) -> bool:
    """Whether a record that a stopped run left is what this run would write: its input is listed, with the same fields, and
    has not changed. since: when the stopped run wrote last, by the clock of the machine that keeps its output, in seconds.

    Clocks of machines differ, and a copy may keep its date: a file that is not an hour older, by its last change of any kind,
    is read and compared. A folder or a tar, of which there is no digest, is taken by its date, but not by one from the future.
    """
    if clip is None or any(fields.get(name) != value for name, value in clip.fields.items()):
        return False
    source = fields.get("source", {})
    try:
        status = os.stat(clip.path)
        age_s = min(since, time.time()) - max(status.st_mtime, status.st_ctime)
        if clip.member is not None or stat.S_ISDIR(status.st_mode):
            return age_s > 0
        if status.st_size != source.get("bytes"):
            return False
        return age_s > _SKEW_S or digest_of(clip.path) == source.get("digest")
    except OSError:
        return False
