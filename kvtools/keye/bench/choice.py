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
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kvtools.artifact.delimited import first_letter, read_rows
from kvtools.artifact.documents import read_documents
from kvtools.artifact.files import open_source
from kvtools.errors import Corrupt, raising
from kvtools.keye.bench.options import LETTERS, listed_options, plain

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
_SOURCES = {".tsv", ".csv", ".jsonl", ".json", ".parquet"}


@dataclass(frozen=True)
class ChoiceQuestion:
    """One question. options: letter to text. answer: a letter. media: items as conversations have them."""

    index: str
    question: str
    options: dict[str, str]
    answer: str
    media: list[dict[str, Any]] = field(default_factory=list)
    category: str = ""

    @property
    def text(self) -> str:
        """What is asked, with the options, as VLMEvalKit asks it."""
        if self.options == listed_options(self.question):
            return f"{self.question}\n{_ASK}"
        listed = "\n".join(f"{letter}. {option}" for letter, option in self.options.items())
        return f"Question: {self.question}\nOptions:\n{listed}\n{_ASK}"


def find_sources(path: str) -> list[str]:
    """The files of questions of a file or a folder, in the order of their names. Raises Corrupt where there is none."""
    if not Path(path).is_dir():
        return [path]
    found = sorted(str(file) for file in Path(path).iterdir() if file.suffix.lower() in _SOURCES)
    if not found:
        raise Corrupt(f"{path}: it has no file of questions. Name a file, or a folder with .tsv, .csv, .jsonl or .json files.")
    return found


def read_questions(src: str) -> list[ChoiceQuestion]:
    """The questions of a file. Raises Corrupt, with the row, for one without what is needed, and for an index that is there
    twice."""
    rows = list(_rows(src))
    pictures = {str(row[1].get("index")): row[1].get("image") for row in rows}
    questions: dict[str, ChoiceQuestion] = {}
    for number, (where, row) in enumerate(rows):
        with raising(Corrupt, f"{src}: {where}", "Correct the row."):
            question = _question(row, number, pictures)
            if question.index in questions:
                raise ValueError(f"index {question.index} is there twice")
        questions[question.index] = question
    if not questions:
        raise Corrupt(f"{src}: it has no question. Give a table or JSON with questions, options and answers.")
    return list(questions.values())


def _rows(src: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """(where, fields) of each row, names in small letters but for the options A to J; empty cells are left out."""
    with open_source(src) as file:
        if first_letter(file) in ("{", "[") or Path(src).suffix.lower() in (".parquet", ".gz", ".zst"):
            for where, document in read_documents(file):
                with raising(Corrupt, f"{src}: {where}", "Correct the row."):
                    if isinstance(document, ValueError):
                        raise document
                    if not isinstance(document, dict):
                        raise ValueError("this is not an object, and a question with its options is needed")
                yield where, _named(document.items())
            return
        table = read_rows(file, src, delimiters="\t,;", has_header=True)
    for line, fields in table:
        yield f"line {line}", _named(zip(table.header, fields, strict=True))


def _named(pairs: Any) -> dict[str, Any]:
    fields: dict[str, Any] = {}
    for name, value in pairs:
        is_empty = value is None or (isinstance(value, str) and value.strip().lower() in ("", "nan"))
        if not is_empty:
            fields[name.strip() if name.strip() in LETTERS else name.strip().lower()] = value
    return fields


def _question(row: Mapping[str, Any], number: int, pictures: Mapping[str, Any]) -> ChoiceQuestion:
    text = str(_first(row, _QUESTION, "question"))
    options = _options(row) or listed_options(text)
    if len(options) < 2:
        raise ValueError(f"it has {len(options)} options, and 2 to {len(LETTERS)} are needed")
    if "hint" in row:
        text = f"Hint: {row['hint']}\n{text}"
    name = next((name for name in _CATEGORY if name in row), None)
    answer = _answer(_first(row, _ANSWER, "answer"), options)
    index = next((str(row[name]) for name in _INDEX if name in row), str(number))
    return ChoiceQuestion(index, text, options, answer, _media(row, pictures), str(row[name]) if name else "")


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
