r"""What the published evaluator reads in a reply: its post-processing, word for word, and its reading of yes and no.

Kept as it is, oddities included, since its figures are those of the report: `是。` is not `是`, for example, because only ASCII
punctuation is removed. Our own reading of answers is in rules.py. Not here: what is right (kcmm.py).

Source: evaluation/KC-MMBench of the Keye-VL repository, as written down in the specification; a box or a tag that is never
closed is text there.
"""

import re
import string

_THINK = re.compile(r"<think>.*?</think>", re.DOTALL)
_ANSWER = re.compile(r"<answer>(.*?)</answer>", re.DOTALL)
_BRACKETED = re.compile(r"\[([^\[\]]*)\]")
_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)
_BOX = "\\boxed{"


def post_process(text: str) -> str:
    """The answer proper: after the analysis and the thinking; within the last answer tags, if any; within the last box."""
    text = text.rpartition("</analysis>")[2]
    text = text.rpartition("</think>")[2].strip()
    answers = _ANSWER.findall(text, 0, text.rfind("</answer>") + len("</answer>"))
    return boxed(answers[-1] if answers else text)


def boxed(text: str) -> str:
    r"""What the last \boxed{…} holds, braces within braces included; the text where there is none, or it is never closed."""
    _, box, rest = text.rpartition(_BOX)
    depth = 1
    for at, letter in enumerate(rest if box else ""):
        depth += {"{": 1, "}": -1}.get(letter, 0)
        if depth == 0:
            return rest[:at]
    return text


def without_thinking(text: str) -> str:
    """The text without what stands between think tags, which the dataset's side removes once more."""
    return _THINK.sub("", text) if "</think>" in text else text


def yes_or_no(text: str) -> str | None:
    """是 or 否, where one of the two is a word of the text and the other is not; else by yes and no; None is `Unknown`."""
    words = set(text.translate(_NO_PUNCTUATION).split())
    for yes, no in (("是", "否"), ("yes", "no")):
        if (yes in words) != (no in words):
            return "是" if yes in words else "否"
    return None


def listed(text: str) -> list[str] | None:
    """The sequence of 是 and 否 in the last brackets of a judge's reply; None where it has no brackets."""
    found = _BRACKETED.findall(text)
    return re.findall("[是否]", found[-1]) if found else None
