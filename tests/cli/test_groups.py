"""Commands of two words: called, explained, completed and recorded as those of one word are.

What there is of them changes, so two are made here, `bake bread` and `bake rye-bread`, and put into the table of a
`kvtools` of our own.
"""

import json
import re
import sys
from itertools import permutations

import pytest
from conftest import ROOT

from kvtools.commands.registry import COMMANDS

LAUNCHER = """#!{python}
import sys
import kvtools.commands
from kvtools.commands.registry import COMMANDS, Entry
kvtools.commands.__path__.append({folder!r})
COMMANDS["bake bread"] = Entry("Kitchen", "Turn flour into bread.", ("flour",), ("pair",))
COMMANDS["bake rye-bread"] = Entry("Kitchen", "Turn rye into bread.", ("rye",), ("pair",))
from kvtools.cli import main
main()
"""

MODULE = '''
from typing import Annotated, Literal

from kvtools import options as opt

EXAMPLES = ["kvtools NAME flour -o loaf", "kvtools NAME flour | kvtools info -"]
EXIT_CODES = (0, 2, 66)
SEE_ALSO = ("kvtools info",)
COMMON = ("output", "config")


def main(
    run: opt.Invocation,
    inputs: opt.Inputs = None,
    heat: Annotated[Literal["low", "high"], opt.option("How hot.")] = "low",
) -> int:
    """Turn flour into bread.

    It takes a while.
    """
    from kvtools.errors import Missing

    if "flour" not in (inputs or []):
        raise Missing("flour: the bag is empty. Fill it.")
    with run.writer("pair", {"heat": heat}):
        return 0
'''


@pytest.fixture
def kitchen(sh, tmp_path):
    """`sh`, with a kvtools first on the PATH that can bake."""
    for name in ("bake bread", "bake rye-bread"):
        module = tmp_path / "recipes" / f"{re.sub('[ -]', '_', name)}.py"
        module.parent.mkdir(exist_ok=True)
        module.write_text(MODULE.replace("NAME", name))
    program = tmp_path / "bin" / "kvtools"
    program.parent.mkdir()
    program.write_text(LAUNCHER.format(python=sys.executable, folder=str(tmp_path / "recipes")))
    program.chmod(0o755)
    return lambda line, **options: sh(f'PATH="$PWD/bin:$PATH"; {line}', **options)


def outcome(done):
    return done.code, done.out.decode(), done.err


def completions(kitchen, words):
    done = kitchen(
        f"source {ROOT}/completions/kvtools.bash; COMP_WORDS=({words}); COMP_CWORD=$((${{#COMP_WORDS[@]}} - 1)); "
        "_kvtools_completion kvtools; printf '%s\\n' \"${COMPREPLY[@]}\""
    )
    assert (done.code, done.err) == (0, "")
    return done.out.decode().split()


def test_help_of_two_words_reads_as_that_of_one(kitchen):
    done = kitchen("kvtools bake bread --help")
    assert (done.code, done.err) == (0, "")
    text = done.out.decode()
    assert text.startswith("Turn flour into bread.\n\nUsage: kvtools bake bread [OPTIONS] [INPUT]...\n")
    for line in ("Examples:", "  kvtools bake bread flour -o loaf", "Options:", "Exit codes:", "See also:"):
        assert f"\n{line}\n" in text


@pytest.mark.parametrize("words", ["bake", "bake bread"])
def test_help_imports_nothing_heavy(kitchen, words):
    done = kitchen(f"kvtools {words} --help", PYTHONPROFILEIMPORTTIME="1")
    imported = {line.rpartition("|")[2].strip() for line in done.err.splitlines()}
    assert (done.code, "kvtools.cli" in imported) == (0, True)
    assert {"torch", "numpy", "av", "decord", "mpi4py", "zstandard"} & imported == set()


def test_help_of_the_program_lists_both_words_and_what_they_are_for(kitchen):
    text = kitchen("kvtools --help").out.decode()
    assert "Kitchen:\n  bake bread      Turn flour into bread.\n  bake rye-bread  Turn rye into bread.\n" in text


def test_help_of_the_first_word_lists_the_second_words_and_no_others(kitchen):
    done = kitchen("kvtools bake --help")
    assert (done.code, done.err) == (0, "")
    text = done.out.decode()
    assert text.startswith("Usage: kvtools bake [OPTIONS] COMMAND")
    assert text.endswith("Kitchen:\n  bread      Turn flour into bread.\n  rye-bread  Turn rye into bread.\n")
    assert "info" not in text


@pytest.mark.parametrize("option", ["bake bread --describe", "bake --describe bread"])
def test_describe_prints_the_whole_name(kitchen, option):
    description = json.loads(kitchen(f"kvtools {option}").out)
    assert description["command"] == "bake bread"
    assert (description["reads"], description["writes"]) == (["flour"], ["pair"])
    assert "--heat" in [name for option in description["options"] for name in option["names"]]


@pytest.mark.parametrize(
    ("words", "fault"),
    [
        ("bake", "missing command."),
        ("bake --", "missing command."),
        ("bake stone", "no such command 'stone'."),
        ("bake --describe", "no such option: --describe."),
        ("bake info", "no such command 'info'."),
    ],
)
def test_a_first_word_without_its_second_is_refused_with_what_there_is(kitchen, words, fault):
    remedy = "Give kvtools bake bread or kvtools bake rye-bread. See --help."
    assert outcome(kitchen(f"kvtools {words}")) == (2, "", f"kvtools bake: {fault} {remedy}\n")


def test_a_fault_before_any_command_is_the_programs_own(kitchen):
    assert outcome(kitchen("kvtools --oven")) == (2, "", "kvtools: no such option: --oven. See --help.\n")


def test_a_second_word_is_no_command_by_itself(kitchen):
    assert outcome(kitchen("kvtools bread")) == (2, "", "kvtools bread: no such command 'bread'. See --help.\n")


def test_two_words_in_one_pair_of_quotes_are_no_command(kitchen):
    done = kitchen("kvtools 'bake bread' flour")
    assert (done.code, "no such command 'bake bread'" in done.err) == (2, True)


@pytest.mark.parametrize(
    ("words", "code", "fault"),
    [
        ("--oven", 2, "no such option: --oven. See --help."),
        ("sand", 66, "flour: the bag is empty. Fill it."),
        ("--config dough.toml flour", 2, "--config dough.toml: bake bread has no option yeast. See --help."),
    ],
)
def test_a_fault_is_reported_under_both_words(kitchen, tmp_path, words, code, fault):
    (tmp_path / "dough.toml").write_text("yeast = 1\n")
    assert outcome(kitchen(f"kvtools bake bread {words}")) == (code, "", f"kvtools bake bread: {fault}\n")


def test_the_history_names_both_words_and_keeps_what_follows(kitchen):
    done = kitchen("kvtools bake bread --heat high flour | kvtools info --json -")
    step = json.loads(done.out)["history"][-1]
    assert (step["command"], step["argv"]) == ("bake bread", ["--heat", "high", "flour"])


def test_arguments_may_repeat_the_words_of_the_name(kitchen):
    done = kitchen("kvtools bake bread bake bread flour | kvtools info --json -")
    assert json.loads(done.out)["history"][-1]["argv"] == ["bake", "bread", "flour"]


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("kvtools ba", ["bake"]),
        ("kvtools bake ''", ["bread", "rye-bread"]),
        ("kvtools bake r", ["rye-bread"]),
        ("kvtools bake bread --he", ["--heat", "--help"]),
        ("kvtools bake bread --heat h", ["high"]),
    ],
)
def test_bash_completes_one_word_after_the_other(kitchen, words, expected):
    assert completions(kitchen, words) == expected


def test_no_command_is_the_first_word_of_another():
    # else `kvtools NAME WORD` could mean either
    assert [(a, b) for a, b in permutations(COMMANDS, 2) if b.startswith(f"{a} ")] == []


def test_no_name_has_more_than_two_words_or_shares_its_page():
    assert [name for name in COMMANDS if not re.fullmatch(r"[a-z-]+( [a-z-]+)?", name)] == []
    assert len({name.replace(" ", "-") for name in COMMANDS}) == len(COMMANDS)
