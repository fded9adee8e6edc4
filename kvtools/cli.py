"""The command line: commands loaded one at a time (commands/registry.py), exit codes, signals, and how a run ends.

`kvtools --help` and `kvtools CMD --help` load neither torch nor numpy: the registry holds what the first needs, and a command
module imports its machinery inside its function. Whatever ends a run, this module prints it once and chooses the exit code
(errors.py); under MPI it ends the other ranks too.
"""

import errno
import inspect
import json
import math
import os
import re
import signal
import sys
import time
import traceback
from collections.abc import Callable
from contextlib import nullcontext, suppress
from types import FrameType, ModuleType
from typing import Any, NoReturn

import typer
import typer.completion
from typer.core import TyperCommand, TyperGroup
from typer.exceptions import TyperException

from kvtools import __version__, help_text
from kvtools.commands.registry import COMMANDS, Entry, commands_below, find
from kvtools.errors import Died, Fault, Missing, Terminated, Usage, os_reason
from kvtools.invocation import Invocation
from kvtools.launcher import is_stdin_limited, launched_rank
from kvtools.names import naming
from kvtools.option_values import refuse_one_target
from kvtools.options import COMMON
from kvtools.train.device import let_waiting_threads_sleep, threads_asked_for
from kvtools.world import World


class Command(TyperCommand):
    """A subcommand whose help shows a sentence, usage, examples, options, exit codes and related pages."""

    def invoke(self, ctx: Any) -> int:
        """Run the command in its world; ranks that it has no work for return at once."""
        entry: Entry = COMMANDS[self.name or ""]
        if ctx.obj is None:
            ctx.obj = Invocation()
        threads_asked_for()  # refused before a library is loaded that complains in its own words
        ctx.obj.world = World.open(is_part=ctx.params.get("shard") is not None)
        if not entry.is_parallel and not ctx.obj.world.is_root:
            return 0
        if "-" in ctx.obj.argv and ctx.obj.world.size > 1 and is_stdin_limited():
            ctx.obj.warn("mpiexec of MPICH aborts where stdin comes faster than rank 0 reads it. Give a file where it does.")
        self._refuse_infinite(ctx)
        self._refuse_one_target(ctx)
        try:
            code = super().invoke(ctx) or 0
            with naming("-"):
                sys.stdout.flush()
            return code
        except BrokenPipeError:
            raise Died(141) from None
        except KeyboardInterrupt:
            raise Died(130) from None

    def _refuse_infinite(self, ctx: Any) -> None:
        """Recipes and logs are JSON, which has finite numbers only: a run must not fail for that in the end."""
        for option in self.params:
            value = ctx.params.get(option.name)
            if isinstance(value, float) and not math.isfinite(value):
                raise Usage(f"{option.opts[-1]} {value} is not finite. Give a finite number.")

    def _refuse_one_target(self, ctx: Any) -> None:
        """No two outputs go to one place, the output named first."""
        names = {option.opts[-1]: ctx.params.get(option.name) for option in self.params}
        written = {name: names[name] for name in (*_STREAMED, *_FILED) if names.get(name) is not None}
        refuse_one_target({name[2:]: dst for name, dst in written.items() if dst != "-" or name in _STREAMED})

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """Write `--help`."""
        help_text.write(self, ctx, formatter, COMMANDS[self.name or ""].load(self.name or ""))


class Group(TyperGroup):
    """The commands that begin with its name, or all if it has none; listed by the registry, imported when called."""

    def list_commands(self, ctx: Any) -> list[str]:  # noqa: ARG002
        """The words that may come next."""
        return list(dict.fromkeys(rest.split()[0] for rest in commands_below(self.name or "")))

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """The parser of the command or group that the next word calls; None if there is none."""
        return build(f"{self.name} {cmd_name}".lstrip()) if cmd_name in self.list_commands(ctx) else None

    def format_commands(self, ctx: Any, formatter: Any) -> None:  # noqa: ARG002
        """Write the list of commands by section, with their summaries."""
        rows = commands_below(self.name or "")
        for section in dict.fromkeys(entry.section for entry in rows.values()):
            with formatter.section(section):
                formatter.write_dl([(rest, e.summary) for rest, e in rows.items() if e.section == section])


def build(name: str) -> Any:
    """The parser of one command, from its module's `main`; of the first word of several commands; or, for "", of all."""
    if name not in COMMANDS:
        about = f"Commands that begin with {name}: {', '.join(commands_below(name))}." if name else _TAGLINE
        return Group(name=name, help=about, rich_markup_mode=None, epilog="" if name else _EPILOG,
                     context_settings={"help_option_names": ["-h", "--help"]})  # fmt: skip
    app = typer.Typer(add_completion=False, rich_markup_mode=None)
    app.command(name, cls=Command, context_settings={"help_option_names": ["-h", "--help"]})(
        _callback(COMMANDS[name].load(name))
    )
    command: Any = typer.main.get_command(app)
    return command


def _callback(module: ModuleType) -> Callable[..., int]:
    """A command's `main` as typer wants it: with the common options, whose values reach `main` through the Invocation."""
    own = dict(list(inspect.signature(module.main).parameters.items())[1:])  # all but the Invocation
    common = [name for name in (*getattr(module, "COMMON", ()), "quiet", "verbose") if name not in own]

    def callback(ctx: typer.Context, **values: Any) -> int:
        invocation: Invocation = ctx.obj
        sources = {name: ctx.get_parameter_source(name) for name in values}
        invocation.given = {name for name, source in sources.items() if source is not None and source.name == "COMMANDLINE"}
        for name in set(COMMON) & set(values):
            setattr(invocation, name, values[name])
        code: int = module.main(invocation, **{name: values[name] for name in own})
        return code

    keyword = inspect.Parameter.KEYWORD_ONLY
    parameters = [
        inspect.Parameter("ctx", inspect.Parameter.POSITIONAL_OR_KEYWORD, annotation=typer.Context),
        *(parameter.replace(kind=keyword) for parameter in own.values()),
        *(inspect.Parameter(name, keyword, default=COMMON[name][1], annotation=COMMON[name][0]) for name in common),
    ]
    callback.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    callback.__doc__ = module.main.__doc__
    return callback


def describe(name: str) -> dict[str, Any]:
    """What `kvtools CMD --describe` prints: a command's arguments, options and kinds, as JSON for programs."""
    entry = COMMANDS[name]
    kinds = {"reads": list(entry.reads), "writes": list(entry.writes)}
    return {"command": name, "summary": entry.summary, **kinds, **help_text.describe(build(name), entry.load(name))}


def run(words: list[str]) -> int:
    """Run a command line and return its exit code; every fault has been printed when this returns."""
    name, argv = find(words)
    invocation = Invocation(name, argv)
    signal.signal(signal.SIGTERM, _terminate)
    try:
        if name in COMMANDS and "--describe" in words:
            invocation.print(json.dumps(describe(name), indent=2, ensure_ascii=False))
            return 0
        if "--version" in words and name not in COMMANDS:
            invocation.print(_version(detailed="-v" in words))
            return 0
        _enable_completion()
        is_help = not words or not {"-h", "--help"}.isdisjoint(words)  # which typer prints
        with naming("-") if is_help else nullcontext():
            code = build("").main(words or ["--help"], prog_name="kvtools", standalone_mode=False, obj=invocation)
        with naming("-"):
            sys.stdout.flush()
        invocation.world.close()
        return int(code or 0)
    except TyperException as error:
        fault: Fault = Usage(_usage(error, name))
    except Fault as error:
        fault = error
    except BrokenPipeError:
        fault = Died(141)
    except Terminated:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # a launcher may send it again while the other ranks are ended
        fault = Died(143)
    except OSError as error:
        fault = Fault(f"{error.filename or 'input/output'}: {os_reason(error)}.")
        fault.code = 74
    except Exception as error:  # noqa: BLE001 a fault of ours is told in one line, too
        is_verbose = "-v" in words or "--verbose" in words
        if is_verbose:
            traceback.print_exc()
        advice = "" if is_verbose else " Run again with -v for a traceback."
        fault = Fault(f"unexpected: {type(error).__name__}: {' '.join(str(error).split())}.{advice}")
    _report(fault, invocation)
    if fault.is_agreed:
        with suppress(Fault):  # a rank that dies now changes nothing
            invocation.world.close()
    else:
        invocation.world.abort(fault.code)
    return fault.code


def main() -> NoReturn:
    """The console script."""
    _occupy_standard_streams()
    let_waiting_threads_sleep()
    code = run(sys.argv[1:])
    try:
        # a full disk shows only when the last bytes are flushed; without this it would be a silent success
        sys.stdout.flush()
    except OSError as error:
        code = code or (141 if error.errno == errno.EPIPE else 74)
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # the interpreter flushes once more at exit
    sys.exit(code)


_ROOT_FIRST_S = 3.0
# options that name what a command writes: those of which - is stdout, and the others
_STREAMED = ("--output", "--report", "--rejects", "--rollouts")
_FILED = ("--log", "--tensorboard", "--state", "--details", "--cache", "--prompts", "--judge-cache")
_TAGLINE = "Composable tools for Keye-VL, OneRec and E-Tree learning: each does one job, and they pipe into one another."
_EPILOG = "kvtools COMMAND --help explains a command; --describe prints that as JSON; kvtools --version -v lists the libraries."


def _occupy_standard_streams() -> None:
    """Open something as descriptors 0, 1 and 2 where they are closed, because the next file opened would take their number."""
    for fd, name, path in ((0, "stdin", os.devnull), (1, "stdout", "/dev/full"), (2, "stderr", os.devnull)):
        try:
            os.fstat(fd)
        except OSError:
            # a closed stdout becomes a full disk: only a command that writes to it fails
            assert os.open(path, os.O_RDWR) == fd, "the lowest free descriptor is taken"
            if fd:
                setattr(sys, name, os.fdopen(fd, "w", closefd=False))


def _usage(error: TyperException, name: str) -> str:
    """What typer refuses, as a sentence, with the commands there are where none was named."""
    rest = [f"kvtools {name} {word}" for word in commands_below(name)] if name else []
    choice = f" Give {' or '.join(rest)}." if rest else ""
    message = re.sub(r"Input should be (.*?)(?:, unable to parse.*)?$", r"it must be \1", error.format_message().rstrip("."))
    message = message.replace("Value error, ", "")
    return f"{message[0].lower()}{message[1:]}.{choice} See --help."


def _report(fault: Fault, invocation: Invocation) -> None:
    """Print a fault once: every rank meets a usage error or a missing input, and all agree on a stop, so that rank 0 prints it
    while the others wait for that."""
    if (isinstance(fault, Usage | Missing) or fault.is_agreed) and launched_rank() != 0:
        time.sleep(0 if fault.is_agreed else _ROOT_FIRST_S)
    elif str(fault):
        invocation.log(str(fault))


def _enable_completion() -> None:
    if "_KVTOOLS_COMPLETE" in os.environ:  # set by the completion scripts in share/
        typer.completion.completion_init()  # type: ignore[attr-defined]


def _version(*, detailed: bool) -> str:
    if not detailed:
        return f"kvtools {__version__}"
    from importlib.metadata import PackageNotFoundError, version

    lines = [f"kvtools {__version__}", f"python {sys.version.split()[0]}"]
    for package in ("torch", "numpy", "safetensors", "zstandard", "decord", "av", "mpi4py", "mpich"):
        try:
            lines.append(f"{package} {version(package)}")
        except PackageNotFoundError:
            lines.append(f"{package} absent")
    return "\n".join(lines)


def _terminate(_number: int, _frame: FrameType | None) -> None:
    raise Terminated  # unwinds, so that temporary files are removed; long commands replace this by world.Stop
