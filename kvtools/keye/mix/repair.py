"""Replies brought into the format of their mode without invention: reasoning of other layouts by rule, slips by repair.

Every function gives the text back as it was where its rule does not apply without doubt. Not here: whether the result is of the
mode, which modes.parse says.
"""

import re

from kvtools.keye.data.modes import FormatError, almost_tags, boxes

_HASHES = re.compile(r"^####[ \t]*(\S[^\n]*?)[ \t]*$", re.MULTILINE)
_LABEL = r"(?:final answer|the (?:final |correct )?answer is|(?:the )?answer\b|答案)"
_LAST_LINE = re.compile(  # the last line begins with the label, or its last sentence says what the answer is
    rf"(?:(?:^|\n)[ \t#>*_-]*{_LABEL}|(?:^|(?<=[.!?])[ \t]|\n)[ \t]*(?:(?:so|thus|hence|therefore)\b,?[ \t]*)?(?:\*\*)?"
    r"the (?:final |correct )?answer is)(?:\*\*|__)?[ \t]*(?:is\b)?[ \t]*[:\uff1a]?(?:\*\*|__)?[ \t]*"
    r"(?P<answer>\S(?:(?!(?:(?<=\w\w)|(?<=\d))\.[ \t])[^\n])*?)\s*$",
    re.IGNORECASE,
)
_THOUGHT = re.compile(r"\s*<think>(?P<thinking>.*?)</think>(?P<rest>.*)", re.DOTALL)
_ANY_TAG = re.compile(r"</?(?:analysis|think|answer|code|sandbox_output)>")


def enclose(reply: str) -> str | None:
    r"""A reply of `think` made of reasoning in another layout; None where it has tags of its own.

    Known are a thinking block that a bare answer follows, and chains of thought that end in `#### X`, in a line `Answer: X`, in
    a sentence `The answer is X.`, or hold \boxed{X}. Of these the whole text is the thinking and X the answer, boxed. Raises
    FormatError where a text without tags has no result, or different ones.
    """
    if (found := _THOUGHT.fullmatch(reply)) is not None:
        rest = found["rest"].strip()
        if rest and not _ANY_TAG.search(found["thinking"] + rest):
            return _joined(found["thinking"], rest)
        return None
    if not reply.strip() or _ANY_TAG.search(reply) or almost_tags(reply):
        return None
    hashes, boxed = _HASHES.findall(reply), boxes(reply)
    if len({re.sub(r"\s", "", result) for result in hashes + boxed}) > 1:
        raise FormatError("the reasoning has different results")
    if hashes:
        return _joined(reply[: reply.rindex("####")], _box(hashes[0]))
    if boxed:
        return _joined(reply, _box(boxed[-1]))
    if (line := _LAST_LINE.search(reply)) is not None and reply[: line.start()].strip():
        return _joined(reply[: line.start()], _box(line["answer"].strip("*_ ").rstrip(".").strip("*_ ")))
    raise FormatError("<think> is missing, and the text names no result")


def repair(reply: str) -> tuple[str, list[str]]:
    """A reply without slips of writing, and what was repaired: white space around blocks, spelling of tags, a last tag that was
    left open."""
    done = []
    trimmed = re.sub(r"[ \t]+\n", "\n", reply.replace("\r\n", "\n")).strip()
    if trimmed != reply:
        done.append("white space")
    spelt = trimmed
    for found in reversed(almost_tags(trimmed)):
        spelt = spelt[: found.begin] + found.tag + spelt[found.end :]
    if spelt != trimmed:
        done.append("spelling of a tag")
    closed = _closed(spelt)
    if closed != spelt:
        done.append("unclosed last tag")
    return closed, done


def _closed(text: str) -> str:
    """The text with its last block closed, where that is an answer that begins and does not end."""
    last = text.rfind("<answer>")
    if last < 0 or "</answer>" in text[last:] or text.count("<answer>") != 1:
        return text
    half = re.search(r"<(?:/(?:a(?:n(?:s(?:w(?:e(?:r)?)?)?)?)?)?)?$", text)  # the tag itself may have been cut
    return (text[: half.start()] if half else text).rstrip() + "</answer>"


def _joined(thinking: str, answer: str) -> str:
    return f"<think>\n{thinking.strip()}\n</think>\n<answer>{answer.strip()}</answer>"


def _box(result: str) -> str:
    return f"\\boxed{{{result}}}"
