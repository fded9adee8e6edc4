"""A few damaged inputs of every format; tests/fuzz.py runs them by the hundred thousand."""

import fuzz
import pytest


@pytest.fixture(scope="module")
def targets(tmp_path_factory):
    return fuzz.furnish(tmp_path_factory.mktemp("good"))


def test_damaged_inputs_are_read_or_refused(targets, tmp_path):
    for name, target in targets.items():
        found, _ = fuzz.run(name, target, 200, 7, tmp_path, longest_s=0)  # the alarm is that of the tests' own time limit
        assert found == {}, name


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("predictions", b'{"user":' + b'{"a":' * 3000),
        ("delays", b"a\n"),
        ("delays", b"\x93NUMPY\x01\x00\x10\x00{'descr': ('<f8'  "),
        ("coordinates", b"\x93NUMPY\x01\x00\x10\x00{'descr': ('<f8'  "),
    ],
)
def test_what_was_found_before_is_refused(targets, tmp_path, name, data):
    read, suffix, _ = targets[name]
    path = tmp_path / f"case{suffix}"
    path.write_bytes(data)
    with pytest.raises((ValueError, fuzz.Fault)):
        read(str(path))
