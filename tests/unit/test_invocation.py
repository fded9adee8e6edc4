"""What reaches a command with its first argument: the common options, and who prints what."""

import inspect

import pytest

from kvtools import cli
from kvtools import options as opt
from kvtools.commands import registry
from kvtools.errors import Usage
from kvtools.world import World


class Rank(World):
    def __init__(self, rank, size):
        super().__init__()
        self.rank, self.size = rank, size


@pytest.mark.parametrize(
    ("rank", "quiet", "printed"),
    [(0, False, ["log", "warn", "info"]), (0, True, ["log", "warn"]), (1, False, ["log"]), (1, True, ["log"])],
)
def test_ranks_but_the_first_only_log_and_quiet_keeps_warnings(rank, quiet, printed, capfd):
    run = opt.Invocation("cat", world=Rank(rank, 2), quiet=quiet)
    for name in ("log", "warn", "info"):
        getattr(run, name)(name)
    assert capfd.readouterr().err == "".join(f"[r{rank}/2] kvtools cat: {name}\n" for name in printed)
    assert run.is_silent == (rank == 1 or quiet)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("pairs x.csv", ("-", None, False, False, False, False, set())),
        (
            "pairs x.csv -o y.kvs --compress 3 --force --strict --stamp -v",
            ("y.kvs", 3, True, True, True, True, {"output", "compress", "force", "strict", "stamp", "verbose"}),
        ),
    ],
)
def test_common_options_reach_the_command_through_its_invocation(words, expected, monkeypatch):
    seen = []
    module = registry.COMMANDS["pairs"].load("pairs")

    def spy(run, **_own):
        seen.append((run.output, run.compress, run.force, run.strict, run.stamp, run.verbose, run.given - {"interactions"}))
        return 0

    spy.__signature__ = inspect.signature(module.main)
    monkeypatch.setattr(module, "main", spy)
    assert cli.run(words.split()) == 0
    assert seen == [expected]


def test_stdin_is_refused_twice_and_on_several_ranks():
    opt.Invocation().refuse_shared_stdin("-", None, "a")
    with pytest.raises(Usage, match=r"^several inputs are -, and stdin can be read only once\. Give files for the others\.$"):
        opt.Invocation().refuse_shared_stdin("-", "a", "-")
    with pytest.raises(Usage, match=r"^an input is -, and 2 ranks cannot share stdin\. Give a file\.$"):
        opt.Invocation(world=Rank(0, 2)).refuse_shared_stdin("-")


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (
            "pairs in.csv -o here/../a.kvs --report a.kvs",
            "a.kvs: this is both the output and the report. Name another file for the report.",
        ),
        (
            "rl gbpo in.csv --log a --rollouts b --state a",
            "a: this is both the log and the state. Name another file for the state.",
        ),
        ("rl grpo in.jsonl --rollouts -", "both the output and the rollouts are -, and stdout takes one of them. Give a file"),
    ],
)
def test_no_two_outputs_go_to_one_place(words, sentence, capfd, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "here").mkdir()
    assert cli.run(words.split()) == Usage.code
    assert sentence in capfd.readouterr().err
    assert cli.run(["pairs", "in.csv", "-o", "/dev/null", "--report", "/dev/null"]) != Usage.code, "what takes both"
