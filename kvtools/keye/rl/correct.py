"""Whether an answer is right, by rules: choices, yes and no, numbers, lists, mathematics and plain text.

What a reply says at its end is looked up as the reference evaluator of Keye-VL does (spec/keye.md 6.4): after the analysis and
the thinking, in the last <answer>, in the last box; without any of them the text itself. How it is compared depends on the
expected answer alone. Not here: judges.
"""

import json
import re
import unicodedata
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from fractions import Fraction
from functools import cache
from typing import Any, Literal

from kvtools.artifact.json_text import read_json

AnswerKind = Literal["choice", "check", "number", "list", "math", "text"]
KINDS: tuple[AnswerKind, ...] = ("choice", "check", "number", "list", "math", "text")

_ANSWER = re.compile(r"<answer>(.*?)</answer>", re.DOTALL)
_BOX = re.compile(r"\\boxed\s*\{")
_NUMBER = re.compile(
    r"(?<![\w.])[-+\u2212]?(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?(?:[eE][-+]?\d{1,3})?(?:\s*/\s*\d+)?|(?<![\w.])[-+\u2212]?\.\d+"
)
_WHOLE_NUMBER = re.compile(rf"\s*(?:{_NUMBER.pattern})\s*%?\s*")
_LETTER = re.compile(r"\W*(?:option|choice)?\W*([A-Za-z])\W*", re.IGNORECASE)
_LED_BY_LETTER = re.compile(r"\W*([A-Z](?=\s*[.):\uff1a、])|[a-z](?=\s*[):\uff1a、]|\.(?:\s|$)))")
# a small letter may be a word, as in "the answer is a triangle": it counts in brackets, at the end, and after "option"
_NAMED_LETTER = re.compile(
    r"(?i:answer|option|choice)(?:\s+is)?\s*[:\uff1a]?\s*"
    r"(?:[(\[*]*([A-Z])\b(?![a-z'])|[(\[*]+([a-z])[)\]*]|([a-z])(?=\W*$)|(?i:(?<=option ))([b-z])\b(?!'))"
)
_LEAD = re.compile(r"^.*?\b(?:answer|result)\s*(?:is|:|=)\s*", re.IGNORECASE | re.DOTALL)
_POLARITY = {"yes": "yes", "true": "yes", "是": "yes", "对": "yes", "no": "no", "false": "no", "否": "no", "不是": "no"}
_MATHS = re.compile(r"\\[a-zA-Z]|[\^_{}$]|\bsqrt\b|\bpi\b|[a-zA-Z]\s*[=+*/]|\d\s*[+*]\s*\d")
_FORMULA = re.compile(r"\\[dtc]?frac|\\sqrt|\\pi|\\binom|\^")
_SHORT = 40  # letters of an answer in which one mention of yes or no is the answer
_MATH_SECONDS = 3  # for one expression: some take sympy for ever
_MAX_MATH = 2000  # letters


@dataclass(frozen=True)
class Expected:
    """The right answer of a prompt. choices: the texts of the options, of which the answer is a letter; may be empty."""

    kind: AnswerKind
    text: str
    choices: tuple[str, ...] = ()


def expected_answer(document: Mapping[str, Any], answer: Any) -> Expected:
    """What an answer must be compared with, and how.

    document: the conversation; its `answer_type`, `form` and `choices` or `options` count. answer: text, a number, or a list.
    Raises ValueError for an unknown kind, and for an empty answer.
    """
    choices = document.get("choices", document.get("options")) or ()
    choices = tuple(map(str, choices.values() if isinstance(choices, dict) else choices))
    if isinstance(answer, list | tuple):
        text, found = json.dumps(list(answer), ensure_ascii=False), "list"
    else:
        text = _of_gsm8k("yes" if answer is True else "no" if answer is False else str(answer))
        text = final_answer(text) or ""
        found = _kind(text, choices, document.get("form"))
    kind = document.get("answer_type", found)
    if kind not in KINDS:
        raise ValueError(f"answer_type is {kind!r}, and must be one of {', '.join(KINDS)}")
    if not text.strip():
        raise ValueError("the answer to compare with is empty")
    return Expected(kind, text.strip(), choices)


def is_correct(expected: Expected, reply: str) -> bool:
    """Whether a reply, of any mode, ends in the expected answer."""
    found = final_answer(reply)
    return found is not None and matches(expected, found)


def final_answer(reply: str) -> str | None:
    """What a reply says at its end; None where its thinking never ends."""
    rest = reply.rpartition("</analysis>")[2].rpartition("</think>")[2]
    if "<think>" in rest or "<analysis>" in rest:
        return None
    answers = _ANSWER.findall(rest)
    rest = answers[-1] if answers else rest.replace("<answer>", "").replace("</answer>", "")
    box = _last_box(rest)
    return (rest if box is None else box).strip()


def matches(expected: Expected, found: str) -> bool:
    """Whether what a reply says at its end is the expected answer."""
    if _plain(found) == _plain(expected.text):
        return True
    return {
        "choice": _is_choice,
        "check": _is_check,
        "number": _is_number,
        "list": _is_list,
        "math": _is_math,
        "text": _is_text,
    }[expected.kind](expected, found)


def numbers(text: str) -> list[Fraction]:
    """The numbers of a text, in order, exact; per cent are hundredths only if the text says so with %."""
    return [value for match in _NUMBER.finditer(text) if (value := _value(match[0])) is not None]


def _is_choice(expected: Expected, found: str) -> bool:
    return (letter := choice_letter(found, expected.choices)) is not None and letter == choice_letter(
        expected.text, expected.choices
    )


def choice_letter(text: str, choices: Sequence[str]) -> str | None:
    """The letter that a text chooses, or of the option that it spells out; None where it is not clear."""
    for number, choice in enumerate(choices):
        if _plain(choice) == _plain(text):
            return chr(ord("A") + number)
    if (alone := _LETTER.fullmatch(text)) is not None:
        return alone[1].upper()
    if (led := _LED_BY_LETTER.match(text)) is not None:
        return led[1].upper()
    named = {"".join(groups).upper() for groups in _NAMED_LETTER.findall(text)}
    return named.pop() if len(named) == 1 else None


def _is_check(expected: Expected, found: str) -> bool:
    return (polarity := _polarity(found)) is not None and polarity == _polarity(expected.text)


def _polarity(text: str) -> str | None:
    """Yes or no; None where the text says both or neither, or is long and does not begin with either."""
    words = re.findall(r"[a-z]+|不是|[是否对]", text.casefold())
    if words and len(text) > _SHORT:
        return _POLARITY.get(words[0])
    said = {_POLARITY[word] for word in words if word in _POLARITY}
    return said.pop() if len(said) == 1 else None


def _is_number(expected: Expected, found: str) -> bool:
    wanted, given = numbers(expected.text), numbers(found)
    if _FORMULA.search(found):  # whose last number is not its value
        return _is_math(expected, found)
    if not wanted or not given:
        return _is_math(expected, found) if _MATHS.search(found) else False
    a, b = wanted[-1], given[-1]
    if ("%" in expected.text) != ("%" in found) and a != b:
        a, b = (a / 100 if "%" in expected.text else a), (b / 100 if "%" in found else b)
    return a == b or (a.denominator != 1 and abs(a - b) <= abs(a) * Fraction(1, 10**4))


def _is_list(expected: Expected, found: str) -> bool:
    wanted, given = _items(expected.text), _items(found)
    return len(wanted) == len(given) > 0 and all(map(_is_item, wanted, given))


def _is_item(wanted: str, given: str) -> bool:
    if _plain(wanted) == _plain(given):
        return True
    if _WHOLE_NUMBER.fullmatch(wanted) and _WHOLE_NUMBER.fullmatch(given):
        return numbers(wanted) == numbers(given)
    return False


def _items(text: str) -> list[str]:
    """The entries of a list: JSON, or words between commas, arrows or blanks."""
    inside = re.findall(r"[\[(](.*?)[\])]", text, re.DOTALL)
    text = f"[{inside[-1]}]" if inside else text
    with suppress(ValueError):
        return [item if isinstance(item, str) else json.dumps(item) for item in read_json(text)]
    text = _LEAD.sub("", text.strip("[]() \n.")).strip()
    parts = re.split(r"\s*(?:[,;\uff0c、\uff1b]|->|→|\band\b)\s*", text)
    parts = parts if len(parts) > 1 else text.split()
    return [part.strip("\"' ") for part in parts if part.strip()]


def _is_math(expected: Expected, found: str) -> bool:
    if len(found) > _MAX_MATH:
        return False
    parse, verify = _math_verify()
    try:
        wanted, given = (parse(f"${text.strip('$ ')}$", parsing_timeout=_MATH_SECONDS) for text in (expected.text, found))
        return bool(verify(wanted, given, timeout_seconds=_MATH_SECONDS))
    except Exception:  # noqa: BLE001 what it raises for strange formulas, time-outs among them, is not documented
        return False


@cache
def _math_verify() -> tuple[Any, Any]:
    import logging

    import math_verify

    for name in ("math_verify.parser", "math_verify.grader"):
        logging.getLogger(name).setLevel(logging.CRITICAL)  # it logs each formula that it cannot read
    return math_verify.parse, math_verify.verify


def _is_text(expected: Expected, found: str) -> bool:
    return _plain(_LEAD.sub("", found)) == _plain(expected.text)


def _plain(text: str) -> str:
    """The text without case, blanks at its ends and between words, full stops, quotes and dollars around it."""
    text = unicodedata.normalize("NFKC", text).casefold()
    return " ".join(text.split()).strip("\"'`$*.。!\uff01 ")


def _kind(text: str, choices: Sequence[str], form: Any) -> AnswerKind:
    if form == "choice" or (choices and choice_letter(text, choices) is not None and form != "check"):
        return "choice"
    if form == "check" or (_polarity(text) is not None and len(text) < _SHORT and _plain(text) in _POLARITY):
        return "check"
    if _WHOLE_NUMBER.fullmatch(text.strip("$ ")):
        return "number"
    if re.fullmatch(r"\s*\[.*\]\s*", text, re.DOTALL) or re.fullmatch(r"\s*[-\d.]+(\s*,\s*[-\d.]+)+\s*", text):
        return "list"
    return "choice" if re.fullmatch(r"\(?[A-H]\)?", text) else "math" if _MATHS.search(text) else "text"


def _of_gsm8k(text: str) -> str:
    """What follows ####, the mark of the result in GSM8K's solutions."""
    return text.rpartition("####")[2].strip()


def _last_box(text: str) -> str | None:
    r"""What the last closed \boxed{…} holds, braces within braces included."""
    found = None
    for begin in _BOX.finditer(text):
        depth, at = 1, begin.end()
        while depth and at < len(text):
            depth += {"{": 1, "}": -1}.get(text[at], 0)
            at += 1
        if not depth:
            found = text[begin.end() : at - 1]
    return found


def _value(text: str) -> Fraction | None:
    try:
        return Fraction("".join(text.replace(",", "").replace("\u2212", "-").split()))
    except (ValueError, ZeroDivisionError):
        return None
