"""Rollouts as records of kind `rollout`, one an answer, and read back.

tokens int32: the prompt's and the answer's, outputs of code among them; logprobs float32: of the answer's drawn tokens. JSON:
prompt (its key), prompt_tokens, number (the answer's), mode, text, ended, rewards by term (null where nobody could say),
conversation and answer, the expected one; content, the answer as parts of a message, where its code gave pictures. A reward
that could not be given is NaN in the tensor.
"""

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from kvtools.artifact import blob, kinds
from kvtools.artifact.stream import Reader
from kvtools.errors import Corrupt, raising
from kvtools.keye.rl.rollouts import Group

KIND = "rollout"


@dataclass(frozen=True)
class RolloutRecord:
    """One answer as it was stored. reward: NaN where it could not be given. content: as parts of a message."""

    key: str
    prompt: str
    group: int
    mode: str
    text: str
    content: Sequence[Mapping[str, Any]]
    ended: str
    reward: float
    rewards: Mapping[str, float | None]
    conversation: Mapping[str, Any]
    n_tokens: int


def to_records(group: Group, number: int, prefix: str = "") -> Iterator[tuple[str, bytes]]:
    """The records of a group, each its key and its encoded bytes. number: the group's in the run. prefix: of keys."""
    answers = zip(group.answers, group.contents, group.texts, group.scored, strict=True)
    for index, (answer, content, text, scored) in enumerate(answers):
        key = f"{prefix}{group.prompt.key}#{answer.number}"
        reward = math.nan if scored.reward is None else scored.reward
        tensors = {
            "tokens": np.concatenate([group.example.tokens, answer.tokens]).astype(np.int32),
            "logprobs": answer.logprobs.astype(np.float32),
            "reward": np.array(reward, np.float32),
            "advantage": np.array(group.advantages_G[index], np.float32),
            "group": np.array(number, np.int32),
        }
        fields = {
            "kind": KIND,
            "key": key,
            "prompt": group.prompt.key,
            "prompt_tokens": len(group.example.tokens),
            "number": answer.number,
            "mode": group.prompt.mode,
            "text": text,
            "ended": answer.ended,
            "rewards": {name: _json_number(score) for name, score in scored.scores.items()},
            "conversation": json.loads(json.dumps(group.prompt.conversation)),
            "answer": None if group.prompt.expected is None else group.prompt.expected.text,
        }
        if any(part["type"] == "image" for part in content):
            fields["content"] = list(content)
        yield key, b"".join(blob.encode(tensors, fields))


def from_stream(reader: Reader, name: str) -> Iterator[RolloutRecord]:
    """The answers of a stream of rollouts. Raises Corrupt for a record that is none, such as one of another system."""
    for record in reader:
        with raising(Corrupt, f"{name}: record {record.number}", "Sample it again with kvtools rl sample."):
            kinds.check(KIND, "stream", record.tensors, record.fields)
            fields = record.fields
            missing = next((word for word in ("prompt", "text", "conversation", "mode") if word not in fields), None)
            if missing is not None:
                raise ValueError(f"it has no JSON field {missing}, which rollouts of Keye-VL have")
            text = str(fields["text"])
            yield RolloutRecord(
                record.key, str(fields["prompt"]), int(record.tensors["group"]), str(fields["mode"]), text,
                fields.get("content") or [{"type": "text", "text": text}], str(fields.get("ended", "stop")),
                float(record.tensors["reward"]), fields.get("rewards") or {}, fields["conversation"],
                len(record.tensors["logprobs"]),
            )  # fmt: skip


def _json_number(score: float | None) -> float | None:
    return None if score is None or not math.isfinite(score) else score
