"""`kvtools quiz`: clips in, self-supervised questions about them out."""

import os
from typing import TYPE_CHECKING, Annotated, Literal

from kvtools import options as opt

if TYPE_CHECKING:
    from kvtools.keye.quiz.clips import Clip, Side

EXAMPLES = [
    "kvtools quiz clips.kvs --task order --frames 3 --choices 2 -n 20 -o questions.kvs",
    "kvtools quiz clips.kvs --task order --form check --frames 3 -n 4 | kvtools cat --json -",
]
EXIT_CODES = (0, 2, 65, 66, 73, 74, 141)
SEE_ALSO = ("kvtools tokenize-video", "kvtools convert", "kvtools cat", "kvtools-stream(5)")
COMMON = ("output", "compress", "force", "strict", "stamp")

_TASKS = ("order", "match", "time", "describe")


def main(
    run: opt.Invocation,
    clips: Annotated[
        list[str] | None, opt.argument("CLIPS|VIDEO|DIR", "Streams of videos, video files, and folders of them; - is stdin.")
    ] = None,
    task: Annotated[
        str, opt.value("NAMES", "Tasks: order, match, time, describe, or several with commas.")
    ] = "order,match,time",
    number: Annotated[
        int | None, opt.value("N", "Number of questions. Default: 100, or with --labels one a clip.", "-n", "--number", least=1)
    ] = None,
    form: Annotated[
        Literal["choice", "open", "check"], opt.option("Answer with a letter, freely, or with yes or no.")
    ] = "choice",
    frames: Annotated[int, opt.value("N", "Frames of a question about one clip.", least=2, most=64)] = 6,
    choices: Annotated[int, opt.value("N", "Options of a question.", least=2, most=8)] = 4,
    split: Annotated[str | None, opt.value("SIDE[:FRACTION]", "Use one side of the clips, as train:0.7 or test:0.3.")] = None,
    group: Annotated[str | None, opt.value("CSV", "Table file,group; a group stays on one side.")] = None,
    labels: Annotated[
        str | None, opt.value("CSV", "Table file,label[,split][,group]: ask for labels instead of --task.")
    ] = None,
    question: Annotated[str | None, opt.value("TEXT", "With --labels: the text of the question.")] = None,
    positive: Annotated[
        str | None, opt.value("LABEL", "With --labels --form check: the label that is yes. Default: the first.")
    ] = None,
    frame_tokens: opt.FrameTokens = "16:64",
    seed: opt.Seed = 0,
) -> int:
    """Generate self-supervised questions from clips, with their answers, for training and evaluation: no labels are needed.

    Tasks: put frames in order, choose the clip that continues, give the second at which one clip becomes another, and describe
    brightness, colour and motion. Questions name clips by their keys and hold no pictures. Answers are drawn before clips are
    looked at. A clip stays on its side of a split. Clips that cannot be read are reported and left out; the exit code is
    then 65.
    """
    from kvtools.artifact import source_name
    from kvtools.artifact.equal_keys import KeysSoFar
    from kvtools.errors import Corrupt, raising
    from kvtools.keye.data.conversations import write
    from kvtools.keye.quiz import clips as sources
    from kvtools.keye.quiz.build import ask, ask_labels
    from kvtools.keye.quiz.orders import has_orders
    from kvtools.skipped import SkippedRows
    from kvtools.video.inputs import find_clips
    from kvtools.video.patch import Budget
    from kvtools.video.recipe import VideoRecipe
    from kvtools.video.sample import FrameSampling

    tasks = list(dict.fromkeys(task.split(",")))
    n_options = {"choice": choices, "open": 1, "check": 2}[form]
    side = None if split is None else _side(split)
    opt.refuse_if(
        (
            not set(tasks) <= set(_TASKS),
            f"--task {task} is not known. Give one of {', '.join(_TASKS)}, or several with commas.",
        ),
        (labels is None and question, "--question is used only with --labels. Give --labels CSV, or leave it out."),
        (labels is None and positive, "--positive is used only with --labels. Give --labels CSV, or leave it out."),
        (positive is not None and form != "check", "--positive is used only with --form check. Give both, or leave it out."),
        (labels is not None and "task" in run.given, "--task and --labels cannot be used together. Give one of them."),
        (
            labels is None and "order" in tasks and not has_orders(frames, n_options),
            f"--frames {frames} has no {n_options} orders that differ enough. Give more --frames, or fewer --choices.",
        ),
        (
            labels is None and "time" in tasks and n_options >= frames,
            f"--frames {frames} has too few moments for {n_options} options of --task time. Give {n_options + 1} or more.",
        ),
        (
            split is not None and side is None,
            f"--split {split} is not a side. Give train:FRACTION or test:FRACTION, with a fraction between 0 and 1.",
        ),
        (side is not None and side.fraction is None and labels is None, _no_fraction(split)),
    )
    recipe = VideoRecipe(
        FrameSampling(fps=4.0, max_frames=256), Budget(24_576, *opt.parse_range(frame_tokens, "--frame-tokens"))
    )
    inputs = clips or ["-"]
    run.refuse_own_input(*inputs)
    run.refuse_existing()
    label_table = None if labels is None else sources.ClipTable.open(labels)
    if side is not None and side.fraction is None and label_table is not None:
        opt.refuse_if((label_table.column("split") is None, _no_fraction(split)))
    group_table = label_table if group is None else sources.ClipTable.open(group)

    opened: list[Clip] = []
    keys = KeysSoFar()
    unreadable, notes, histories, files = SkippedRows(), SkippedRows(), [], []
    for src in inputs:
        reader = None if os.path.isdir(src) else sources.open_video_stream(src)
        if reader is None:
            files.append(src)
        else:
            opened += sources.clips_of(reader, keys)
            histories.append(reader.head.history)
    if files:
        opened += sources.clips_of_files(find_clips(files), recipe, unreadable, keys)
    names = ", ".join(map(source_name, inputs))
    if not opened:
        why = "".join(f": {line}" for line in unreadable.lines())
        raise Corrupt(f"{names}: no clip could be read{why}. Repair the files, or give others.")
    code = unreadable.report("clips", run.log, strict=run.strict)
    first_of_key = {clip.key: clip for clip in reversed(opened)}
    grouped = sources.in_groups(list(reversed(first_of_key.values())), group_table)
    kept = sources.on_side(grouped, side, label_table)
    for pair in sources.leaks(grouped, kept) if side is not None else []:
        notes.skip("clips that look like one on the other side of the split, kept; --group keeps them together", pair)
    if label_table is None:
        questions = list(ask(kept, tasks, form, number or 100, notes, n_frames=frames, n_choices=choices, seed=seed))
    else:
        label_of = sources.labels_of(kept, label_table, notes)
        known = sorted(set(label_of.values()))
        opt.refuse_if(
            (
                known and positive is not None and positive not in known,
                f"--positive {positive} is not a label. Give one of {', '.join(known)}.",
            )
        )
        with raising(Corrupt, label_table.name):
            questions = ask_labels(
                [clip for clip in kept if clip.key in label_of], list(label_of.values()), form, number,
                n_frames=frames, n_choices=choices, seed=seed, positive=positive, question=question or "",
            )  # fmt: skip
    if not questions:
        why = "; ".join(notes.lines()) or ("none is on this side of the split" if side else "none that differ")
        raise Corrupt(
            f"{names}: no question could be made of {len(opened)} clips: {why}. "
            "Give longer clips, more of them, or fewer --frames."
        )
    notes.report("clips", run.info, strict=False)  # reported, and no fault: enough clips were left
    if number is not None and len(questions) < number:
        run.info(f"clips: {len(questions)} questions made of {number}; they give no more that differ.")
    name = "label" if label_table else task
    config = {"task": name, "form": form, "frames": frames, "choices": choices, "split": split, "seed": seed}
    with run.writer("conversation", config, before=histories) as writer:
        write(questions if side is None else [{**asked, "split": side.name} for asked in questions], writer)
    return code


def _side(split: str) -> "Side | None":
    """`train:0.7` or, where a table decides, a name alone; None for what is not a side."""
    from kvtools.keye.quiz.clips import Side

    name, colon, fraction = split.partition(":")
    if not colon:
        return Side(name, None)
    try:
        value = float(fraction)
    except ValueError:
        return None
    return Side(name, value) if 0 < value < 1 and name in ("train", "test") else None


def _no_fraction(split: str | None) -> str:
    return f"--split {split} has no fraction. Give one, as train:0.7, or --labels with a column split."
