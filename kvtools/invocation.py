"""What a command knows of its invocation: the common options, the ranks, and how it opens its output, logs and reports.

Imports nothing heavy: every `--help` loads it.
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import typer

from kvtools.errors import Usage
from kvtools.names import naming, printable, printable_json
from kvtools.option_values import refuse_if
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
        typer.echo(f"{rank}{name}: {printable(' '.join(message.splitlines()))}", err=True)

    def warn(self, message: str) -> None:
        """Print one line on stderr, on rank 0 alone."""
        if self.world.is_root:
            self.log(message)

    def info(self, message: str) -> None:
        """Print one line on stderr, on rank 0 alone, and not with -q."""
        if not self.is_silent:
            self.log(message)

    def print(self, text: str, *, nl: bool = True) -> None:
        """Print text on stdout, a line if `nl`. Raises OSError that names stdout."""
        with naming("-"):
            typer.echo(printable(text), nl=nl)

    def print_json(self, row: Mapping[str, Any]) -> None:
        """Print one line of JSON on stdout."""
        self.print(printable_json(json.dumps(row, ensure_ascii=False)))

    def print_recipe(self, recipe: Mapping[str, Any]) -> int:
        """Print what --print-config asks for, as TOML that --config takes; returns the exit code."""
        self.print(to_toml(recipe), nl=False)
        return 0

    def refuse_existing(self, *reports: str | None, is_directory: bool = False) -> None:
        """Raise CannotCreate, on rank 0, if the output or a report cannot be a file, or is one and --force is not given.

        is_directory: the output is a model's or an adapter's folder.
        """
        from kvtools.artifact.directory import refuse_existing_directory
        from kvtools.artifact.files import refuse_existing

        if is_directory:
            if self.world.is_root:
                refuse_existing_directory(self.output, force=self.force)
            return
        for dst in (self.output, *reports) if self.world.is_root else ():
            refuse_existing(dst or "-", force=self.force)

    def refuse_own_input(self, *sources: str, report: str | None = None) -> None:
        """Raise Usage if one of the inputs is the output or the report, too, or these are one file."""
        from kvtools.artifact.files import is_same_file

        for src in sources:
            if is_same_file(src, self.output):
                raise Usage(f"{src}: this is both an input and the output. Name another output.")
            if report is not None and is_same_file(src, report):
                raise Usage(f"{src}: this is both an input and the report. Name another report.")

    def sink(self, *, is_text: bool = False, keep_partial: bool = False) -> "Sink":
        """The output, to be written. is_text: it may go to a terminal. keep_partial: for a run that goes on with what a stopped
        one wrote. Raises CannotCreate as `refuse_existing` does."""
        from kvtools.artifact.files import Sink

        return Sink(self.output, force=self.force, is_text=is_text, keep_partial=keep_partial)

    def history(self, before: Iterable[list["Step"]] = (), inputs: Iterable[str] = ()) -> list["Step"]:
        """The histories of the inputs, and the step of this command. inputs: digests of the bags among them."""
        from kvtools.artifact.history import extend

        return extend(self.command, self.argv, before=before, inputs=inputs, stamp=self.stamp)

    def writer(
        self,
        kind: str,
        config: dict[str, Any] | None = None,
        *,
        before: Iterable[list["Step"]] = (),
        keep_partial: bool = False,
    ) -> "Writer":
        """A stream of that kind into the output. before: the histories of the inputs. keep_partial: as of `sink`."""
        from kvtools.artifact.stream import Head, Writer

        return Writer(self.sink(keep_partial=keep_partial), Head(kind, self.history(before), config or {}), level=self.compress)

    def write_report(self, dst: str | None, report: Mapping[str, Any]) -> None:
        """Write a report as one line of JSON into the file of --report, if one is given."""
        from kvtools.artifact.files import write_line

        if dst is not None:
            write_line(dst, printable_json(json.dumps(report, ensure_ascii=False)), force=self.force)

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


def to_toml(recipe: Mapping[str, Any]) -> str:
    """A recipe as TOML. Recipes are flat, and JSON's numbers, strings, flags and lists are TOML's too."""
    return "".join(f"{name} = {json.dumps(value)}\n" for name, value in sorted(recipe.items()) if value is not None)
