"""Logs of trainings: continued where the state continues, and nobody's other lines are touched."""

import json

import pytest

from kvtools.artifact.training_log import TrainingLog
from kvtools.errors import CannotCreate


@pytest.fixture
def log(tmp_path):
    return tmp_path / "log.jsonl"


def write(log, *steps, at=None, key="step"):
    with TrainingLog(str(log), at=at, key=key) as curve:
        for step in steps:
            curve.write({key: step})


def steps_of(log, key="step"):
    return [(line.get("run", 1), line[key]) for line in map(json.loads, log.read_text().splitlines())]


def test_a_continued_run_removes_what_its_state_does_not_know(log):
    write(log, 1, 2, 3, 4, 5)
    write(log, 4, 5, 6, at=3)
    assert steps_of(log) == [(1, step) for step in range(1, 7)]


def test_a_run_continued_at_its_end_removes_nothing(log):
    write(log, 1, 2, 3)
    write(log, 3, at=3)
    assert steps_of(log) == [(1, 1), (1, 2), (1, 3), (1, 3)]


def test_a_line_that_was_cut_is_removed(log):
    write(log, 1, 2)
    with log.open("a") as file:
        file.write('{"step": 3, "lo')
    write(log, 3, at=2)
    assert steps_of(log) == [(1, 1), (1, 2), (1, 3)]


def test_a_new_run_in_an_old_log_is_marked(log):
    write(log, 1, 2)
    write(log, 1, 2)
    write(log, 2, at=1)
    write(log, 1)
    assert steps_of(log) == [(1, 1), (1, 2), (2, 1), (2, 2), (3, 1)]


def test_only_the_last_run_is_cut(log):
    write(log, 8, 9)
    write(log, 1, 2, 3)
    write(log, at=0)
    assert steps_of(log) == [(1, 8), (1, 9)]


def test_rounds_are_counted_by_their_own_name(log):
    write(log, 5, 10, 15, key="round")
    write(log, 15, at=10, key="round")
    assert steps_of(log, "round") == [(1, 5), (1, 10), (1, 15)]


@pytest.mark.parametrize("text", ["a shopping list", "a shopping list\n", "1\n2\n", "[]\n"])
def test_what_is_no_log_is_not_touched(log, text):
    log.write_text(text)
    write(log, at=0)
    write(log)
    assert log.read_text() == text


def test_long_lines_are_read_whole(log):
    with TrainingLog(str(log)) as curve:
        for step in range(1, 5):
            curve.write({"step": step, "note": "x" * 100_000})
    write(log, at=2)
    assert steps_of(log) == [(1, 1), (1, 2)]


def test_no_log_takes_lines_too_and_a_folder_is_refused(tmp_path):
    with TrainingLog(None) as curve:
        curve.write({"step": 1})
    with pytest.raises(CannotCreate):
        TrainingLog(str(tmp_path))
