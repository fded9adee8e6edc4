"""Answers and verdicts obtained: from files, from a model of ours, or from servers; kept, so that a stopped run goes on.

Not here: what the options are called, and figures.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from kvtools.artifact.files import stamps
from kvtools.errors import Corrupt, NothingDone, Stopped, Usage, raising, unwritable
from kvtools.keye.bench.benchmark import Generation, Question
from kvtools.keye.bench.details import Details, run_digest, unanswered
from kvtools.keye.bench.evaluate import Evaluation, drop_tasks_without_answers
from kvtools.keye.bench.predictions import read_predictions
from kvtools.progress import progress
from kvtools.skipped import counted
from kvtools.world import Stop

if TYPE_CHECKING:
    from kvtools.keye.data.media import Media
    from kvtools.keye.endpoint.endpoint import Endpoint

Log = Callable[[str], None]


@dataclass(frozen=True)
class Servers:
    """Which servers are asked, and how."""

    urls: Sequence[str]
    model: str | None
    judge_urls: Sequence[str]
    judge_model: str | None
    cache: str | None
    concurrency: int
    timeout_s: float
    key_variable: str
    seed: int

    def open(self, *, is_judge: bool, details: str | None) -> "Endpoint":
        """The pool of the servers that answer, or of those that judge."""
        from kvtools.keye.endpoint.endpoint import Endpoint

        urls, model = (self.judge_urls, self.judge_model) if is_judge else (self.urls, self.model)
        cache = self.cache or (f"{details}.cache" if details is not None else None)
        try:
            option = "--judge" if is_judge else "--endpoint"
            with raising(Usage, option, "Give another address, another --cache, or another key."):
                return Endpoint(
                    urls, model, concurrency=self.concurrency, cache=cache, seed=self.seed, timeout_s=self.timeout_s,
                    key_variable=self.key_variable,
                )  # fmt: skip
        except OSError as error:
            raise unwritable(str(cache), error) from None


@dataclass(frozen=True)
class Answering:
    """Where answers come from, and how a model gives them."""

    model: str | None
    predictions: Sequence[str]
    servers: Servers
    mode: str
    max_new: int
    temperature: float
    seed: int
    tokenizer: str | None
    device: str
    dtype: str
    fps: float
    frames: int | None
    details: str | None
    is_forced: bool
    is_quiet: bool

    @property
    def generation(self) -> Generation:
        """How answers are generated."""
        return Generation(self.mode, self.max_new, self.temperature, self.seed)

    @property
    def settings(self) -> dict[str, Any]:
        """All that answers depend on, but for the questions: by it a stopped run is known again."""
        return {
            "model": self.model, "files": stamps(self.model), "predictions": [*self.predictions],
            "endpoint": self.servers.model, "is_endpoint": bool(self.servers.urls), "mode": self.mode, "max_new": self.max_new,
            "temperature": self.temperature, "seed": self.seed, "fps": self.fps, "frames": self.frames,
        }  # fmt: skip


@contextmanager
def obtain_answers(evaluation: Evaluation, how: Answering, info: Log) -> Iterator[Details]:
    """Take the answers into the evaluation; within it, the file of details is open, to be finished.

    Raises Stopped where a signal asked for it, with all answers so far kept.
    """
    details = Details(how.details, run_digest(how.settings), force=how.is_forced)
    try:
        if how.predictions:
            _read(evaluation, how.predictions, info)
        else:
            _ask(evaluation, how, details, info)
        yield details
    finally:
        details.close()


def obtain_verdicts(evaluation: Evaluation, servers: Servers, how: Answering, warn: Log, info: Log) -> set[str]:
    """The verdicts on all answers; returns the tasks that have none for want of a judge.

    Raises Usage where that is all of them.
    """
    if servers.judge_urls:
        from kvtools.keye.bench.servers import ask_judge

        stop = Stop() if how.details is not None else None
        with servers.open(is_judge=True, details=how.details) as judge:
            without = evaluation.judge(lambda asked: ask_judge(judge, evaluation.bench, asked, lambda: stop))
            if stop and not judge.n_calls:
                raise NothingDone("stopped before the judge was asked. Give the job more time.")
            if stop:
                raise Stopped(
                    f"stopped after {judge.n_calls} calls of the judge, whose replies are kept. Run again to continue."
                )
            info(f"{judge.n_calls:,} calls of the judge.")
    else:
        without = evaluation.judge(None)
    if without and without == {question.task for question in evaluation.questions}:
        raise Usage(f"--score reference has no figure of {', '.join(sorted(without))} without a judge. Give --judge URL.")
    if without:
        warn(f"{', '.join(sorted(without))}: no figure without a judge. Give --judge URL, or --score rules.")
    return without


def _read(evaluation: Evaluation, sources: Sequence[str], info: Log) -> None:
    found = read_predictions(sources, evaluation.known, evaluation.bench.task_of, evaluation.only)
    for line in found.faults:
        evaluation.fault(line)
    asked = {question.key for question in evaluation.questions}
    evaluation.answers |= {key: prediction for key, prediction in found.by_key.items() if key in asked}
    n_questions = len(evaluation.questions)
    if dropped := drop_tasks_without_answers(evaluation):
        info(f"no predictions of {', '.join(dropped)}, which are left out.")
    n_lacking = sum(question.key not in evaluation.answers for question in evaluation.questions)
    lacking = f" {counted(n_lacking, 'question')} without a prediction: counted as wrong." if n_lacking else ""
    info(f"{counted(len(evaluation.answers), 'prediction')} for {counted(n_questions, 'question')}.{lacking}")


def _ask(evaluation: Evaluation, how: Answering, details: Details, info: Log) -> None:
    """Ask a model or servers what no earlier run has been answered."""
    from kvtools.keye.data.media import Media

    known, rest = unanswered(evaluation.questions, details)
    evaluation.answers |= known
    if known:
        info(f"{how.details}: {len(known):,} answers of the stopped run are kept, {len(rest):,} questions are left.")
    if not rest:
        return
    asked = [_with_frames(question, how.frames) for question in rest]
    stop = Stop() if how.details is not None else None
    with ExitStack() as stack:
        media = stack.enter_context(Media([], fps=how.fps))
        answered = _of_servers(asked, how, media, stack, lambda: stop) if how.servers.urls else _of_model(asked, how, media)
        label = how.model or ", ".join(how.servers.urls)
        counted = progress(answered, total=len(rest), unit="questions", label=label, quiet=how.is_quiet)
        with raising(Corrupt, label, "Give another model."):
            is_stopped = evaluation.collect(counted, details, lambda: stop)
    if is_stopped and len(evaluation.answers) == len(known):
        raise NothingDone("stopped before any question was answered. Give the job more time.")
    if is_stopped and len(evaluation.answers) < len(evaluation.questions):
        raise Stopped(f"stopped after {len(evaluation.answers)} answers, which {how.details} holds. Run again to continue.")


def _of_model(asked: Sequence[Question], how: Answering, media: "Media") -> Iterator[Any]:
    from kvtools.keye.bench.generate import generate_answers
    from kvtools.keye.run.session import open_model
    from kvtools.train.device import keep_freed_memory, resolve_device

    compute_on, precision = resolve_device(how.device, how.dtype)
    keep_freed_memory()
    keye, template = open_model(how.model or "", how.tokenizer, device=compute_on, dtype=precision)
    return generate_answers(keye, template, media, asked, how.generation)


def _of_servers(
    asked: Sequence[Question], how: Answering, media: "Media", stack: ExitStack, stop: Callable[[], object]
) -> Iterator[Any]:
    from kvtools.keye.bench.servers import ask_questions

    endpoint = stack.enter_context(how.servers.open(is_judge=False, details=how.details))
    return ask_questions(endpoint, media, asked, how.generation, stop)


def _with_frames(question: Question, frames: int | None) -> Question:
    """The question, its videos as so many frames."""
    if frames is None or not any(part["type"] == "video" for part in question.parts):
        return question
    return replace(question, parts=[part | ({"frames": frames} if part["type"] == "video" else {}) for part in question.parts])
