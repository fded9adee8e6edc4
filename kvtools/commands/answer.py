"""`kvtools answer`: multiple-choice questions and models in, the models' scores out."""

import json
from typing import TYPE_CHECKING, Annotated, Any

import typer

from kvtools import options as opt

if TYPE_CHECKING:
    from kvtools.keye.quiz.multiple_choice import Score

EXAMPLES = [
    "kvtools answer questions.kvs --media clips.kvs --model keye.safetensors",
    "kvtools quiz clips.kvs --task order --form check --frames 3 | kvtools answer --media clips.kvs --model keye.safetensors",
]
EXIT_CODES = (0, 2, 65, 66, 74, 141)
SEE_ALSO = ("kvtools quiz", "kvtools pretrain keye", "kvtools merge", "kvtools chat")


def main(
    run: opt.Invocation,
    questions: Annotated[
        list[str] | None, opt.argument("QUESTIONS", "Questions, from kvtools quiz; - is stdin, the default.")
    ] = None,
    model: opt.Models = None,
    media: opt.Media = None,
    tokenizer: opt.Tokenizer = None,
    as_json: opt.AsJson = False,
    device: opt.Device = "auto",
    dtype: opt.Dtype = "auto",
) -> int:
    """Score models on multiple-choice questions, beside the accuracy of guessing.

    The answer is the option whose first token is the most probable next token: a model is scored by what it knows, not by how
    it ends its sentences. Intervals are 95 % bootstrap intervals over clips, since questions of one clip are not independent.
    """
    from kvtools.errors import Corrupt, raising
    from kvtools.keye.data import media as media_sources
    from kvtools.keye.data.processor import Processor
    from kvtools.keye.quiz.multiple_choice import open_questions, predict, score
    from kvtools.keye.run.limits import Limits, tell_long_prompt
    from kvtools.keye.run.session import open_checkpoint
    from kvtools.progress import progress
    from kvtools.train.device import keep_freed_memory, resolve_device

    sources, models = questions or ["-"], model or []
    opt.refuse_if((not models, opt.NO_MODEL))
    run.refuse_shared_stdin(*sources, *models)
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
        with media_sources.Media(media or [], budget=limits.budget, image_tokens=limits.picture) as opened_media:
            processor = Processor.for_model(keye.config, template, opened_media, max_prompt=limits.row)
            with raising(Corrupt, name, "Give another model."), media_sources.raising_unreadable("Look at --media."):
                predicted = predict(keye, processor, asked)
                answers = list(progress(predicted, total=len(asked), unit="questions", label=name, quiet=run.quiet))
        tell_long_prompt(processor.longest, limits, keye.config.language.positions, run.warn)
        scores += [(name, task_score) for task_score in score(asked, answers)]
    for line in _lines(scores, as_json=as_json):
        typer.echo(line)
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
