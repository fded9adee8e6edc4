"""Tars of clips in the layout of WebDataset: files of one name before the first dot belong together.

The videos are clips; the JSON beside a video becomes fields of its record, a text its field `txt`. Not here: compressed tars,
in which nothing can be found without reading all before it.
"""

import json
import os
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from kvtools.artifact.tar_entries import tar_entries
from kvtools.video.formats import VIDEO_SUFFIXES

_MOST_JSON_BYTES = 16 << 20


@dataclass
class Member:
    """A file in a tar: its name, where its bytes lie, and the fields that stand beside it."""

    name: str
    offset: int
    n_bytes: int
    fields: dict[str, Any] = field(default_factory=dict)
    fault: str | None = None  # what is wrong with them

    @property
    def is_video(self) -> bool:
        """Whether the suffix is that of a video."""
        return self.name.lower().endswith(VIDEO_SUFFIXES)

    @property
    def is_sidecar(self) -> bool:
        """Whether it is read as fields of the video beside it."""
        return self.name.lower().endswith((".json", ".txt"))


def is_tar(path: str) -> bool:
    """Whether a path names a tar that is there."""
    return path.lower().endswith(".tar") and os.path.isfile(path)


def members(path: str) -> tuple[list[Member], str | None]:
    """The files of a tar, in its order, and what is wrong with it: of one that is cut short, those that are whole."""
    found: list[Member] = []
    fault = None
    try:
        for _, entry in tar_entries(path, "r:"):
            # the last of a tar that is cut short is named before its end is looked for
            if entry.isreg() and entry.offset_data + entry.size <= os.path.getsize(path):
                found.append(Member(entry.name, entry.offset_data, entry.size))
    except tarfile.TarError as error:
        fault = f"it cannot be read as a tar ({str(error).lower()})"
    fields: dict[str, dict[str, Any]] = {}
    faults: dict[str, str] = {}
    with open(path, "rb") as file:
        for member in found:
            if member.is_sidecar and member.n_bytes <= _MOST_JSON_BYTES:
                file.seek(member.offset)
                try:
                    fields.setdefault(_sample(member.name), {}).update(_sidecar(member.name, file.read(member.n_bytes)))
                except ValueError as error:
                    faults[_sample(member.name)] = str(error)
    for member in found:
        member.fields = fields.get(_sample(member.name), {})
        member.fault = faults.get(_sample(member.name))
    if fault is not None and found:
        fault = f"it is cut short after {found[-1].name}, and what follows is lost"
    return found, fault


def read_member(path: str, offset: int, n_bytes: int) -> Iterator[bytes]:
    """The bytes of a member, in pieces."""
    with open(path, "rb") as file:
        file.seek(offset)
        while n_bytes and (data := file.read(min(n_bytes, 1 << 20))):
            n_bytes -= len(data)
            yield data


def _sample(name: str) -> str:
    """What the files of one sample share: the name up to the first dot of its last part."""
    folder, slash, last = name.rpartition("/")
    return folder + slash + last.partition(".")[0]


def _sidecar(name: str, data: bytes) -> dict[str, Any]:
    text = data.decode("utf-8", "replace")
    if name.lower().endswith(".txt"):
        return {"txt": text.strip()}
    try:
        value = json.loads(text, parse_constant=lambda _: None)
    except (ValueError, RecursionError):
        raise ValueError(f"{name} is not JSON") from None
    return value if isinstance(value, dict) else {"json": value}
