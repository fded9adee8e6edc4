"""Documents of conversations in files of other programs: JSON in any shape, compressed or not, and parquet.

The bytes are artifact/documents.py's. Added here: a JSON object that is a table of conversations by name, and pictures that
parquet holds as bytes, which become data: URLs. Not here: what a document means (conversations.py).
"""

import base64
from collections.abc import Iterator
from typing import Any, BinaryIO

from kvtools.artifact.documents import column_names, first_letter, parsed, read_documents

_COLUMNS = {"messages", "conversations", "conversation", "instruction", "prompt", "question", "problem", "query", "chosen"}


def holds_conversations(file: BinaryIO) -> bool:
    """Whether a JSON list or object lies ahead, compressed or not, or parquet with conversations; nothing is consumed."""
    columns = column_names(file)
    return bool(_COLUMNS & set(columns)) if columns is not None else first_letter(file) in ("[", "{")


def read_conversation_documents(file: BinaryIO, *, raw: bool = False) -> Iterator[tuple[str, Any]]:
    """(where, document) of each; a ValueError in the place of a document that is not JSON.

    file and raw as of `read_documents`, and raises as it does.
    """
    for number, (where, document) in enumerate(read_documents(file, raw=raw)):
        first = parsed(document) if isinstance(document, bytes) and number == 0 else document
        if number == 0 and isinstance(first, dict) and _is_table(first):
            yield from ((f"{where}, {name}", value) for name, value in first.items())
        else:
            yield where, _without_bytes(document) if where.startswith("row ") else document


def _is_table(document: dict[str, Any]) -> bool:
    """Whether it is not a conversation but a table of them by name."""
    return len(document) > 0 and all(isinstance(value, dict) for value in document.values())


def _without_bytes(value: Any) -> Any:
    """The value with pictures as data: URLs in place of their bytes."""
    if isinstance(value, dict):
        if isinstance(value.get("bytes"), bytes):
            return _data_url(value["bytes"])
        return {name: _without_bytes(inner) for name, inner in value.items()}
    if isinstance(value, bytes):
        return _data_url(value)
    return [_without_bytes(inner) for inner in value] if isinstance(value, list) else value


def _data_url(data: bytes) -> str:
    return "data:image;base64," + base64.b64encode(data).decode()
