"""Two systems compared: files of predictions or of details, question by question."""

from collections.abc import Callable, Sequence
from typing import Any

from kvtools.artifact.documents import read_documents
from kvtools.artifact.files import open_source
from kvtools.errors import Corrupt, Usage, raising
from kvtools.keye.bench.benchmark import Bench, Score
from kvtools.keye.bench.evaluate import Evaluation
from kvtools.keye.bench.predictions import read_predictions
from kvtools.keye.bench.report import compare
from kvtools.keye.bench.table import comparison_lines
from kvtools.skipped import counted

Rights = dict[str, dict[str, bool]]  # task → index → whether right


def compare_files(
    bench: Bench, names: tuple[str, str], sources: Sequence[str], tasks: Sequence[str], score: Score,
    log: Callable[[str], None],
) -> tuple[list[dict[str, Any]], int]:  # fmt: skip
    """The lines of the comparison, and the exit code. sources: the data, by which both are scored; none: by their own verdicts.

    Raises Corrupt for details without verdicts, and where the two have no question in common.
    """
    code = 0
    if sources:
        found = bench.read(sources, tasks, needs_media=False)
        evaluation = Evaluation(bench, score, [], log, tasks)
        evaluation.take_faults(found)
        code = evaluation.code
        rights = []
        for name in names:
            evaluation = Evaluation(bench, score, list(found.questions), log, tasks, {*found.left_out})
            rights.append(_scored(evaluation, name))
            code = code or evaluation.code
    else:
        rights = [_of_details(name, tasks) for name in names]
    one, two = ({(task, index) for task, right in rights_of.items() for index in right} for rights_of in rights)
    if one & two and one != two:
        log(f"{counted(len(one ^ two), 'answer')} in one file only, left out of the comparison.")
    with raising(Corrupt, " and ".join(names), "Give two files about the same questions."):
        return compare(*rights), code


def lines(rows: Sequence[dict[str, Any]], names: tuple[str, str]) -> list[str]:
    """The comparison as a table."""
    return comparison_lines(rows, names)


def _scored(evaluation: Evaluation, name: str) -> Rights:
    predictions = read_predictions([name], evaluation.known, evaluation.bench.task_of, evaluation.only)
    for line in predictions.faults:
        evaluation.fault(line)
    evaluation.answers = predictions.by_key
    if without := evaluation.judge(None):
        raise Usage(f"--compare cannot judge {', '.join(sorted(without))}. Compare files of --details, without DATA_DIR.")
    rights: Rights = {}
    for question in evaluation.questions:
        if question.key in evaluation.answers:
            rights.setdefault(question.task, {})[question.index] = evaluation.verdicts[question.key].is_right
    return rights


def _of_details(name: str, tasks: Sequence[str]) -> Rights:
    rights: Rights = {}
    with open_source(name) as file, raising(Corrupt, name, "Give a file of --details, or DATA_DIR."):
        for where, row in read_documents(file):
            if not isinstance(row, dict) or not isinstance(row.get("right"), bool):
                raise ValueError(f"{where} has no verdict")
            if not tasks or row.get("task") in tasks:
                rights.setdefault(str(row.get("task")), {})[str(row.get("index"))] = row["right"]
    return rights
