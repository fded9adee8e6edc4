"""Labelled data that are damaged: one fault that names the file, whatever the reader of their format says."""

import gzip
import io
import tarfile
import zipfile

import numpy as np
import pytest

from kvtools.errors import Corrupt
from kvtools.etree.data.labelled import read_labelled


def npz(**arrays):
    file = io.BytesIO()
    np.savez(file, **arrays)
    return file.getvalue()


def archive(name, text):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as zip_file:
        zip_file.writestr(name, text)
    return file.getvalue()


def tar(name, text):
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as tar_file:
        info = tarfile.TarInfo(name)
        info.size = len(text)
        tar_file.addfile(info, io.BytesIO(text))
    return file.getvalue()


WHOLE = npz(x=np.zeros((9, 2), np.float32), y=np.arange(9) % 3)
PACKED = bytearray(gzip.compress(b"1,2,0\n" * 99))
PACKED[14] ^= 0xFF
NOT_LEAF = "this is not JSON as LEAF writes it, with users, and with x and y of each user in user_data"
DAMAGED = {
    "a.csv.gz": (bytes(PACKED), "the compressed data are damaged (CRC check failed 0x25b5d824 != 0xe8570e39)"),
    "cut.csv.gz": (gzip.compress(b"1,2,0\n" * 99)[:-12], "the file is cut short"),
    "a.npz": (WHOLE[: len(WHOLE) // 2], "this is not an .npz file of plain arrays"),
    "b.npz": (archive("x.txt", "no array"), "the arrays are x.txt, and x and y are needed"),
    "c.npz": (npz(x=np.zeros(3)), "the arrays are x, and x and y are needed"),
    "a.json": (b"[" * 100_000, "this is not JSON that can be read, since it is nested too deeply"),
    "b.json": (b"{,}", "this is not JSON (Expecting property name enclosed in double quotes: line 1 column 2 (char 1))"),
    "c.json": (b"{}", NOT_LEAF),
    "d.json": (b"[]", NOT_LEAF),
    "e.json": (b'{"users": ["u"], "user_data": {"u": {"x": [[1], [2, 3]], "y": [0, 1]}}}', NOT_LEAF),
    "f.json": (b'{"users": [["u"]], "user_data": {}}', NOT_LEAF),
    "a.tar": (tar("cat/0.png", b"text"), "cat/0.png is not a picture that can be read"),
    "b.tar": (b"no tar", "the archive is damaged or cut short"),
}


@pytest.mark.parametrize("name", DAMAGED)
def test_damage_is_refused_with_the_name_of_the_file(tmp_path, name):
    contents, message = DAMAGED[name]
    (tmp_path / name).write_bytes(contents)
    with pytest.raises(Corrupt) as refused:
        read_labelled(str(tmp_path))
    assert str(refused.value) == f"{tmp_path / name}: {message}. Repair the file, or leave it out."


def test_a_field_without_end_is_refused_with_its_line(tmp_path):
    (tmp_path / "a.csv").write_bytes(b"1," + b"9" * 200_000 + b",0\n")
    with pytest.raises(Corrupt, match=r"a\.csv: line 1: a field is longer than"):
        read_labelled(str(tmp_path))


def test_whole_files_are_read(tmp_path):
    (tmp_path / "a.npz").write_bytes(WHOLE)
    assert read_labelled(str(tmp_path)).n_classes == 3
