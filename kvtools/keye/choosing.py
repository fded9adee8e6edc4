"""Which of its options a model chooses for a question, by the first token alone: one pass a question, nothing generated.

That measures what a model knows, whether or not it has learnt to end its answers; what it would say is generate.py's to tell.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch

from kvtools.keye.chat import Chat
from kvtools.keye.media import Media
from kvtools.keye.model import Keye
from kvtools.keye.rows import join, prompt
from kvtools.keye.tasks import LETTERS


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
        seen = model.see(torch.from_numpy(row.pixels).to(place), row.grid.tolist())
        tokens, places = torch.from_numpy(row.tokens).long().to(place), torch.from_numpy(row.positions).to(place)
        hidden = model.hidden(tokens, places, row.segments.tolist(), seen)
        last = torch.tensor([*row.segments[1:].tolist(), len(row)]) - 1
        for question, logits in zip(some, model.logits(hidden[last]), strict=True):
            options = options_of(question)
            first = [chat.tokenizer.encode(option, ())[0] for option in options]
            yield options[int(logits[first].argmax())]
