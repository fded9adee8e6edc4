"""Outputs of every command held against a golden file, so that a change of the code that changes them is seen.

`make golden` rewrites the file. tests/same_outputs.py runs the commands, and compares two versions to the bit on one machine;
here results of floating-point sums are compared by figures that any processor reproduces.
"""

import os
from pathlib import Path

import pytest
import same_outputs
from conftest import BIN, read_golden

GOLDEN = Path(__file__).with_name("same_outputs.txt")


@pytest.fixture(scope="module")
def outputs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("outputs")
    (folder / "inputs").mkdir()
    same_outputs.make_inputs(folder / "inputs")
    return same_outputs.outputs_of(os.fspath(BIN / "kvtools"), folder / "0", folder / "inputs")


def lines_of(outputs):
    """`NAME: DIGEST` for what is exact, else `NAME: tensors=… values=… norm=…`."""
    for name, output in outputs.items():
        if "options" not in output:
            figures = " ".join(f"{key}={value:.5g}" for key, value in output["figures"].items())
            yield f"{name}: {output['digest'] if output['is_exact'] else figures}"


def numbers_of(line):
    name, _, words = line.partition(": ")
    return name, {key: float(value) for key, _, value in (word.partition("=") for word in words.split())}


def test_outputs_are_those_of_the_golden_file(outputs):
    lines = [*lines_of(outputs)]
    golden = read_golden(GOLDEN, lines)
    assert [line.partition(":")[0] for line in lines] == [line.partition(":")[0] for line in golden]
    for line, expected in zip(lines, golden, strict=True):
        if "=" not in expected:
            assert line == expected
        else:
            (_, found), (_, numbers) = numbers_of(line), numbers_of(expected)
            # codes are choices: where sums differ a little, some of them fall otherwise, and numbers of codes weigh much
            assert found == pytest.approx(numbers, rel=0.1 if line.startswith("semid-") else 2e-3), line
