"""Rows written as a table for other tools: CSV as of RFC 4180, or parquet. Not here: reading tables."""

import csv
import io
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any, Literal

from kvtools.artifact.files import Sink

Row = Sequence[str | int | float]
_ROWS = 1 << 16  # at a time, and of a row group


def write_rows(
    sink: Sink,
    rows: Iterable[Row],
    columns: Mapping[str, type[str] | type[int] | type[float]],
    *,
    form: Literal["csv", "parquet"],
) -> None:
    """Write rows, with a header of the columns' names, and commit the sink; abandon it where writing fails.

    columns: name to type of each cell of a row. Memory of one part of the rows.
    """
    try:
        (_write_csv if form == "csv" else _write_parquet)(sink, _parts(rows), columns)
    except BaseException:
        sink.abandon()
        raise
    sink.commit()


def _parts(rows: Iterable[Row]) -> Iterator[list[Row]]:
    remaining = iter(rows)
    while part := list(islice(remaining, _ROWS)):
        yield part


def _write_csv(sink: Sink, parts: Iterator[list[Row]], columns: Mapping[str, type]) -> None:
    for part in _with_header(parts, list(columns)):
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerows(part)
        sink.write([text.getvalue().encode()])


def _with_header(parts: Iterator[list[Row]], header: list[str]) -> Iterator[list[Row]]:
    yield [header]
    yield from parts


def _write_parquet(sink: Sink, parts: Iterator[list[Row]], columns: Mapping[str, type]) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    types = {str: pa.string(), int: pa.int64(), float: pa.float64()}
    schema = pa.schema([(name, types[kind]) for name, kind in columns.items()])
    with pq.ParquetWriter(_SinkFile(sink), schema, compression="zstd") as writer:
        for part in parts:
            cells = zip(zip(*part, strict=True), columns.values(), strict=True)
            arrays = [pa.array(column, types[kind]) for column, kind in cells]
            writer.write_table(pa.Table.from_arrays(arrays, schema=schema))


class _SinkFile(io.RawIOBase):
    """A sink as an open file."""

    def __init__(self, sink: Sink) -> None:
        self._sink = sink

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        self._sink.write([bytes(data)])
        return len(data)

    def tell(self) -> int:
        return self._sink.position
