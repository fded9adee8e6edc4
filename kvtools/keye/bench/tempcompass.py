"""TempCompass: 410 videos, five kinds of temporal questions, four forms; scored as its own evaluator does, or by rules.

A folder holds `multi-choice.json`, `yes_no.json`, `caption_matching.json` (in itself or in `questions/`), each {video:
{aspect: [{"question", "answer"}, …]}}, and videos as NAME.mp4, in itself or in `videos/`. Predictions are read from lines, and
from files of the published layout, which is that of the questions with a `prediction` beside each answer.

Not here: captioning, which only a model can judge: its evaluator has one answer the question from the caption alone.
Source: Liu et al. 2024, TempCompass; checked against its published verdicts of Video-LLaVA's answers.
"""

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kvtools.artifact.files import open_source
from kvtools.errors import Corrupt, raising
from kvtools.keye.bench.options import letter_of, listed_options, plain, yes_or_no

TASKS = {
    "multi-choice": "\nPlease directly give the best option:",
    "yes_no": "\nPlease answer yes or no:",
    "caption_matching": "\nPlease directly give the best option:",
}
_LABELLED = re.compile(r"^((?:Option|Caption|Sentence) (?:[12]|[AB])): (.*)$")


@dataclass(frozen=True)
class TempQuestion:
    """One question. index: VIDEO/ASPECT/NUMBER, the number from 0 within its form."""

    task: str
    index: str
    video: str
    aspect: str
    question: str
    answer: str

    @property
    def text(self) -> str:
        """What is asked, with the evaluator's request for a short answer."""
        return self.question + TASKS[self.task]


def read_questions(folder: str) -> list[TempQuestion]:
    """The questions of all forms that the folder has. Raises Corrupt where it has none, or where one lacks a field."""
    found = [
        question
        for task in TASKS
        if (path := _find(folder, f"{task}.json", f"questions/{task}.json")) is not None
        for question in _of_file(path, task)
    ]
    if not found:
        names = ", ".join(f"{task}.json" for task in TASKS)
        raise Corrupt(f"{folder}: it has none of {names}. Give the folder with TempCompass's questions.")
    return found


def read_predictions(src: str, task: str) -> Iterator[tuple[str, str]]:
    """(index, prediction) of a file of the published layout. Raises Corrupt for another one."""
    for index, entry in _entries(src):
        with raising(Corrupt, f"{src}: {index}", f"Give predictions of {task} in TempCompass's layout."):
            yield index, str(_field(entry, "prediction" if "prediction" in entry else "response"))


def video_path(folder: str, video: str) -> str:
    """The path of a question's video: NAME.mp4 in the folder or in videos/; the name where it is in neither."""
    return _find(folder, f"videos/{video}.mp4", f"{video}.mp4") or f"{video}.mp4"


def official_verdict(task: str, question: str, answer: str, prediction: str) -> bool | None:
    """Whether an answer is right by the rules of TempCompass's evaluator; None where that asks a language model."""
    text = prediction.replace("</s>", "")
    if task == "multi-choice":
        if text == answer:
            return True
        begins = text in ("A", "B", "C", "D") or text[:2] in {f"{letter}{mark}" for letter in "ABCD" for mark in ".)"}
        return text[0] == answer[0] if begins else None
    if task == "yes_no":
        found = next((word for word in ("yes", "no") if text.lower().startswith(word)), None)
        return None if found is None else found == answer
    label, _, sentence = answer.partition(": ")
    named = [part for part in _labelled(question) if _names_label(text, *part)]
    if not named:
        return None
    return named[-1] == (label, sentence)


def rules_verdict(task: str, question: str, answer: str, prediction: str) -> tuple[bool, bool]:
    """(whether an answer is right, whether it names an option at all) by the rules of options.py."""
    if task == "yes_no":
        found = yes_or_no(prediction)
        return found == answer.lower(), found is not None
    options = listed_options(question) if task == "multi-choice" else {}
    right = answer[:1]
    if task == "caption_matching":
        labelled = _labelled(question)
        options = dict(zip("AB", (sentence for _, sentence in labelled), strict=False))
        right = "AB"[[label for label, _ in labelled].index(answer.partition(": ")[0])]
        prediction = _letters_for_labels(prediction, [label for label, _ in labelled])
    letter = letter_of(prediction, options)
    return letter == right, letter is not None


def judge_request(question: str, answer: str, prediction: str) -> str:
    """What a judge is asked where the evaluator's rules find nothing; it says `Correct` or `Incorrect`."""
    return (
        "Below are a question about a video, its right answer, and what a model answered. Say whether the model's answer is "
        'right. Respond with "Correct" or "Incorrect".\n'
        f"Question:\n{question}\nGround-Truth Answer: {answer}\nModel Prediction: {prediction}"
    )


def judged(reply: str) -> bool | None:
    """What a judge's reply says; None where it says neither."""
    words = re.findall(r"\b(correct|incorrect)\b", reply, re.IGNORECASE)
    return words[0].lower() == "correct" if words else None


def _letters_for_labels(text: str, labels: list[str]) -> str:
    """The answer with A and B in the place of the two labels, such as `Option 1` and `Option 2`, or `1` and `2` alone."""
    for letter, label in zip("AB", labels, strict=False):
        if plain(text) in (plain(label), label.split()[1].lower()):
            return letter
        text = re.sub(rf"\b{re.escape(label)}\b", f"({letter})", text, flags=re.IGNORECASE)
    return text


def _names_label(text: str, label: str, sentence: str) -> bool:
    is_sentence = text == sentence or (") " in text and text.split(") ")[1] == sentence)
    return is_sentence or label in (text, text.replace(".", "")) or text == f"{label}: {sentence}"


def _labelled(question: str) -> list[tuple[str, str]]:
    """(label, sentence) of the two captions that a question lists."""
    return [(match[1], match[2]) for line in question.split("\n") if (match := _LABELLED.match(line))]


def _of_file(path: str, task: str) -> Iterator[TempQuestion]:
    for index, entry in _entries(path):
        with raising(Corrupt, f"{path}: {index}", "Correct the file."):
            video, aspect, _ = index.split("/")
            yield TempQuestion(task, index, video, aspect, str(_field(entry, "question")), str(_field(entry, "answer")))


def _entries(path: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """(VIDEO/ASPECT/NUMBER, entry) of a file of TempCompass's layout."""
    with open_source(path) as file:
        try:
            videos = json.load(file)
            for video, aspects in videos.items():
                for aspect, entries in aspects.items():
                    for number, entry in enumerate(entries):
                        yield f"{video.removesuffix('.mp4')}/{aspect}/{number}", dict(entry)
        except (ValueError, AttributeError, TypeError):
            raise Corrupt(f"{path}: this is not {{video: {{aspect: [question, …]}}}}. Give a file of TempCompass.") from None


def _field(entry: Mapping[str, Any], name: str) -> Any:
    if name not in entry:
        raise ValueError(f"it has no {name}")
    return entry[name]


def _find(folder: str, *names: str) -> str | None:
    return next((str(path) for name in names if (path := Path(folder) / name).is_file()), None)
