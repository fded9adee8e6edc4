"""Replies brought into the format of their mode without invention: reasoning of other layouts by rule, slips by repair.

Every function gives the text back as it was where its rule does not apply without doubt. Not here: whether the result is of the
mode, which modes.parse says.
"""

import re

from kvtools.keye.data.modes import FormatError, almost_tags, boxes

_HASHES = re.compile(r"^####[ \t]*(\S[^\n]*?)[ \t]*$", re.MULTILINE)
_LAST_LINE = re.compile(
    r"(?:^|\n)[ \t]*(?:\*\*)?(?:final answer|the (?:final )?answer is|answer|答案)(?:\*\*)?[ \t]*(?:is)?[ \t]*"
    r"[:\uff1a]?(?:\*\*)?[ \t]*(\S[^\n]*?)[ \t]*$",
    re.IGNORECASE,
)
_THOUGHT = re.compile(r"\s*<think>(?P<thinking>.*?)</think>(?P<rest>.*)", re.DOTALL)
_ANY_TAG = re.compile(r"</?(?:analysis|think|answer|code|sandbox_output)>")


def enclose(reply: str) -> str | None:
    r"""A reply of `think` made of reasoning in another layout; None where its answer is in doubt.

    Known are a thinking block that a bare answer follows, and chains of thought that end in `#### X`, in a line `Answer: X`, or
    hold one \boxed{X}. Of these the whole text is the thinking and X the answer, boxed.
    """
    if (found := _THOUGHT.fullmatch(reply)) is not None:
        rest = found["rest"].strip()
        if rest and not _ANY_TAG.search(found["thinking"] + rest):
            return _joined(found["thinking"], rest)
        return None
    if _ANY_TAG.search(reply):
        return None
    hashes = _HASHES.findall(reply)
    try:
        boxed = boxes(reply)
    except FormatError:
        return None
    if hashes:
        before = reply[: reply.rindex("####")]
        return _joined(before, _box(hashes[0])) if len(hashes) == 1 and not boxed else None
    if boxed:
        return _joined(reply, _box(boxed[-1])) if len({re.sub(r"\s", "", box) for box in boxed}) == 1 else None
    if (line := _LAST_LINE.search(reply)) is not None and reply[: line.start()].strip():
        return _joined(reply[: line.start()], _box(line[1].rstrip(".").strip("* ")))
    return None


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
