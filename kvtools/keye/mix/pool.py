"""All samples of a mixture on disk while it is made: what each is in a table, and what it says in a file beside it.

The invariant: nothing that is read out depends on the order in which samples came in, so that sources in another order, workers
and ranks give the same mixture. A sample's name is a digest of what it says. Memory does not grow with the number of samples.
"""

import json
import sqlite3
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

from kvtools.chance import seed_for
from kvtools.keye.mix.duplicates import Duplicates
from kvtools.keye.mix.paths import best_path, commonest, same_answers

_SCHEMA = """
PRAGMA journal_mode = OFF; PRAGMA synchronous = OFF; PRAGMA cache_size = -16384; PRAGMA temp_store = FILE;
CREATE TABLE samples (
    mode TEXT, name TEXT, source TEXT, place TEXT, prompt TEXT, answer TEXT, correct INTEGER, is_video INTEGER,
    is_thinking INTEGER, sizes TEXT, signature BLOB,
    begin INTEGER, size INTEGER, encoded INTEGER, dropped TEXT, PRIMARY KEY (mode, name));
CREATE INDEX by_prompt ON samples (mode, prompt);
CREATE TABLE repeated (prompt TEXT);
CREATE TABLE drawn (draw INTEGER, name TEXT, is_video INTEGER);
CREATE TABLE frame_counts (frames INTEGER, of_video INTEGER);
CREATE TABLE chosen (place INTEGER, mode TEXT, name TEXT, copy INTEGER, frames INTEGER);
"""
_WRONG = "the answer is not the right one of its prompt"


@dataclass(frozen=True)
class Sample:
    """A conversation that is of its mode, and what cleaning asks of it.

    name, prompt: digests of what it says, and of what comes before its answer. answer: what the replies to one prompt are
    compared by; correct: whether it is known to be right. sizes: its tokens and the visual ones among them, by the number of
    frames of its videos; 0 where there are none. said: JSON of its conversation and its thinking or null. signature: of its
    text, as bytes (duplicates.py). encoded: its tokens as bytes of int32 and then its targets as bytes, or nothing.
    """

    mode: str
    source: str
    where: str
    name: str
    prompt: str
    answer: str | None
    correct: bool | None
    is_thinking: bool
    is_video: bool
    sizes: dict[int, tuple[int, int]]
    repairs: tuple[str, ...]
    said: bytes
    signature: bytes
    encoded: bytes = b""


@dataclass(frozen=True)
class Chosen:
    """A record of the mixture. copy: how often its sample comes before it; frames: of its videos, 0 as they are."""

    conversation: dict[str, Any]
    mode: str
    source: str
    name: str
    copy: int
    frames: int
    tokens: int
    encoded: bytes

    @property
    def key(self) -> str:
        """The record's name: its mode, its sample, and what tells it from others of that sample."""
        frames, copy = f"@{self.frames}" if self.frames else "", f"#{self.copy}" if self.copy else ""
        return f"{self.mode}/{self.name[:16]}{frames}{copy}"


class Pool:
    """The samples; use it in a `with`. Files lie in $TMPDIR and are gone afterwards."""

    def __init__(self) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="kvtools-mix-")
        self._database = sqlite3.connect(f"{self._folder.name}/samples.sqlite", isolation_level=None)
        self._database.create_function("seed_for", -1, _signed_seed, deterministic=True)
        self._database.executescript(_SCHEMA)
        self._database.execute("BEGIN")
        self._file = open(f"{self._folder.name}/conversations", "w+b")  # noqa: SIM115 closed with the pool
        self._end = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, _type: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None) -> None:
        self._database.close()
        self._file.close()
        self._folder.cleanup()

    def add(self, sample: Sample) -> bool:
        """Keep a sample; False where the same stands in its mode already. Of equal samples the lower source is kept."""
        key = sample.mode, sample.name
        row = (
            *key, sample.source, sample.where, sample.prompt, sample.answer, sample.correct, sample.is_video,
            sample.is_thinking, json.dumps(sample.sizes), sample.signature, self._end, len(sample.said), len(sample.encoded),
        )  # fmt: skip
        added = self._database.execute(
            "INSERT INTO samples VALUES (?,?,?,?,?,?,?,?,?,?,?,?,?,?,NULL) ON CONFLICT DO NOTHING", row
        )
        if not added.rowcount:
            self._database.execute(
                "UPDATE samples SET source = ?1, place = ?2 WHERE mode = ?3 AND name = ?4 AND (source, place) > (?1, ?2)",
                (sample.source, sample.where, *key),
            )
            return False
        self._file.write(sample.said)
        self._file.write(sample.encoded)
        self._end += len(sample.said) + len(sample.encoded)
        return True

    def choose_paths(self, mode: str, min_agreement: float) -> None:
        """Of the samples of one prompt keep the correct one whose steps recur most; drop prompts of less agreement.

        Correct is what is known to be, or, where nothing is known of a prompt, what the commonest answer says. The only sample
        of a prompt is dropped where it is known to be wrong.
        """
        self._database.execute(
            "INSERT INTO repeated SELECT prompt FROM samples WHERE mode = ? AND dropped IS NULL "
            "GROUP BY prompt HAVING COUNT(*) > 1 ORDER BY prompt",
            (mode,),
        )
        for (prompt,) in self._database.execute("SELECT prompt FROM repeated"):
            rows = self._database.execute(
                "SELECT name, answer, correct FROM samples WHERE mode = ? AND prompt = ? AND dropped IS NULL ORDER BY name",
                (mode, prompt),
            ).fetchall()
            is_known = any(correct is not None for _, _, correct in rows)
            groups = same_answers([answer for _, answer, _ in rows]) if not is_known else [None] * len(rows)
            common, _ = commonest(groups)
            right = [
                name
                for (name, _, correct), group in zip(rows, groups, strict=True)
                if (correct if is_known else group is not None and group == common)
            ]
            share = len(right) / len(rows)
            best = best_path([(name, self._said(mode, name)[1] or "") for name in right]) if right else None
            for name, _, _ in rows:
                if name not in right:
                    self.drop(mode, name, _WRONG)
                elif share < min_agreement:
                    self.drop(mode, name, "the answers to its prompt do not agree enough")
                elif name != best:
                    self.drop(mode, name, "another path of its prompt was kept")
        self._database.execute(
            "UPDATE samples SET dropped = ? WHERE mode = ? AND correct = 0 AND dropped IS NULL", (_WRONG, mode)
        )

    def drop_near_duplicates(self) -> int:
        """Drop what nearly repeats an earlier sample of its mode, in the order of names; returns how many."""
        rows = self._database.execute("SELECT mode, name, signature FROM samples WHERE dropped IS NULL ORDER BY mode, name")
        texts = ((f"{mode} {name}", mode, signature) for mode, name, signature in rows)
        n_dropped = 0
        for both, earlier in Duplicates(self._database).filter(texts):
            if earlier is not None:
                mode, _, name = both.partition(" ")
                self.drop(mode, name, "near duplicate")
                n_dropped += 1
        return n_dropped

    def drop(self, mode: str, name: str, reason: str) -> None:
        """Leave a sample out, for a reason."""
        self._database.execute("UPDATE samples SET dropped = ? WHERE mode = ? AND name = ?", (reason, mode, name))

    def available(self, mode: str, frames: Sequence[int] = (), *, is_thinking: bool | None = None) -> int:
        """How many records a mode can give without repetition; a sample with a video gives one for each number of frames."""
        n, n_videos = self._database.execute(
            "SELECT COUNT(*), COALESCE(SUM(is_video), 0) FROM samples WHERE mode = ? AND dropped IS NULL "
            "AND is_thinking = COALESCE(?, is_thinking)",
            (mode, is_thinking),
        ).fetchone()
        return int(n + (max(1, len(frames)) - 1) * n_videos)

    def choose(self, mode: str, n: int, *, seed: int, frames: Sequence[int] = (), is_thinking: bool | None = None) -> None:
        """Choose n records of a mode by seed and name, each sample once before any comes again."""
        self._database.execute("DELETE FROM frame_counts")
        counts = [(0, 0), *((number, 1) for number in frames or (0,))]
        self._database.executemany("INSERT INTO frame_counts VALUES (?, ?)", counts)
        copy = 0
        while n > 0:
            self._database.execute("DELETE FROM drawn")
            self._database.execute(
                "INSERT INTO drawn SELECT seed_for(?1, 'choose', ?2, name, ?3), name, is_video FROM samples "
                "WHERE mode = ?2 AND dropped IS NULL AND is_thinking = COALESCE(?4, is_thinking)",
                (seed, mode, copy, is_thinking),
            )
            taken = self._database.execute(
                "INSERT INTO chosen SELECT seed_for(?1, 'order', ?2, name, ?3, frames), ?2, name, ?3, frames FROM ("
                "SELECT draw, name, frames FROM drawn JOIN frame_counts ON of_video = is_video "
                "ORDER BY draw, name, frames LIMIT ?4)",
                (seed, mode, copy, n),
            ).rowcount
            if not taken:
                return
            n, copy = n - taken, copy + 1

    def chosen(self) -> Iterator[Chosen]:
        """The chosen records, in the order of the mixture."""
        reader = self._database.execute(
            "SELECT c.mode, c.name, c.copy, c.frames, s.source, json_extract(s.sizes, '$.' || c.frames || '[0]'), "
            "s.begin, s.size, s.encoded FROM chosen c JOIN samples s ON s.mode = c.mode AND s.name = c.name "
            "ORDER BY c.place, c.mode, c.name, c.copy, c.frames"
        )
        for mode, name, copy, frames, source, tokens, begin, size, encoded in reader:
            self._file.seek(begin)
            conversation = json.loads(self._file.read(size))[0]
            yield Chosen(conversation, mode, source, name, copy, frames, tokens, self._file.read(encoded))

    def totals(self) -> Iterator[tuple[str, str, bool, int, int, int]]:
        """(mode, source, whether it thinks, records, tokens, visual tokens) of what was chosen."""
        yield from self._database.execute(
            "SELECT c.mode, s.source, s.is_thinking, COUNT(*), SUM(json_extract(s.sizes, '$.' || c.frames || '[0]')), "
            "SUM(json_extract(s.sizes, '$.' || c.frames || '[1]')) FROM chosen c "
            "JOIN samples s ON s.mode = c.mode AND s.name = c.name GROUP BY 1, 2, 3 ORDER BY 1, 2, 3"
        )

    def dropped(self) -> Iterator[tuple[str, str, str, str, dict[str, Any]]]:
        """(reason, mode, source, place, conversation) of each sample that was dropped, in the order of names."""
        rows = self._database.execute(
            "SELECT dropped, mode, source, place, name FROM samples WHERE dropped IS NOT NULL ORDER BY mode, name"
        )
        for reason, mode, source, place, name in rows:
            yield reason, mode, source, place, self._said(mode, name)[0]

    def _said(self, mode: str, name: str) -> tuple[dict[str, Any], str | None]:
        query = "SELECT begin, size FROM samples WHERE mode = ? AND name = ?"
        begin, size = self._database.execute(query, (mode, name)).fetchone()
        self._file.seek(begin)
        conversation, thinking = json.loads(self._file.read(size))
        return conversation, thinking


def _signed_seed(seed: int, *words: str | int) -> int:
    """A seed as a number of SQLite, which has 63 bits and a sign."""
    return seed_for(seed, *words) >> 1
