"""Clips into questions: which clips take part, on which side of the split, and a question at a time for each task.

Every answer is drawn before the clip it is about, and kept until a clip is found that it can be asked of fairly: so answers are
spread evenly over the letters, exactly, and say nothing of the clips. A clip's side hangs on its name (or its group's) alone.
Numbers of questions, clips and seeds decide the questions; nothing else does.
"""

import csv
import io
import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from kvtools.artifact import is_stream, kinds
from kvtools.artifact.blob import canonical, decode
from kvtools.artifact.files import open_source
from kvtools.artifact.stream import Reader
from kvtools.chance import rng_for, seed_for
from kvtools.errors import Corrupt, Usage
from kvtools.keye.model.inputs import Visual
from kvtools.keye.quiz.tasks import TASKS, Clip, Draw, Form, Question, are_alike, label
from kvtools.skipped import SkippedRows
from kvtools.video.pool import Pool
from kvtools.video.recipe import Recipe

_TRIES = 6  # draws from one clip before another is asked
_FAILURES = 4  # times a clip fails before it is left alone
UNREADABLE = "clips that cannot be read left out"
UNFIT = "clips of which no fair question could be asked"


@dataclass(frozen=True)
class Table:
    """What a CSV says of clips: its `file` column, and others by name; a clip is its file, or ends in it, or the reverse."""

    name: str
    columns: Mapping[str, Mapping[str, str]]  # file → column → word

    @staticmethod
    def open(src: str) -> "Table":
        """Raises Corrupt for a table without a column `file`, with rows of other lengths, or that names a file twice."""
        with open_source(src) as file:
            try:
                rows = list(csv.reader(io.StringIO(file.read().decode("utf-8-sig"))))
            except (UnicodeDecodeError, csv.Error) as error:
                raise Corrupt(f"{src}: {error}; a CSV expected.") from None
        titles = rows[0] if rows else []
        if "file" not in titles:
            raise Corrupt(f"{src}: columns {', '.join(titles) or 'none'} found, file expected.")
        found: dict[str, Mapping[str, str]] = {}
        for number, row in ((number, row) for number, row in enumerate(rows[1:], start=2) if row):
            words = dict(zip(titles, row, strict=False))
            if len(row) != len(titles) or words["file"] in found:
                raise Corrupt(
                    f"{src}: row {number}: {','.join(row)[:80]!r} found, {len(titles)} cells and a new file expected."
                )
            found[words["file"]] = words
        return Table(src, found)

    def of(self, key: str) -> Mapping[str, str] | None:
        """What is said of a clip; None where nothing is. Raises Corrupt where two rows may be meant."""
        if key in self.columns:
            return self.columns[key]
        near = [file for file in self.columns if file.endswith(f"/{key}") or key.endswith(f"/{file}")]
        if len(near) > 1:
            raise Corrupt(f"{self.name}: {' and '.join(near[:2])} may both be {key}. Give longer names.")
        return self.columns[near[0]] if near else None

    def column(self, names: Sequence[str]) -> str | None:
        """The first of these columns that is there."""
        first: Mapping[str, str] = next(iter(self.columns.values()), {})
        return next((name for name in names if name in first), None)


@dataclass(frozen=True)
class Side:
    """A part of the clips: `train` the lower share of all names, any other word the upper. share None: as a table says."""

    name: str
    share: float | None

    def holds(self, group: str) -> bool:
        """Whether clips of that group are on this side: for good, whatever other clips there are."""
        assert self.share is not None, "a table decides"
        place = seed_for(0, "side", group) / 2**63
        return place < self.share if self.name == "train" else place >= 1 - self.share


def stream_of(src: str) -> Reader | None:
    """The stream of videos that src is; None for a file that is no stream. Raises Corrupt for a stream of anything else."""
    file = open_source(src)
    if not is_stream(file) and src != "-":
        file.close()
        return None
    reader = Reader(file, "stdin" if src == "-" else src)
    if reader.head.kind != "video":
        raise Corrupt(f"{'stdin' if src == '-' else src}: {reader.head.kind} records found, video expected.")
    return reader


def clips_of(reader: Reader, name: str) -> Iterator[Clip]:
    """The clips of a stream, each its own group. Raises Corrupt."""
    for record in reader:
        try:
            kinds.check("video", "stream", record.tensors, record.fields)
        except ValueError as fault:
            raise Corrupt(f"{name}: record {record.number}: {fault}.") from None
        yield _clip(record.key, record.tensors)


def clips_of_files(named: Sequence[tuple[str, str]], recipe: Recipe, skipped: SkippedRows) -> Iterator[Clip]:
    """The clips of (key, path) of video files, each its own group."""
    with Pool(recipe, n_jobs=len(os.sched_getaffinity(0)), n_threads=1, timeout_s=60.0) as pool:
        for outcome in pool.run(named):
            if outcome.record is None:
                skipped.skip(UNREADABLE, f"{outcome.key}: {outcome.fault}")
                continue
            with outcome.record as spool:
                tensors, _ = decode(bytearray(b"".join(spool)))
            yield _clip(outcome.key, tensors)


def in_groups(clips: Sequence[Clip], table: Table | None) -> list[Clip]:
    """The clips, each with the group that a table gives it, or its own name."""
    column = table.column(("group", "scene_group")) if table is not None else None
    if table is None or column is None:
        return list(clips)
    told = [(clip, table.of(clip.key)) for clip in clips]
    return [clip if words is None else replace(clip, group=words[column]) for clip, words in told]


def on_side(clips: Sequence[Clip], side: Side | None, table: Table | None) -> list[Clip]:
    """The clips of one side: by the table's column `split` where it has one and no share is given, else by name."""
    if side is None:
        return list(clips)
    if side.share is not None:
        return [clip for clip in clips if side.holds(clip.group)]
    assert table is not None, "the command asks for one"
    return [clip for clip in clips if (table.of(clip.key) or {}).get("split") == side.name]


def labels_of(clips: Sequence[Clip], table: Table, skipped: SkippedRows) -> dict[str, str]:
    """The column `label` of each clip in the table; the others are skipped. Raises Corrupt without that column."""
    if table.column(["label"]) is None:
        raise Corrupt(f"{table.name}: no column label in it.")
    found = {}
    for clip in clips:
        words = table.of(clip.key)
        if words is None:
            skipped.skip(f"clips that {table.name} does not name left out", clip.key)
        else:
            found[clip.key] = words["label"]
    return found


def look_across(clips: Sequence[Clip], kept: Sequence[Clip]) -> list[str]:
    """Names of clips on this side of a split that look like one, of another group, on the other side: what is learnt of the one
    may answer for the other. Cost: the product of the numbers of clips."""
    here = {clip.key for clip in kept}
    there = [clip for clip in clips if clip.key not in here]
    found = []
    for clip in kept:
        near = next((other for other in there if other.group != clip.group and are_alike(clip, other)), None)
        if near is not None:
            found.append(f"{clip.key} like {near.key}")
    return found


def ask(
    clips: Sequence[Clip],
    tasks: Sequence[str],
    form: Form,
    n: int,
    skipped: SkippedRows,
    *,
    n_frames: int,
    n_choices: int,
    seed: int,
) -> Iterator[Question]:
    """N questions, the tasks in turn; fewer where the clips give no more. No two are the same."""
    askers = [_ask(task, clips, form, skipped, n_frames, n_choices, seed) for task in tasks]
    number, left = 0, list(askers)
    while left and number < n:
        for asker in list(left):
            asked = next(asker, None)
            if asked is None:
                left.remove(asker)
            elif number < n:
                yield {"id": f"{asked['task']}-{number:06d}", **asked}
                number += 1


def ask_labels(
    clips: Sequence[Clip], labels: Sequence[str], form: Form, n: int | None, *, n_frames: int, n_choices: int, seed: int,
    asked_for: str | None, question: str,
) -> list[Question]:  # fmt: skip
    """A question a clip, in a shuffled order, over again until there are n. chance is the share of the most frequent answer,
    what who looks at nothing reaches, or one of the options where that is more. Raises Corrupt for clips of one label, and
    Usage for an asked_for that none has."""
    words = sorted(set(labels))
    if labels and len(words) < 2:
        raise Corrupt(f"labels: {words[0]!r} of all {len(labels)} clips found, two labels at least expected.")
    if asked_for is not None and labels and asked_for not in words:
        raise Usage(f"--positive {asked_for}: one of {', '.join(words)} expected.")
    asked_for = words[0] if asked_for is None and words else asked_for or ""
    n_options = min(n_choices, len(words))
    asked: list[Question] = []
    n = len(clips) if n is None else n
    places = _places(n_options, seed, "label", form)
    for number in range(n):
        turn, place = divmod(number, len(clips))
        chosen = int(rng_for(seed, "label", turn).permutation(len(clips))[place])
        draw = Draw(form, n_frames, n_options, next(places), 0, rng_for(seed, "label", "draw", number))
        made = label(clips[chosen], labels[chosen], words, draw, asked_for=asked_for, question=question)
        asked.append({"id": f"label-{number:06d}", "task": "label", **made, "label": labels[chosen]})
    given = [each["answer"] if form == "check" else each["label"] for each in asked]
    chance = max(Counter(given).values()) / len(given) if given else 0.0
    return [{**each, "chance": max(chance, 1 / n_options)} for each in asked]


def _ask(
    task: str, clips: Sequence[Clip], form: Form, skipped: SkippedRows, n_frames: int, n_choices: int, seed: int
) -> Iterator[Question]:
    fit = [clip for clip in clips if len(clip.seconds) >= n_frames - (task == "time")]
    for clip in clips:
        if clip not in fit:
            skipped.skip(f"clips with too few frames for {task} left out", f"{clip.key}: {len(clip.seconds)}")
    failures: Counter[str] = Counter()
    seen: set[bytes] = set()
    served: set[str] = set()
    places = _places(2 if form == "check" else n_choices, seed, task, form)
    turns = _turns(fit, failures, seed, task)
    for number, place in enumerate(places):
        words = seed_for(seed, task, form, "words", number)
        for clip in turns:
            draw = Draw(form, n_frames, n_choices, place, words, rng_for(seed, task, number, clip.key))
            asked = _fair(task, clip, fit, draw, seen)
            if asked is not None:
                failures[clip.key] = 0
                served.add(clip.key)
                yield {"task": task, **asked}
                break
            failures[clip.key] += 1
            if failures[clip.key] == _FAILURES and clip.key not in served:
                skipped.skip(f"{UNFIT} ({task})", clip.key)
        else:
            return


def _fair(task: str, clip: Clip, others: Sequence[Clip], draw: Draw, seen: set[bytes]) -> Question | None:
    for _ in range(_TRIES):
        asked = TASKS[task](clip, others, draw)
        if asked is not None and (words := canonical(asked["messages"])) not in seen:
            seen.add(words)
            return asked
    return None


def _turns(clips: Sequence[Clip], failures: Mapping[str, int], seed: int, task: str) -> Iterator[Clip]:
    """The clips, shuffled anew each time round, without those that have failed too often, until none is left."""
    turn = 0
    while any(failures[clip.key] < _FAILURES for clip in clips):
        for place in rng_for(seed, task, "turn", turn).permutation(len(clips)).tolist():
            if failures[clips[place].key] < _FAILURES:
                yield clips[place]
        turn += 1


def _places(n: int, seed: int, *purpose: str) -> Iterator[int]:
    """Which option is right, of n: each equally often, in an order by chance."""
    block = 0
    while True:
        yield from rng_for(seed, "places", *purpose, block).permutation(n).tolist()
        block += 1


def _clip(key: str, tensors: Mapping[str, np.ndarray]) -> Clip:
    return Clip.of(key, Visual(tensors["pixels"], tensors["grid"], tensors["seconds"], is_video=True), key)
