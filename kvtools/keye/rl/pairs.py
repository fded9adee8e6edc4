"""Pairs of a better and a worse answer: chosen from rollouts, and read for training.

Of each group the answer of the highest reward and that of the lowest, of equals the first and the last; groups without a
difference give none. A pair is a conversation that ends in the better answer, with the worse one as `rejected`.
"""

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from kvtools.keye.data.conversations import BAD, Conversations
from kvtools.keye.rl.records import RolloutRecord
from kvtools.skipped import SkippedRows

NO_DIFFERENCE = "groups without a better and a worse answer left out"
NO_REWARD = "answers without a reward left out"
EQUAL = "pairs of equal answers left out"
NO_PAIR = "conversations without a worse answer left out"

Conversation = dict[str, Any]


@dataclass(frozen=True)
class Pair:
    """Two answers to one prompt, as conversations in which only the last answer is learnt."""

    key: str
    chosen: Conversation
    rejected: Conversation


def best_and_worst(rollouts: Iterable[RolloutRecord], skipped: SkippedRows, *, margin: float) -> Iterator[Conversation]:
    """A pair of each group whose rewards differ by more than `margin`, in order; neighbours of one group belong together."""
    for (_, prompt), records in groupby(rollouts, key=lambda record: (record.group, record.prompt)):
        group = list(records)
        rewarded = [record for record in group if math.isfinite(record.reward)]
        skipped.add(NO_REWARD, len(group) - len(rewarded), (r.key for r in group if not math.isfinite(r.reward)))
        said = [record for record in rewarded if record.text]  # an answer of no words cannot be a message
        ended = [record for record in said if record.ended == "stop"]  # a cut answer is no example
        best = max(ended, key=lambda record: record.reward, default=None)
        worst = min(reversed(said), key=lambda record: record.reward, default=None)
        if best is None or worst is None or best.reward - worst.reward <= margin or best.text == worst.text:
            skipped.add(NO_DIFFERENCE, 1, [prompt], is_skipped=False)
            continue
        yield _pair(best, worst)


def pairs_of(source: Conversations) -> list[Pair]:
    """The pairs of some conversations; those without a worse answer, and those of equal answers, are reported and left out."""
    pairs = []
    for conversation in source.conversations:
        key, messages = str(conversation["id"]), conversation["messages"]
        rejected = conversation.get("rejected")
        if rejected is None or messages[-1]["role"] != "assistant":
            source.skipped.skip(NO_PAIR, key)
        elif not _has_text(messages[-1]) or not _has_text(rejected):
            source.skipped.skip(BAD, f"{key}: an answer is empty")
        elif _content(messages[-1]) == _content(rejected):
            source.skipped.skip(EQUAL, key)
        else:
            earlier = [{**m, "loss": False} if m["role"] == "assistant" else m for m in messages[:-1]]
            base = {name: conversation[name] for name in ("id", "mode") if name in conversation}
            sides = ({**base, "messages": [*earlier, {**m, "loss": True}]} for m in (messages[-1], rejected))
            pairs.append(Pair(key, *sides))
    return pairs


def _pair(best: RolloutRecord, worst: RolloutRecord) -> Conversation:
    conversation = best.conversation
    answer, rejected = ({"role": "assistant", "content": list(r.content)} for r in (best, worst))
    rewards = {"chosen": _rounded(best), "rejected": _rounded(worst)}
    messages = [*conversation["messages"], answer]
    fields = {"id": best.prompt, "mode": conversation.get("mode"), "rewards": rewards}
    return {**fields, "messages": messages, "rejected": rejected}


def _rounded(record: RolloutRecord) -> float:
    return round(record.reward, 6)  # float32 of the record, without digits that it does not have


def _content(message: Mapping[str, Any]) -> str:
    parts = message["content"]
    return parts if isinstance(parts, str) else "".join(part.get("text", "") for part in parts)


def _has_text(message: Mapping[str, Any]) -> bool:
    return bool(_content(message))
