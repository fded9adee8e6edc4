r"""The modes in which a model answers: what a reply of each looks like, why another text is none, and what can be repaired.

    no_think   a bare answer
    think      <think>…</think><answer>…</answer>
    auto       <analysis>… Therefore, /no_think mode is more appropriate.</analysis> and a bare answer, or
               <analysis>… Therefore, /think mode is more appropriate.</analysis> and a reply of `think`
    agentic    as `think`; inside <think>, <code>```python … ```</code> is followed by <sandbox_output>…</sandbox_output>
    video      as `think` or as `no_think`, about a video

White space may stand between blocks. An answer may name its result in \boxed{…}, braces within braces included; the last box
counts. Not here: whether a result is right.

Source: figures 6 to 13 of the Keye-VL report (arXiv 2507.01949); the tags around code are those of its sibling Thyme, since the
report does not show them. That an answer needs no box, and that a verdict ends its analysis, are our choices.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

SWITCHES = {"think": "/think", "no_think": "/no_think", "auto": "", "agentic": "/agentic_think", "video": ""}
MODES = tuple(SWITCHES)
VERDICT = "Therefore, /{} mode is more appropriate."

_TAGS = ("analysis", "think", "answer", "code", "sandbox_output")
_TAG = re.compile(rf"<(/?)({'|'.join(_TAGS)})>")
# misspelt tags: another case, blanks, a slash at the end, full-width or square brackets, entities
_ALMOST = re.compile(
    rf"(?:<|&lt;|\uff1c|\[)\s*(?P<close>[/\\]?)\s*(?P<name>{'|'.join(_TAGS)}|thinking|thought|sandbox[- ]output)"
    r"\s*(?P<end>/?)\s*(?:>|&gt;|\uff1e|\])",
    re.IGNORECASE,
)
_VERDICT = re.compile(r"Therefore, (/\w+) mode is more appropriate\.")
_NEARLY_VERDICT = re.compile(r"mode\s+is\s+(?:the\s+)?more\s+appropriate", re.IGNORECASE)
_FENCE = re.compile(r"\s*```python[ \t]*\n(?P<code>.*)\n?```\s*", re.DOTALL)
_SWITCH = re.compile(r"(?<!\S)/(?:auto_think|agentic_think|no_think|think)(?!\w)")
_BOX = re.compile(r"\\boxed\s*\{")


class FormatError(ValueError):
    """A reply that is not of its mode. `reason` is one of a fixed set, so that reasons can be counted."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


@dataclass(frozen=True)
class Reply:
    """A reply taken apart. mode: the format it has, `think`, `no_think` or `agentic`."""

    mode: str
    answer: str
    analysis: str | None = None
    thinking: str | None = None
    code: tuple[str, ...] = ()
    outputs: tuple[str, ...] = ()

    @property
    def boxed(self) -> str | None:
        r"""What the last \boxed{…} of the answer holds; None where there is none."""
        found = boxes(self.answer)
        return found[-1] if found else None


def parse(text: str, mode: str) -> Reply:
    """A reply of a mode, taken apart. Raises FormatError with the first reason why the text is none.

    mode: one of MODES; `video` takes what `think` and `no_think` take.
    """
    if mode not in SWITCHES:
        raise ValueError(f"mode {mode!r} is unknown; the modes are {', '.join(MODES)}")
    if not text.strip():
        raise FormatError("the reply is empty")
    if mode == "video":
        mode = "think" if "<think>" in text or "</think>" in text else "no_think"
    if mode == "no_think":
        return Reply("no_think", _bare(text, "/no_think"))
    if mode == "auto":
        return _auto(text)
    return _thought(text, is_agentic=mode == "agentic")


def boxes(text: str) -> list[str]:
    r"""What each \boxed{…} of a text holds, in order. Raises FormatError for a box that is never closed or holds nothing."""
    found = []
    at = 0
    while (begin := _BOX.search(text, at)) is not None:
        depth, at = 1, begin.end()
        while depth:
            if at == len(text):
                raise FormatError("a \\boxed{ is never closed")
            # an escaped brace is a letter
            depth += 0 if text[at - 1] == "\\" else {"{": 1, "}": -1}.get(text[at], 0)
            at += 1
        if not (inside := text[begin.end() : at - 1].strip()):
            raise FormatError("a \\boxed{} is empty")
        found.append(inside)
    return found


def switch_of(question: str) -> tuple[str, str | None]:
    """A question without the switch that ends it, and the mode that the switch asks for; None where there is no switch.

    Raises FormatError where a switch stands elsewhere, or several do.
    """
    found = list(_SWITCH.finditer(question))
    if not found:
        return question, None
    if len(found) > 1:
        raise FormatError("the question has more than one switch")
    if question[found[0].end() :].strip():
        raise FormatError("the switch does not end the question")
    word = found[0][0].removeprefix("/")
    return question[: found[0].start()].rstrip(), {"auto_think": "auto", "agentic_think": "agentic"}.get(word, word)


@dataclass(frozen=True)
class _Block:
    """A stretch of a reply: a block of one tag, or, with tag None, text between blocks."""

    tag: str | None
    inside: str


def _blocks(text: str) -> Iterator[_Block]:
    """The outermost blocks of a text and what stands between them. Raises FormatError for tags that do not pair."""
    _refuse_almost_tags(text)
    at = 0
    while (opening := _TAG.search(text, at)) is not None:
        is_close, tag = bool(opening[1]), opening[2]
        if text[at : opening.start()].strip():
            yield _Block(None, text[at : opening.start()])
        if is_close:
            raise FormatError(f"</{tag}> has no <{tag}> before it")
        end = text.find(f"</{tag}>", opening.end())
        if end < 0:
            raise FormatError(f"<{tag}> is never closed")
        inside = text[opening.end() : end]
        if f"<{tag}>" in inside:
            raise FormatError(f"<{tag}> stands inside <{tag}>")
        yield _Block(tag, inside)
        at = end + len(tag) + 3
    if text[at:].strip():
        yield _Block(None, text[at:])


@dataclass(frozen=True)
class AlmostTag:
    """Where a misspelt tag stands in a text, and the tag that it stands for."""

    begin: int
    end: int
    tag: str


def almost_tags(text: str) -> list[AlmostTag]:
    """The misspelt tags of a text, in order."""
    found = []
    for match in _ALMOST.finditer(text):
        is_word = match[0].startswith("[") and not match["close"]  # [code] may be a word in brackets
        if not _TAG.fullmatch(match[0]) and not is_word:
            name = re.sub(r"[- ]", "_", match["name"].lower())
            name = "think" if name.startswith("th") else name
            found.append(AlmostTag(match.start(), match.end(), f"<{'/' if match['close'] or match['end'] else ''}{name}>"))
    return found


def _refuse_almost_tags(text: str) -> None:
    if almost_tags(text):
        raise FormatError("a tag is misspelt")


def _bare(text: str, where: str) -> str:
    for block in _blocks(text):
        if block.tag is not None and not (block.tag == "code" and not _FENCE.fullmatch(block.inside)):
            raise FormatError(f"a {where} reply has <{block.tag}>")
    boxes(text)
    return text.strip()


def _auto(text: str) -> Reply:
    start = text.lstrip()
    if not start.startswith("<analysis>"):
        reason = "text stands before <analysis>" if "<analysis>" in start else "<analysis> is missing"
        raise FormatError(reason)
    end = start.find("</analysis>")
    if end < 0:
        raise FormatError("<analysis> is never closed")
    analysis, rest = start[len("<analysis>") : end], start[end + len("</analysis>") :]
    if "<analysis>" in analysis or "<analysis>" in rest:
        raise FormatError("<analysis> stands more than once")
    if "</analysis>" in rest:
        raise FormatError("</analysis> has no <analysis> before it")
    switch = _verdict(analysis)
    if not rest.strip():
        raise FormatError("nothing follows </analysis>")
    is_thought = rest.lstrip().startswith("<think>")
    if switch == "/think" and not is_thought:
        raise FormatError("the analysis decides for /think, and no <think> follows")
    if switch == "/no_think" and "<think>" in rest:
        raise FormatError("the analysis decides for /no_think, and <think> follows")
    reply = _thought(rest, is_agentic=False) if is_thought else Reply("no_think", _bare(rest, "/no_think"))
    return Reply(reply.mode, reply.answer, analysis.strip(), reply.thinking)


def _verdict(analysis: str) -> str:
    """The switch that an analysis decides for."""
    if (found := _TAG.search(analysis)) is not None:
        raise FormatError(f"<{found[2]}> stands inside <analysis>")
    _refuse_almost_tags(analysis)
    verdicts = list(_VERDICT.finditer(analysis))
    if not verdicts:
        raise FormatError(
            "the verdict of the analysis is worded differently"
            if _NEARLY_VERDICT.search(analysis)
            else "the analysis has no verdict"
        )
    if len(verdicts) > 1:
        raise FormatError("the analysis has more than one verdict")
    if verdicts[0][1] not in ("/think", "/no_think"):
        raise FormatError("the analysis decides for an unknown mode")
    if analysis[verdicts[0].end() :].strip():
        raise FormatError("text follows the verdict of the analysis")
    if not analysis[: verdicts[0].start()].strip():
        raise FormatError("the analysis holds nothing but its verdict")
    return verdicts[0][1]


def _thought(text: str, *, is_agentic: bool) -> Reply:
    if "<think>" not in text and "</think>" not in text:
        _refuse_almost_tags(text)
        raise FormatError("<think> is missing")
    blocks = list(_blocks(text))
    _require_order(blocks)
    thinking, answer = blocks[0].inside, blocks[1].inside
    if not thinking.strip():
        raise FormatError("the thinking is empty")
    if not answer.strip():
        raise FormatError("the answer is empty")
    if (found := _TAG.search(answer)) is not None:
        raise FormatError(f"<{found[1]}{found[2]}> stands inside <answer>")
    code, outputs = _steps(thinking, is_agentic=is_agentic)
    if not boxes(answer) and _BOX.search(thinking):
        raise FormatError("the box stands in the thinking alone")
    return Reply("agentic" if is_agentic else "think", answer.strip(), None, thinking.strip(), code, outputs)


def _require_order(blocks: Sequence[_Block]) -> None:
    """Refuse all but one block of <think> and then one of <answer>."""
    tags = [block.tag for block in blocks]
    for tag in ("think", "answer"):
        if tags.count(tag) > 1:
            raise FormatError(f"<{tag}> stands more than once")
    for tag in ("analysis", "code", "sandbox_output"):
        if tag in tags:
            raise FormatError(f"<{tag}> stands outside of <think>")
    for tag, other in (("answer", "think"), ("think", "answer")):
        if tag not in tags:
            inside = next((block.inside for block in blocks if block.tag == other), "")
            raise FormatError(f"<{tag}> stands inside <{other}>" if f"<{tag}>" in inside else f"<{tag}> is missing")
    thinking_at, answer_at = tags.index("think"), tags.index("answer")
    if answer_at < thinking_at:
        raise FormatError("<answer> stands before <think>")
    if thinking_at > 0:
        raise FormatError("text stands before <think>")
    if answer_at > 1:
        raise FormatError("text stands between </think> and <answer>")
    if len(tags) > 2:
        raise FormatError("text stands after </answer>")


def _steps(thinking: str, *, is_agentic: bool) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The pieces of code in a thinking and what the sandbox gave for each."""
    code: list[str] = []
    outputs: list[str] = []
    is_open = False  # whether code waits for its output
    for block in _blocks(thinking):
        if block.tag in ("think", "answer", "analysis"):
            raise FormatError(f"<{block.tag}> stands inside <think>")
        if block.tag is not None and not is_agentic:
            raise FormatError(f"a /think reply has <{block.tag}>")
        if is_open and block.tag != "sandbox_output":
            raise FormatError("<code> is not followed by <sandbox_output>")
        if block.tag == "sandbox_output":
            if not is_open:
                raise FormatError("<sandbox_output> follows no <code>")
            if not block.inside.strip():
                raise FormatError("<sandbox_output> is empty")
            outputs.append(block.inside.strip())
        elif block.tag == "code":
            code.append(_code(block.inside))
        is_open = block.tag == "code"
    if is_open:
        raise FormatError("<code> is not followed by <sandbox_output>")
    if is_agentic and not code:
        raise FormatError("an agentic reply has no <code>")
    return tuple(code), tuple(outputs)


def _code(inside: str) -> str:
    fenced = _FENCE.fullmatch(inside)
    if fenced is None:
        if not inside.strip():
            raise FormatError("<code> is empty")
        if inside.lstrip().startswith("```python") and not inside.rstrip().endswith("```"):
            raise FormatError("the ```python fence is never closed")
        raise FormatError("<code> is not fenced by ```python")
    if not fenced["code"].strip():
        raise FormatError("<code> is empty")
    if "```" in fenced["code"]:
        raise FormatError("<code> holds more than one fence")
    return fenced["code"]
