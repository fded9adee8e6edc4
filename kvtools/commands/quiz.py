"""`kvtools quiz`: clips in, questions that they answer by themselves out."""

import os
from functools import partial
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from kvtools.chance import rng_for
from kvtools.options import (
    Compress,
    Force,
    FrameTokens,
    Output,
    Quiet,
    Seed,
    Stamp,
    Strict,
    Verbose,
    is_given,
    parse_range,
    require,
)

if TYPE_CHECKING:
    from kvtools.keye.quiz.build import Side, Table
    from kvtools.keye.quiz.tasks import Clip

EXAMPLES = [
    "kvtools quiz clips.kvs --task order --frames 3 --choices 2 -n 20 -o questions.kvs",
    "kvtools quiz clips.kvs --task order --form check --frames 3 -n 4 | kvtools cat --json -",
]
EXIT_CODES = (0, 2, 65, 66, 73, 74, 141)
SEE_ALSO = ("kvtools tokenize-video", "kvtools convert", "kvtools cat", "kvtools-stream(5)")

_TASKS = ("order", "match", "time", "describe")


def main(
    ctx: typer.Context,
    clips: Annotated[
        list[str] | None,
        typer.Argument(metavar="CLIPS|VIDEO|DIR", help="Streams of videos, video files, and folders of them; - is stdin."),
    ] = None,
    task: Annotated[
        str, typer.Option(metavar="NAMES", help="Ask for order, match, time, describe, or several, with commas.")
    ] = ("order,match,time"),
    number: Annotated[
        int | None,
        typer.Option("-n", "--number", metavar="N", min=1, help="So many questions. Default: 100; with --labels one a clip."),
    ] = None,
    form: Annotated[
        Literal["choice", "open", "check"], typer.Option(help="Answer by a letter, freely, or by yes or no.")
    ] = "choice",
    frames: Annotated[int, typer.Option(metavar="N", min=2, max=64, help="Frames a question about one clip shows.")] = 6,
    choices: Annotated[int, typer.Option(metavar="N", min=2, max=8, help="Options to choose from.")] = 4,
    split: Annotated[
        str | None, typer.Option(metavar="PART[:SHARE]", help="Use one side of the clips, as train:0.7 or test:0.3.")
    ] = None,
    group: Annotated[str | None, typer.Option(metavar="CSV", help="Keep clips of equal `group` together: file,group.")] = None,
    labels: Annotated[
        str | None, typer.Option(metavar="CSV", help="Ask for labels instead: file,label[,split][,group].")
    ] = None,
    question: Annotated[str | None, typer.Option(metavar="TEXT", help="--labels: the words of the question.")] = None,
    positive: Annotated[
        str | None, typer.Option(metavar="LABEL", help="--labels --form check: yes is this label. Default: the first.")
    ] = None,
    frame_tokens: FrameTokens = "16:64",
    seed: Seed = 0,
    output: Output = "-",
    compress: Compress = None,
    force: Force = False,
    strict: Strict = False,
    stamp: Stamp = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> int:
    """Make questions of clips, with their answers, for training and for measuring: no labels are needed.

    Frames are to be put in order, the clip that goes on is to be chosen, the second is to be told at which one clip becomes
    another, and how light, coloured and lively a clip is. Questions name clips by their keys and hold no pictures. Answers are
    drawn before clips are looked at. A clip is on one side of a split for good. Clips that cannot be read are told and left
    out; the exit code is then 65.
    """
    from kvtools.artifact.files import Sink, is_same_file, refuse_existing
    from kvtools.artifact.history import extend
    from kvtools.artifact.stream import Head, Writer
    from kvtools.errors import Corrupt, Usage
    from kvtools.keye.data.conversations import write
    from kvtools.keye.quiz import build as quiz
    from kvtools.skipped import SkippedRows
    from kvtools.video.inputs import find_clips
    from kvtools.video.patch import Budget
    from kvtools.video.recipe import Recipe
    from kvtools.video.sample import Want

    tasks = list(dict.fromkeys(task.split(",")))
    require(set(tasks) <= set(_TASKS), "--task", task, f"{', '.join(_TASKS)}, or several with commas,")
    _require_askable(tasks if labels is None else [], form, frames, choices)
    require(labels is not None or not (question or positive), "--question, --positive", "given", "--labels with them")
    require(positive is None or form == "check", "--positive", positive, "--form check beside it")
    require(labels is None or not is_given(ctx, "task"), "--task", task, "--labels without it")
    recipe = Recipe(Want(fps=4.0, max_frames=256), Budget(24_576, *parse_range(frame_tokens, "--frame-tokens")))
    named = clips or ["-"]
    if any(is_same_file(src, output) for src in named):
        raise Usage(f"{output}: both input and output. Name another output.")
    refuse_existing(output, force=force)
    told = None if labels is None else quiz.Table.open(labels)
    side = _side(split, told)
    groups = told if group is None else quiz.Table.open(group)

    found: list[Clip] = []
    skipped, histories, files = SkippedRows(), [], []
    for src in named:
        reader = None if os.path.isdir(src) else quiz.stream_of(src)
        if reader is None:
            files.append(src)
        else:
            found += quiz.clips_of(reader, src)
            histories.append(reader.head.history)
    if files:
        found += quiz.clips_of_files(find_clips(files), recipe, skipped)
    code = skipped.report("clips", ctx.obj.log, strict=strict)
    first = {clip.key: clip for clip in reversed(found)}
    grouped = quiz.in_groups(list(reversed(first.values())), groups)
    kept = quiz.on_side(grouped, side, told)
    notes, note = SkippedRows(), partial(ctx.obj.log, quiet=quiet)
    for pair in quiz.look_across(grouped, kept) if side is not None else []:
        notes.skip("clips that look like one on the other side of the split, kept; --group keeps them together", pair)
    if told is None:
        made = list(quiz.ask(kept, tasks, form, number or 100, notes, n_frames=frames, n_choices=choices, seed=seed))
    else:
        words = quiz.labels_of(kept, told, notes)
        made = quiz.ask_labels(
            [clip for clip in kept if clip.key in words], list(words.values()), form, number,
            n_frames=frames, n_choices=choices, seed=seed, asked_for=positive, question=question or "",
        )  # fmt: skip
    if not made:
        why = "; ".join(notes.lines()) or ("none is on this side of the split" if side else "none that differ")
        raise Corrupt(
            f"{len(found)} clips: no question could be made: {why}. Give longer clips, more of them, or fewer --frames."
        )
    notes.report("clips", note, strict=False)  # told, and no fault: clips enough were left
    if number is not None and len(made) < number:
        note(f"clips: {len(made)} questions made of {number}; they give no more that differ.")
    config = {
        "task": "label" if told else task,
        "form": form,
        "frames": frames,
        "choices": choices,
        "split": split,
        "seed": seed,
    }
    head = Head("conversation", extend("quiz", ctx.obj.argv, before=histories, stamp=stamp), config)
    with Writer(Sink(output, force=force), head, level=compress) as writer:
        write(made if side is None else [{**each, "split": side.name} for each in made], writer)
    return code


def _require_askable(tasks: list[str], form: str, frames: int, choices: int) -> None:
    """Raise Usage for options by which no question can be made."""
    from kvtools.errors import Usage
    from kvtools.keye.quiz.tasks import orders

    if "order" in tasks:
        try:
            orders(frames, {"choice": choices, "open": 1, "check": 2}[form], rng_for(0))
        except ValueError as fault:
            raise Usage(f"--frames {frames}: {fault}.") from None
    if "time" in tasks:
        n_needed = {"choice": choices, "open": 1, "check": 2}[form]
        require(n_needed < frames, "--frames", frames, f"more than the {n_needed} moments to choose from,")


def _side(split: str | None, told: "Table | None") -> "Side | None":
    """`train:0.7` or, where a table tells, `train`."""
    from kvtools.keye.quiz.build import Side

    if split is None:
        return None
    name, colon, share = split.partition(":")
    if not colon:
        require(told is not None and told.column(["split"]) is not None, "--split", split, "a share, or --labels with a split,")
        return Side(name, None)
    try:
        value = float(share)
    except ValueError:
        value = -1.0
    require(0 < value < 1 and name in ("train", "test"), "--split", split, "train:SHARE or test:SHARE between 0 and 1")
    return Side(name, value)
