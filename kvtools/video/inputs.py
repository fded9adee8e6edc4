"""The clips that files and folders stand for: (key, path) pairs, in the same order on every machine.

A key names a clip in the stream: its path below the given folder, or its file name; where two would be equal, with as many
parent folders as make them differ. Keys hold no absolute path.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path, PurePath

from kvtools.artifact import source_name
from kvtools.artifact.delimited import read_lines
from kvtools.artifact.files import open_source
from kvtools.errors import Missing

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp")
VIDEO_SUFFIXES = (
    ".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".flv", ".ts", ".mts", ".m2ts",
    ".mpg", ".mpeg", ".wmv", ".3gp", ".ogv", ".gif",
)  # fmt: skip
UNKNOWN = "data of another format, or damaged"
_MP4, _HEIC, _MATROSKA = "an MP4 video", "a HEIC picture", "a Matroska or WebM video"
_PNG, _JPEG = "a PNG picture that is damaged", "a JPEG picture that is damaged"
MAYBE_VIDEO = (_MP4, _HEIC, _MATROSKA, _PNG, _JPEG)
_CONTENTS = {
    b"<!doctype html": "HTML", b"<html": "HTML", b"<head": "HTML", b"<?xml": "XML", b"<svg": "an SVG drawing", b"<": "markup",
    b"{": "JSON", b"[": "JSON", b"version https://git-lfs": "a pointer of Git LFS to a file that was not fetched",
    b"%pdf": "a PDF document", b"pk\x03\x04": "a zip archive", b"\x1f\x8b": "gzip data", b"\x28\xb5\x2f\xfd": "zstd data",
    b"\x1a\x45\xdf\xa3": _MATROSKA, b"\x89png": _PNG, b"\xff\xd8\xff": _JPEG,
}  # fmt: skip


def read_list(src: str) -> list[str]:
    """Paths from a file or stdin, one a line; blank lines are left out."""
    with open_source(src) as file:
        return read_lines(file, source_name(src))


def find_clips(inputs: Sequence[str]) -> list[tuple[str, str]]:
    """(key, path) of every clip: files as given, folders searched through; a folder of pictures is one clip.

    A path given twice counts once. No file is opened, and one that does not exist is still a clip, which is reported when it is
    read. Raises Missing where there is no clip at all.
    """
    clips: dict[str, PurePath] = {}
    for name in inputs:
        root = Path(name)
        if root.is_dir():
            for path in _walk(root):
                clips.setdefault(str(path), path.relative_to(root) if path != root else PurePath(root.resolve().name))
        else:
            clips.setdefault(str(root), PurePath(root.name))
    if not clips:
        raise Missing(f"{', '.join(inputs)}: no video and no picture lies there. Name another folder.")
    return list(zip(_distinct(clips.items()), clips, strict=True))


def _walk(root: Path) -> Iterable[Path]:
    entries = sorted((p for p in root.iterdir() if not p.name.startswith(".")), key=lambda p: natural_order(p.name))
    videos = [p for p in entries if p.is_file() and p.suffix.lower() in VIDEO_SUFFIXES]
    if not videos and any(p.suffix.lower() in IMAGE_SUFFIXES for p in entries if p.is_file()):
        yield root
        return
    for entry in entries:
        if entry.is_dir():
            yield from _walk(entry)
        elif entry in videos:
            yield entry


def _distinct(clips: Iterable[tuple[str, PurePath]]) -> list[str]:
    paths = [Path(path).resolve().parts for path, _ in clips]
    keys = [name.as_posix() for _, name in clips]
    while repeated := {key for key, n in Counter(keys).items() if n > 1}:
        for i, key in enumerate(keys):
            if key in repeated:
                depth = len(PurePath(key).parts) + 1
                if depth >= len(paths[i]):  # no parent folder is left that differs
                    return [f"{key}#{number}" if key in repeated else key for number, key in enumerate(keys)]
                keys[i] = PurePath(*paths[i][-depth:]).as_posix()
    return keys


def content_of(head: bytes) -> str:
    """What a file holds whose name promises a picture or a video, as its first bytes tell: "HTML", "an empty file"."""
    text = head.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if not head:
        return "an empty file"
    for begin, name in _CONTENTS.items():
        if text.startswith(begin):
            return name
    if head[4:8] == b"ftyp":
        return _HEIC if head[8:12] in (b"heic", b"heix", b"mif1", b"msf1") else _MP4
    if b"\0" not in head and all(byte >= 32 or byte in b"\t\r\n" for byte in head):
        return f"text that begins with {head[:20].decode('utf-8', 'replace')!r}"
    return UNKNOWN


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
