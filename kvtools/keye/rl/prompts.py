"""Prompts to answer: conversations up to the answer, each in a mode, with the right answer where it is known.

Read: the layouts of data/conversations.py, the answer in a field of its own (`answer`, `solution`, `ground_truth`,
`reward_model.ground_truth`) or as the assistant's last message. A switch that ends the question, such as /think, is the
prompt's mode. The modes that --modes deals go to prompts by their position alone, in the proportions asked for.
"""

import hashlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from kvtools.artifact.blob import canonical
from kvtools.artifact.history import Step
from kvtools.errors import Usage, raising
from kvtools.keye.data.chat_template import without_answer
from kvtools.keye.data.conversations import Conversations
from kvtools.keye.rl.correct import Expected, expected_answer
from kvtools.skipped import SkippedRows, counted

NO_ANSWER = "prompts without an answer to compare with left out"
TWICE = "prompts whose id was there before left out"
_ANSWER_FIELDS = ("answer", "solution", "ground_truth", "final_answer")
_USED = {"id", "mode", "messages", "reward_model", *_ANSWER_FIELDS}
_SWITCHES = {f"/{mode}": mode for mode in ("think", "no_think")} | {"/auto_think": "auto", "/agentic_think": "agentic"}
DEALT = ("think", "no_think", "auto", "agentic")


@dataclass(frozen=True)
class Prompt:
    """A conversation without its answer, in a mode of MODES or None, and the right answer where it is known."""

    key: str
    conversation: Mapping[str, Any]
    expected: Expected | None = None

    @property
    def mode(self) -> str:
        """How it asks to be answered; auto where it does not say."""
        mode = self.conversation.get("mode")
        return "auto" if mode in (None, "auto", "auto_think") else str(mode)

    @property
    def question(self) -> str:
        """The text of the last question."""
        users = [message for message in self.conversation["messages"] if message["role"] == "user"]
        return _text_of(users[-1]) if users else ""

    def in_mode(self, mode: str, key: str | None = None) -> "Prompt":
        """The same prompt in another mode, under a key of its own or the same."""
        return Prompt(key or self.key, {**self.conversation, "mode": mode}, self.expected)


@dataclass
class Prompts:
    """The prompts of a source, those left out, and what a resumed run knows the source by."""

    name: str
    prompts: list[Prompt]
    skipped: SkippedRows
    root: str = ""  # the folder in which relative paths of pictures and videos begin
    history: list[Step] = field(default_factory=list)
    unused: set[str] = field(default_factory=set)  # names of fields that mean nothing here

    def summary(self, shares: Mapping[str, float]) -> str:
        """What was read, as one sentence. shares: of the modes that are dealt; empty where each prompt has its own."""
        kinds = Counter[str](prompt.expected.kind for prompt in self.prompts if prompt.expected is not None)
        modes = Counter(prompt.mode for prompt in self.prompts)
        parts = [counted(len(self.prompts), "prompt"), f"{kinds.total():,} with an answer to compare with{_counts(kinds)}"]
        parts += [] if shares else [f"modes{_counts(modes)}"]
        unused = f"; fields not used: {', '.join(sorted(self.unused))}" if self.unused else ""
        return f"{self.name}: {', '.join(parts)}{unused}."

    @property
    def digest(self) -> str:
        """Of the prompts and their answers, in order."""
        digest = hashlib.blake2b(digest_size=8)
        for prompt in self.prompts:
            digest.update(canonical([prompt.key, prompt.conversation, prompt.expected and vars(prompt.expected)]))
        return digest.hexdigest()


def prompts_of(source: Conversations, *, needs_answers: bool) -> Prompts:
    """The prompts of some conversations. needs_answers: those without an expected answer are left out, and reported."""
    found: dict[str, Prompt] = {}
    unused: set[str] = set()
    for conversation in source.conversations:
        key = str(conversation["id"])
        unused |= conversation.keys() - _USED
        try:
            prompt = _prompt(key, conversation)
        except ValueError as fault:
            source.skipped.skip(NO_ANSWER, f"{key}: {fault}")
            continue
        if key in found:
            source.skipped.skip(TWICE, key)
        elif needs_answers and prompt.expected is None:
            source.skipped.skip(NO_ANSWER, key)
        else:
            found[key] = prompt
    return Prompts(source.name, list(found.values()), source.skipped, source.root, source.history, unused)


def parse_modes(text: str | None) -> dict[str, float]:
    """`think:2,no_think:1` as shares that sum to 1; empty for None. Raises Usage."""
    if text is None:
        return {}
    shares: dict[str, float] = {}
    for word in text.split(","):
        mode, _, weight = word.strip().partition(":")
        with raising(Usage, f"--modes {text}", "Give MODE:SHARE, as think:1,no_think:1,auto:1."):
            if mode not in DEALT or mode in shares:
                raise ValueError(f"{mode!r} must be one of {', '.join(DEALT)}, once")
            shares[mode] = _share(weight or "1")
    total = sum(shares.values())
    if not total:
        raise Usage(f"--modes {text}: all shares are 0. Give one above 0.")
    return {mode: share / total for mode, share in shares.items() if share}


def deal_modes(prompts: Sequence[Prompt], shares: Mapping[str, float], first: int = 0) -> Iterator[Prompt]:
    """The prompts, each in the mode that is furthest behind its share; without shares each in its own.

    first: the position of the first in the whole sequence: a part of it gets the modes that it has there.
    """
    if not shares:
        yield from prompts
        return
    dealt = dict.fromkeys(shares, 0)
    for position in range(first + len(prompts)):
        mode = max(shares, key=lambda mode: shares[mode] * (position + 1) - dealt[mode])
        dealt[mode] += 1
        if position >= first:
            yield prompts[position - first].in_mode(mode)


def _prompt(key: str, conversation: Mapping[str, Any]) -> Prompt:
    rest = dict(conversation)
    last = rest["messages"][-1]
    answer = next((rest.pop(name) for name in _ANSWER_FIELDS if rest.get(name) is not None), None)
    model = rest.pop("reward_model", None)
    if answer is None and isinstance(model, dict):
        answer = model.get("ground_truth")
    if answer is None and last["role"] == "assistant":
        answer = _text_of(last)
    expected = None if answer is None else expected_answer(rest, answer)
    unanswered = without_answer({name: rest[name] for name in ("id", "mode", "messages") if name in rest})
    return Prompt(key, _with_switch_as_mode(unanswered), expected)


def _with_switch_as_mode(conversation: Mapping[str, Any]) -> Mapping[str, Any]:
    """The conversation with the switch that ends its last question, such as /think, as its mode: the template writes it."""
    messages = list(conversation["messages"])
    last = messages[-1] if messages else None
    if last is None or last["role"] != "user" or conversation.get("mode") not in (None, "auto"):
        return conversation
    parts = list(last["content"])
    if not parts or parts[-1]["type"] != "text":
        return conversation
    text = parts[-1]["text"].rstrip()
    switch = next((switch for switch in _SWITCHES if text.endswith(switch)), None)
    if switch is None:
        return conversation
    parts[-1] = {"type": "text", "text": text.removesuffix(switch).rstrip()}
    messages[-1] = {**last, "content": parts}
    return {**conversation, "messages": messages, "mode": _SWITCHES[switch]}


def _text_of(message: Mapping[str, Any]) -> str:
    content = message["content"]
    return content if isinstance(content, str) else "".join(part["text"] for part in content if part["type"] == "text")


def _counts(counter: Counter[str]) -> str:
    told = ", ".join(f"{n:,} {name}" for name, n in sorted(counter.items()))
    return f" ({told})" if told else ""


def _share(text: str) -> float:
    try:
        share = float(text)
    except ValueError:
        share = -1.0
    if not 0 <= share < float("inf"):
        raise ValueError(f"{text} is no share")
    return share
