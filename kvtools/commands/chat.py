"""`kvtools chat`: pictures, videos and a question in, the answer out as it comes."""

import json
import os
import sys
from collections.abc import Iterator
from typing import Annotated, Any, Literal

import typer

from kvtools.errors import Corrupt, Missing, Usage
from kvtools.options import Device, Dtype, FrameTokens, Quiet, Seed, Tokenizer, Verbose, parse_range, require

EXAMPLES = [
    "kvtools chat -q --model keye.safetensors --greedy --max-new 20 clip.mp4 'What happens?'",
    "printf 'Who is there?\\nWhat happens?\\n' | kvtools chat --model keye.safetensors --max-new 20 --json clip.mp4 -",
]
EXIT_CODES = (0, 2, 65, 66, 74, 141)
SEE_ALSO = ("kvtools pretrain keye", "kvtools tokenize-video", "kvtools convert", "kvtools-stream(5)")


def main(
    ctx: typer.Context,
    words: Annotated[
        list[str] | None,
        typer.Argument(metavar="CLIP|IMAGE|QUESTION", help="What to show, then the question in quotes; - reads questions."),
    ] = None,
    model: Annotated[str | None, typer.Option(metavar="M", help="A model, or a Hugging Face directory of Keye-VL.")] = None,
    tokenizer: Tokenizer = None,
    system: Annotated[str | None, typer.Option(metavar="TEXT", help="Words before the conversation.")] = None,
    mode: Annotated[
        Literal["auto", "think", "no_think"], typer.Option(help="Think before answering, or let the model choose.")
    ] = "auto",
    greedy: Annotated[bool, typer.Option("--greedy", help="Always the most probable token, instead of drawing one.")] = False,
    temperature: Annotated[float, typer.Option(metavar="X", help="Above 1 wilder, below tamer; 0 is --greedy.")] = 0.6,
    top_k: Annotated[int, typer.Option(metavar="N", min=0, help="Draw from the N most probable tokens; 0 is all.")] = 20,
    top_p: Annotated[float, typer.Option(metavar="SHARE", help="And of them from those that make up SHARE of 1.")] = 0.95,
    max_new: Annotated[int, typer.Option(metavar="N", min=1, help="Tokens an answer may have.")] = 1024,
    fps: Annotated[float, typer.Option(metavar="RATE", help="Frames of a video to look at, a second.")] = 2.0,
    frames: Annotated[int | None, typer.Option(metavar="N", min=1, help="Look at N frames a video instead.")] = None,
    frame_tokens: FrameTokens = "128:768",
    max_tokens: Annotated[int, typer.Option(metavar="N", min=1, help="Tokens a video may cost.")] = 24_576,
    seed: Seed = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Print each answer as a line of JSON.")] = False,
    device: Device = "auto",
    dtype: Dtype = "auto",
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> int:
    """Ask a model about pictures and videos, and read its answer as it comes.

    Without a question, on a terminal, it is a conversation, and each question knows those before. With - each line of stdin
    is a question by itself about what is shown. Of a video stream (.kvs) all records are shown. The same seed gives the same
    answers on one machine.
    """
    from kvtools.keye.data.media import Unreadable
    from kvtools.keye.run.session import Manner, Talk, open_model, show
    from kvtools.train.device import keep_freed_memory, resolve_device
    from kvtools.video.patch import Budget

    require(model is not None, "--model", "missing", "a model, as kvtools pretrain keye makes,")
    require(0 < fps < float("inf"), "--fps", fps, "a rate above 0")
    require(0 <= temperature < float("inf"), "--temperature", temperature, "0 or more")
    require(0 < top_p <= 1, "--top-p", top_p, "more than 0 and at most 1")
    names, question = _parted(words or [])
    budget = Budget(max_tokens, *parse_range(frame_tokens, "--frame-tokens"))
    place, chosen = resolve_device(device, dtype)
    keep_freed_memory()
    manner = Manner(0.0 if greedy else temperature, top_k, top_p, max_new, mode, seed)
    keye, chat = open_model(model or "", tokenizer, device=place, dtype=chosen)
    first: list[dict[str, Any]] = [] if system is None else [{"role": "system", "content": system}]
    try:
        media, shown = show(names, budget=budget, fps=fps, n_frames=frames)
        with media:
            talk = Talk(keye, chat, media, manner)
            messages = first
            for number, asked in enumerate(_questions(question)):
                is_kept = question is None and number > 0
                content = [] if is_kept else shown
                messages = [*(messages if is_kept else first), {"role": "user", "content": [*content, _text(asked)]}]
                said = talk.ask(messages, str(number), None if as_json else _print)
                messages.append({"role": "assistant", "content": said.text})
                figures = {
                    "tokens": said.n_tokens,
                    "prompt_tokens": said.n_prompt,
                    "visual_tokens": said.n_visual,
                    "seconds": round(said.seconds, 3),
                    "tokens_per_s": round(said.n_tokens / said.seconds, 2),
                }
                if as_json:
                    line = {"question": asked, "answer": said.text, "ended": said.ended, **figures}
                    typer.echo(json.dumps(line, ensure_ascii=False))
                else:
                    typer.echo()
                if said.ended == "length" and not as_json:
                    ctx.obj.log(f"cut after {said.n_tokens} tokens; --max-new allows more.", quiet=quiet)
                if verbose:
                    ctx.obj.log(f"{said.n_tokens} tokens in {said.seconds:.1f} s, after {said.n_prompt} of the prompt.")
    except Unreadable as fault:
        raise Corrupt(f"{fault}.") from None
    except ValueError as fault:
        raise Corrupt(f"{model}: {fault}.") from None
    return 0


def _parted(words: list[str]) -> tuple[list[str], str | None]:
    """What is shown, and the question: "-" for those of stdin, None for a conversation."""
    from kvtools.video.inputs import VIDEO_SUFFIXES
    from kvtools.video.order import IMAGE_SUFFIXES

    if words and (words[-1] == "-" or not os.path.exists(words[-1])):
        if " " not in words[-1] and os.path.splitext(words[-1])[1].lower() in (*VIDEO_SUFFIXES, *IMAGE_SUFFIXES, ".kvs"):
            raise Missing(f"{words[-1]}: no such file. A question comes last, in quotes.")
        return words[:-1], words[-1]
    if sys.stdin.isatty():
        return words, None
    raise Usage("QUESTION missing: words in quotes after what is shown, or - for lines of stdin, expected.")


def _questions(question: str | None) -> Iterator[str]:
    if question not in (None, "-"):
        yield question or ""
        return
    while True:
        if question is None:
            typer.echo("> ", nl=False, err=True)
        line = sys.stdin.buffer.readline()
        if not line:
            return
        if asked := line.decode("utf-8", "replace").strip():
            yield asked


def _text(words: str) -> dict[str, str]:
    return {"type": "text", "text": words}


def _print(words: str) -> None:
    if sys.stdout.isatty():  # a model may say whatever bytes it likes, a terminal should not obey them
        words = "".join(letter for letter in words if letter.isprintable() or letter in "\n\t")
    typer.echo(words, nl=False)
    sys.stdout.flush()
