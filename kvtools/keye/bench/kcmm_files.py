"""The tables of KC-MMBench as they are published: files found in folders, rows checked, pictures found.

A row that cannot be read is named, with its file and line, and the others are read. A table whose columns are others is named,
and the other tables are read. A picture is looked for in images/ beside the table or above it, and beside the table. Lists of
pictures are read by ast.literal_eval, never evaluated. Not here: which answers a task can have (kcmm.py).
"""

import ast
import base64
import binascii
import os
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from kvtools.artifact.delimited import Rows, read_rows
from kvtools.artifact.files import open_source
from kvtools.errors import Corrupt, Missing
from kvtools.keye.bench.benchmark import LONGEST_CELL, NO_PICTURES, Key, Question, QuestionSet, index_of
from kvtools.skipped import SkippedRows

Parts = list[dict[str, Any]]
# task, answer, question, pictures → parts of the message; raises ValueError
Check = Callable[[str, str, str, Parts], Parts]

STANDIN_MARK = "THIS_IS_NOT_KC-MMBENCH.txt"
_NEEDED = ("index", "question", "answer")
_SIGNATURES = {b"\x89PNG": "png", b"\xff\xd8": "jpeg", b"GIF8": "gif", b"RIFF": "webp", b"BM": "bmp"}
_SHORT = 64  # characters: less is no picture in base64, but the index of a row that has it


def read_folder(
    src: str,
    task_of: Callable[[str], str | None],
    check: Check,
    found: QuestionSet,
    seen: set[Key],
    only: Collection[str],
    *,
    needs_media: bool,
) -> None:
    """Add the questions of a folder, or of one table, to those found. seen: keys of all so far. only: as `Bench.read`.

    Raises Missing where there is no such folder, Corrupt where it has no table of a task.
    """
    if not os.path.exists(src):
        raise Missing(f"{src}: no such file or folder. Give the folder with KC-MMBench's tables.")
    found.is_standin |= os.path.isfile(os.path.join(src, STANDIN_MARK))
    tables = []
    for path in _tables(src):
        if (task := task_of(path.stem)) is None:
            found.warnings.append(f"{path}: this is no table of a task, and is not read")
        else:
            tables.append((path, task))
    if not tables:
        raise Corrupt(f"{src}: it has no table of KC-MMBench, such as CPV.tsv or SPU.tsv. Give the folder that has them.")
    for path, task in tables:
        if only and task not in only:
            continue
        try:
            with open_source(str(path)) as file:
                rows = read_rows(file, str(path), delimiters="\t", has_header=True, is_ragged=True, longest=LONGEST_CELL)
            _add(path, task, rows, _PictureFinder(src, path), check, found, seen, needs_media=needs_media)
        except (Corrupt, Missing) as fault:
            found.faults.append(str(fault))


def _tables(src: str) -> list[Path]:
    path = Path(src)
    if not path.is_dir():
        return [path]
    tables = [table for folder in (path, path / "subsets") if folder.is_dir() for table in folder.iterdir()]
    return sorted(table for table in tables if table.suffix.lower() == ".tsv" and table.is_file())


def _add(
    path: Path, task: str, rows: Rows, pictures: "_PictureFinder", check: Check, found: QuestionSet, seen: set[Key], *,
    needs_media: bool,
) -> None:  # fmt: skip
    names = {name: rows.index(name) for name in (*_NEEDED, "image_path", "image", "category")}
    lacking = [name for name in _NEEDED if names[name] is None]
    if names["image_path"] is None and names["image"] is None:
        lacking.append("image_path")
    if lacking:
        titles = ", ".join(rows.header[:8]) or "none"
        raise Corrupt(f"{path}: line 1: the columns are {titles}; {', '.join(lacking)} must be there too. Correct the header.")
    columns = {name: column for name, column in names.items() if column is not None}
    embedded = _embedded(rows, columns)
    n_found, absent = 0, SkippedRows()
    for line, fields in rows:
        try:
            if len(fields) != len(rows.header):
                raise ValueError(f"it has {len(fields)} fields, and the header has {len(rows.header)}")
            row = {name: fields[column] for name, column in columns.items()}
            if not (index := index_of(row["index"])):
                raise ValueError("the index is empty")
            if (task, index) in seen:
                raise ValueError(f"index {index} is there twice")
            parts = pictures.parts(row, embedded)
            parts = check(task, row["answer"], row["question"], parts)
        except ValueError as fault:
            found.faults.append(f"{path}: line {line}: {fault}. Correct the row.")
            if len(fields) > columns["index"]:
                found.left_out.add((task, index_of(fields[columns["index"]])))
            continue
        seen.add((task, index))
        question = Question(task, index, parts, row["answer"], row.get("category", ""))
        gone = [part["image"] for part in parts if part["type"] == "image" and not pictures.is_there(part["image"])]
        if gone and (needs_media or pictures.has_folder):
            found.left_out.add(question.key)
            absent.skip(NO_PICTURES, f"line {line}: {', '.join(gone)}")
            continue
        found.questions.append(question)
        n_found += 1
    if absent.counts:
        rest = found.missing.setdefault(task, SkippedRows())
        for reason, count in absent.counts.items():
            rest.add(reason, count, [f"{path}: {name}" for name in absent.names[reason]])


def _embedded(rows: Rows, columns: Mapping[str, int]) -> dict[str, str]:
    """The pictures of the column image, by index, since a short cell names the row that has the picture."""
    if "image" not in columns:
        return {}
    pairs = ((f[columns["index"]], f[columns["image"]]) for _, f in rows if len(f) == len(rows.header))
    return {index.strip(): cell for index, cell in pairs if len(cell) > _SHORT}


class _PictureFinder:
    """Finds the pictures of one table."""

    def __init__(self, src: str, table: Path) -> None:
        root = Path(src) if os.path.isdir(src) else table.parent
        folders = [root / "images", table.parent / "images", table.parent.parent / "images", root, table.parent]
        self._folders = [str(folder) for folder in dict.fromkeys(folders) if folder.is_dir()]
        self.has_folder = any((folder / "images").is_dir() for folder in (root, table.parent, table.parent.parent))
        self._listed: dict[str, bool] = {}
        self._found: dict[str, str] = {}

    def parts(self, row: Mapping[str, str], embedded: Mapping[str, str]) -> Parts:
        """The pictures of a row as parts of a message. Raises ValueError for a list or a picture that cannot be read."""
        paths = [self._path(name) for name in _several(row.get("image_path", ""), "image_path")]
        if (not paths or not all(map(self.is_there, paths))) and row.get("image", "").strip():
            paths = [_data_url(embedded.get(cell, cell)) for cell in _several(row["image"], "image")]
        if not paths:
            raise ValueError("it has no picture")
        return [{"type": "image", "image": path} for path in paths]

    def _path(self, name: str) -> str:
        if name not in self._found:
            self._found[name] = self._search(name)
        return self._found[name]

    def _search(self, name: str) -> str:
        places = [os.path.join(folder, name) for folder in self._folders]
        return next((place for place in places if self.is_there(place)), places[0] if places else name)

    def is_there(self, path: str) -> bool:
        """Whether a picture is a file, or data in base64."""
        if path.startswith("data:"):
            return True
        if path not in self._listed:
            self._listed[path] = os.path.isfile(path)
        return self._listed[path]


@lru_cache(maxsize=1024)
def _several(cell: str, column: str) -> Sequence[str]:
    """The entries of a cell: one, or a list as Python writes it. Raises ValueError for a list that is none."""
    cell = cell.strip()
    if cell[:1] not in ("[", "("):
        return (cell,) if cell and cell.lower() != "nan" else ()
    try:
        entries = ast.literal_eval(cell)
    except (ValueError, SyntaxError, MemoryError, RecursionError, TypeError):
        raise ValueError(f"{column} is {cell[:40]!r}, which is no list") from None
    if not isinstance(entries, list | tuple) or not all(isinstance(entry, str) and entry for entry in entries):
        raise ValueError(f"{column} is {cell[:40]!r}, and a list of paths is needed")
    return tuple(entries)


def _data_url(cell: str) -> str:
    """A picture in base64 as a data: URL. Raises ValueError for what is none."""
    text = cell.partition(",")[2] if cell.startswith("data:") else cell
    try:
        head = base64.b64decode("".join(text.split()), validate=True)
    except (binascii.Error, ValueError) as error:
        raise ValueError(f"the picture is no base64 ({str(error).lower()})") from None
    kind = next((kind for begin, kind in _SIGNATURES.items() if head.startswith(begin)), None)
    if kind is None:
        raise ValueError("the base64 is no picture that is known (PNG, JPEG, GIF, WebP or BMP)")
    return f"data:image/{kind};base64,{''.join(text.split())}"
