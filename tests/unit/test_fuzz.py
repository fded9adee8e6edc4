"""A few damaged inputs of every format; tests/fuzz.py runs them by the hundred thousand."""

import tarfile
from unittest.mock import ANY

import fuzz
import pytest

from kvtools.video.tar import members


@pytest.fixture(scope="module")
def targets(tmp_path_factory):
    return fuzz.furnish(tmp_path_factory.mktemp("good"))


def test_damaged_inputs_are_read_or_refused(targets, tmp_path):
    for name, target in targets.items():
        found, _ = fuzz.run(name, target, 200, 7, tmp_path, longest_s=0)  # the alarm is that of the tests' own time limit
        assert found == {}, name


def tar_of_length(n_bytes):
    """A tar whose first file is that long, by its header."""
    header = bytearray(tarfile.TarInfo("a.png").tobuf(tarfile.GNU_FORMAT))
    header[124:136] = (n_bytes % (1 << 96) | (n_bytes >= 0) << 95).to_bytes(12, "big")
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    return bytes(header) + bytes(2048)


@pytest.mark.parametrize("n_bytes", [-512, -1024, -(1 << 62), (1 << 63) - 1])
def test_a_tar_of_a_length_that_no_file_has_is_refused(tmp_path, n_bytes):
    path = tmp_path / "a.tar"
    path.write_bytes(tar_of_length(n_bytes))
    assert members(str(path)) == ([], ANY)
    with pytest.raises(fuzz.Fault):
        fuzz.labelled_of(str(path))


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("predictions", b'{"user":' + b'{"a":' * 3000),
        ("catalogue", b'{"a":' * 3000 + b"\n"),
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
