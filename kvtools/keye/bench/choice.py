"""Multiple-choice questions from tables and JSON, in the layouts of VLMEvalKit and lmms-eval.

A row has a question, options, an answer, and a picture or a video. Read: options in columns A to J, in a list or a dictionary
(`options`, `candidates`, `choices`), also where a cell holds it as Python's or JSON's text, in columns a0 … and option_0 …, or
on lines of the question; the answer as a letter, an option's text, or the position from 0; a picture in base64 (`image`), the
index of a row that has it, or a path (`image_path`, `image`, `images`); a video by path or name (`video`, `video_path`,
`videoID`, …). Beside these count `hint`, `index` and `category`.

Not here: circular evaluation, where each question is asked once for each order of its options; subtitles.
"""

import ast
import base64
import binascii
import json
import os
import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from kvtools.artifact.delimited import first_letter, read_rows
from kvtools.artifact.documents import read_documents
from kvtools.artifact.files import open_source
from kvtools.errors import Corrupt
from kvtools.keye.bench.benchmark import LONGEST_CELL, NO_PICTURES, JudgeRequest, Key, Question, QuestionSet, Verdict
from kvtools.keye.bench.options import LETTERS, letter_of, listed_options, plain, strict_letter_of
from kvtools.keye.bench.post_process import post_process
from kvtools.keye.bench.rules import final_answer
from kvtools.skipped import SkippedRows

_QUESTION = ("question", "query", "problem")
_OPTIONS = ("options", "candidates", "choices", "option")
_ANSWER = ("answer", "correct_choice", "answer_idx", "answer_index", "correct_answer", "ground_truth", "gt", "label")
_INDEX = ("index", "question_id", "id", "qid", "q_uid", "uid")
_CATEGORY = ("category", "task_type", "task", "question_category", "type", "dimension", "l2-category")
_PICTURE = ("image", "image_path", "images")
_VIDEO = ("video", "video_path", "videoid", "video_id", "video_name", "videos")
_ASK = "Please select the correct answer from the options above."
_ENTRY = re.compile(r"^\s*[(（]?([A-J])[.)）:：]\s*")  # noqa: RUF001 full-width marks
_SHORT = 64  # characters: less is no picture in base64, but a path or the index of another row
_VIDEO_SUFFIXES = (".mp4", ".mkv", ".webm", ".avi", ".mov")
NONE = "Z"  # what a judge says where an answer chooses no option
_SOURCES = {".tsv", ".csv", ".jsonl", ".json", ".parquet"}


class ChoiceBench:
    """The benchmark; see above. Each file of questions is a task, named as the file."""

    name = "choice"

    def __init__(self) -> None:
        self.tasks: tuple[str, ...] = ()  # known once the questions are read

    def task_of(self, name: str) -> str | None:
        """The task of that name, in either case; before the questions are read, every name is one."""
        known = {task.casefold(): task for task in self.tasks}
        return known.get(name.casefold()) if known else name

    def read(self, sources: Sequence[str], only: Collection[str] = (), *, needs_media: bool) -> QuestionSet:
        """The questions of files and folders. Raises Corrupt where there is none to read, Missing for what is not there."""
        found = QuestionSet()
        wanted = {name.casefold() for name in only}
        paths = [path for src in sources for path in find_sources(src)]
        tasks = {path: Path(path).name.split(".")[0] for path in paths}
        seen: set[Key] = set()
        for path in paths:
            if not wanted or tasks[path].casefold() in wanted:
                _add(path, tasks[path], found, seen, needs_media=needs_media)
        if not found.questions and not found.faults and not found.missing:
            raise Corrupt(f"{sources[0]}: it has no question. Give a table or JSON with questions, options and answers.")
        self.tasks = tuple(dict.fromkeys([*(question.task for question in found.questions), *found.missing]))
        return found

    def rules(self, question: Question, text: str) -> Verdict:
        """By the letter that people would read; see options.py."""
        letter = letter_of(final_answer(text), question.asked_with)
        return Verdict(letter == question.answer, letter)

    def reference(self, question: Question, text: str) -> Verdict | JudgeRequest:
        """By VLMEvalKit's exact matching; where that finds nothing, its judge names the option, or Z for none."""
        answer = post_process(text)
        letter = strict_letter_of(answer, question.asked_with)
        if letter is not None:
            return Verdict(letter == question.answer, letter)
        options = {**question.asked_with, NONE: ""}
        return JudgeRequest(
            _ask_letter(question, answer), Verdict(False, None), lambda reply: letter_of(reply, options) is not None
        )

    def judged(self, question: Question, reply: str) -> Verdict:
        """By the letter of the judge."""
        letter = letter_of(reply, {**question.asked_with, NONE: ""})
        return Verdict(letter == question.answer, None if letter == NONE else letter, reply)


def find_sources(path: str) -> list[str]:
    """The files of questions of a file or a folder, in the order of their names. Raises Corrupt where there is none."""
    if not Path(path).is_dir():
        return [path]
    found = sorted(str(file) for file in Path(path).iterdir() if file.suffix.lower() in _SOURCES)
    if not found:
        raise Corrupt(f"{path}: it has no file of questions. Name a file, or a folder with .tsv, .csv, .jsonl or .json files.")
    return found


def _add(src: str, task: str, found: QuestionSet, seen: set[Key], *, needs_media: bool) -> None:
    """Add the questions of a file; rows without what is needed become faults, those without their media are counted."""
    absent, rows = SkippedRows(), [*_rows(src)]
    pictures = {
        str(row["index"]): row["image"] for _, row in rows if isinstance(row, dict) and {"index", "image"} <= row.keys()
    }
    finder = MediaFinder(src)
    for number, (where, row) in enumerate(rows):
        try:
            question = _question(task, row, number, pictures)
            if question.key in seen:
                raise ValueError(f"index {question.index} is there twice")
        except ValueError as fault:
            found.faults.append(f"{src}: {where}: {fault}. Correct the row.")
            if isinstance(row, dict):
                found.left_out.add((task, _index(row, number)))
            continue
        seen.add(question.key)
        gone = finder.find(question.media)
        if gone and needs_media:
            absent.skip(NO_PICTURES, f"{src}: {where}: {', '.join(gone)}")
            found.left_out.add(question.key)
        else:
            found.questions.append(question)
    if absent.counts:
        found.missing[task] = absent


class MediaFinder:
    """Finds the pictures and videos that a file of questions names: beside it, and in folders such as images/ and videos/."""

    def __init__(self, src: str) -> None:
        root = Path(src) if Path(src).is_dir() else Path(src).parent
        places = [folder / name for folder in (root, root.parent) for name in (".", "images", "videos", "video", "data")]
        self._folders = [str(place) for place in places if place.is_dir()]

    def find(self, items: Sequence[dict[str, Any]]) -> list[str]:
        """Put the path of each item in the place of its name; the names that lead to nothing."""
        gone = []
        for item in items:
            name = item[item["type"]]
            path = name if name.startswith("data:") else self._path(name, item["type"])
            if path is None:
                gone.append(name)
            item[item["type"]] = path or name
        return gone

    def _path(self, name: str, kind: str) -> str | None:
        names = [name, *(name + suffix for suffix in _VIDEO_SUFFIXES)] if kind == "video" else [name]
        paths = (os.path.join(folder, each) for folder in ["", *self._folders] for each in names)
        return next((os.path.normpath(path) for path in paths if os.path.exists(path)), None)


def _rows(src: str) -> Iterator[tuple[str, Any]]:
    """(where, fields) of each row, or a ValueError in the place of the fields."""
    with open_source(src) as file:
        if first_letter(file) in ("{", "[") or Path(src).suffix.lower() in (".parquet", ".gz", ".zst"):
            try:
                for where, document in read_documents(file):
                    yield where, _named(document.items()) if isinstance(document, dict) else document
            except ValueError as fault:
                raise Corrupt(f"{src}: {fault}. Give JSON with an object a question.") from None
            return
        table = read_rows(file, src, delimiters="\t,;", has_header=True, is_ragged=True, longest=LONGEST_CELL)
    for line, fields in table:
        if len(fields) == len(table.header):
            yield f"line {line}", _named(zip(table.header, fields, strict=True))
        else:
            yield f"line {line}", ValueError(f"it has {len(fields)} fields, and the header has {len(table.header)}")


def _named(pairs: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    """The fields that are not empty, names in small letters but for the options A to J."""
    fields: dict[str, Any] = {}
    for name, value in pairs:
        is_empty = value is None or (isinstance(value, str) and value.strip().lower() in ("", "nan"))
        if not is_empty:
            fields[name.strip() if name.strip() in LETTERS else name.strip().lower()] = value
    return fields


def _question(task: str, row: Any, number: int, pictures: Mapping[str, Any]) -> Question:
    """A row as a question. Raises ValueError for one without what is needed. number: its index where it has none."""
    if isinstance(row, ValueError):
        raise row
    if not isinstance(row, dict):
        raise ValueError("this is not an object, and a question with its options is needed")
    text = str(_first(row, _QUESTION, "question"))
    options = _options(row)
    is_listed = not options
    options = options or listed_options(text)
    if len(options) < 2:
        raise ValueError(f"it has {len(options)} options, and 2 to {len(LETTERS)} are needed")
    answer = _answer(_first(row, _ANSWER, "answer"), options)
    category = str(next((row[name] for name in _CATEGORY if name in row), ""))
    asked = text if is_listed else _asked(text, options)
    hint = f"Hint: {row['hint']}\n" if "hint" in row else ""
    parts = [*_media(row, pictures), {"type": "text", "text": f"{hint}{asked}\n{_ASK}"}]
    return Question(task, _index(row, number), parts, answer, category, options)


def _index(row: Mapping[str, Any], number: int) -> str:
    return str(next((row[name] for name in _INDEX if name in row), number))


def _asked(text: str, options: Mapping[str, str]) -> str:
    """A question with its options, as VLMEvalKit asks it."""
    listed = "\n".join(f"{letter}. {option}" for letter, option in options.items())
    return f"Question: {text}\nOptions:\n{listed}"


def _ask_letter(question: Question, answer: str) -> str:
    return (
        "Below are a multiple-choice question and an answer to it. Name the option that the answer chooses, by its letter "
        f"alone. Where it chooses none of them, reply {NONE}.\n"
        f"{question.parts[-1]['text']}\nAnswer: {answer}"
    )


def _first(row: Mapping[str, Any], names: Sequence[str], what: str) -> Any:
    found = next((row[name] for name in names if name in row), None)
    if found is None:
        raise ValueError(f"it has no {what} (none of the columns {', '.join(names)})")
    return found


def _options(row: Mapping[str, Any]) -> dict[str, str]:
    """Letter to text; empty where no column has options. Raises ValueError for more than ten."""
    columns = {letter: str(row[letter]) for letter in LETTERS if letter in row}
    if columns:
        return columns
    listed = next((_parsed(row[name]) for name in _OPTIONS if name in row), None)
    if isinstance(listed, dict):
        listed = [f"{letter}. {text}" for letter, text in listed.items() if text is not None]
    if listed is None:
        numbered = [[f"{stem}{i}" for i in range(len(LETTERS)) if f"{stem}{i}" in row] for stem in ("a", "option_", "option")]
        listed = [row[name] for name in max(numbered, key=len)]
    if not isinstance(listed, list) or len(listed) > len(LETTERS):
        raise ValueError(f"the options are not a list of at most {len(LETTERS)}")
    texts = [str(text).strip() for text in listed]
    letters = [match[1] if (match := _ENTRY.match(text)) else "" for text in texts]
    if letters == list(LETTERS[: len(letters)]):  # each begins with its own letter
        texts = [_ENTRY.sub("", text) for text in texts]
    return dict(zip(LETTERS, texts, strict=False))


def _parsed(value: Any) -> Any:
    """A list or a dictionary that a cell holds as text; other values as they are."""
    if isinstance(value, str) and value.strip()[:1] in ("[", "{", "("):
        for read in (ast.literal_eval, json.loads):
            try:
                found = read(value.strip())
            except (ValueError, SyntaxError, MemoryError, RecursionError):
                continue
            return list(found) if isinstance(found, tuple) else found
    return value


def _answer(value: Any, options: Mapping[str, str]) -> str:
    """The letter of the right option. Raises ValueError where the value is none of the options."""
    text = str(value).strip()
    if isinstance(value, str):
        equal = [letter for letter, option in options.items() if plain(option) == plain(text)]
        if len(equal) == 1:
            return equal[0]
        bare = text.strip("()[]（）.:：、 ").upper()  # noqa: RUF001
        if bare in options:
            return bare
        match = _ENTRY.match(text)
        if match and match[1] in options:
            return match[1]
    if re.fullmatch(r"\d+(\.0)?", text) and int(float(text)) < len(options):
        return [*options][int(float(text))]
    raise ValueError(f"the answer is {text!r}, and the options are {', '.join(options)}")


def _media(row: Mapping[str, Any], pictures: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The pictures, or else the video, as items of conversations."""
    items: list[dict[str, Any]] = []
    path = row.get("image_path")
    sources = [path] if path is not None else [row[name] for name in _PICTURE if name in row][:1]
    for source in (_parsed(source) for source in sources):
        several = source if isinstance(source, list) else [source]
        items += [{"type": "image", "image": _picture(one, pictures)} for one in several]
    video = next((row[name] for name in _VIDEO if name in row), None)
    if video is not None and not items:
        items.append({"type": "video", "video": str(row.get("video_path", video))})
    return items


def _picture(source: Any, pictures: Mapping[str, Any]) -> str:
    """A path, or a data: URL. Raises ValueError for base64 that is damaged."""
    if isinstance(source, dict):  # as datasets of the Hugging Face hub have pictures
        source = source.get("bytes") or source.get("path")
    if isinstance(source, bytes):
        return _data_url(source)
    text = str(source)
    if len(text) <= _SHORT and text in pictures and pictures[text] is not None:
        text = str(pictures[text])
    if text.startswith("data:") or len(text) <= _SHORT or Path(text).suffix:
        return text
    try:
        return _data_url(base64.b64decode(text, validate=True))
    except binascii.Error as error:
        raise ValueError(f"its picture is no base64 ({error})") from None


def _data_url(data: bytes) -> str:
    kind = "png" if data.startswith(b"\x89PNG") else "jpeg"
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"
