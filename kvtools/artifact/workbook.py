"""Tables in Excel's format, as rows of fields. Not here: what fields mean; formulas, of which the stored value is read."""

import zipfile
from typing import Any, BinaryIO

from kvtools.artifact.delimited import Rows
from kvtools.errors import Corrupt


def is_workbook(file: BinaryIO) -> bool:
    """Whether a buffered file is a zip archive, as workbooks are; nothing is consumed."""
    return bytes(file.peek(4)[:4]) == b"PK\x03\x04"  # type: ignore[attr-defined]


def read_workbook(file: BinaryIO, name: str) -> Rows:
    """The first sheet, its first row as header; blank rows are left out. Raises Corrupt for another file."""
    import openpyxl

    try:
        sheet = openpyxl.load_workbook(file, read_only=True, data_only=True).worksheets[0]
        numbered = [(number, [_text(cell) for cell in row]) for number, row in enumerate(sheet.iter_rows(values_only=True), 1)]
    except (zipfile.BadZipFile, KeyError, ValueError, IndexError, TypeError, OSError, EOFError) as error:
        raise Corrupt(f"{name}: this workbook is damaged ({type(error).__name__}). Save it again as .xlsx.") from None
    rows = [(number, row) for number, row in numbered if any(cell.strip() for cell in row)]
    header = rows.pop(0)[1] if rows else []
    return Rows(name, header, [number for number, _ in rows], [row for _, row in rows])


def _text(cell: Any) -> str:
    """A cell as text; whole numbers, which Excel may store as 3.0, without their point."""
    if cell is None:
        return ""
    return str(int(cell)) if isinstance(cell, float) and cell.is_integer() else str(cell)
