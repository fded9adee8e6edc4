"""Answers and verdicts of models behind servers: the questions of a benchmark as requests, and a judge's replies as verdicts.

Not here: how servers are asked, retried and cached (endpoint/).
"""

from collections.abc import Callable, Iterator, Mapping, Sequence

from kvtools.keye.bench.benchmark import Bench, Generation, JudgeRequest, Key, Question, Verdict
from kvtools.keye.bench.predictions import Prediction
from kvtools.keye.data.media import Media
from kvtools.keye.endpoint.conversation import request_of
from kvtools.keye.endpoint.endpoint import Endpoint
from kvtools.keye.endpoint.request import Request


def ask_questions(
    endpoint: Endpoint, media: Media, questions: Sequence[Question], how: Generation, stop: Callable[[], object]
) -> Iterator[tuple[Question, Prediction | str | Exception]]:
    """Each question with its answer, in the order in which they arrive; or with the reason why there is none, an exception
    where its pictures cannot be read. Ends where `stop` says so."""
    sampling = {"temperature": how.temperature, "max_tokens": how.max_new, "seed": how.seed}
    requests = (request_of({"messages": question.messages(how.mode)}, media, sampling) for question in questions)
    for reply in endpoint.ask_all(requests, stop):
        question = questions[reply.index]
        if reply.fault is not None:
            yield question, ValueError(reply.fault) if reply.is_unreadable else reply.fault
        else:
            yield question, Prediction(reply.text, reply.answer_tokens or None, round(reply.seconds, 4))


def ask_judge(
    judge: Endpoint, bench: Bench, asked: Mapping[Key, tuple[Question, JudgeRequest]], stop: Callable[[], object]
) -> Iterator[tuple[Key, Verdict | None, str | None]]:
    """The verdict on each answer that a judge must see; None where the judge has given no reply, with the reason. Ends where
    `stop` says so."""
    keys = [*asked]
    requests = (_request(asked[key][1]) for key in keys)
    for reply in judge.ask_all(requests, stop):
        key = keys[reply.index]
        if reply.fault is None or reply.text:
            yield key, bench.judged(asked[key][0], reply.text), None
        else:
            yield key, None, reply.fault


def _request(request: JudgeRequest) -> Request:
    return Request(
        [{"role": "user", "content": request.prompt}], {"temperature": 0.0, "max_tokens": request.max_tokens},
        accept=request.accept, tries=request.tries, temperature_step=request.temperature_step,
    )  # fmt: skip
