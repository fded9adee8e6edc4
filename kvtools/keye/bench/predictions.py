"""Predictions of any system: JSON Lines, TSV, CSV, or the workbooks that VLMEvalKit writes.

A line of JSON is {"task", "index", "prediction"}; details of an earlier run are such lines. A table has columns index and
prediction, and task or dataset; without the latter, the name of the file says the task, as in `MODEL_SPU.xlsx`; else an index
that one task alone has says it. Files of TempCompass's own layout are read too. Not here: what is right.
"""

import re
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kvtools.artifact.delimited import first_letter, read_rows
from kvtools.artifact.documents import read_documents
from kvtools.artifact.files import open_source
from kvtools.artifact.open import source_name
from kvtools.artifact.workbook import is_workbook, read_workbook
from kvtools.errors import Corrupt, Missing
from kvtools.keye.bench.benchmark import LONGEST_CELL, Key, index_of
from kvtools.keye.bench.tempcompass import is_layout, rows_of

_N_NAMED = 20  # bad rows of a file
_SUFFIXES = (".jsonl", ".json", ".tsv", ".csv", ".xlsx")
_TEXTS = ("prediction", "response", "output", "text")
_INDEX = ("index", "id", "question_id", "key")
TaskOf = Callable[[str], str | None]


@dataclass(frozen=True)
class Prediction:
    """An answer, and what is known of how it was made. right: the verdict of an earlier run, where there is one."""

    text: str
    tokens: int | None = None
    seconds: float | None = None
    fields: dict[str, Any] = field(default_factory=dict)


@dataclass
class Predictions:
    """Predictions by task and index; faults: lines on rows that cannot be used."""

    by_key: dict[Key, Prediction] = field(default_factory=dict)
    faults: list[str] = field(default_factory=list)


def read_predictions(
    sources: Sequence[str], known: Collection[Key], task_of: TaskOf, only: Collection[str] = ()
) -> Predictions:  # fmt: skip
    """All predictions of files, or of folders of them. known: the questions' keys. task_of: a task by any of its names. only:
    tasks that are asked for; what is of other tasks is passed over. Empty: all tasks.

    Raises Missing and Corrupt for a file that cannot be read at all.
    """
    found = Predictions()
    keys, tasks = set(known), {task for task, _ in known}
    tasks_by_index: dict[str, list[str]] = {}
    for task, index in known:
        tasks_by_index.setdefault(index, []).append(task)
    files = [file for source in sources for file in _files(source)]
    for src in files:
        faults: list[str] = []
        unread: dict[str, list[str]] = {}  # tasks of which the data have nothing: where
        rows = _rows(src, _task_in_name(src, task_of))
        for where, row in rows if len(files) == 1 else _or_fault(rows, found.faults):
            try:
                key, prediction = _prediction(row, task_of, tasks_by_index)
                if only and key[0] not in only:
                    continue
                if key[0] not in tasks:
                    unread.setdefault(key[0], []).append(where)
                    continue
                if key not in keys:
                    raise ValueError(f"task {key[0]} has no question of index {key[1]}")
                if key in found.by_key:
                    raise ValueError(f"index {key[1]} of task {key[0]} is there twice, and the first one counts")
                found.by_key[key] = prediction
            except ValueError as fault:
                faults.append(f"{source_name(src)}: {where}: {fault}. Correct the row.")
        found.faults += faults[:_N_NAMED]
        if len(faults) > _N_NAMED:
            found.faults.append(f"{source_name(src)}: {len(faults) - _N_NAMED:,} more rows are like these. Correct them.")
        found.faults += [
            f"{source_name(src)}: {places[0]}: this is of task {task}, of which the data have no question. Such rows are "
            f"passed over, {len(places):,} in all. Give the task's table."
            for task, places in unread.items()
        ]
    return found


def _or_fault(rows: Iterator[tuple[str, Any]], faults: list[str]) -> Iterator[tuple[str, Any]]:
    """The rows of one file of several: what loses this file does not lose the others."""
    try:
        yield from rows
    except (Corrupt, Missing) as fault:
        faults.append(str(fault))


def _files(src: str) -> list[str]:
    if not Path(src).is_dir():
        return [src]
    files = sorted(str(file) for file in Path(src).iterdir() if file.suffix.lower() in _SUFFIXES)
    if not files:
        raise Corrupt(f"{src}: it has no predictions. Give a folder with .jsonl, .tsv or .xlsx files.")
    return files


def _rows(src: str, task: str | None) -> Iterator[tuple[str, Any]]:
    """(where, fields) of each row, or a ValueError in the place of the fields. task: that of rows which name none."""
    name = source_name(src)
    with open_source(src) as file:
        if is_workbook(file):
            table = read_workbook(file, name)
        elif first_letter(file) in ("{", "["):
            try:
                for where, document in read_documents(file):
                    if is_layout(document):
                        yield from ((index, {"task": task, "index": index, **entry}) for index, entry in rows_of(document))
                    else:
                        yield where, {"task": task, **document} if isinstance(document, dict) else document
            except ValueError as fault:
                raise Corrupt(f"{name}: {fault}. Give JSON Lines with task, index and prediction.") from None
            return
        else:
            table = read_rows(file, name, delimiters="\t,;", has_header=True, is_ragged=True, longest=LONGEST_CELL)
    if not table.header:
        raise Corrupt(f"{name}: there is no prediction in it. Give JSON Lines with task, index and prediction.")
    if table.index(*_TEXTS) is None or table.index(*_INDEX) is None:
        titles = ", ".join(table.header[:8])
        raise Corrupt(f"{name}: line 1: the columns are {titles}, and index and prediction are needed. Correct the header.")
    titles_small = [title.strip().lower() for title in table.header]
    for line, fields in table:
        if len(fields) != len(titles_small):
            yield f"line {line}", ValueError(f"it has {len(fields)} fields, and the header has {len(titles_small)}")
        else:
            yield f"line {line}", {"task": task} | dict(zip(titles_small, fields, strict=True))


def _prediction(row: Any, task_of: TaskOf, tasks_by_index: dict[str, list[str]]) -> tuple[Key, Prediction]:
    """The key and the prediction of a row. Raises ValueError for a row that cannot be used."""
    if isinstance(row, ValueError):
        raise row
    if not isinstance(row, dict):
        raise ValueError("this is no object, and one with task, index and prediction is needed")
    index = _index(next((row[name] for name in _INDEX if name in row), None))
    text = next((row[name] for name in _TEXTS if name in row), None)
    if text is None and not any(name in row for name in _TEXTS):
        raise ValueError("it has no prediction")
    named = row.get("task") or row.get("dataset")
    prefix, slash, rest = index.partition("/")
    if named is None and slash and task_of(prefix) is not None:  # the id of a conversation that --prompts has written
        named, index = prefix, rest
    if named is None:
        tasks = tasks_by_index.get(index, [])
        if len(tasks) != 1:
            raise ValueError(f"it names no task, and {len(tasks)} tasks have a question of index {index}")
        task: str | None = tasks[0]
    else:
        task = task_of(str(named))
        if task is None:
            raise ValueError(f"task {named} is unknown")
    assert task is not None
    tokens, seconds = row.get("tokens"), row.get("seconds")
    return (task, index), Prediction(
        "" if text is None else str(text),
        int(tokens) if isinstance(tokens, int | float) else None,
        float(seconds) if isinstance(seconds, int | float) else None,
        row,
    )


def _index(value: Any) -> str:
    if value is None or isinstance(value, bool | list | dict) or not str(value).strip():
        raise ValueError("it has no index")
    return index_of(value)


def _task_in_name(src: str, task_of: TaskOf) -> str | None:
    """The task that the name of a file ends with, as VLMEvalKit writes it: MODEL_TASK.xlsx, or MODEL_TASK_JUDGE.xlsx."""
    words = re.split(r"_", Path(src).name.split(".")[0])
    spans = [(begin, end) for end in range(len(words), 0, -1) for begin in range(end)]  # the last and longest name first
    return next((task for begin, end in spans if (task := task_of("_".join(words[begin:end]))) is not None), None)
