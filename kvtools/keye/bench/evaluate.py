"""An evaluation: answers to the questions of a benchmark, their verdicts, and the report.

Not here: options and output (commands/eval_kcmm.py), how one answer is read (the benchmark), figures (report.py).
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from kvtools.errors import Corrupt, Died
from kvtools.keye.bench.benchmark import Bench, JudgeRequest, Key, Question, QuestionSet, Score, Verdict
from kvtools.keye.bench.details import Details
from kvtools.keye.bench.predictions import Prediction
from kvtools.keye.bench.report import Scored, macro_row, task_row
from kvtools.keye.bench.table import published_lines, report_lines
from kvtools.skipped import counted

_NO_VERDICT = Verdict(is_right=False, extracted=None)
IO_ERROR = 74
N_NAMED = 3  # questions that are named for the same reason

# asks a judge: (key, verdict or None, why there is no reply) of each
AskJudge = Callable[[Mapping[Key, tuple[Question, JudgeRequest]]], Iterable[tuple[Key, Verdict | None, str | None]]]


@dataclass
class Evaluation:
    """Questions with their answers and verdicts, while they come in. log: takes a line on what is wrong.

    only: the tasks that are asked for; empty is all. known: keys of all questions of the data, also of those not asked here.
    excluded: questions left out since a picture is missing, by task; lost: those that no server has answered, or no judge;
    unjudged: keys of the latter. code: the exit code so far.
    """

    bench: Bench
    score: Score
    questions: list[Question]
    log: Callable[[str], None]
    only: Sequence[str] = ()
    known: set[Key] = field(default_factory=set)
    excluded: dict[str, int] = field(default_factory=dict)
    lost: dict[str, int] = field(default_factory=dict)
    answers: dict[Key, Prediction] = field(default_factory=dict)
    verdicts: dict[Key, Verdict] = field(default_factory=dict)
    unjudged: set[Key] = field(default_factory=set)
    code: int = 0

    def __post_init__(self) -> None:
        self.known |= {question.key for question in self.questions}

    def fault(self, line: str, code: int = Corrupt.code) -> None:
        """Say what is wrong, and note the exit code."""
        self.log(line)
        self.code = self.code or code

    def take_faults(self, found: QuestionSet) -> None:
        """Say what could not be read of the questions, and which are left out."""
        self.known |= found.left_out | {question.key for question in found.questions}
        for line in found.warnings:
            self.log(f"{line}.")
        for line in found.faults:
            self.fault(line)
        there = {question.task for question in found.questions}
        absent = [task for task in self.only if task not in there and task not in found.missing]
        for task in dict.fromkeys(absent):
            self.fault(f"{task}: the data have no question of this task. Give its table, or drop --task {task}.")
        for task, rows in found.missing.items():
            self.excluded[task] = sum(rows.counts.values())
            for line in rows.lines():
                self.fault(f"{task}: {line}.")
        if not found.questions and (found.faults or found.missing or absent):
            raise Corrupt("no question is left. Give data with the tables and pictures of the benchmark.")

    def lines(self, rows: Sequence[Mapping[str, Any]], *, is_standin: bool) -> list[str]:
        """The report as a table, beside the published one where the data are the benchmark."""
        is_published = self.bench.name == "kcmm" and not is_standin
        how = "our offline rules, which are not the published metric" if self.score == "rules" else "the published evaluator"
        lines = report_lines(rows, self.excluded, self.lost, has_published=is_published)
        lines.append(f"scored by {how}; accuracies are in per cent.")
        if is_standin:
            lines.append("The questions are a stand-in, NOT KC-MMBench: these figures cannot be held against published ones.")
        return [*lines, *(published_lines() if is_published else [])]

    def collect(
        self, answered: Iterable[tuple[Question, Prediction | str | Exception]], details: Details, stop: Callable[[], object]
    ) -> bool:
        """Take in answers as they come, each into the details at once. Returns whether it was stopped."""
        if stop():
            return True
        reasons, gone = _Reasons(self), set[Key]()
        for question, answer in answered:
            if isinstance(answer, Prediction):
                self.answers[question.key] = answer
                details.add(question, answer)
            elif isinstance(answer, str):
                gone.add(question.key)
                self.lost[question.task] = self.lost.get(question.task, 0) + 1
                reasons.add(question.key, answer)
            else:
                gone.add(question.key)
                self.excluded[question.task] = self.excluded.get(question.task, 0) + 1
                self.fault(f"{question.task}: index {question.index}: {answer}. Look at the picture.")
            if stop():
                break
        self.questions = [question for question in self.questions if question.key not in gone]
        reasons.sum_up()
        if self.lost and not self.questions:
            self.log("no question has an answer, and there is nothing to report.")
            raise Died(IO_ERROR)
        return bool(stop())

    def judge(self, ask: AskJudge | None) -> set[str]:
        """The verdicts on all answers; returns the tasks that have none since no judge can be asked."""
        asked: dict[Key, tuple[Question, JudgeRequest]] = {}
        without_judge: set[str] = set()
        for question in self.questions:
            prediction = self.answers.get(question.key)
            if prediction is None or not prediction.text.strip():
                self.verdicts[question.key] = _NO_VERDICT
                continue
            verdict = (
                self.bench.rules(question, prediction.text)
                if self.score == "rules"
                else self.bench.reference(question, prediction.text)
            )
            if isinstance(verdict, Verdict):
                self.verdicts[question.key] = verdict
            elif ask is not None:
                asked[question.key] = (question, verdict)
            elif verdict.without is not None:
                self.verdicts[question.key] = verdict.without
            else:
                without_judge.add(question.task)
        reasons = _Reasons(self)
        for key, found, reason in ask(asked) if ask is not None and asked else ():
            if reason is None:
                self.verdicts[key] = found or _NO_VERDICT
            else:
                self.unjudged.add(key)
                self.lost[key[0]] = self.lost.get(key[0], 0) + 1
                reasons.add(key, f"the judge has not replied: {reason}")
        reasons.sum_up()
        return without_judge

    def scored(self) -> dict[str, list[Scored]]:
        """All answers with their verdicts, by task; a task of which the judge has failed on all is there, and empty."""
        by_task: dict[str, list[Scored]] = {question.task: [] for question in self.questions}
        for question in self.questions:
            if question.key in self.unjudged:
                continue
            verdict, prediction = self.verdicts.get(question.key, _NO_VERDICT), self.answers.get(question.key)
            by_task[question.task].append(
                Scored(
                    question.task, question.index, verdict.is_right, verdict.extracted is None, prediction is not None,
                    prediction is not None and has_thought(prediction.text),
                    None if prediction is None else prediction.tokens, None if prediction is None else prediction.seconds,
                    question.category,
                )
            )  # fmt: skip
        return by_task

    def rows(self, without_judge: set[str]) -> list[dict[str, Any]]:
        """The lines of the report: a line a task, and the macro mean."""
        by_task = self.scored()
        rows = [task_row(task, scored, self.score) for task, scored in by_task.items()]
        for row in rows:
            row |= {"excluded": self.excluded.get(row["task"], 0), "lost": self.lost.get(row["task"], 0)}
            if row["task"] in without_judge:
                row |= {"accuracy": None, "ci95": None, "failures": 0, "needs_judge": True}
        return [*rows, macro_row(rows, by_task, self.score)]

    def detail_rows(self) -> Iterable[tuple[Question, Prediction, Mapping[str, Any]]]:
        """What the file of details holds of each answer, beside the answer."""
        for question in self.questions:
            prediction, verdict = self.answers.get(question.key), self.verdicts.get(question.key)
            if prediction is None:
                continue
            more: dict[str, Any] = {"answer": question.answer, "score": self.score, "thought": has_thought(prediction.text)}
            if question.category:
                more["category"] = question.category
            if verdict is not None:
                more |= {"extracted": verdict.extracted, "right": verdict.is_right, "failed": verdict.extracted is None}
                if verdict.judge is not None:
                    more["judge"] = verdict.judge
            yield question, prediction, more


class _Reasons:
    """Why questions have no answer or no verdict: the first few of each reason by name, the others as a number."""

    def __init__(self, evaluation: Evaluation) -> None:
        self._evaluation = evaluation
        self._counts: dict[str, int] = {}

    def add(self, key: Key, reason: str) -> None:
        """One more question."""
        self._counts[reason] = self._counts.get(reason, 0) + 1
        if self._counts[reason] <= N_NAMED:
            self._evaluation.fault(f"{key[0]}: index {key[1]}: {reason}. Run again to ask once more.", IO_ERROR)

    def sum_up(self) -> None:
        """Say how many more there were."""
        for reason, count in self._counts.items():
            if count > N_NAMED:
                self._evaluation.log(f"{counted(count - N_NAMED, 'more question')}: {reason}.")


def has_thought(text: str) -> bool:
    """Whether a reply has thinking that is more than empty tags."""
    inside, end, _ = text.partition("</think>")
    return bool(inside.rpartition("<think>")[2].strip()) and (bool(end) or "<think>" in text)


def only_tasks(bench: Bench, names: Sequence[str]) -> list[str]:
    """The tasks of those names. Raises ValueError for one that the benchmark does not have."""
    tasks = []
    for name in names:
        task = bench.task_of(name)
        if task is None or (bench.tasks and task not in bench.tasks):
            known = ", ".join(bench.tasks)
            raise ValueError(f"{name} is no task of {bench.name}, which has {known}")
        tasks.append(task)
    return tasks


def drop_tasks_without_answers(evaluation: Evaluation) -> list[str]:
    """Leave out tasks of which no question has an answer; returns their names. Raises Corrupt where that is all of them."""
    answered = {task for task, _ in evaluation.answers}
    dropped = list(dict.fromkeys(q.task for q in evaluation.questions if q.task not in answered))
    evaluation.questions = [question for question in evaluation.questions if question.task in answered]
    if not evaluation.questions:
        raise Corrupt("none of the predictions is for a question of the data. Give predictions of these questions.")
    return dropped
