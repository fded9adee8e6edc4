"""Answers of a model of ours, generated in batches of prompts of like length.

Questions are taken a window at a time: so many that the lengths within it can be sorted, so few that their pictures fit into
memory. An answer does not depend on the window, but for the last bits of products. Not here: answers of servers.
"""

import time
from collections.abc import Iterator, Sequence

from kvtools.keye.bench.benchmark import Generation, Question
from kvtools.keye.bench.predictions import Prediction
from kvtools.keye.data.chat_template import ChatTemplate
from kvtools.keye.data.media import Media, Unreadable
from kvtools.keye.data.processor import Processor
from kvtools.keye.model.generate import generate
from kvtools.keye.model.inputs import Example
from kvtools.keye.model.keye import Keye

_WINDOW_TOKENS, _WINDOW = 1 << 18, 256  # tokens: 0.6 GB of patches, were all of them visual; questions
_BATCH_TOKENS = 1 << 16  # of prompts with their answers: 10 GB of keys and values of the 8b size in bfloat16


def generate_answers(
    model: Keye, template: ChatTemplate, media: Media, questions: Sequence[Question], how: Generation
) -> Iterator[tuple[Question, Prediction | Unreadable]]:
    """Each question with its answer, a window after the other; or with what is the matter with one of its pictures.

    seconds of an answer: its share of its batch's. Raises ValueError where the model gives logits that are not finite.
    """
    processor = Processor.for_model(model.config, template, media)
    window: list[tuple[Question, Example]] = []
    n_tokens = 0
    for question in questions:
        messages = question.messages(how.mode)
        try:
            prompt = processor.prompt({"id": f"{question.task}/{question.index}", "mode": None, "messages": messages})
        except Unreadable as fault:
            yield question, fault
            continue
        window.append((question, prompt))
        n_tokens += len(prompt)
        if n_tokens >= _WINDOW_TOKENS or len(window) >= _WINDOW:
            yield from _answers(model, template, window, how)
            window, n_tokens = [], 0
    yield from _answers(model, template, window, how)


def _answers(
    model: Keye, template: ChatTemplate, window: list[tuple[Question, Example]], how: Generation
) -> Iterator[tuple[Question, Prediction]]:
    window.sort(key=lambda asked: -len(asked[1]))  # the longest first: what does not fit shows at once
    while window:
        n_rows = max(1, _BATCH_TOKENS // (len(window[0][1]) + how.max_new))
        batch, window = window[:n_rows], window[n_rows:]
        begun = time.perf_counter()
        answers = generate(
            model, [prompt for _, prompt in batch], max_new_tokens=how.max_new, temperature=how.temperature,
            stop_tokens=template.stop_tokens, suppress_tokens=range(template.size, model.config.language.vocabulary),
            seed=how.seed, budget=2 * _BATCH_TOKENS,
        )  # fmt: skip
        texts = [(template.decode(answer.text_tokens, skip_control=True), len(answer.tokens)) for (answer,) in answers]
        seconds = round((time.perf_counter() - begun) / len(batch), 4)
        for (question, _), (text, n_tokens) in zip(batch, texts, strict=True):
            yield question, Prediction(text, n_tokens, seconds)
