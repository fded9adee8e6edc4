"""Clips that questions are generated from: read from streams and files, grouped by scene, and split into sides.

A clip's side depends on its key (or its group's) alone. Not here: questions (tasks.py, build.py).
Legend: T frames.
"""

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from PIL import Image

from kvtools.artifact import checked_records, is_stream
from kvtools.artifact.delimited import read_rows
from kvtools.artifact.equal_keys import KeysSoFar
from kvtools.artifact.files import open_source
from kvtools.artifact.open import open_stream
from kvtools.artifact.stream import Reader
from kvtools.chance import seed_for
from kvtools.errors import Corrupt
from kvtools.skipped import SkippedRows
from kvtools.video.inputs import Clip as ClipFile
from kvtools.video.patch import PATCH
from kvtools.video.pool import Pool
from kvtools.video.recipe import VideoRecipe

UNREADABLE = "clips that cannot be read left out"
_SIDE = 8  # pixels a side of the thumbnails by which frames are compared
# levels of 255 by which the two most similar frames of different scenes differ at least: of 160 surveillance clips of known
# scenes, two of one scene are more similar in 85 of 100 cases, two of different scenes in 1 of 1,000 (mostly of one camera)
_SAME_SCENE = 15.0
_N_COMPARED = 12  # frames of a clip that are compared for that


@dataclass(frozen=True)
class Clip:
    """What questions need of a clip: seconds float64 (T,), size (height, width) in pixels, thumbnails float32 (T, 8, 8, 3) in
    levels of 255, and the group of clips of one scene."""

    key: str
    seconds: np.ndarray
    size: tuple[int, int]
    thumbnails: np.ndarray
    group: str

    @staticmethod
    def of_record(key: str, tensors: Mapping[str, np.ndarray]) -> "Clip":
        """The clip of a `video` record's tensors, in a group of its own."""
        n_frames, rows, cols = tensors["grid"].tolist()
        patches = tensors["pixels"].reshape(n_frames, rows, cols, 3, PATCH, PATCH)
        frames = patches.transpose(0, 1, 4, 2, 5, 3).reshape(n_frames, rows * PATCH, cols * PATCH, 3)
        small = [Image.fromarray(f).resize((_SIDE, _SIDE), Image.Resampling.BOX) for f in np.ascontiguousarray(frames)]
        thumbnails = np.stack([np.asarray(picture, np.float32) for picture in small])
        return Clip(key, tensors["seconds"], (rows * PATCH, cols * PATCH), thumbnails, key)

    @property
    def duration_s(self) -> float:
        """Seconds from the first frame to the last."""
        return float(self.seconds[-1] - self.seconds[0])

    @property
    def step_s(self) -> float:
        """Seconds between frames, on average."""
        return self.duration_s / max(1, len(self.seconds) - 1)


@dataclass(frozen=True)
class ClipTable:
    """What a CSV says of clips: file → column → text. A clip is its file, or one of the two ends in the other at a slash."""

    name: str
    rows: Mapping[str, Mapping[str, str]]

    @staticmethod
    def open(src: str) -> "ClipTable":
        """Raises Missing where src cannot be read; Corrupt for a table without a column `file` or with a file twice."""
        with open_source(src) as file:
            table = read_rows(file, src, delimiters=",", has_header=True)
        if "file" not in table.header:
            raise Corrupt(f"{src}: there is no column file among {', '.join(table.header) or 'none'}. Add it.")
        rows: dict[str, Mapping[str, str]] = {}
        for line, fields in table:
            row = dict(zip(table.header, fields, strict=True))
            if row["file"] in rows:
                raise Corrupt(f"{src}: line {line}: {row['file']} comes a second time. Remove one of the two rows.")
            rows[row["file"]] = row
        return ClipTable(src, rows)

    def of(self, key: str) -> Mapping[str, str] | None:
        """The row of a clip; None where there is none. Raises Corrupt where two rows may be meant."""
        if key in self.rows:
            return self.rows[key]
        matches = [file for file in self.rows if file.endswith(f"/{key}") or key.endswith(f"/{file}")]
        if len(matches) > 1:
            raise Corrupt(f"{self.name}: {' and '.join(matches[:2])} may both be {key}. Give longer names.")
        return self.rows[matches[0]] if matches else None

    def column(self, *names: str) -> str | None:
        """The first of these columns that the table has; None where it has none of them."""
        first: Mapping[str, str] = next(iter(self.rows.values()), {})
        return next((name for name in names if name in first), None)


@dataclass(frozen=True)
class Side:
    """A side of the clips: `train` has the lowest fraction of the hashes of keys, others the highest; None: a table decides."""

    name: str
    fraction: float | None

    def holds(self, group: str) -> bool:
        """Whether clips of that group are on this side, whatever other clips there are."""
        assert self.fraction is not None, "a table decides"
        position = seed_for(0, "side", group) / 2**63
        return position < self.fraction if self.name == "train" else position >= 1 - self.fraction


def open_video_stream(src: str) -> Reader | None:
    """The stream of videos that src is; None for a file that is no stream. Raises Corrupt for a stream of another kind."""
    file = open_source(src)
    if not is_stream(file) and src != "-":
        file.close()
        return None
    return open_stream(src, "video", made_by="kvtools tokenize-video", file=file)


def clips_of(reader: Reader, keys: KeysSoFar) -> Iterator[Clip]:
    """The clips of a stream. keys: of all inputs. Raises Corrupt for a record that does not fit its kind, and for one that has
    the key of another clip."""
    for record in checked_records(reader, made_by="kvtools tokenize-video"):
        keys.add(f"{reader.name}: record {record.number}", record.key, record.tensors)
        yield Clip.of_record(record.key, record.tensors)


def clips_of_files(files: Sequence[ClipFile], recipe: VideoRecipe, skipped: SkippedRows, keys: KeysSoFar) -> Iterator[Clip]:
    """The clips of video files; files that cannot be decoded are skipped. Raises Corrupt as `clips_of`."""
    path_of = {file.key: file.path for file in files}
    with Pool(recipe, n_jobs=len(os.sched_getaffinity(0)), n_threads=1, timeout_s=60.0) as pool:
        for outcome in pool.run(files):
            if outcome.record is None:
                skipped.skip(UNREADABLE, f"{outcome.key}: {outcome.fault}")
            else:
                tensors, _ = outcome.decoded()
                keys.add(path_of[outcome.key], outcome.key, tensors)
                yield Clip.of_record(outcome.key, tensors)


def in_groups(clips: Sequence[Clip], table: ClipTable | None) -> list[Clip]:
    """The clips in the groups that a table's column `group` or `scene_group` gives; a clip without one is its own group."""
    column = table.column("group", "scene_group") if table is not None else None
    if table is None or column is None:
        return list(clips)
    rows = [(clip, table.of(clip.key)) for clip in clips]
    return [clip if row is None else replace(clip, group=row[column]) for clip, row in rows]


def on_side(clips: Sequence[Clip], side: Side | None, table: ClipTable | None) -> list[Clip]:
    """The clips of one side: by a hash of the group where a fraction is given, else by the table's column `split`."""
    if side is None:
        return list(clips)
    if side.fraction is not None:
        return [clip for clip in clips if side.holds(clip.group)]
    assert table is not None, "the command asks for one"
    return [clip for clip in clips if (table.of(clip.key) or {}).get("split") == side.name]


def labels_of(clips: Sequence[Clip], table: ClipTable, skipped: SkippedRows) -> dict[str, str]:
    """The table's column `label` by clip key; clips not in the table are skipped. Raises Corrupt without the column."""
    if table.column("label") is None:
        raise Corrupt(f"{table.name}: there is no column label. Add it.")
    labels = {}
    for clip in clips:
        row = table.of(clip.key)
        if row is None:
            skipped.skip(f"clips that {table.name} does not name left out", clip.key)
        else:
            labels[clip.key] = row["label"]
    return labels


def same_scene(a: Clip, b: Clip) -> bool:
    """Whether two clips may be of one scene: whether any two of their frames look nearly the same."""
    a_frames, b_frames = (
        clip.thumbnails[:: -(-len(clip.thumbnails) // _N_COMPARED)].reshape(-1, 1, _SIDE * _SIDE * 3) for clip in (a, b)
    )
    return bool(np.abs(a_frames - b_frames.swapaxes(0, 1)).mean(2).min() < _SAME_SCENE)


def leaks(clips: Sequence[Clip], kept: Sequence[Clip]) -> list[str]:
    """Kept clips that look like a clip of another group on the other side of the split, as "a like b": what is learnt of one
    may answer for the other. Cost: the product of the numbers of clips."""
    kept_keys = {clip.key for clip in kept}
    others = [clip for clip in clips if clip.key not in kept_keys]
    pairs = []
    for clip in kept:
        twin = next((other for other in others if other.group != clip.group and same_scene(clip, other)), None)
        if twin is not None:
            pairs.append(f"{clip.key} like {twin.key}")
    return pairs
