"""Option types that mean the same in every command, and what a command knows of its invocation.

One declaration serves parsing, `--help`, `--describe` and the man pages. Imports nothing heavy: every `--help` loads it.
"""

import json
import re
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from kvtools.errors import Missing, Usage, os_reason
from kvtools.world import World

if TYPE_CHECKING:
    from kvtools.artifact.files import Sink
    from kvtools.artifact.history import Step
    from kvtools.artifact.stream import Writer


@dataclass
class Invocation:
    """What a command knows of this run, its first argument: the command line, the ranks, and the common options.

    A common option that the command does not have keeps its default here.
    """

    command: str = ""
    argv: list[str] = field(default_factory=list)
    world: World = field(default_factory=World)
    given: set[str] = field(default_factory=set)  # names of the parameters that stand on the command line
    output: str = "-"
    compress: int | None = None
    force: bool = False
    strict: bool = False
    print_config: bool = False
    dry_run: bool = False
    stamp: bool = False
    quiet: bool = False
    verbose: bool = False

    @property
    def is_silent(self) -> bool:
        """Whether this rank prints neither progress nor notes: all but rank 0, and rank 0 with -q."""
        return self.quiet or not self.world.is_root

    def log(self, message: str) -> None:
        """Print one line on stderr, with the rank of several and the command's name before it."""
        rank = "" if self.world.size == 1 else f"[r{self.world.rank}/{self.world.size}] "
        name = f"kvtools {self.command}".rstrip()
        typer.echo(f"{rank}{name}: {' '.join(message.splitlines())}", err=True)

    def warn(self, message: str) -> None:
        """Print one line on stderr, on rank 0 alone."""
        if self.world.is_root:
            self.log(message)

    def info(self, message: str) -> None:
        """Print one line on stderr, on rank 0 alone, and not with -q."""
        if not self.is_silent:
            self.log(message)

    def print_json(self, row: Mapping[str, Any]) -> None:
        """Print one line of JSON on stdout."""
        typer.echo(json.dumps(row, ensure_ascii=False))

    def print_recipe(self, recipe: Mapping[str, Any]) -> int:
        """Print what --print-config asks for, as TOML that --config takes; returns the exit code."""
        typer.echo(to_toml(recipe), nl=False)
        return 0

    def refuse_existing(self, report: str | None = None) -> None:
        """Raise CannotCreate, on rank 0, if the output or the report cannot be a file, or is one and --force is not given."""
        from kvtools.artifact.files import refuse_existing

        for dst in (self.output, report or "-") if self.world.is_root else ():
            refuse_existing(dst, force=self.force)

    def refuse_own_input(self, *sources: str) -> None:
        """Raise Usage if one of the inputs is the output, too."""
        from kvtools.artifact.files import is_same_file

        for src in sources:
            if is_same_file(src, self.output):
                raise Usage(f"{src}: this is both an input and the output. Name another output.")

    def sink(self) -> "Sink":
        """The output, to be written. Raises CannotCreate as `refuse_existing` does."""
        from kvtools.artifact.files import Sink

        return Sink(self.output, force=self.force)

    def history(self, before: Iterable[list["Step"]] = (), inputs: Iterable[str] = ()) -> list["Step"]:
        """The histories of the inputs, and the step of this command. inputs: digests of the bags among them."""
        from kvtools.artifact.history import extend

        return extend(self.command, self.argv, before=before, inputs=inputs, stamp=self.stamp)

    def writer(self, kind: str, config: dict[str, Any] | None = None, *, before: Iterable[list["Step"]] = ()) -> "Writer":
        """A stream of that kind into the output. before: the histories of the inputs."""
        from kvtools.artifact.stream import Head, Writer

        return Writer(self.sink(), Head(kind, self.history(before), config or {}), level=self.compress)

    def write_report(self, dst: str | None, report: Mapping[str, Any]) -> None:
        """Write a report as one line of JSON into the file of --report, if one is given."""
        from kvtools.artifact.files import write_line

        if dst is not None:
            write_line(dst, json.dumps(report, ensure_ascii=False), force=self.force)

    def refuse_shared_stdin(self, *sources: str | None, is_broadcast: bool = False) -> None:
        """Raise Usage if several of the inputs are -, or one is and there are several ranks.

        is_broadcast: rank 0 reads stdin and sends it to the other ranks.
        """
        refuse_if(
            (sources.count("-") > 1, "several inputs are -, and stdin can be read only once. Give files for the others."),
            (
                "-" in sources and self.world.size > 1 and not is_broadcast,
                f"an input is -, and {self.world.size} ranks cannot share stdin. Give a file.",
            ),
        )


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
KeysFile = Annotated[str | None, value("FILE", "Keys of the rows of an .npy: one per line, or a JSON list.", "--keys")]
Columns = Annotated[
    list[str] | None, value("ROLE=COL", "Read a role (user, item, time, …) from column COL; may be repeated.", "--column")
]
Steps = Annotated[str, value("DURATION", "Training length: 500 (steps), 3ep (epochs) or 1e9tok (tokens).", "--steps")]
Overrides = Annotated[
    list[str] | None, value("NAME=X", "Override a training setting, as warmup=2%; may be repeated.", "--training")
]
Tokenizer = Annotated[
    str | None, value("FILE", "tokenizer.json, or a folder with one. Default: the model's, or bytes.", "--tokenizer")
]
Media = Annotated[
    list[str] | None, value("STREAM|DIR", "Where pictures and videos are: video streams, folders; may be repeated.", "--media")
]
FrameTokens = Annotated[
    str, value("LOW:HIGH", "Visual tokens per frame of a file, at least LOW, at most HIGH.", "--frame-tokens")
]

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


def load_recipe(ctx: typer.Context, src: str | None) -> str | None:
    """Make a recipe's values the defaults of this command's options. Raises Usage for what is not a recipe."""
    if src is None:
        return None
    try:
        with open(src, "rb") as file:
            words = tomllib.load(file)
    except OSError as error:
        raise Missing(f"--config {src}: {os_reason(error)}.") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise Usage(f"--config {src}: this is not TOML: {error}.") from None
    unknown = sorted(set(words) - {parameter.name for parameter in ctx.command.params})
    if unknown:
        raise Usage(f"--config {src}: {ctx.command.name} has no option {unknown[0]}. See --help.")
    ctx.default_map = words
    return src


def to_toml(recipe: Mapping[str, Any]) -> str:
    """A recipe as TOML. Recipes are flat, and JSON's numbers, strings, flags and lists are TOML's too."""
    return "".join(f"{name} = {json.dumps(value)}\n" for name, value in sorted(recipe.items()) if value is not None)


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
