"""The compiled passes of resizing against Pillow, to the bit."""

import threading

import numpy as np
import pytest

from kvtools.video import patch, resize

pytest.importorskip("numba")


@pytest.fixture(scope="module")
def resizer():
    made = resize.Resizer()
    made._load()
    return made


def test_pixels_are_those_of_pillow(resizer):
    rng = np.random.default_rng(4)
    for number in range(60):
        height, width, *new = (int(side) for side in rng.integers(1, 240, 4))
        edges = rng.choice(np.array([0, 255], np.uint8), (height, width, 3))
        noise = rng.integers(0, 256, (height, width, 3), np.uint8)
        picture = (edges, noise)[number % 2]
        assert np.array_equal(resizer(picture, *new), patch.resize(picture, *new)), (picture.shape, new)
        assert resizer._axes.get((height, width, *new), "same") is not None, "Pillow did the work"


def test_arrays_of_any_kind_are_taken(resizer):
    picture = np.random.default_rng(5).integers(0, 256, (40, 60, 3), np.uint8)
    picture.flags.writeable = False
    for view in (picture, picture[::-1], picture.transpose(1, 0, 2)):
        assert np.array_equal(resizer(view, 56, 84), patch.resize(np.ascontiguousarray(view), 56, 84))


def test_an_order_that_is_not_pillows_is_not_taken(resizer, monkeypatch):
    picture = np.random.default_rng(6).integers(0, 256, (31, 47, 3), np.uint8)
    fresh = resize.Resizer()
    fresh._load()
    monkeypatch.setattr(
        resize,
        "_weights",
        lambda old, new: [
            each[:1].repeat(new, 0) for each in (np.zeros((new,), np.int32), np.full((new, 1), 1 << 22, np.int32))
        ],
    )
    assert np.array_equal(fresh(picture, 28, 56), patch.resize(picture, 28, 56))
    assert fresh._axes == {(31, 47, 28, 56): None}


def test_compiled_passes_are_loaded_after_a_while(monkeypatch):
    picture, is_loading = np.zeros((30, 30, 3), np.uint8), threading.Event()
    monkeypatch.setattr(resize.Resizer, "_load", lambda _: is_loading.set())
    patient = resize.Resizer(patience=2)
    for _ in range(2):
        patient(picture, 28, 28)
    assert not is_loading.is_set()
    patient(picture, 28, 28)
    assert is_loading.wait(10)
