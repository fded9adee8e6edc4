"""Clips into questions, one at a time for each task.

Every answer is drawn before the clip it is about, and kept until a clip is found of which it can be asked fairly: answers are
spread evenly over the options, exactly, and do not depend on the clips. The questions depend on the clips, the options and the
seed alone.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence

from kvtools.artifact.blob import canonical
from kvtools.chance import rng_for, seed_for
from kvtools.keye.quiz.clips import Clip
from kvtools.keye.quiz.tasks import TASKS, Draw, Form, Question, label
from kvtools.skipped import SkippedRows

_TRIES = 6  # draws from one clip before the next is tried
_MAX_FAILURES = 4  # of a clip, before it is no longer tried
UNFIT = "clips of which no fair question could be asked"


def ask(
    clips: Sequence[Clip], tasks: Sequence[str], form: Form, n: int, skipped: SkippedRows, *, n_frames: int, n_choices: int,
    seed: int,
) -> Iterator[Question]:  # fmt: skip
    """N different questions, the tasks in turn; fewer where the clips give no more."""
    running = [_questions(task, clips, form, skipped, n_frames, n_choices, seed) for task in tasks]
    number = 0
    while running and number < n:
        for questions in list(running):
            question = next(questions, None)
            if question is None:
                running.remove(questions)
            elif number < n:
                yield {"id": f"{question['task']}-{number:06d}", **question}
                number += 1


def ask_labels(
    clips: Sequence[Clip], labels: Sequence[str], form: Form, n: int | None, *, n_frames: int, n_choices: int, seed: int,
    positive: str | None, question: str,
) -> list[Question]:  # fmt: skip
    """A question for each clip, in a shuffled order, repeated until there are n.

    positive: the label that a `check` asks for, by default the first. `chance` is the fraction of the most frequent answer,
    which a model reaches without looking, or that of one option where that is more. Raises ValueError for clips of one label.
    """
    names = sorted(set(labels))
    if labels and len(names) < 2:
        raise ValueError(f"all {len(labels)} clips have the label {names[0]!r}. Give clips of two labels or more")
    positive = names[0] if positive is None and names else positive or ""
    n_options = min(n_choices, len(names))
    answers = _answers(n_options, seed, "label", form)
    questions: list[Question] = []
    for number in range(len(clips) if n is None else n):
        turn, position = divmod(number, len(clips))
        index = int(rng_for(seed, "label", turn).permutation(len(clips))[position])
        draw = Draw(form, n_frames, n_options, next(answers), 0, rng_for(seed, "label", "draw", number))
        asked = label(clips[index], labels[index], names, draw, positive=positive, question=question)
        questions.append({"id": f"label-{number:06d}", "task": "label", **asked, "label": labels[index]})
    correct = [asked["answer"] if form == "check" else asked["label"] for asked in questions]
    majority = max(Counter(correct).values()) / len(correct) if correct else 0.0
    return [{**asked, "chance": max(majority, 1 / n_options)} for asked in questions]


def _questions(
    task: str, clips: Sequence[Clip], form: Form, skipped: SkippedRows, n_frames: int, n_choices: int, seed: int
) -> Iterator[Question]:
    """The questions of one task, until every clip has failed too often."""
    n_needed = n_frames - (task == "time")
    long_enough = [clip for clip in clips if len(clip.seconds) >= n_needed]
    for clip in clips:
        if len(clip.seconds) < n_needed:
            skipped.skip(f"clips with too few frames for {task} left out", f"{clip.key}: {len(clip.seconds)}")
    failures: Counter[str] = Counter()
    asked: set[bytes] = set()
    served: set[str] = set()
    turns = _turns(long_enough, failures, seed, task)
    for number, answer in enumerate(_answers(2 if form == "check" else n_choices, seed, task, form)):
        text_seed = seed_for(seed, task, form, "words", number)
        for clip in turns:
            draw = Draw(form, n_frames, n_choices, answer, text_seed, rng_for(seed, task, number, clip.key))
            question = _fair_question(task, clip, long_enough, draw, asked)
            if question is not None:
                failures[clip.key] = 0
                served.add(clip.key)
                yield {"task": task, **question}
                break
            failures[clip.key] += 1
            if failures[clip.key] == _MAX_FAILURES and clip.key not in served:
                skipped.skip(f"{UNFIT} ({task})", clip.key)
        else:
            return


def _fair_question(task: str, clip: Clip, others: Sequence[Clip], draw: Draw, asked: set[bytes]) -> Question | None:
    for _ in range(_TRIES):
        question = TASKS[task](clip, others, draw)
        if question is not None and (content := canonical(question["messages"])) not in asked:
            asked.add(content)
            return question
    return None


def _turns(clips: Sequence[Clip], failures: Mapping[str, int], seed: int, task: str) -> Iterator[Clip]:
    """The clips, shuffled again for each round, without those that have failed too often, until none is left."""
    turn = 0
    while any(failures[clip.key] < _MAX_FAILURES for clip in clips):
        for index in rng_for(seed, task, "turn", turn).permutation(len(clips)).tolist():
            if failures[clips[index].key] < _MAX_FAILURES:
                yield clips[index]
        turn += 1


def _answers(n_options: int, seed: int, *purpose: str) -> Iterator[int]:
    """The indices of the correct options: each equally often, in random order."""
    block = 0
    while True:
        yield from rng_for(seed, "places", *purpose, block).permutation(n_options).tolist()
        block += 1
