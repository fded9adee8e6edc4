# ruff: noqa: RUF001, RUF002 answers are Chinese
r"""What people would read in an answer: yes or no, a list of them, an order, a dictionary. The offline scorer of KC-MMBench.

All letters are first brought to one width (NFKC), so that full-width punctuation, brackets and Latin letters count as the
plain ones. An answer inside the thinking alone is none. Every reader gives None where a text says nothing, or says both: a
failure to extract, which is told apart from a wrong answer. Not here: what the published evaluator reads (post_process.py).
"""

import ast
import json
import re
import unicodedata
from collections.abc import Sequence
from typing import Any

from kvtools.keye.bench.post_process import boxed

Order = tuple[int | str, ...]
Properties = dict[str, frozenset[str]]

_BLANKS = re.compile(r"\s{2,}")
_MARK = re.compile(r'[{}]|"(?:[^"\\\n]|\\.)*"')  # a brace, or what double quotes enclose
_TAG = re.compile(r"</?(?:think|analysis|answer)>|<\|[a-z_]+\|>|</s>")
_TEX = re.compile(r"\\(?:text|mathrm|mathbf|textbf)\s*\{([^{}]*)\}")
_QUOTES = str.maketrans(
    {"“": '"', "”": '"', "‘": "'", "’": "'", "【": "[", "】": "]", "〔": "[", "〕": "]", "「": '"', "」": '"'}
)

# fmt: off
_YES = {"是", "是的", "是滴", "对", "对的", "正确", "属于", "会", "yes", "y", "true", "√", "✓", "✔", "✅"}
_NO = {
    "否", "不", "非", "不是", "不是的", "并不是", "并非", "不对", "错误", "错", "不属于", "不会", "没有",
    "no", "n", "not", "false", "×", "✗", "✘", "❌",
}
# fmt: on
_BOTH = re.compile(r"是不是|是与否|是和否|是或者?否|是/否|是否|是,否\?|yes (?:or|and) no|yes/no")
_CUE = re.compile(
    r"(?:最终|最后)?(?:答案|结论|结果|回答|判断)(?:是|为|应为|应该是|应该为)?\s*:?"
    r"|(?:final )?(?:answer|conclusion)(?: is| would be)?\s*:?"
    r"|(?:因此|所以|综上所述|综上|故),?(?:是|为)?:?(?=[^,。]{1,4}[。.!]?$)"
)
_CLAUSE = re.compile(r"[,。.!?;:、\s()\[\]\"'*#`/|~…\-—_]+")
_NEGATIVE = re.compile(
    r"不(?!但|仅|过|论|管|同?时|断|止|久|错|少|得不)|没有|并非|无法认定|非同|是否定|(?<![是与或])否(?!则|认)"
    r"|\b(?:no|not|cannot|isn't|aren't|doesn't|don't|won't|different)\b"
)
_DOUBLE = re.compile(r"不是不|并非不|不得不|不会不|没有不|不能不|not un")
_POSITIVE = re.compile(r"是|属于|会|超过|相同|一致|\b(?:yes|is|are|does|will|same)\b")
_SCRIPTS = re.compile(r"(?<=[一-鿿])(?=[a-z])|(?<=[a-z])(?=[一-鿿])")  # where they meet without a blank
_SIMPLIFIED = str.maketrans("對錯會屬於無確沒", "对错会属于无确没")
_UNSURE = re.compile(
    r"不确定|无法(?:判断|确定|回答)|不能(?:判断|确定)|难以(?:判断|确定)|不知道|不清楚"
    r"|cannot (?:tell|determine)|not sure|unsure|uncertain|no idea|no doubt"
)

_WORD_OF_LIST = re.compile(r"不是|是|否|(?<![a-z])(?:yes|no|true|false|y|n)(?![a-z])")
_ITEM_OF_LIST = re.compile(r"(?:视频|图片?|截图|video|image)\s*#?\d+")
_LABEL_OF_LIST = re.compile(
    r"(?:第?\s*[\d一二两三四五六七八九十]+\s*(?:个|张)?\s*)?(?:视频|图片|图|截图|video|image)?\s*#?\d*\s*[:.)]?"
)
_REST_OF_LIST = re.compile(r"[\s,、;_|/\[\]()\"'.。:>\-]*")
_BRACKETS = re.compile(r"\[([^\[\]]*)\]|\(([^()\[\]]*)\)")

_NUMERALS = {"零": 0, "一": 1, "二": 2, "两": 2, "三": 3, "四": 4, "五": 5, "六": 6, "七": 7, "八": 8, "九": 9, "十": 10}
_LABEL = r"(?:video|videos|clip|image|picture|视频|影片|片段|图片|图|作品|第)"
_NUMBER = r"(\d+|[一二两三四五六七八九]?十[一二三四五六七八九]?|[一二两三四五六七八九])"
_LABELLED = re.compile(rf"{_LABEL}\s*[#_-]?\s*{_NUMBER}(?:\s*(?:个|张)?\s*(?:视频|图片|图)?)")
_ELEMENT = re.compile(rf"{_LABEL}?\s*[#_-]?\s*{_NUMBER}\s*(?:个|张|号)?\s*(?:视频|图片|图)?")
_SEPARATORS = re.compile(r"\s*(?:,|、|;|->|=>|→|➡|>|<|\||/|\n)\s*")


def final_answer(text: str) -> str:
    """The answer proper, in letters of one width: without thinking, tags and boxes. Empty where there is thinking alone.

    The work grows linearly with the text, since models that repeat themselves write long ones.
    """
    text = text.rpartition("</think>")[2]  # once before, since thinking is long
    text = unicodedata.normalize("NFKC", text).translate(_QUOTES)
    for tag in ("</analysis>", "</think>"):
        text = text.rpartition(tag)[2]
    if "<answer>" in text:
        text = text.rpartition("<answer>")[2].partition("</answer>")[0]
    for tag in ("<think>", "<analysis>"):  # never closed
        text = text.partition(tag)[0]
    if "\\boxed" in text:
        text = boxed(re.sub(r"\\boxed\s*\{", r"\\boxed{", text)).rpartition("\\boxed{")[2]
    text = _BLANKS.sub(lambda run: "\n" if "\n" in run[0] else " ", text)
    return _TAG.sub("", _TEX.sub(r"\1", text)).strip(" \n\t\r$")


def yes_or_no(text: str) -> str | None:
    """是 or 否, from an answer proper.

    In this order: clauses that are nothing but yes or no, if they agree; what follows the last `答案：` and its like; the last
    sentence that affirms or denies, where a denial wins, unless it is denied.
    """
    small = re.sub(r"不\s+是", "不是", _SCRIPTS.sub(" ", text.casefold().translate(_SIMPLIFIED)))
    sure = _UNSURE.sub(" ", small)
    if found := _of_clauses(sure):
        return None if len(found) > 1 else found.pop()
    for cue in reversed([*_CUE.finditer(sure)]):
        if len(found := _of_clauses(sure[cue.end() :])) == 1:
            return found.pop()
    if sure != small or _DOUBLE.search(small):
        return None
    small = _BOTH.sub(" ", small)
    for sentence in reversed(re.split(r"[。!?;\n]|\.(?:\s|$)", small)):
        if _NEGATIVE.search(sentence):
            return "否"
        if _POSITIVE.search(sentence):
            return "是"
    return None


def yes_no_list(text: str) -> list[str] | None:
    """The sequence of 是 and 否 of a list: the last one in brackets, or joined by `_`, commas or blanks, or one a line."""
    small = text.casefold()
    for match in reversed([*_BRACKETS.finditer(small)]):
        if (found := _pure_list(match[1] if match[1] is not None else match[2])) is not None:
            return found
    if (found := _pure_list(small)) is not None:
        return found
    lines = [line for line in small.splitlines() if line.strip()]
    for line in reversed(lines):
        tail = line[cues[-1].end() :] if (cues := [*_CUE.finditer(line)]) else re.split(r"[:。]", line)[-1]
        for piece in (line, tail):
            if (found := _pure_list(piece)) is not None and len(found) > 1:
                return found
    items = [piece for piece in re.split(r"[;\n。]", small) if _ITEM_OF_LIST.search(piece)]
    said = [_of_clauses(_SCRIPTS.sub(" ", piece)) for piece in items]
    return [words.pop() for words in said] if said and all(len(words) == 1 for words in said) else None


def order_of(text: str) -> Order | None:
    """The order that an answer names: numbers where elements are numbered, else their texts; None where it names none."""
    small = text.casefold()
    for inside in reversed([match[1] for match in _BRACKETS.finditer(small) if match[1] is not None]):
        if elements := _elements(inside):
            return elements
    whole = [match[2] for match in _BRACKETS.finditer(small) if match[2] is not None]
    for part in (small.strip(" .。:"), *reversed(whole)):
        elements = _elements(part)
        if len(elements) > 1 and all(isinstance(element, int) for element in elements):
            return elements
    for line in reversed([line for line in small.splitlines() if line.strip()]):
        tail = line[cues[-1].end() :] if (cues := [*_CUE.finditer(line)]) else re.split(r":", line)[-1]
        elements = _elements(tail.strip(" .。:"))
        if len(elements) > 1 and all(isinstance(element, int) for element in elements):
            return elements
    digits = re.fullmatch(r"\s*(\d+(?:\s*[-_\s]\s*\d+)+)\s*[.。]?\s*", small)
    if digits:
        return tuple(map(int, re.findall(r"\d+", digits[1])))
    numbers = [_number(found) for found in _LABELLED.findall(small)]
    return tuple(numbers) if len(numbers) > 1 and len(set(numbers)) == len(numbers) else None


def properties_of(text: str) -> Properties | None:
    """A JSON dictionary as sets of values, without dimensions that have none; None where the text has no dictionary.

    The last dictionary of the text counts. Python's quotes and a fence around it are read too.
    """
    text = text.replace("\\{", "{").replace("\\}", "}")  # as TeX writes braces
    if "{" not in text and text[:1] == '"':  # a box whose braces are those of the dictionary
        text = f"{{{text}}}"
    for begin, end in reversed(_outermost_braces(text)):
        if isinstance(found := _dictionary(text[begin:end]), dict):
            sets = {plain(str(name)): _values(value) for name, value in found.items()}
            return {name: values for name, values in sets.items() if values}
    return None


def plain(text: str) -> str:
    """A text for comparing: one width, small letters, single blanks."""
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


def _of_clauses(text: str) -> set[str]:
    """What the clauses say that are nothing but yes or no."""
    clauses = set(_CLAUSE.split(text))
    return {answer for answer, words in (("是", _YES), ("否", _NO)) if clauses & words}


def _pure_list(text: str) -> list[str] | None:
    """The words of a text that is nothing but a list of yes and no, with labels or without."""
    words = _WORD_OF_LIST.findall(text)
    rest = _WORD_OF_LIST.sub("\x00", text)
    pieces = [_REST_OF_LIST.sub("", piece) for piece in rest.split("\x00")]
    if not words or not all(_LABEL_OF_LIST.fullmatch(piece) for piece in pieces):
        return None
    return ["是" if word in ("是", "yes", "y", "true") else "否" for word in words]


def _elements(text: str) -> Order:
    """The elements of a list, numbered ones as numbers."""
    parts = [part.strip(" \"'`*.。") for part in _SEPARATORS.split(text)]
    parts = [part for part in parts if part]
    if len(parts) == 1 and len(_LABELLED.findall(text)) > 1:  # separated by blanks
        return tuple(map(_number, _LABELLED.findall(text)))
    if len(parts) == 1 and re.fullmatch(r"\d+(?:\s+\d+)+", parts[0]):
        parts = parts[0].split()
    return tuple(_number(match[1]) if (match := _ELEMENT.fullmatch(part)) else plain(part) for part in parts)


def _number(text: str) -> int:
    if text.isdecimal():
        return int(text)
    tens, ten, ones = text.rpartition("十")
    return (_NUMERALS[tens] if tens else 1) * 10 * bool(ten) + (_NUMERALS[ones] if ones else 0)


def _outermost_braces(text: str) -> list[tuple[int, int]]:
    """(begin, end) of each pair of braces that stands in no other pair, in order; braces within double quotes do not count."""
    pairs: list[tuple[int, int]] = []
    opened: list[int] = []
    for mark in _MARK.finditer(text):
        if mark[0] == "{":
            opened.append(mark.start())
        elif mark[0] == "}" and opened:
            begin = opened.pop()
            while pairs and pairs[-1][0] > begin:
                pairs.pop()
            pairs.append((begin, mark.end()))
    return pairs


def _dictionary(text: str) -> Any:
    for read in (json.loads, ast.literal_eval):
        try:
            return read(text)
        except (ValueError, SyntaxError, MemoryError, RecursionError, TypeError):
            continue
    try:
        return json.loads(re.sub(r",\s*([}\]])", r"\1", text))
    except (ValueError, RecursionError):
        return None


def _values(value: Any) -> frozenset[str]:
    """The values of a dimension as a set; empty ones are none."""
    several: Sequence[Any] = [*value] if isinstance(value, list | tuple | set | frozenset) else [value]
    texts = {
        plain(one if isinstance(one, str) else json.dumps(one, ensure_ascii=False, sort_keys=True, default=str))
        for one in several
        if one is not None
    }
    return frozenset(texts - {""})
