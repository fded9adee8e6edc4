"""What a mixture must not repeat, read from evaluation sets: conversations, other JSON, tables, pictures, videos, text."""

import base64
import binascii
import io
import os
from collections.abc import Iterator, Sequence
from typing import Any

from PIL import Image

from kvtools.artifact import is_stream
from kvtools.artifact.delimited import read_rows
from kvtools.artifact.documents import parsed, read_documents
from kvtools.artifact.files import open_source
from kvtools.artifact.history import portable
from kvtools.artifact.stream import Reader
from kvtools.errors import Corrupt
from kvtools.keye.data.conversations import normalise
from kvtools.keye.data.media import Media, Unreadable, visual_of_record
from kvtools.keye.mix.contamination import EvaluationSet, fingerprints_of
from kvtools.keye.mix.fingerprint import Fingerprint, fingerprint
from kvtools.video.inputs import IMAGE_SUFFIXES, VIDEO_SUFFIXES

_N_FRAMES = 16  # of an evaluation video
_LONGEST = 4096  # characters without a blank: no text, but a picture in base64


def read_evaluation(names: Sequence[str], media: Media) -> EvaluationSet:
    """The texts and pictures of evaluation sets: files, and folders of them.

    Raises Corrupt where a file cannot be read, and where nothing to compare with is found.
    """
    texts: list[tuple[str, str]] = []
    pictures: list[tuple[str, Fingerprint]] = []
    for path in _files(names):
        name = portable([path])[0]
        try:
            for kind, value in _evaluation_parts(path, media):
                if kind == "text":
                    texts.append((name, value))
                else:
                    pictures.append((name, value))
        except (ValueError, Unreadable) as error:
            raise Corrupt(f"--against {name}: {' '.join(str(error).split())}. Repair the file.") from None
    if not texts and not pictures:
        raise Corrupt(f"--against {' '.join(names)}: no text, picture or video was found there. Give files that hold some.")
    return EvaluationSet.of(texts, pictures)


def _files(names: Sequence[str]) -> Iterator[str]:
    for name in names:
        if not os.path.isdir(name):
            yield name
            continue
        for folder, inner, found in os.walk(name):
            inner.sort()
            yield from (os.path.join(folder, file) for file in sorted(found) if not file.startswith("."))


def _evaluation_parts(path: str, media: Media) -> Iterator[tuple[str, Any]]:
    """("text", text) and ("picture", fingerprint) of one file."""
    suffix = os.path.splitext(path)[1].lower()
    if suffix in IMAGE_SUFFIXES or suffix in VIDEO_SUFFIXES:
        yield from _fingerprints(media, {"type": "image", "image": path} if suffix in IMAGE_SUFFIXES else _video(path))
        return
    with open_source(path) as file:
        if is_stream(file):
            yield from _of_stream(Reader(file, path), media)
        elif suffix in (".tsv", ".csv"):
            for _, fields in read_rows(file, path, delimiters="\t" if suffix == ".tsv" else ",", has_header=True):
                for field in fields:
                    yield from _of_value(field)
        elif suffix in (".json", ".jsonl", ".gz", ".zst", ".parquet"):
            for _, document in read_documents(file):
                yield from _of_document(document, os.path.dirname(path), media)
        elif suffix in (".txt", ".md"):
            for line in file.read().decode("utf-8", "replace").splitlines():
                yield from _of_value(line)


def _of_stream(reader: Reader, media: Media) -> Iterator[tuple[str, Any]]:
    for record in reader:
        if reader.head.kind == "video":
            yield from (("picture", known) for known in fingerprints_of(visual_of_record(record), is_known=True))
        elif "json" in record.tensors:
            yield from _of_document(parsed(record.tensors["json"].tobytes()), "", media)


def _of_document(document: Any, root: str, media: Media) -> Iterator[tuple[str, Any]]:
    try:
        conversation = normalise(document)
    except (ValueError, KeyError, TypeError, AttributeError):
        yield from _of_value(document)
        return
    for message in conversation["messages"]:
        for part in message["content"]:
            if part["type"] == "text":
                if message["role"] != "system":
                    yield "text", part["text"]
            else:
                source = part[part["type"]]
                inside = os.path.join(root, source) if isinstance(source, str) else source
                item = {**part, part["type"]: inside if isinstance(source, str) and os.path.exists(inside) else source}
                yield from _fingerprints(media, item if part["type"] == "image" else {"frames": _N_FRAMES, **item})


def _of_value(value: Any) -> Iterator[tuple[str, Any]]:
    """The texts within any JSON value, and pictures in base64."""
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list):
        for inner in value:
            yield from _of_value(inner)
    elif isinstance(value, str) and len(value) > _LONGEST and " " not in value[:_LONGEST]:
        try:
            with Image.open(io.BytesIO(base64.b64decode(value.partition(",")[2] or value, validate=False))) as picture:
                yield "picture", fingerprint(picture, is_known=True)
        except (binascii.Error, OSError, ValueError, Image.DecompressionBombError):
            return
    elif isinstance(value, str):
        yield "text", value


def _fingerprints(media: Media, item: dict[str, Any]) -> Iterator[tuple[str, Fingerprint]]:
    return (("picture", known) for known in fingerprints_of(media.fetch(item), is_known=True))


def _video(path: str) -> dict[str, Any]:
    return {"type": "video", "video": path, "frames": _N_FRAMES}
