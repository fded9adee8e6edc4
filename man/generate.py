r"""The generated parts of the man pages, and the completion scripts, brought up to date; --check only tells.

Between `.\" generated NAME` and `.\" end generated` a page holds what the program says of itself: a command's options
and exit codes, the list of commands, the tensors of each kind. The prose around them is written by hand. A command
without a page, or a page without a part it must have, is a fault, so that no command can be added undocumented.

Not here: help is never parsed; everything comes from the tables that the program itself runs on.
"""

import argparse
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

from kvtools import cli
from kvtools.artifact.kinds import KINDS
from kvtools.help_text import EXIT_CODES

ROOT = Path(__file__).resolve().parent.parent
MAN = ROOT / "man"

_PART = re.compile(r'^\.\\" generated (?P<name>[\w-]+)\n.*?^\.\\" end generated\n', re.MULTILINE | re.DOTALL)
_COMPLETIONS = {"bash": "kvtools.bash", "zsh": "_kvtools", "fish": "kvtools.fish"}


def page_of(command: str) -> Path:
    """Where the page of a command is, or should be."""
    return MAN / f"kvtools-{command.replace(' ', '-')}.1"


def pages() -> list[Path]:
    """Every page there is, sorted."""
    return sorted(MAN.glob("*.[1-9]"))


def parts() -> Iterator[tuple[Path, dict[str, Callable[[], list[str]]]]]:
    """Each page that must be there, and the makers of its generated parts."""
    yield MAN / "kvtools.1", {"commands": _commands, "exit-codes": lambda: _exit_codes(EXIT_CODES)}
    yield MAN / "kvtools-stream.5", {"kinds": _kinds}
    for name, entry in cli.COMMANDS.items():
        codes = entry.load(name).EXIT_CODES
        yield (
            page_of(name),
            {
                "options": lambda name=name: _options(cli.describe(name)),  # type: ignore[misc]
                "exit-codes": lambda codes=codes: _exit_codes(codes),  # type: ignore[misc]
            },
        )


def faults() -> list[str]:
    """What no regeneration mends: pages that are not there, and pages that lack a part; one line each."""
    found = []
    for path, makers in parts():
        where = path.relative_to(ROOT)
        if not path.exists():
            found.append(f"{where}: missing. Write it, after the pattern of man/kvtools-info.1.")
            continue
        names = [match["name"] for match in _PART.finditer(path.read_text())]
        if sorted(names) != sorted(makers):
            found.append(f"{where}: generated parts {', '.join(names) or 'none'} found, {', '.join(makers)} expected.")
    return found


def stale() -> dict[Path, str]:
    """Files whose content differs from what they should hold, and what that is."""
    fresh = {}
    for path, makers in parts():
        if path.exists():
            fresh[path] = _PART.sub(lambda match, makers=makers: _part(match, makers), path.read_text())  # type: ignore[misc]
    for shell, name in _COMPLETIONS.items():
        fresh[ROOT / "completions" / name] = _completion(shell)
    return {path: text for path, text in fresh.items() if not path.exists() or path.read_text() != text}


def lint() -> list[str] | None:
    """What mandoc says against the pages, line by line; None where there is no mandoc."""
    mandoc = shutil.which("mandoc")
    if mandoc is None:
        return None
    names = [str(path.relative_to(ROOT)) for path in pages()]
    return subprocess.run(
        [mandoc, "-Tlint", "-Wwarning", *names], cwd=ROOT, capture_output=True, text=True, check=False
    ).stdout.splitlines()


def main(argv: Sequence[str] | None = None) -> int:
    """0 where everything is in order (or, without --check, has been put in order), else 1."""
    parser = argparse.ArgumentParser(description="Bring man pages and completions up to date with the commands.")
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 where something is out of date")
    is_check = parser.parse_args(argv).check
    found = faults()
    for path, text in stale().items():
        if is_check:
            found.append(f"{path.relative_to(ROOT)}: out of date. Run python man/generate.py.")
        else:
            path.write_text(text)
    if is_check:
        complaints = lint()
        if complaints is None:
            print("man/generate.py: mandoc: not installed; the pages were not linted.", file=sys.stderr)
        found += complaints or []
    for line in found:
        print(f"man/generate.py: {line}", file=sys.stderr)
    return 1 if found else 0


def _part(match: re.Match[str], makers: dict[str, Callable[[], list[str]]]) -> str:
    name = match["name"]
    if name not in makers:
        return match[0]  # told by faults()
    return "\n".join([f'.\\" generated {name}', *makers[name](), '.\\" end generated', ""])


def _options(description: dict[str, Any]) -> list[str]:
    """A list of arguments and main options, then a subsection for each titled group."""
    lines = [".Bl -tag -width Ds"]
    for argument in description["arguments"]:
        word = re.sub(r"[\[\].]", "", argument["name"]).replace("|", " | ")
        lines += [f".It Ar {word}{' ...' if argument['many'] else ''}", *_prose(argument["help"])]
    for group, options in groupby(description["options"], lambda option: option["group"]):
        lines += [] if group is None else [".El", f".Ss {group}", ".Bl -tag -width Ds"]
        for option in options:
            lines += _option(option)
    return [*lines, ".El"]


def _option(option: dict[str, Any]) -> list[str]:
    names = [f"Fl {_dashless(name)}{_value(option)}" for name in option["names"]]
    lines = [f".It {' , '.join(names)}", *_prose(option["help"])]
    default = option["default"]
    if not isinstance(default, bool | None):
        lines += ["The default is", f".Cm {_escape(f'{default:g}' if isinstance(default, float) else str(default))} ."]
    return lines


def _value(option: dict[str, Any]) -> str:
    if option["type"] == "flag":
        return ""
    if option["metavar"]:
        return f" Ar {option['metavar']}"
    if isinstance(option["type"], list):
        return f" Cm {' | '.join(option['type'])}"
    return " Ar N" if option["type"] in ("int", "integer") else " Ar VALUE"


def _commands() -> list[str]:
    lines = []
    for section in dict.fromkeys(entry.section for entry in cli.COMMANDS.values()):
        lines += [f".Ss {section}", ".Bl -tag -width Ds"]
        for name, entry in cli.COMMANDS.items():
            if entry.section == section:
                lines += [f".It Xr {page_of(name).stem} 1", *_prose(entry.summary)]
                flow = [
                    f"{verb}: {', '.join(kinds)}."
                    for verb, kinds in (("Reads", entry.reads), ("Writes", entry.writes))
                    if kinds
                ]
                lines += flow
        lines.append(".El")
    return lines


def _exit_codes(codes: Sequence[int] | dict[int, str]) -> list[str]:
    lines = [".Bl -tag -width Ds"]
    for code in codes:
        words = EXIT_CODES[code]
        lines += [f".It {code}", *_prose(f"{words[0].upper()}{words[1:]}.")]
    return [*lines, ".El"]


def _kinds() -> list[str]:
    lines = [".Bd -literal -offset indent"]
    for name, kind in KINDS.items():
        lines.append(f"{name} ({kind.form})")
        for tensor, declaration in kind.tensors.items():
            dtypes, axes = declaration.split()
            lines.append(f"    {tensor:<14} {dtypes:<9} {axes}".replace("-", r"\-"))
        if kind.is_open:
            lines.append("    any tensors")
        if kind.fields:
            lines.append(f"    JSON: {', '.join(kind.fields)}")
    return [*lines, ".Ed"]


def _completion(shell: str) -> str:
    environment = {**os.environ, "_KVTOOLS_COMPLETE": f"source_{shell}"}
    answer = subprocess.run([sys.executable, "-m", "kvtools"], env=environment, capture_output=True, text=True, check=True)
    return answer.stdout.strip() + "\n"  # zsh looks for #compdef in the first line


def _prose(text: str) -> list[str]:
    # mdoc wants each sentence on a line of its own; a line must not begin with a control character
    sentences = re.split(r"(?<=[.?]) +(?=[A-Z])", " ".join(text.split()))
    return [re.sub(r"^([.'])", r"\\&\1", _escape(sentence)) for sentence in sentences]


def _escape(text: str) -> str:
    # a minus of an option must survive copy and paste; a hyphen within a word need not
    return re.sub(r"(?<!\w)-", r"\\-", text.replace("\\", r"\e"))


def _dashless(name: str) -> str:
    return name.removeprefix("-")  # .Fl puts one dash before its word


if __name__ == "__main__":
    sys.exit(main())
