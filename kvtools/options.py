"""Option types that mean the same in every command, and what a command knows of its invocation.

One declaration serves parsing, `--help`, `--describe` and the man pages. Imports nothing heavy: every `--help` loads it.
"""

import json
import re
import tomllib
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

import typer

from kvtools.errors import Missing, Usage
from kvtools.world import World


@dataclass
class Invocation:
    """What is known of this run before the command starts; reaches a command as `ctx.obj`."""

    command: str = ""
    argv: list[str] = field(default_factory=list)
    world: World = field(default_factory=World)

    def log(self, message: str, *, quiet: bool = False) -> None:
        """Print one line on stderr, with the rank of several and the command's name before it; nothing if `quiet`."""
        if not quiet:
            rank = "" if self.world.size == 1 else f"[r{self.world.rank}/{self.world.size}] "
            name = f"kvtools {self.command}".rstrip()
            typer.echo(f"{rank}{name}: {' '.join(message.splitlines())}", err=True)


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

Inputs = Annotated[list[str] | None, typer.Argument(metavar="INPUT", help="Artifacts to read; - is stdin, the default.")]
Interactions = Annotated[
    str, typer.Argument(metavar="INTERACTIONS", help="CSV, TSV, RecBole .inter, lines of words, or a stream; - is stdin.")
]
Output = Annotated[str, typer.Option("-o", "--output", metavar="DST", help="Where to write; - is stdout.")]
Seed = Annotated[int, typer.Option("--seed", metavar="N", min=0, help="Random seed.")]
ReportFile = Annotated[str | None, typer.Option("--report", metavar="FILE", help="Write the report to FILE as JSON.")]
LogFile = Annotated[str | None, typer.Option("--log", metavar="FILE", help="Append the training curve to FILE as JSON Lines.")]
KeysFile = Annotated[
    str | None, typer.Option("--keys", metavar="FILE", help="Keys of the rows of an .npy: one per line, or a JSON list.")
]
Columns = Annotated[
    list[str] | None,
    typer.Option("--column", metavar="ROLE=COL", help="Read a role (user, item, time, …) from column COL; may be repeated."),
]
Steps = Annotated[
    str, typer.Option("--steps", metavar="DURATION", help="Training length: 500 (steps), 3ep (epochs) or 1e9tok (tokens).")
]
Overrides = Annotated[
    list[str] | None,
    typer.Option("--training", metavar="NAME=X", help="Override a training setting, as warmup=2%; may be repeated."),
]
Tokenizer = Annotated[
    str | None,
    typer.Option("--tokenizer", metavar="FILE", help="tokenizer.json, or a folder with one. Default: the model's, or bytes."),
]
Media = Annotated[
    list[str] | None,
    typer.Option(
        "--media", metavar="STREAM|DIR", help="Where pictures and videos are: video streams, folders; may be repeated."
    ),
]
FrameTokens = Annotated[
    str,
    typer.Option("--frame-tokens", metavar="LOW:HIGH", help="Visual tokens per frame of a file, at least LOW, at most HIGH."),
]

Device = Annotated[
    Literal["auto", "cpu", "cuda"], typer.Option("--device", help="Where to compute; auto is cuda if there is one.")
]
Dtype = Annotated[
    Literal["auto", "float32", "bfloat16"],
    typer.Option("--dtype", help="Precision of matrix products; auto is bfloat16 on cuda, else float32."),
]
Peak = Annotated[
    float | None,
    typer.Option("--peak", metavar="FLOPS", min=1, help="Peak FLOP/s of a device, for the log's mfu. Default: measured."),
]
Memory = Annotated[
    str | None,
    typer.Option(
        "--memory",
        metavar="SIZE",
        help="Keep vectors larger than SIZE, as 2GiB, in a file in $TMPDIR. Default: half of the memory.",
    ),
]
StateDir = Annotated[
    str | None,
    typer.Option(
        "--state", metavar="DIR", help="Folder for the state of a stopped run. Default: .NAME.state beside the output."
    ),
]
Shard = Annotated[str | None, typer.Option("--shard", metavar="I/N", help="Take part I of N of the inputs, I from 0.")]

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON Lines instead of a table.")]
Compress = Annotated[
    int | None,
    typer.Option("--compress", min=0, max=19, metavar="N", help="zstd level; 0 stores. Default: 1 into files, 0 into pipes."),
]
Force = Annotated[bool, typer.Option("--force", help="Overwrite an existing output.")]
Strict = Annotated[bool, typer.Option("--strict", help="Stop at the first bad input.")]
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
PrintConfig = Annotated[bool, typer.Option("--print-config", help="Print the resulting recipe as TOML and exit.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Check inputs and options, print the plan, and exit.")]
Stamp = Annotated[bool, typer.Option("--stamp", help="Record time, host, user and full arguments in the history.")]
Quiet = Annotated[bool, typer.Option("-q", "--quiet", help="No progress and no notes; errors are still printed.")]
Verbose = Annotated[bool, typer.Option("-v", "--verbose", help="Print more, and a traceback for an unexpected error.")]


def load_recipe(ctx: typer.Context, src: str | None) -> str | None:
    """Make a recipe's values the defaults of this command's options. Raises Usage for what is not a recipe."""
    if src is None:
        return None
    try:
        with open(src, "rb") as file:
            words = tomllib.load(file)
    except OSError as error:
        raise Missing(f"--config {src}: {(error.strerror or str(error)).lower()}.") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise Usage(f"--config {src}: this is not TOML: {error}.") from None
    unknown = sorted(set(words) - {parameter.name for parameter in ctx.command.params})
    if unknown:
        raise Usage(f"--config {src}: {ctx.command.name} has no option {unknown[0]}. See --help.")
    ctx.default_map = words
    return src


def to_toml(recipe: dict[str, Any]) -> str:
    """A recipe as TOML. Recipes are flat, and JSON's numbers, strings, flags and lists are TOML's too."""
    return "".join(f"{name} = {json.dumps(value)}\n" for name, value in sorted(recipe.items()) if value is not None)


def is_given(ctx: typer.Context, name: str) -> bool:
    """Whether a parameter stands on the command line, rather than having its default."""
    source = ctx.get_parameter_source(name)
    return source is not None and source.name == "COMMANDLINE"


def parse_range(text: str, option: str) -> tuple[int, int]:
    """`LOW:HIGH` as two counts, 1 <= LOW <= HIGH. Raises Usage."""
    match = re.fullmatch(r"(\d+):(\d+)", text)
    if not match or not 1 <= int(match[1]) <= int(match[2]):
        raise Usage(f"{option} {text} is not a range. Give LOW:HIGH with 1 <= LOW <= HIGH, as 128:768.")
    return int(match[1]), int(match[2])


def parse_size(text: str, option: str) -> int:
    """`64MiB`, `2GiB`, `500kB` or a bare count, in bytes. Raises Usage."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?) ?([kKMGT]?)(i?)B?", text)
    if not match or (match[3] and not match[2]):
        raise Usage(f"{option} {text} is not a size. Give one as 64MiB or 2GiB.")
    return int(float(match[1]) * (1024 if match[3] else 1000) ** ("KMGT".find(match[2].upper()) + 1 if match[2] else 0))


def refuse_if(*rules: tuple[object, str]) -> None:
    """Raise Usage with the sentence of the first rule whose condition holds.

    A command lists its option rules here, once: (what is wrong, the whole sentence that says so and what to do).
    """
    for is_wrong, sentence in rules:
        if is_wrong:
            raise Usage(sentence)
