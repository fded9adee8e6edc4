"""An option that is required and missing is a usage error, exit 2, in every command, before any input is read."""

import pytest

from kvtools import cli
from kvtools.commands.registry import COMMANDS

# command line without what is required -> the option or argument that the refusal names
LACKING = {
    "tokenize-video": "no video",
    "chat what": "--model",
    "answer questions.kvs": "--model",
    "pretrain onerec clicks.csv": "--items",
    "recgen clicks.csv": "--model",
    "recgen --baseline popular clicks.csv": "--items",
    "kma-cluster fleet.devices": "--data",
    "kma-cluster --method k-medoids --public 0.1 fleet.devices": "--data",
    "etree-train --data digits.csv fleet.devices": "--tree",
    "etree-train --tree fleet.tree fleet.devices": "--data",
    "merge": "models",
    "devices": "--data",
    "coldstart-mix": "--think",
    "rl sample prompts.jsonl": "--model",
    "rl mpo pairs.kvs": "--model",
    "rl grpo prompts.jsonl": "--model",
    "rl ecpo clicks.csv --reward hit": "--model",
    "rl ecpo --model shop.model clicks.csv": "--reward",
    "rl gbpo clicks.csv --reward hit": "--model",
    "rl gbpo --model shop.model clicks.csv": "--reward",
    "rl pscore clicks.csv": "--model",
    "eval-kcmm": "DATA_DIR",
}


@pytest.mark.parametrize("line", LACKING)
def test_a_missing_option_is_a_usage_error_that_names_it(line, tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    code = cli.run(line.split())
    out, err = capfd.readouterr()
    assert (code, out, err.count("\n")) == (2, "", 1), err
    assert LACKING[line] in err
    assert [*tmp_path.iterdir()] == []


def test_every_other_command_reads_stdin_where_nothing_is_named():
    reads_stdin = {
        "pretrain keye", "rl pairs", "semid-build", "embed", "pairs", "quiz", "convert", "info", "cat", "check", "sum", "plot",
    }  # fmt: skip
    assert {name for name in COMMANDS if not any(line.startswith(name) for line in LACKING)} == reads_stdin
