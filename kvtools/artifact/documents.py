"""JSON documents one at a time, from files that hold many: lists, lines, objects one after another, parquet.

Text may be compressed (containers.py), and is UTF-8 or, with a byte-order mark, UTF-16. The first bytes of a file say what it
is, never its name. Memory: one document, and a few MiB. Not here: what documents mean, and streams of kvtools.
"""

import codecs
import io
import json
from collections.abc import Iterator
from typing import Any, BinaryIO, cast

from kvtools.artifact.containers import is_parquet, peek, uncompressed, without_utf16
from kvtools.artifact.json_text import read_json

__all__ = ["column_names", "first_letter", "is_parquet", "parsed", "read_documents"]


def read_documents(file: BinaryIO, *, raw: bool = False) -> Iterator[tuple[str, Any]]:
    """(where, document) of each; a ValueError in the place of a document that is not JSON.

    where: `line 3`, `entry 0` of a list, `row 7` of parquet. file: open, buffered, of which nothing has been consumed. raw:
    lines stay bytes, which `parsed` reads. Raises ValueError for bytes that are no text, and where the next document cannot be
    found.
    """
    file = uncompressed(file)
    if is_parquet(file):
        yield from _rows(file)
    else:
        yield from _of_text(without_utf16(file), raw=raw)


def column_names(file: BinaryIO) -> list[str] | None:
    """The columns of a parquet file that lies ahead; None for other files. file: seekable; its position is left where it was.

    Raises ValueError for a parquet file that is damaged.
    """
    if not is_parquet(file):
        return None
    import pyarrow as pa
    import pyarrow.parquet as pq

    begin = file.tell()
    try:
        return list(pq.read_schema(file).names)
    except (pa.ArrowInvalid, OSError) as error:
        raise ValueError(f"parquet is damaged ({' '.join(str(error).split())})") from None
    finally:
        file.seek(begin)


def first_letter(file: BinaryIO) -> str:
    """The first letter of a text that is not blank, also of a compressed one; empty where there is none. file: seekable; its
    position is left where it was. Raises ValueError for compressed bytes that are damaged."""
    begin = file.tell()
    try:
        return peek(without_utf16(uncompressed(file))).decode("utf-8-sig", "ignore").lstrip()[:1]
    finally:
        file.seek(begin)


def _rows(file: BinaryIO) -> Iterator[tuple[str, Any]]:
    """Rows of a parquet file; bytes in them stay bytes."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    if not file.seekable():
        file = cast("BinaryIO", io.BytesIO(file.read()))  # the index of a parquet file stands at its end
    try:
        number = 0
        for batch in pq.ParquetFile(file).iter_batches(batch_size=256):
            for row in batch.to_pylist():
                yield f"row {number}", {name: value for name, value in row.items() if value is not None}
                number += 1
    except (pa.ArrowInvalid, OSError) as error:
        raise ValueError(f"parquet is damaged ({' '.join(str(error).split())})") from None


def _of_text(file: BinaryIO, *, raw: bool) -> Iterator[tuple[str, Any]]:
    import ijson

    head = peek(file)
    if head.startswith(codecs.BOM_UTF8):
        file.read(len(codecs.BOM_UTF8))
        head = peek(file)
    if b"\0" in head:
        raise ValueError("this is neither a stream nor JSON")
    begins = head.lstrip()
    if begins.startswith(b"["):
        yield from _incremental(ijson.items(file, "item", use_float=True))
    elif begins.startswith(b"{") and not _is_lines(begins):
        yield from _incremental(ijson.items(file, "", use_float=True, multiple_values=True))
    else:
        yield from ((where, line if raw else parsed(line)) for where, line in _lines(file))


def _is_lines(begins: bytes) -> bool:
    """Whether the first line is a document of its own, or longer than can be seen."""
    line, newline, _ = begins.partition(b"\n")
    if not newline:
        return True
    try:
        read_json(line)
    except ValueError:
        return line.strip() != b"{" and not line.rstrip().endswith((b",", b"{", b"["))
    return True


def _incremental(documents: Iterator[Any]) -> Iterator[tuple[str, Any]]:
    import ijson

    number = 0
    while True:
        try:
            document = next(documents)
        except StopIteration:
            return
        except (ijson.JSONError, UnicodeDecodeError) as error:
            where = f" after entry {number - 1}" if number else ""
            raise ValueError(f"not JSON{where} ({' '.join(str(error).split())})") from None
        yield f"entry {number}", document
        number += 1


def _lines(file: BinaryIO) -> Iterator[tuple[str, bytes]]:
    return ((f"line {number}", line) for number, line in enumerate(file, start=1) if line.strip())


def parsed(data: bytes) -> Any:
    """A JSON document, or the ValueError that says why it is none."""
    try:
        return json.loads(data.decode("utf-8"), parse_constant=_refuse)
    except json.JSONDecodeError as error:
        return ValueError(f"not JSON ({error.msg} at column {error.colno})")
    except UnicodeDecodeError:
        return ValueError("not UTF-8 text")
    except RecursionError as error:
        return ValueError(f"not JSON ({' '.join(str(error).split())})")
    except ValueError as error:
        return error


def _refuse(word: str) -> float:
    raise ValueError(f"{word} is not a number of JSON")
