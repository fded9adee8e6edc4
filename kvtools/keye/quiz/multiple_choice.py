"""Which of its options a model chooses for a question, by the first token alone: one pass a question, nothing generated.

That measures what a model knows, whether or not it has learnt to end its answers; what it would say is generate.py's to tell.
And how many it chooses right, with how far that may be chance.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from kvtools.chance import rng_for
from kvtools.errors import Corrupt
from kvtools.keye.data.chat_template import Chat
from kvtools.keye.data.conversations import open_conversations
from kvtools.keye.data.media import Media
from kvtools.keye.data.packing import join, prompt
from kvtools.keye.model.keye import Keye
from kvtools.keye.quiz.tasks import LETTERS

_DRAWS = 2000  # of clips, for an interval


@dataclass(frozen=True)
class Marks:
    """How many of n questions of a task were answered right, the share of them, its 95 % interval, and that of guessing."""

    task: str
    right: int
    n: int
    share: float
    low: float
    high: float
    chance: float


def open_questions(src: str) -> list[dict[str, Any]]:
    """The questions of a path or `-`. Raises Corrupt for conversations that are none, or have no options."""
    found = open_conversations(src).found
    name = "stdin" if src == "-" else src
    for question in found:
        try:
            if question["answer"] not in options_of(question):
                raise ValueError(f"answer {question['answer']!r} found, one of its options expected")
        except KeyError as fault:
            raise Corrupt(f"{name}: {question['id']}: no {fault.args[0]} in it; questions of kvtools quiz expected.") from None
        except ValueError as fault:
            raise Corrupt(f"{name}: {question['id']}: {fault}.") from None
    return found


def marked(questions: Sequence[Mapping[str, Any]], answers: Sequence[str]) -> list[Marks]:
    """The marks of each task, in the order in which tasks come. Clips are drawn with replacement for the interval, whole: the
    questions of one clip are not independent."""
    told: dict[str, list[int]] = {}
    for number, question in enumerate(questions):
        told.setdefault(str(question.get("task", "")), []).append(number)
    found = []
    for task, numbers in told.items():
        is_right = np.array([answers[i] == questions[i]["answer"] for i in numbers])
        clips = [(questions[i].get("clips") or [questions[i]["id"]])[0] for i in numbers]
        low, high = _interval(is_right, clips)
        chance = float(np.mean([questions[i].get("chance", 0.0) for i in numbers]))
        found.append(Marks(task, int(is_right.sum()), len(numbers), float(is_right.mean()), low, high, chance))
    return found


def _interval(is_right_N: np.ndarray, clips: Sequence[str]) -> tuple[float, float]:
    number = {clip: i for i, clip in enumerate(dict.fromkeys(clips))}
    clip_N = np.array([number[clip] for clip in clips])
    right_C, n_C = (np.bincount(clip_N, weights=w, minlength=len(number)) for w in (is_right_N, None))
    drawn = rng_for(0, "interval").integers(len(number), size=(_DRAWS, len(number)))
    low, high = np.quantile(right_C[drawn].sum(1) / n_C[drawn].sum(1), [0.025, 0.975]).tolist()
    return low, high


def options_of(question: Mapping[str, Any]) -> list[str]:
    """What may be answered: yes or no, or as many letters as there are choices. Raises ValueError for an open question."""
    if question["form"] == "check":
        return ["yes", "no"]
    if question["form"] == "choice":
        return list(LETTERS[: len(question["choices"])])
    raise ValueError(f"form {question['form']!r} found, choice or check expected: an open question has no options")


@torch.no_grad()
def chosen(
    model: Keye, chat: Chat, media: Media, questions: Sequence[Mapping[str, Any]], *, at_once: int = 32
) -> Iterator[str]:
    """For each question of `kvtools quiz` the option whose first token is the likeliest to follow. at_once: packed in a row.

    Raises Unreadable for a picture or video that is not there, ValueError for a question without options.
    """
    place = next(model.parameters()).device
    for begin in range(0, len(questions), at_once):
        some = questions[begin : begin + at_once]
        row = join([prompt(each, chat, media) for each in some])
        seen = model.encode_images(torch.from_numpy(row.pixels).to(place), row.grid.tolist())
        tokens, places = torch.from_numpy(row.tokens).long().to(place), torch.from_numpy(row.positions).to(place)
        hidden = model.hidden(tokens, places, row.segments.tolist(), seen)
        last = torch.tensor([*row.segments[1:].tolist(), len(row)]) - 1
        for question, logits in zip(some, model.logits(hidden[last]), strict=True):
            options = options_of(question)
            first = [chat.tokenizer.encode(option, ())[0] for option in options]
            yield options[int(logits[first].argmax())]
