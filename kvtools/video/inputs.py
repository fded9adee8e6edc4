"""The clips that files, folders and tars stand for, in the same order on every machine.

A key names a clip in the stream: its path below the given folder or tar, or its file name; where two would be equal, with as
many parent folders as make them differ. Keys hold no absolute path, and do not follow links.
"""

import os
import stat
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import PurePath
from typing import Any, NamedTuple

from kvtools.errors import Missing, os_reason
from kvtools.names import printable
from kvtools.video.formats import IMAGE_SUFFIXES, OTHER_SUFFIXES, VIDEO_SUFFIXES, content_of, is_video
from kvtools.video.tar import Member, is_tar, members

__all__ = ["IMAGE_SUFFIXES", "VIDEO_SUFFIXES", "Clip", "Search", "content_of", "find_clips", "natural_order"]

_RECORD_FIELDS = {"kind", "key", "fps", "duration", "source", "missing"}


class Clip(NamedTuple):
    """A clip to be read: a file or a folder of frames, or a member of a tar."""

    key: str
    path: str
    start_s: float | None = None  # in place of the recipe's
    end_s: float | None = None
    fields: Mapping[str, Any] = {}  # kept in the record's JSON
    member: tuple[int, int] | None = None  # first byte and length within the tar at `path`

    def span(self) -> dict[str, float]:
        """The options of the recipe that this clip has values of its own for."""
        return {name: value for name, value in (("start", self.start_s), ("end", self.end_s)) if value is not None}


class _Given(NamedTuple):
    """What is given beside a path, for all that lies there."""

    key: str | None
    span: tuple[float | None, float | None]
    fields: Mapping[str, Any]


@dataclass
class Search:
    """A search through inputs; iterate over `clips` when it is done."""

    clips: list[Clip] = field(default_factory=list)
    passed_over: Counter[str] = field(default_factory=Counter)  # files in folders that are no clips, by suffix
    faults: list[tuple[str, str]] = field(default_factory=list)  # folders and tars that cannot be read, and why
    _names: list[str] = field(default_factory=list)  # of each clip, the key if no other has it
    _seen: set[tuple[object, ...]] = field(default_factory=set)

    def add(self, path: str, *, key: str | None = None, span: Sequence[float | None] = (None, None),
            fields: Mapping[str, Any] | None = None) -> None:  # fmt: skip
        """Add what lies at a path: a file as given, all clips in a folder or tar. A path and span that is given twice counts
        once. key: in place of the path's, or before what a folder or tar holds; span: start and end in seconds."""
        given = _Given(key, (span[0], span[1]), fields or {})
        if os.path.isdir(path):
            for found in self._walk(path, []):
                if found == path:
                    self._append(found, key or os.path.basename(os.path.abspath(path)), given)
                elif is_tar(found):
                    self._add_tar(found, os.path.relpath(found, path) + "/", given)
                else:
                    self._append(found, os.path.join(key or "", os.path.relpath(found, path)), given)
        elif is_tar(path):
            self._add_tar(path, "", given)
        else:
            self._append(path, key or os.path.basename(path), given)

    def has_frame(self, path: str) -> bool:
        """Whether a file is a frame of one of the clips that are folders of pictures."""
        if not path.lower().endswith(IMAGE_SUFFIXES) or not os.path.isfile(path):
            return False
        folder = os.path.dirname(os.path.realpath(path))
        return any(os.path.isdir(clip.path) and os.path.samefile(clip.path, folder) for clip in self.clips)

    def keyed(self) -> list[Clip]:
        """The clips with keys that differ."""
        self.clips = [clip._replace(key=key) for clip, key in zip(self.clips, self._distinct(), strict=True)]
        self._names = [clip.key for clip in self.clips]
        return self.clips

    def _append(self, path: str, name: str, given: "_Given", member: Member | None = None) -> None:
        place = None if member is None else (member.offset, member.n_bytes)
        identity = (os.path.abspath(path), given.key, given.span, place)
        if identity not in self._seen:
            self._seen.add(identity)
            fields = {**own(member.fields), **given.fields} if member else given.fields
            self.clips.append(Clip("", path, *given.span, fields, place))
            self._names.append(printable(name))

    def _add_tar(self, path: str, below: str, given: "_Given") -> None:
        try:
            found, fault = members(path)
            for member in found:
                if member.is_video and member.fault:
                    self.faults.append((f"{path}: {member.name}", member.fault))
                elif member.is_video:
                    self._append(path, os.path.join(given.key or "", below + member.name), given, member)
                elif not member.is_sidecar:
                    self.passed_over[_suffix(member.name)] += 1
        except OSError as error:
            fault = os_reason(error)
        if fault is not None:
            self.faults.append((path, fault))

    def _walk(self, folder: str, above: list[tuple[int, int]]) -> Iterator[str]:
        """The clips below a folder; the folder itself where it has pictures and nothing below it is a clip."""
        found, pictures = False, []
        try:
            status = os.stat(folder)
            with os.scandir(folder) as listing:
                entries = sorted((e for e in listing if not e.name.startswith(".")), key=lambda e: natural_order(e.name))
        except OSError as error:
            self.faults.append((folder, os_reason(error)))
            return
        above = [*above, (status.st_dev, status.st_ino)]
        for entry in entries:
            if entry.is_dir():
                below = entry.stat()
                if (below.st_dev, below.st_ino) in above:
                    self.passed_over["link to a folder above it"] += 1
                    continue
                for clip in self._walk(entry.path, above):
                    found = True
                    yield clip
            elif not entry.is_file() and not _is_broken_link(entry):
                self.passed_over["pipe or device"] += 1
            elif (kind := _kind(entry)) == "video":
                found = True
                yield entry.path
            elif kind == "picture":
                pictures.append(entry.name)
            else:
                self.passed_over[_suffix(entry.name)] += 1
        if pictures and not found:
            yield folder
        else:
            self.passed_over.update(_suffix(name) for name in pictures)

    def _distinct(self) -> list[str]:
        """A key a clip: as much of the end of its path as no other clip of that name has; those of one path are numbered."""
        alike = Counter[tuple[str, str]]()
        for i, (clip, name) in enumerate(zip(self.clips, self._names, strict=True)):
            alike[clip.path, name] += 1
            if (number := alike[clip.path, name]) > 1:
                self._names[i] = f"{name}#{number}"
        keys = list(self._names)
        depth = Counter[int]()
        while repeated := {key for key, n in Counter(keys).items() if n > 1}:
            for i, key in enumerate(keys):
                if key in repeated:
                    depth[i] += 1
                    longer = self._longer(i, depth[i])
                    if longer == key:  # no parent folder is left that differs
                        return [f"{key}#{number}" if key in repeated else key for number, key in enumerate(keys)]
                    keys[i] = longer
        return keys

    def _longer(self, i: int, n_parents: int) -> str:
        clip, name = self.clips[i], PurePath(self._names[i])
        folders = PurePath(os.path.abspath(clip.path)).parts[1:]
        if clip.member is None:
            folders = folders[: -len(name.parts)] if len(name.parts) <= len(folders) else ()
        return printable(PurePath(*folders[len(folders) - min(n_parents, len(folders)) :], name).as_posix())


def find_clips(inputs: Iterable[str]) -> list[Clip]:
    """The clips of files as given, and of folders searched through; a folder of pictures is one clip.

    A file that does not exist is still a clip, which is reported when it is read. Raises Missing where there is no clip at all.
    """
    inputs = list(inputs)
    search = Search()
    for path in inputs:
        search.add(path)
    if not search.clips:
        raise nothing_found(inputs)
    return search.keyed()


def own(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Fields that a user gives to a record, those that the record has itself under another name."""
    return {f"list.{name}" if name in _RECORD_FIELDS else name: value for name, value in fields.items()}


def nothing_found(inputs: Sequence[str]) -> Missing:
    """The refusal of inputs without a clip."""
    named = ", ".join(inputs[:3]) + (f" and {len(inputs) - 3} more" if len(inputs) > 3 else "")
    return Missing(f"{named}: no video and no picture lies there. Name another folder.")


def natural_order(name: str) -> list[tuple[int, int, str]]:
    """A sort key by which frame2 comes before frame10."""
    parts: list[tuple[int, int, str]] = []
    digits = ""
    for letter in name + "\0":
        if letter.isascii() and letter.isdigit():
            digits += letter
            continue
        if digits:
            parts.append((0, int(digits), ""))
            digits = ""
        parts.append((1, 0, letter))
    return parts


def _kind(entry: "os.DirEntry[str]") -> str | None:
    """`video` or `picture`, by the suffix, or by the first bytes where the suffix is not known; None for other files."""
    suffix = os.path.splitext(entry.name)[1].lower()
    if suffix in VIDEO_SUFFIXES or suffix == ".tar":
        return "video"
    if suffix in IMAGE_SUFFIXES:
        return "picture"
    if suffix in OTHER_SUFFIXES:
        return None
    try:
        return "video" if is_video(entry.path) else None
    except OSError:
        return "video"  # reported when it is read


def _is_broken_link(entry: "os.DirEntry[str]") -> bool:
    try:
        return stat.S_ISLNK(entry.stat(follow_symlinks=False).st_mode) and not os.path.exists(entry.path)
    except OSError:
        return False


def _suffix(name: str) -> str:
    return os.path.splitext(name)[1].lower() or "without a suffix"
