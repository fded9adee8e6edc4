"""`kvtools answer`: questions of kvtools quiz and models in, how many each answers right out."""

import json
import os
from typing import TYPE_CHECKING, Annotated, Any

import typer

from kvtools.options import AsJson, Device, Dtype, Media, Quiet, Tokenizer, Verbose, require

if TYPE_CHECKING:
    from kvtools.keye.quiz.multiple_choice import Marks

EXAMPLES = [
    "kvtools answer questions.kvs --media clips.kvs --model keye.safetensors",
    "kvtools quiz clips.kvs --task order --form check --frames 3 | kvtools answer --media clips.kvs --model keye.safetensors",
]
EXIT_CODES = (0, 2, 65, 66, 74, 141)
SEE_ALSO = ("kvtools quiz", "kvtools pretrain keye", "kvtools merge", "kvtools chat")


def main(
    ctx: typer.Context,
    questions: Annotated[
        list[str] | None, typer.Argument(metavar="QUESTIONS", help="Questions, from kvtools quiz; - is stdin, the default.")
    ] = None,
    model: Annotated[
        list[str] | None, typer.Option(metavar="M", help="A model, or a Hugging Face directory; may be repeated.")
    ] = None,
    media: Media = None,
    tokenizer: Tokenizer = None,
    as_json: AsJson = False,
    device: Device = "auto",
    dtype: Dtype = "auto",
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> int:
    """Let models answer questions that have options, and tell how many they answer right, beside chance.

    The answer is the option whose first token is the likeliest, so that a model is judged by what it knows, not by how it ends
    its sentences. Intervals are 95 %, over clips drawn with replacement: questions of one clip are not independent.
    """
    from kvtools.errors import Corrupt
    from kvtools.keye.data.media import Media, Unreadable
    from kvtools.keye.quiz.multiple_choice import chosen, marked, open_questions
    from kvtools.keye.run.session import open_model
    from kvtools.progress import progress
    from kvtools.train.device import keep_freed_memory, resolve_device

    sources, models = questions or ["-"], model or []
    require(bool(models), "--model", "missing", "a model, as kvtools pretrain keye makes,")
    require([*sources, *models].count("-") <= 1, "-", "named more than once", "one input from stdin")
    asked = [question for src in sources for question in open_questions(src)]
    place, precision = resolve_device(device, dtype)
    keep_freed_memory()
    found: list[tuple[str, Marks]] = []
    folders = [src for src in media or [] if os.path.isdir(src)]
    with Media(folders, [src for src in media or [] if src not in folders]) as shown:
        for name in models:
            keye, chat = open_model(name, tokenizer, device=place, dtype=precision)
            try:
                told = progress(chosen(keye, chat, shown, asked), total=len(asked), unit="questions", label=name, quiet=quiet)
                found += [(name, marks) for marks in marked(asked, list(told))]
            except (Unreadable, ValueError) as fault:
                raise Corrupt(f"{name}: {fault}.") from None
    for line in _lines(found, as_json=as_json):
        typer.echo(line)
    return 0


def _lines(found: "list[tuple[str, Marks]]", *, as_json: bool) -> list[str]:
    rows: list[dict[str, Any]] = [{"model": name, **vars(marks)} for name, marks in found]
    if as_json:
        return [json.dumps(row, ensure_ascii=False) for row in rows]
    wide = max(len(name) for name, _ in found)
    lines = [f"{'model':<{wide}}  task      right  of    share  95 %        chance"]
    for row in rows:
        spread = f"{row['low']:.2f}-{row['high']:.2f}"
        lines.append(
            f"{row['model']:<{wide}}  {row['task']:<8}  {row['right']:<5}  {row['n']:<4}  {row['share']:<5.2f}  {spread:<10}  "
            f"{row['chance']:.2f}"
        )
    return lines
