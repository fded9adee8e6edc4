r"""Layouts of prompts and of pairs of answers, brought to messages, `chosen` and `rejected` (conversations.py reads those).

{"prompt" | "question" | "problem" | "query": text or messages, …}   and `chosen`, `rejected`, or an answer in its own field:
                                     `completion`, `response`, `solution`, `answer`, `output`; and ms-swift's `history`
{"chosen": messages, "rejected": messages}                           trl's implicit prompt: they differ in their last message
{"chosen": "\n\nHuman: … \n\nAssistant: …", "rejected": …}               Anthropic's dialogues
{"input": {"messages"}, "preferred_output", "non_preferred_output"}  OpenAI's preference tuning
"""

import re
from typing import Any

_PROMPT_FIELDS = ("prompt", "question", "problem", "query")
_ANSWER_FIELDS = ("completion", "response", "solution", "answer", "output")  # the first is said, the others stay fields
_TURN = re.compile(r"\n\n(Human|Assistant): ?")
_OPENAI = {"preferred_output": "chosen", "non_preferred_output": "rejected"}


def with_messages(document: dict[str, Any]) -> dict[str, Any]:
    """The document with `messages`, and single messages as `chosen` and `rejected`; as it is where it is of another layout.

    Raises ValueError for answers without a prompt, and for pairs whose prompts differ.
    """
    rest = dict(document)
    if isinstance(rest.get("input"), dict) and "messages" in rest["input"]:
        rest["messages"] = rest.pop("input")["messages"]
        rest |= {ours: rest.pop(theirs) for theirs, ours in _OPENAI.items() if theirs in rest}
    for side in ("chosen", "rejected"):
        if isinstance(rest.get(side), str) and _TURN.match(rest[side]):
            rest[side] = _turns(rest[side])
    if isinstance(rest.get("chosen"), list) or isinstance(rest.get("rejected"), list):
        _split_pair(rest)
    name = next((name for name in _PROMPT_FIELDS if name in rest), None)
    if name is not None and not {"messages", "conversations", "instruction", "chosen_messages"} & set(rest):
        rest["messages"] = [*_earlier(rest), *_as_messages(rest.pop(name), "user")]
        if "rejected_response" in rest:
            rest["rejected"] = rest.pop("rejected_response")
        if "chosen" not in rest:
            rest["messages"] += _answer(rest)
    return rest


def _earlier(rest: dict[str, Any]) -> list[dict[str, Any]]:
    """The turns before the prompt, as pairs of a question and an answer."""
    history = rest.pop("history", None) or []
    return [message for asked, said in history for message in (*_as_messages(asked, "user"), *_as_messages(said, "assistant"))]


def _answer(rest: dict[str, Any]) -> list[dict[str, Any]]:
    """The answer in a field of its own, taken out of the document; none where it is no text: a list may hold many."""
    for name in _ANSWER_FIELDS:
        value = rest.get(name)
        value = value[0] if isinstance(value, list) and len(value) == 1 else value
        is_said = isinstance(value, str | int | float) and not isinstance(value, bool)
        is_messages = isinstance(value, dict) or (isinstance(value, list) and all(isinstance(each, dict) for each in value))
        if value not in (None, "", []) and (is_said or is_messages):
            del rest[name]
            return _as_messages(str(value) if is_said else value, "assistant")
    return []


def _as_messages(value: Any, role: str) -> list[dict[str, Any]]:
    return value if isinstance(value, list) else [value] if isinstance(value, dict) else [{"role": role, "content": value}]


def _split_pair(rest: dict[str, Any]) -> None:
    """Take the prompt that both sides share out of them; what is left of each is its last message."""
    prompts = []
    for side in ("chosen", "rejected"):
        messages = rest.get(side)
        if not isinstance(messages, list):
            continue
        if not messages:
            raise ValueError(f"{side} has no messages")
        rest[side] = messages[-1]
        if len(messages) > 1:
            prompts.append(messages[:-1])
    if len(prompts) == 2 and prompts[0] != prompts[1]:
        raise ValueError("chosen and rejected answer different prompts")
    if prompts:
        for name in ("messages", "conversations"):  # some datasets repeat the better answer there
            rest.pop(name, None)
        rest["messages"] = prompts[0]


def _turns(text: str) -> list[dict[str, Any]]:
    parts = _TURN.split(text)[1:]
    roles = {"Human": "user", "Assistant": "assistant"}
    return [{"role": roles[role], "content": said} for role, said in zip(parts[::2], parts[1::2], strict=True)]
