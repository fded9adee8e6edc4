"""`kvtools answer`: multiple-choice questions and models in, the models' scores out; or open questions in, answers out."""

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any, Literal

from kvtools import options as opt

if TYPE_CHECKING:
    from kvtools.keye.quiz.multiple_choice import Score

EXAMPLES = [
    "kvtools answer questions.kvs --media clips.kvs --model keye.safetensors",
    "kvtools quiz clips.kvs --task order --form check --frames 3 | kvtools answer --media clips.kvs --model keye.safetensors",
    "kvtools answer -q --open chats.json --model keye.safetensors --max-new 8 -o replies.jsonl",
]
EXIT_CODES = (0, 2, 65, 66, 73, 74, 75, 141)
SEE_ALSO = ("kvtools quiz", "kvtools pretrain keye", "kvtools merge", "kvtools chat", "kvtools eval-kcmm")
COMMON = ("output", "force", "strict")
GROUPS = {
    "Open answers": ("--open", "--mode", "--max-new"),
    "Sampling": ("--greedy", "--temperature", "--top-k", "--top-p", "--repetition-penalty", "--stop", "--seed"),
}
# what open answers alone take
_OF_OPEN = (
    "mode",
    "max_new",
    "greedy",
    "temperature",
    "top_k",
    "top_p",
    "repetition_penalty",
    "stops",
    "seed",
    "shard",
    "state",
)


def main(
    run: opt.Invocation,
    questions: Annotated[
        list[str] | None, opt.argument("QUESTIONS", "Questions, from kvtools quiz; - is stdin, the default.")
    ] = None,
    model: opt.Models = None,
    media: opt.Media = None,
    tokenizer: opt.Tokenizer = None,
    is_open: Annotated[bool, opt.option("Write a free answer to each conversation, as lines of JSON.", "--open")] = False,
    mode: Annotated[
        Literal["auto", "think", "no_think"] | None, opt.option("Mode of answering. Default: the conversation's own.")
    ] = None,
    max_new: opt.MaxNew = 1024,
    greedy: Annotated[bool, opt.option("Take the most probable token each time; the same as --temperature 0.")] = False,
    temperature: Annotated[float, opt.value("X", "Sampling temperature; 0 is greedy.")] = 0.6,
    top_k: Annotated[int, opt.value("N", "Sample from the N most probable tokens; 0 is all.", least=0)] = 20,
    top_p: Annotated[float, opt.value("P", "Sample from the fewest tokens with a total probability of P.")] = 0.95,
    repetition_penalty: opt.RepetitionPenalty = 1.0,
    stops: opt.StopTexts = None,
    seed: opt.Seed = 0,
    shard: opt.Shard = None,
    state: opt.StateDir = None,
    as_json: opt.AsJson = False,
    device: opt.Device = "auto",
    dtype: opt.Dtype = "auto",
) -> int:
    """Score models on multiple-choice questions, beside the accuracy of guessing. Or answer a file of open questions.

    Of a question with options the answer is the option whose first token is the most probable next token: a model is scored by
    what it knows, not by how it ends its sentences. Intervals are 95 % bootstrap intervals over clips, since questions of one
    clip are not independent.

    With --open any conversations are answered by one model, in batches of like lengths: a line each, in their order, with key,
    text, tokens, logprob and how it ended. The same seed gives the same answers for any number of ranks. A run that writes a
    file and was stopped resumes when it is run again.
    """
    sources, models = questions or ["-"], model or []
    foreign = [] if is_open else sorted(run.given & {*_OF_OPEN, "output", "force"})
    opt.refuse_if(
        (not models, opt.NO_MODEL),
        (
            foreign,
            f"{_option(foreign)} is for open answers. Give --open, or leave it out.",
        ),
        (is_open and len(models) > 1, f"--open answers with one model, and {len(models)} are given. Give one."),
        (is_open and as_json, "--open writes lines of JSON in any case. Leave out --json."),
        *opt.sampling_rules(temperature, top_p, repetition_penalty, stops),
    )
    run.refuse_shared_stdin(*sources, *models)
    if is_open:
        from kvtools.keye.run.open_run import OpenOptions, answer_open
        from kvtools.keye.run.session import GenerationConfig

        config = GenerationConfig(
            0.0 if greedy else temperature, top_k, top_p, max_new, mode, seed, repetition_penalty, tuple(stops or [])
        )
        return answer_open(run, config, OpenOptions(sources, models[0], media or [], tokenizer, shard, state, device, dtype))
    if not run.world.is_root:
        return 0  # scoring is work for one rank
    return _score(run, sources, models, media or [], tokenizer, as_json=as_json, device=device, dtype=dtype)


def _option(names: Sequence[str]) -> str:
    """The option of the first of some parameters."""
    return "--" + names[0].replace("stops", "stop").replace("_", "-") if names else ""


def _score(
    run: opt.Invocation, sources: Sequence[str], models: Sequence[str], media: Sequence[str], tokenizer: str | None, *,
    as_json: bool, device: str, dtype: str,
) -> int:  # fmt: skip
    from kvtools.errors import Corrupt, raising
    from kvtools.keye.data import media as media_sources
    from kvtools.keye.data.processor import Processor
    from kvtools.keye.quiz.multiple_choice import open_questions, predict, score
    from kvtools.keye.run.limits import Limits, tell_long_prompt
    from kvtools.keye.run.session import open_checkpoint
    from kvtools.progress import progress
    from kvtools.train.device import keep_freed_memory, resolve_device

    inputs = [open_questions(src) for src in sources]
    code = max(part.skipped.report(part.name, run.warn, strict=False) for part in inputs)
    asked = [question for part in inputs for question in part.conversations]
    if not asked:
        names = ", ".join(part.name for part in inputs)
        raise Corrupt(f"{names}: no question is left. Look at the lines above, and repair the file.")
    compute_on, precision = resolve_device(device, dtype)
    keep_freed_memory()
    scores: list[tuple[str, Score]] = []
    for name in models:
        keye, template, weights = open_checkpoint(name, tokenizer, device=compute_on, dtype=precision)
        limits = Limits.of_model(weights)
        with media_sources.Media(media, budget=limits.budget, image_tokens=limits.picture) as opened_media:
            processor = Processor.for_model(keye.config, template, opened_media, max_prompt=limits.row)
            with raising(Corrupt, name, "Give another model."), media_sources.raising_unreadable("Look at --media."):
                predicted = predict(keye, processor, asked)
                answers = list(progress(predicted, total=len(asked), unit="questions", label=name, quiet=run.quiet))
        tell_long_prompt(processor.longest, limits, keye.config.language.positions, run.warn)
        scores += [(name, task_score) for task_score in score(asked, answers)]
    for line in _lines(scores, as_json=as_json):
        run.print(line)
    return code


def _lines(scores: "list[tuple[str, Score]]", *, as_json: bool) -> list[str]:
    rows: list[dict[str, Any]] = [{"model": name, **vars(task_score)} for name, task_score in scores]
    if as_json:
        return [json.dumps(row, ensure_ascii=False) for row in rows]
    width = max((len(name) for name, _ in scores), default=5)
    lines = [f"{'model':<{width}}  task      right  of    share  95 %        chance"]
    for row in rows:
        interval = f"{row['low']:.2f}-{row['high']:.2f}"
        lines.append(
            f"{row['model']:<{width}}  {row['task']:<8}  {row['right']:<5}  {row['n']:<4}  {row['share']:<5.2f}  "
            f"{interval:<10}  {row['chance']:.2f}"
        )
    return lines
