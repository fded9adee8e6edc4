"""Pictures and videos of packed rows by reference: a row names them, with a digest of their sources, in place of patches.

A reference is the item of a conversation (media.py) with one more field: `digest`, of the bytes of its file or of the tensors
of its `video` record. So a row never shows another picture that has the same name. The invariant: rows by reference and rows
with their patches train alike, to the bit. Not here: the records (packing.py).
"""

import hashlib
import os
from collections.abc import Iterator, Mapping
from typing import Any

from kvtools.artifact.blob import bytes_of
from kvtools.artifact.stream import Record
from kvtools.errors import Fault, reason_of
from kvtools.keye.data.media import Media, Unreadable
from kvtools.keye.data.packing import with_patches
from kvtools.keye.data.selection import Item
from kvtools.keye.model.inputs import PackedRow

_BLOCK_BYTES = 1 << 20


class References:
    """References to what media hold. Each source is read once for its digest."""

    def __init__(self, media: Media) -> None:
        self._media = media
        self._digests: dict[str, str] = {}

    def to(self, item: Item) -> dict[str, Any]:
        """The reference to what an item of a conversation shows. Raises Unreadable where its source cannot be read."""
        return {**item, "digest": self._digest_of(item)}

    def resolve(self, row: PackedRow) -> PackedRow:
        """The row with its patches; one without references is as it is.

        Raises Unreadable where a source is missing or holds something else than when the row was packed, and where patches are
        of another size or number.
        """
        if not row.references:
            return row
        for reference in row.references:
            if self._digest_of(reference) != reference.get("digest"):
                name = str(reference[reference["type"]])
                raise Unreadable(name, "its content is not what it was when the rows were packed")
        items = [{name: x for name, x in reference.items() if name != "digest"} for reference in row.references]
        visuals = [self._media.fetch(item) for item in items]
        for item, visual, grid in zip(items, visuals, row.grid.tolist(), strict=True):
            if visual.grid.tolist() != grid:
                found = visual.grid.tolist()
                raise Unreadable(str(item[item["type"]]), f"it has {found} frames, rows and columns, and the row needs {grid}")
        return with_patches(row, visuals)

    def _digest_of(self, item: Item) -> str:
        names = list(_names(item[item["type"]]))
        for name in names:
            if name not in self._digests:
                self._digests[name] = self._read(name)
        if len(names) == 1:
            return self._digests[names[0]]
        return hashlib.blake2b("".join(map(self._digests.__getitem__, names)).encode(), digest_size=16).hexdigest()

    def _read(self, name: str) -> str:
        digest = hashlib.blake2b(digest_size=16)
        try:
            for block in [name.encode()] if name.startswith("data:") else _content(self._media.locate(name)):
                digest.update(block)
        except (ValueError, OSError, Fault) as error:
            raise Unreadable(name, reason_of(error).removeprefix(f"{name}: ")) from None
        return digest.hexdigest()


def _names(source: Any) -> Iterator[str]:
    """The keys and paths that the source of an item names: one, or those of its cuts."""
    if isinstance(source, str):
        yield source
    elif isinstance(source, Mapping):
        yield from _names(source.get("video", source.get("image")))
    elif isinstance(source, list):
        for part in source:
            yield from _names(part)


def _content(source: Record | str) -> Iterator[bytes | memoryview]:
    """The bytes of a record's tensors, of a file, or of the files of a folder in the order of their names."""
    if isinstance(source, Record):
        for name, array in sorted(source.tensors.items()):
            yield f"{name} {array.dtype} {array.shape} ".encode()
            yield bytes_of(array)
    elif os.path.isdir(source):
        for name in sorted(os.listdir(source)):
            yield from _content(os.path.join(source, name))
    else:
        with open(source, "rb") as file:
            while block := file.read(_BLOCK_BYTES):
                yield block
