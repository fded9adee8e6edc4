"""`kvtools eval-kcmm`: a benchmark's folder, and a model or any system's predictions in; a table of accuracies out."""

import os
from typing import TYPE_CHECKING, Annotated, Any, Literal

from kvtools import options as opt

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

EXAMPLES = [
    "kvtools eval-kcmm -q standin --predictions answers.jsonl",
    "kvtools eval-kcmm -q standin --predictions answers.jsonl --json | kvtools plot - -o accuracy.png",
]
EXIT_CODES = (0, 1, 2, 65, 66, 73, 74, 75, 141)
SEE_ALSO = ("kvtools pretrain keye", "kvtools answer", "kvtools chat", "kvtools plot")
COMMON = ("force",)
GROUPS = {
    "Answers of a model": ("--mode", "--max-new", "--temperature", "--frames", "--fps", "--tokenizer", "--seed"),
    "Servers": (
        "--endpoint", "--endpoint-model", "--judge", "--judge-model", "--cache", "--concurrency", "--call-timeout",
        "--key-variable",
    ),
}  # fmt: skip


def main(
    run: opt.Invocation,
    sources: Annotated[
        list[str] | None, opt.argument("DATA_DIR", "Folders with the benchmark's tables and pictures, or single tables.")
    ] = None,
    model: opt.Model = None,
    predictions: Annotated[
        list[str] | None,
        opt.value("FILE", "Predictions: JSON Lines, TSV, .xlsx, or a folder of them; - is stdin; may be repeated."),
    ] = None,
    endpoint: Annotated[list[str] | None, opt.value("URL", "An OpenAI-compatible server to ask; may be repeated.")] = None,
    bench: Annotated[
        Literal["kcmm", "tempcompass", "choice"],
        opt.option("KC-MMBench, TempCompass, or any multiple-choice questions in VLMEvalKit's or lmms-eval's layouts."),
    ] = "kcmm",
    task: Annotated[list[str] | None, opt.value("NAME", "Evaluate this task only; may be repeated.")] = None,
    score: Annotated[
        Literal["rules", "reference"],
        opt.option("Read answers by our offline rules, or as the published evaluator does, which asks a judge.", "--score"),
    ] = "rules",
    mode: Annotated[
        Literal["auto", "think", "no_think"], opt.option("Append /think or /no_think to each question; auto appends nothing.")
    ] = "auto",
    max_new: Annotated[int, opt.value("N", "Most tokens of an answer.", least=1)] = 2048,
    temperature: Annotated[float, opt.value("X", "Sampling temperature; 0 is greedy.", least=0)] = 0.0,
    fps: Annotated[float, opt.value("RATE", "Frames per second taken from a video.")] = 2.0,
    frames: Annotated[int | None, opt.value("N", "Take N frames of each video instead.", least=1)] = None,
    tokenizer: opt.Tokenizer = None,
    endpoint_model: Annotated[
        str | None, opt.value("NAME", "The model's name at --endpoint. Default: the first that it lists.")
    ] = None,
    judge: Annotated[
        list[str] | None, opt.value("URL", "OpenAI-compatible server of the judge, for --score reference; may be repeated.")
    ] = None,
    judge_model: Annotated[
        str | None, opt.value("NAME", "The judge's name at --judge. Default: the first that it lists.")
    ] = None,
    cache: Annotated[
        str | None, opt.value("FILE", "Keep what servers reply in FILE, and ask nothing twice. Default: DETAILS.cache.")
    ] = None,
    concurrency: Annotated[int, opt.value("N", "Calls of servers at the same time.", least=1)] = 8,
    call_timeout: Annotated[float, opt.value("SECONDS", "Time limit of a call.", least=0.001)] = 300.0,
    key_variable: Annotated[str, opt.value("NAME", "Environment variable with the key of the servers.")] = "OPENAI_API_KEY",
    details: Annotated[
        str | None, opt.value("FILE", "Write each answer and its verdict as JSON Lines; a stopped run is continued from it.")
    ] = None,
    prompts: Annotated[
        str | None, opt.value("FILE", "Write the questions as conversations, for other engines, and exit.")
    ] = None,
    compare: Annotated[
        tuple[str, str] | None, opt.value("A B", "Compare two files of predictions or of details, by a paired bootstrap.")
    ] = None,
    require: Annotated[float | None, opt.value("X", "Exit with 1 if the macro mean is below X per cent.")] = None,
    shard: opt.Shard = None,
    seed: opt.Seed = 0,
    as_json: opt.AsJson = False,
    device: opt.Device = "auto",
    dtype: opt.Dtype = "auto",
) -> int:
    """Score a model, or any system's predictions, on KC-MMBench and benchmarks like it.

    One table row a task: accuracy with a 95 % interval, answers from which nothing could be extracted, the share that thought,
    tokens and seconds; then the mean over tasks, beside the published figures. Answers come from a model of ours, from files,
    or from a server. Figures of --score rules and of --score reference are not the same metric: only the latter, with a judge,
    is what the authors have published.
    """
    from kvtools.errors import Usage, raising
    from kvtools.keye.bench import compare as comparison
    from kvtools.keye.bench.benches import open_bench
    from kvtools.keye.bench.evaluate import Evaluation, only_tasks
    from kvtools.keye.bench.prompts import write_prompts
    from kvtools.keye.bench.session import Answering, Servers, obtain_answers, obtain_verdicts
    from kvtools.world import shard as take_shard

    given = {"--model": model, "--predictions": predictions, "--endpoint": endpoint, "--prompts": prompts, "--compare": compare}
    named = [name for name, value in given.items() if value]
    opt.refuse_if(
        (not sources and compare is None, "DATA_DIR is missing. Give the folder with the benchmark's tables."),
        (not named, "--model, --predictions, --endpoint, --prompts or --compare is missing. Give one of them."),
        (len(named) > 1, f"{' and '.join(named)} cannot be combined. Give one of them."),
        (
            "key_variable" in run.given and not os.environ.get(key_variable),  # whose name may be a key, and is not printed
            "the environment has no variable of the name that --key-variable gives. Set it to the key.",
        ),
        (judge and score == "rules", "--judge is used only with --score reference. Give both, or neither."),
        (not 0 < fps < float("inf"), f"--fps {fps:g} is not above 0. Give a finite number above 0."),
        (require is not None and not 0 <= require <= 100, f"--require {require or 0:g} is not a percentage. Give 0 to 100."),
        (shard is not None and compare is not None, "--shard cannot be combined with --compare. Drop one of them."),
    )
    run.refuse_shared_stdin(*(predictions or []), *(compare or ()))
    kind = open_bench(bench)
    with raising(Usage, "--task", "Give one of these."):
        tasks = only_tasks(kind, task or [])
    if compare is not None:
        rows, code = comparison.compare_files(kind, compare, sources or [], tasks, score, run.warn)
        _print(run, rows, comparison.lines(rows, compare), as_json=as_json)
        return code
    found = kind.read(sources or [], tasks, needs_media=not predictions)
    questions = list(take_shard(found.questions, shard))
    evaluation = Evaluation(kind, score, questions, run.warn, tasks)
    evaluation.take_faults(found)
    if prompts is not None:
        write_prompts(prompts, questions, mode, frames, force=run.force, history=run.history())
        run.info(f"{prompts}: {len(questions):,} questions written.")
        return evaluation.code
    servers = Servers(
        endpoint or [], endpoint_model, judge or [], judge_model, cache, concurrency, call_timeout, key_variable, seed
    )
    answering = Answering(
        model, predictions or [], servers, mode, max_new, temperature, seed, tokenizer, device, dtype, fps, frames, details,
        is_forced=run.force, is_quiet=run.is_silent,
    )  # fmt: skip
    with obtain_answers(evaluation, answering, run.info) as kept:
        without_judge = obtain_verdicts(evaluation, servers, answering, run.warn, run.info)
        kept.finish(evaluation.detail_rows())
    rows = evaluation.rows(without_judge)
    _print(run, rows, evaluation.lines(rows, is_standin=found.is_standin), as_json=as_json)
    return _verdict(run, rows[-1]["accuracy"], require) or evaluation.code


def _print(run: opt.Invocation, rows: "Sequence[Mapping[str, Any]]", lines: "Sequence[str]", *, as_json: bool) -> None:
    for row in rows if as_json else ():
        run.print_json(row)
    for line in () if as_json else lines:
        run.print(line)


def _verdict(run: opt.Invocation, accuracy: float | None, require: float | None) -> int:
    if require is None or (accuracy is not None and 100 * accuracy >= require):
        return 0
    figure = "none" if accuracy is None else f"{100 * accuracy:.2f}"
    run.warn(f"the macro mean is {figure}, and --require asks for {require:g}.")
    return 1
