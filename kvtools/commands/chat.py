"""`kvtools chat`: pictures, videos and a question in, the answer out while it is generated."""

import json
import os
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from kvtools import options as opt
from kvtools.errors import Corrupt, Missing, raising
from kvtools.names import naming

if TYPE_CHECKING:
    from kvtools.keye.run.session import Reply

EXAMPLES = [
    "kvtools chat -q --model keye.safetensors --greedy --max-new 20 clip.mp4 'What happens?'",
    "printf 'Who is there?\\nWhat happens?\\n' | kvtools chat --model keye.safetensors --max-new 20 --json clip.mp4 -",
]
EXIT_CODES = (0, 2, 65, 66, 74, 141)
SEE_ALSO = ("kvtools pretrain keye", "kvtools tokenize-video", "kvtools convert", "kvtools-stream(5)")
GROUPS = {
    "Sampling": ("--greedy", "--temperature", "--top-k", "--top-p", "--repetition-penalty", "--stop", "--seed"),
    "Pictures and videos": ("--fps", "--frames", "--frame-tokens", "--max-tokens"),
}


def main(
    run: opt.Invocation,
    arguments: Annotated[
        list[str] | None,
        opt.argument("CLIP|IMAGE|QUESTION", "Pictures and videos, then the question in quotes; - reads questions from stdin."),
    ] = None,
    model: opt.Model = None,
    tokenizer: opt.Tokenizer = None,
    system: Annotated[str | None, opt.value("TEXT", "System message before the conversation.")] = None,
    mode: Annotated[
        Literal["auto", "think", "no_think"], opt.option("Think before answering, or not; auto lets the model choose.")
    ] = "auto",
    agentic: Annotated[
        bool, opt.option("Run the model's code in a sandbox, and show it the pictures that the code makes.")
    ] = False,
    runs: Annotated[int, opt.value("N", "Most pieces of code that one answer may run.", least=1)] = 5,
    greedy: Annotated[
        bool, opt.option("Take the most probable token each time; the same as --temperature 0.", "--greedy")
    ] = False,
    temperature: Annotated[float, opt.value("X", "Sampling temperature; 0 is greedy.")] = 0.6,
    top_k: Annotated[int, opt.value("N", "Sample from the N most probable tokens; 0 is all.", least=0)] = 20,
    top_p: Annotated[float, opt.value("P", "Sample from the fewest tokens with a total probability of P.")] = 0.95,
    repetition_penalty: opt.RepetitionPenalty = 1.0,
    stops: opt.StopTexts = None,
    max_new: Annotated[int, opt.value("N", "Most tokens of an answer.", least=1)] = 1024,
    fps: Annotated[float, opt.value("RATE", "Frames per second taken from a video.")] = 2.0,
    frames: Annotated[int | None, opt.value("N", "Take N frames of each video instead.", least=1)] = None,
    frame_tokens: Annotated[
        str | None, opt.value("LOW:HIGH", "Visual tokens per frame of a file. Default: as the model was trained.")
    ] = None,
    max_tokens: Annotated[
        int | None, opt.value("N", "Most visual tokens of a video. Default: as the model was trained.", least=1)
    ] = None,
    seed: opt.Seed = 0,
    as_json: opt.AsJson = False,
    device: opt.Device = "auto",
    dtype: opt.Dtype = "auto",
) -> int:
    """Ask a model about pictures and videos, and read its answer while it is generated.

    Without a question, on a terminal, this is a conversation, in which each question follows those before. With - each line of
    stdin is a separate question about the same pictures and videos. All records of a video stream (.kvs) are used. Pictures and
    videos get the tokens that the model was trained with, and give way where several would not fit. The same seed gives the
    same answers on one machine.
    """
    from contextlib import ExitStack

    from kvtools.keye.data.media import raising_unreadable
    from kvtools.keye.run.limits import Limits, tell_long_prompt
    from kvtools.keye.run.session import ChatSession, GenerationConfig, open_checkpoint, open_visuals, reading_progress
    from kvtools.keye.sandbox.session import Sandbox
    from kvtools.train.device import keep_freed_memory, resolve_device

    inputs = arguments or []
    has_question = bool(inputs) and (inputs[-1] == "-" or not os.path.exists(inputs[-1]))
    opt.refuse_if(
        (model is None, opt.NO_MODEL),
        (agentic and mode != "auto", f"--mode {mode} does not go with --agentic, which is a mode itself. Leave one out."),
        (not 0 < fps < float("inf"), f"--fps {fps:g} is not above 0. Give a finite number above 0."),
        *opt.sampling_rules(temperature, top_p, repetition_penalty, stops),
        (
            not has_question and not sys.stdin.isatty(),
            "QUESTION is missing. Give it in quotes after the files, or - to read questions from stdin, one a line.",
        ),
    )
    names, question = (inputs[:-1], inputs[-1]) if has_question else (inputs, None)
    if question is not None and _is_file_name(question):
        raise Missing(f"{question}: no such file. Give the question last, in quotes.")
    frame_range = None if frame_tokens is None else opt.parse_range(frame_tokens, "--frame-tokens")
    torch_device, precision = resolve_device(device, dtype)
    keep_freed_memory()
    generation = GenerationConfig(
        0.0 if greedy else temperature, top_k, top_p, max_new, "agentic" if agentic else mode, seed, repetition_penalty,
        tuple(stops or []),
    )  # fmt: skip
    keye, template, weights = open_checkpoint(model or "", tokenizer, device=torch_device, dtype=precision)
    limits = Limits.of_model(weights).narrowed(max_tokens, frame_range, run.warn)
    before: list[dict[str, Any]] = [] if system is None else [{"role": "system", "content": system}]
    with raising(Corrupt, model or "", "Give another model."), raising_unreadable("Give another file."):
        media, visuals = open_visuals(names, limits, fps=fps, n_frames=frames)
        with media, ExitStack() as stack:
            sandbox = stack.enter_context(Sandbox()) if agentic else None
            session = ChatSession(keye, template, media, generation, sandbox, runs, max_prompt=limits.row)
            messages, content = before, visuals
            for number, text in enumerate(_questions(question)):
                messages = [*messages, {"role": "user", "content": [*content, {"type": "text", "text": text}]}]
                with reading_progress(keye, quiet=run.is_silent):
                    reply = session.ask(messages, str(number), _ignore if as_json else _print)
                tell_long_prompt(reply.n_prompt, limits, keye.config.language.positions, run.warn)
                run.print(_as_json(text, reply, is_agentic=agentic) if as_json else "")
                if reply.ended == "length" and not as_json:
                    run.info(f"cut after {reply.n_tokens} tokens; --max-new allows more.")
                if reply.ended == "insertion" and not as_json:
                    run.info(f"cut after {reply.n_runs} runs of code; --runs allows more.")
                if run.verbose:
                    run.log(f"{reply.n_tokens} tokens in {reply.seconds:.1f} s, after a prompt of {reply.n_prompt}.")
                if question is None:
                    messages, content = (
                        [*messages, {"role": "assistant", "content": list(reply.content) if reply.n_runs else reply.text}],
                        [],
                    )
                else:
                    messages = before
    return 0


def _is_file_name(text: str) -> bool:
    """Whether what stands for a question looks like the name of a picture, a video or a stream."""
    from kvtools.video.inputs import IMAGE_SUFFIXES, VIDEO_SUFFIXES

    return " " not in text and os.path.splitext(text)[1].lower() in (*VIDEO_SUFFIXES, *IMAGE_SUFFIXES, ".kvs")


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
        if text := line.decode("utf-8", "replace").strip():
            yield text


def _as_json(question: str, reply: "Reply", *, is_agentic: bool) -> str:
    line: dict[str, Any] = {
        "question": question,
        "answer": reply.text,
        "ended": reply.ended,
        "tokens": reply.n_tokens,
        "prompt_tokens": reply.n_prompt,
        "visual_tokens": reply.n_visual,
        **({"runs": reply.n_runs} if is_agentic else {}),
        "seconds": round(reply.seconds, 3),
        "tokens_per_s": round(reply.n_tokens / reply.seconds, 2),
    }
    return json.dumps(line, ensure_ascii=False)


def _ignore(_text: str) -> None:
    pass


def _print(text: str) -> None:
    if sys.stdout.isatty():  # a terminal must not obey the control bytes that a model may generate
        text = "".join(letter for letter in text if letter.isprintable() or letter in "\n\t")
    with naming("-"):
        typer.echo(text, nl=False)
        sys.stdout.flush()
