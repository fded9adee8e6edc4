"""Messages between the processes of the sandbox: a length, JSON, and the blobs that the JSON counts.

What a process that ran code sends is not trusted: lengths are bounded, and a message of another shape is a ValueError.
"""

import json
import os
import select
import struct
import time
from typing import Any

Message = tuple[dict[str, Any], list[bytes]]

MAX_TEXT_BYTES = 1 << 20  # of the JSON of a reply: printed text and names of pictures
MAX_BLOB_BYTES = 256 << 20


def send(fd: int, header: dict[str, Any], blobs: list[bytes] | None = None) -> None:
    """Write a message."""
    blobs = blobs or []
    text = json.dumps({**header, "blobs": [len(blob) for blob in blobs]}).encode()
    for part in (struct.pack("<I", len(text)), text, *blobs):
        view = memoryview(part)
        while view:
            view = view[os.write(fd, view) :]


def receive(fd: int, deadline: float | None = None, max_text_bytes: int = MAX_BLOB_BYTES) -> Message | None:
    """The next message; None at the end of the pipe. Raises TimeoutError past the deadline (time.monotonic()), ValueError
    for bytes that are no message."""
    size = _read(fd, 4, deadline)
    if size is None:
        return None
    n_bytes = struct.unpack("<I", size)[0]
    if n_bytes > max_text_bytes:
        raise ValueError("a message above its limit")
    text = _read(fd, n_bytes, deadline)
    if text is None:
        return None
    try:
        header = json.loads(text)
    except RecursionError:
        raise ValueError("a message of too many levels") from None
    sizes = header.get("blobs") if isinstance(header, dict) else None
    if not isinstance(sizes, list) or not all(type(n) is int and n >= 0 for n in sizes) or sum(sizes) > MAX_BLOB_BYTES:
        raise ValueError("a message without the sizes of its blobs")
    blobs = []
    for n in sizes:
        blob = _read(fd, n, deadline)
        if blob is None:
            return None
        blobs.append(blob)
    return header, blobs


def _read(fd: int, n_bytes: int, deadline: float | None) -> bytes | None:
    data = bytearray()
    while len(data) < n_bytes:
        if deadline is not None and not select.select([fd], [], [], max(0.0, deadline - time.monotonic()))[0]:
            raise TimeoutError
        part = os.read(fd, min(n_bytes - len(data), 1 << 20))
        if not part:
            return None
        data += part
    return bytes(data)
