"""Option types that mean the same in every command.

One declaration serves parsing, `--help`, `--describe` and the man pages. Imports nothing heavy: every `--help` loads it.
"""

import math
import tomllib
from collections.abc import Sequence
from typing import Annotated, Any, Literal

import typer

from kvtools.errors import Usage, unreadable
from kvtools.invocation import Invocation
from kvtools.option_values import parse_range, parse_size, refuse_if

__all__ = ["Invocation", "parse_range", "parse_size", "refuse_if"]  # what a command needs beside the option types


def value(metavar: str, text: str, *names: str, least: float | None = None, most: float | None = None) -> Any:
    """An option with a value of its own, for Annotated. names: by default -- and the parameter's name."""
    return typer.Option(*names, metavar=metavar, help=text, min=least, max=most)


def option(text: str, *names: str) -> Any:
    """A flag, or an option whose values its Literal lists, for Annotated."""
    return typer.Option(*names, help=text)


def argument(metavar: str, text: str) -> Any:
    """A positional argument, for Annotated."""
    return typer.Argument(metavar=metavar, help=text)


# what `--help` shows below a command's own options: titles, and the options that stand under each
GROUPS = {
    "Machine and state": (
        "--device", "--dtype", "--peak", "--memory", "--jobs", "--chunk", "--timeout", "--shard", "--state",
    ),
    "Common options": (
        "--json", "--compress", "--force", "--strict", "--config", "--print-config", "--dry-run", "--stamp", "-q", "-v",
        "-h", "--help",
    ),
}  # fmt: skip

Inputs = Annotated[list[str] | None, argument("INPUT", "Artifacts to read; - is stdin, the default.")]
Interactions = Annotated[str, argument("INTERACTIONS", "CSV, TSV, RecBole .inter, lines of words, or a stream; - is stdin.")]
Output = Annotated[str, value("DST", "Where to write; - is stdout.", "-o", "--output")]
Seed = Annotated[int, value("N", "Random seed.", "--seed", least=0)]
ReportFile = Annotated[str | None, value("FILE", "Write the report to FILE as JSON.", "--report")]
LogFile = Annotated[str | None, value("FILE", "Append the training curve to FILE as JSON Lines.", "--log")]
TensorBoard = Annotated[str | None, value("DIR", "Write the training curve for TensorBoard, too, into DIR.", "--tensorboard")]
KeysFile = Annotated[str | None, value("FILE", "Keys of the rows of an .npy: one per line, or a JSON list.", "--keys")]
Columns = Annotated[
    list[str] | None, value("ROLE=COL", "Read a role (user, item, time, …) from column COL; may be repeated.", "--column")
]
Split = Annotated[
    str | None,
    value(
        "SPLIT", "Parts by time, as time:0.8,0.1 (train, valid), or leave-last-out. Default: the file's, else leave-last-out."
    ),
]
Steps = Annotated[str, value("DURATION", "Training length: 500 (steps), 3ep (epochs) or 1e9tok (tokens).", "--steps")]
Overrides = Annotated[
    list[str] | None, value("NAME=X", "Override a training setting, as warmup=2%; may be repeated.", "--training")
]
ShardModel = Annotated[
    bool,
    option("Give each rank a part of every weight, not the whole model: for models that do not fit.", "--shard-model"),
]
ShardOptimizer = Annotated[
    bool, option("Give each rank the optimizer's state of a part of the weights only: the same weights.", "--shard-optimizer")
]
TWICE_SHARDED = "--shard-model shards the optimizer, too. Leave --shard-optimizer out."
Tokenizer = Annotated[
    str | None, value("FILE", "tokenizer.json, or a folder with one. Default: the model's, or bytes.", "--tokenizer")
]
Media = Annotated[
    list[str] | None, value("STREAM|DIR", "Where pictures and videos are: video streams, folders; may be repeated.", "--media")
]
_KEYE = "A model, or a Hugging Face directory of Keye-VL"
NO_MODEL = "--model is missing. Give a model that kvtools pretrain keye has written."
Model = Annotated[str | None, value("M", f"{_KEYE}.", "--model")]
Models = Annotated[list[str] | None, value("M", f"{_KEYE}; may be repeated.", "--model")]
FrameTokens = Annotated[
    str, value("LOW:HIGH", "Visual tokens per frame of a file, at least LOW, at most HIGH.", "--frame-tokens")
]

ItemRewards = Annotated[
    list[str] | None,
    value(
        "NAME[:WEIGHT]",
        "A term of the reward: hit, column:NAME, pscore:MODEL, format or duration; may be repeated.",
        "--reward",
    ),
]
GroupSize = Annotated[
    int, value("N", "Items proposed to each user; four times as many as will be recommended.", "--group", least=2)
]
HeldOut = Annotated[
    str | None,
    value("FILE", "Measure before and after on the valid part of FILE. Default: on that of INTERACTIONS.", "--valid"),
]
RequireGain = Annotated[bool, option("Exit with 1 unless the held-out reward has risen.", "--require-gain")]
RolloutsFile = Annotated[str | None, value("FILE", "Keep what was sampled, with its rewards, as a stream.", "--rollouts")]
Recommender = Annotated[str | None, value("M", "Model from pretrain onerec.", "--model")]
PolicyLr = Annotated[float, value("X", "Learning rate.", "--lr", least=0)]
PolicyBatch = Annotated[int, value("N", "Users of a step.", "--batch", least=1)]
Listed = Annotated[
    str | None, value("FILE", "Items, one a line, whose reward is lowered while they have too large a share.", "--listed")
]
KeepSeen = Annotated[bool, option("Propose items of the user's history, too.", "--keep-seen")]
Sampling = Annotated[
    Literal["beam", "sample"], option("How items are proposed: by beam search, or drawn at random.", "--sampling")
]

Rewards = Annotated[
    list[str] | None,
    value(
        "NAME[:WEIGHT]", "A term of the reward, as correct, format:0.5 or cmd:PROGRAM[:WEIGHT]; may be repeated.", "--reward"
    ),
]
Modes = Annotated[
    str | None,
    value("MODE:SHARE,...", "Ask prompts in these modes, as think:1,no_think:1,auto:1. Default: each in its own.", "--modes"),
]
RepetitionPenalty = Annotated[
    float, value("X", "Divide the logits of tokens that the prompt or the answer has by X; 1 is none.", "--repetition-penalty")
]
StopTexts = Annotated[list[str] | None, value("TEXT", "End an answer before TEXT; may be repeated.", "--stop")]
Group = Annotated[int, value("N", "Answers to each prompt.", "--group", least=1)]
MaxNew = Annotated[int, value("N", "Most tokens of an answer.", "--max-new", least=1)]
Overlong = Annotated[
    Literal["filter", "keep"],
    option("Whether answers that were cut at --max-new are left out of their group, or count.", "--overlong"),
]
GAIN_WITHOUT_VALID = "--require-gain is given, and --valid is not. Give held-out data, or leave it out."
LearningRate = Annotated[float | None, value("X", "Peak learning rate. Default: less for wide models.", "--lr")]
RowTokens = Annotated[int, value("N", "Most tokens of a packed row: memory is that of one.", "--row-tokens", least=2)]
Lora = Annotated[int | None, value("RANK", "Train low-rank adapters of the decoder, merged at the end.", "--lora", least=1)]
Judges = Annotated[
    list[str] | None, value("URL", "A judge behind an OpenAI-compatible address; several share the work.", "--judge")
]
JudgeModel = Annotated[str | None, value("NAME", "The judge's name at its servers. Default: their first.", "--judge-model")]
JudgeCache = Annotated[str | None, value("FILE", "Keep the judge's answers in FILE, for other runs.", "--judge-cache")]
JudgeTimeout = Annotated[float, value("SECONDS", "Time limit of a call of a judge or a program.", "--timeout", least=0.001)]
Device = Annotated[Literal["auto", "cpu", "cuda"], option("Where to compute; auto is cuda if there is one.", "--device")]
Dtype = Annotated[
    Literal["auto", "float32", "bfloat16"],
    option("Precision of matrix products; auto is bfloat16 on cuda, else float32.", "--dtype"),
]
Peak = Annotated[
    float | None, value("FLOPS", "Peak FLOP/s of a device, for the log's mfu. Default: measured.", "--peak", least=1)
]
Memory = Annotated[
    str | None,
    value("SIZE", "Keep vectors larger than SIZE, as 2GiB, in a file in $TMPDIR. Default: half of the memory.", "--memory"),
]
StateDir = Annotated[
    str | None, value("DIR", "Folder for the state of a stopped run. Default: .NAME.state beside the output.", "--state")
]
Shard = Annotated[str | None, value("I/N", "Take part I of N of the inputs, I from 0.", "--shard")]

AsJson = Annotated[bool, option("Print JSON Lines instead of a table.", "--json")]
Config = Annotated[
    str | None,
    typer.Option(
        "--config",
        metavar="FILE",
        is_eager=True,
        callback=lambda ctx, value: load_recipe(ctx, value),  # noqa: PLW0108 it is defined below
        help="Take options from a TOML recipe; those on the command line override it.",
    ),
]

# the options that many commands have: a command names those that it takes in its COMMON, and has the last two in any case
COMMON: dict[str, tuple[Any, object]] = {
    "output": (Output, "-"),
    "compress": (
        Annotated[
            int | None, value("N", "zstd level; 0 stores. Default: 1 into files, 0 into pipes.", "--compress", least=0, most=19)
        ],
        None,
    ),
    "force": (Annotated[bool, option("Overwrite an existing output.", "--force")], False),
    "strict": (Annotated[bool, option("Stop at the first bad input.", "--strict")], False),
    "config": (Config, None),
    "print_config": (Annotated[bool, option("Print the resulting recipe as TOML and exit.", "--print-config")], False),
    "dry_run": (Annotated[bool, option("Check inputs and options, print the plan, and exit.", "--dry-run")], False),
    "stamp": (Annotated[bool, option("Record time, host, user and full arguments in the history.", "--stamp")], False),
    "quiet": (Annotated[bool, option("No progress and no notes; errors are still printed.", "-q", "--quiet")], False),
    "verbose": (Annotated[bool, option("Print more, and a traceback for an unexpected error.", "-v", "--verbose")], False),
}


def sampling_rules(
    temperature: float, top_p: float, repetition_penalty: float, stops: Sequence[str] | None
) -> tuple[tuple[bool, str], ...]:  # fmt: skip
    """The rules of these options, for refuse_if."""
    return (
        (not 0 <= temperature < math.inf, f"--temperature {temperature:g} is below 0. Give 0 or more."),
        (not 0 < top_p <= 1, f"--top-p {top_p:g} is out of range. Give a number above 0 and at most 1."),
        (
            not 0 < repetition_penalty < math.inf,
            f"--repetition-penalty {repetition_penalty:g} is not above 0. Give a finite number above 0.",
        ),
        ("" in (stops or ()), "--stop is empty. Give a text."),
    )


def load_recipe(ctx: typer.Context, src: str | None) -> str | None:
    """Make a recipe's values the defaults of this command's options. Raises Usage for what is not a recipe."""
    if src is None:
        return None
    try:
        with open(src, "rb") as file:
            words = tomllib.load(file)
    except OSError as error:
        raise unreadable(f"--config {src}", error) from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise Usage(f"--config {src}: this is not TOML: {error}. Correct the file.") from None
    unknown = sorted(set(words) - {parameter.name for parameter in ctx.command.params})
    if unknown:
        raise Usage(f"--config {src}: {ctx.command.name} has no option {unknown[0]}. See --help.")
    ctx.default_map = words
    return src
