"""Labelled data that are damaged: one fault that names the file, whatever the reader of their format says."""

import gzip
import io
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


WHOLE = npz(x=np.zeros((9, 2), np.float32), y=np.arange(9) % 3)
PACKED = bytearray(gzip.compress(b"1,2,0\n" * 99))
PACKED[14] ^= 0xFF
DAMAGED = {
    "a.csv.gz": bytes(PACKED),
    "a.npz": WHOLE[: len(WHOLE) // 2],
    "b.npz": archive("x.txt", "no array"),
    "a.csv": b"1," + b"9" * 200_000 + b",0\n",
    "a.json": b"[" * 100_000,
}


@pytest.mark.parametrize("name", DAMAGED)
def test_damage_is_refused_with_the_name_of_the_file(tmp_path, name):
    (tmp_path / name).write_bytes(DAMAGED[name])
    with pytest.raises(Corrupt, match=name):
        read_labelled(str(tmp_path))


def test_whole_files_are_read(tmp_path):
    (tmp_path / "a.npz").write_bytes(WHOLE)
    assert read_labelled(str(tmp_path)).n_classes == 3
