"""TempCompass: 410 videos, five kinds of temporal questions, four forms; scored as its own evaluator does, or by rules.

A folder holds `multi-choice.json`, `yes_no.json`, `caption_matching.json` (in itself or in `questions/`), each {video:
{aspect: [{"question", "answer"}, …]}}, and videos as NAME.mp4, in itself or in `videos/`. Predictions are read from lines, and
from files of the published layout, which is that of the questions with a `prediction` beside each answer.

Not here: captioning, which only a model can judge: its evaluator has one answer the question from the caption alone.
Source: Liu et al. 2024, TempCompass; checked against its published verdicts of Video-LLaVA's answers.
"""

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from kvtools.artifact.files import open_source
from kvtools.artifact.json_text import read_json
from kvtools.errors import Corrupt, raising
from kvtools.keye.bench.benchmark import NO_PICTURES, JudgeRequest, Question, QuestionSet, Verdict
from kvtools.keye.bench.options import letter_of, listed_options, plain, yes_or_no
from kvtools.keye.bench.post_process import post_process
from kvtools.keye.bench.rules import final_answer
from kvtools.skipped import SkippedRows

TASKS = {
    "multi-choice": "\nPlease directly give the best option:",
    "yes_no": "\nPlease answer yes or no:",
    "caption_matching": "\nPlease directly give the best option:",
}
_LABELLED = re.compile(r"^((?:Option|Caption|Sentence) (?:[12]|[AB])): (.*)$")


class TempCompassBench:
    """The benchmark; see above. An index is VIDEO/ASPECT/NUMBER, the number from 0 within the form."""

    name = "tempcompass"
    tasks = tuple(TASKS)

    def task_of(self, name: str) -> str | None:
        """The form of that name, with hyphens or underscores."""
        return next((task for task in TASKS if task.replace("-", "_") == name.casefold().replace("-", "_")), None)

    def read(self, sources: Sequence[str], only: Collection[str] = (), *, needs_media: bool) -> QuestionSet:
        """The questions of all forms that the folders have. Raises Corrupt where they have none, or where one lacks a field."""
        found = QuestionSet()
        wanted = [task for task in TASKS if not only or task in only]
        for folder in dict.fromkeys(sources):
            for task in wanted:
                if (path := _find(folder, f"{task}.json", f"questions/{task}.json")) is not None:
                    self._add(folder, path, task, found, needs_media=needs_media)
        if not found.questions and not found.missing:
            names = ", ".join(f"{task}.json" for task in wanted)
            raise Corrupt(f"{sources[0]}: it has none of {names}. Give the folder with TempCompass's questions.")
        return found

    def _add(self, folder: str, path: str, task: str, found: QuestionSet, *, needs_media: bool) -> None:
        absent = SkippedRows()
        for index, entry in entries_of(path):
            with raising(Corrupt, f"{path}: {index}", "Correct the file."):
                question, answer = (str(_field(entry, name)) for name in ("question", "answer"))
            video, aspect, _ = index.split("/")
            source = _find(folder, f"videos/{video}.mp4", f"{video}.mp4")
            if source is None and needs_media:
                absent.skip(NO_PICTURES, f"{index}: {video}.mp4")
                found.left_out.add((task, index))
                continue
            parts = [{"type": "video", "video": source or f"{video}.mp4"}, {"type": "text", "text": question + TASKS[task]}]
            found.questions.append(Question(task, index, parts, answer, aspect, question))
        if absent.counts:
            found.missing[task] = absent

    def rules(self, question: Question, text: str) -> Verdict:
        """By the option that people would read; see options.py."""
        return rules_verdict(question.task, question.asked_with, question.answer, final_answer(text))

    def reference(self, question: Question, text: str) -> Verdict | JudgeRequest:
        """By the rules of TempCompass's evaluator, or what it asks a language model."""
        answer = post_process(text)
        is_right = official_verdict(question.task, question.asked_with, question.answer, answer)
        if is_right is not None:
            return Verdict(is_right, answer)
        ask = _ask_whether_right(question.asked_with, question.answer, answer)
        return JudgeRequest(ask, Verdict(False, None), lambda reply: judged_word(reply) is not None)

    def judged(self, question: Question, reply: str) -> Verdict:  # noqa: ARG002 the protocol has it
        """By the judge's word."""
        word = judged_word(reply)
        return Verdict(word == "correct", word, reply)


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


def rules_verdict(task: str, question: str, answer: str, text: str) -> Verdict:
    """Whether an answer proper is right by the rules of options.py."""
    if task == "yes_no":
        word = yes_or_no(text)
        return Verdict(word == answer.strip().lower(), word)
    if task == "multi-choice":
        letter = letter_of(text, listed_options(question))
        return Verdict(letter == answer[:1], letter)
    labelled = _labelled(question)
    options = dict(zip("AB", (sentence for _, sentence in labelled), strict=False))
    letter = letter_of(_letters_for_labels(text, [label for label, _ in labelled]), options)
    label = None if letter is None else labelled["AB".index(letter)][0]
    return Verdict(label == answer.partition(": ")[0], label)


def judged_word(reply: str) -> str | None:
    """What a judge's reply says: "correct" or "incorrect", the first of the two; None where it says neither."""
    found = re.search(r"\b(correct|incorrect)\b", reply, re.IGNORECASE)
    return found[1].lower() if found else None


def _ask_whether_right(question: str, answer: str, text: str) -> str:
    return (
        "Below are a question about a video, its right answer, and what a model answered. Say whether the model's answer is "
        'right. Respond with "Correct" or "Incorrect".\n'
        f"Question:\n{question}\nGround-Truth Answer: {answer}\nModel Prediction: {text}"
    )


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


def entries_of(path: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """(VIDEO/ASPECT/NUMBER, entry) of a file of TempCompass's layout. Raises Corrupt for another one."""
    with open_source(path) as file:
        try:
            yield from rows_of(read_json(file.read()))
        except (ValueError, AttributeError, TypeError):
            raise Corrupt(f"{path}: this is not {{video: {{aspect: [question, …]}}}}. Give a file of TempCompass.") from None


def is_layout(document: Any) -> bool:
    """Whether a document is of TempCompass's layout: an object of objects of lists."""
    return (
        isinstance(document, dict)
        and bool(document)
        and all(
            isinstance(aspects, dict) and all(isinstance(entries, list) for entries in aspects.values())
            for aspects in document.values()
        )
    )


def rows_of(videos: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """(VIDEO/ASPECT/NUMBER, entry) of questions, or of predictions, in TempCompass's layout."""
    for video, aspects in videos.items():
        for aspect, entries in aspects.items():
            for number, entry in enumerate(entries):
                yield f"{video.removesuffix('.mp4')}/{aspect}/{number}", dict(entry)


def _field(entry: Mapping[str, Any], name: str) -> Any:
    if name not in entry:
        raise ValueError(f"it has no {name}")
    return entry[name]


def _find(folder: str, *names: str) -> str | None:
    return next((str(path) for name in names if (path := Path(folder) / name).is_file()), None)
