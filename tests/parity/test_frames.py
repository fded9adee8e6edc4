"""Frames against other people's decoders and processors, on every real clip."""

import struct

import av
import numpy as np
import pytest
from conftest import make_clip

from kvtools.video import clip as clips_module
from kvtools.video import decode, frame_index, patch
from kvtools.video.recipe import VideoRecipe
from kvtools.video.resize import Resizer
from kvtools.video.sample import FrameSampling


def names():
    from conftest import DATA

    folder = DATA / "video" / "clips"
    return sorted(p.name for p in folder.iterdir()) if folder.is_dir() else ["absent"]


def all_frames(path):
    """Every frame by PyAV in order, upright: the oracle, which neither seeks nor skips."""
    with av.open(str(path)) as container:
        stream = container.streams.best("video")
        stream.thread_type = "AUTO"
        matrix = None
        for frame in container.decode(stream):
            matrix = matrix or matrix_of(frame)
            yield placed(frame.to_ndarray(format="rgb24"), matrix)


def matrix_of(frame):
    """The signs of (a, b, c, d), by which a stored point (x, y) is shown at (ax + cy, bx + dy)."""
    side = frame.side_data.get("DISPLAYMATRIX")
    entries = (1, 0, 0, 0, 1) if side is None else struct.unpack("=9i", bytes(side)[:36])
    return tuple(int(np.sign(entries[i])) for i in (0, 1, 3, 4))


def placed(picture, matrix):
    """The picture with each pixel where the matrix puts it."""
    if matrix == (1, 0, 0, 1):
        return picture
    a, b, c, d = matrix
    y, x = np.indices(picture.shape[:2])
    columns, rows = a * x + c * y, b * x + d * y
    columns, rows = columns - columns.min(), rows - rows.min()
    shown = np.empty((rows.max() + 1, columns.max() + 1, 3), np.uint8)
    shown[rows, columns] = picture
    return shown


def difference(a, b):
    return np.abs(a.astype(np.int16) - b).mean()


def positions_of(index):
    # sparse, dense and at both ends: skipping must be right for each
    n = len(index.times)
    return sorted({0, n - 1, *range(0, n, 15), *range(n // 2, min(n, n // 2 + 4))})


@pytest.fixture(scope="module")
def compiled_resize():
    resizer = Resizer()
    resizer._load()  # without numba it is Pillow that resizes
    return resizer


@pytest.mark.parametrize("name", names())
def test_every_sampled_frame_is_the_one_shown_then(data, name, compiled_resize):
    path = str(data / "video" / "clips" / name)
    index = frame_index.open_index(path)
    positions = positions_of(index)
    for n_threads in (1, 2):
        found = dict(zip(positions, decode.read_pyav(path, index, positions, n_threads=n_threads), strict=True))
        for i, frame in enumerate(all_frames(path)):
            if i in found:
                assert difference(found[i], frame) == 0, (name, i)
    assert i + 1 == len(index.times)
    _, *size = patch.Budget().fit(16, *frame.shape[:2])
    for frame in found.values():
        assert np.array_equal(compiled_resize(frame, *size), patch.resize(frame, *size))


@pytest.mark.parametrize("name", names())
def test_decord_gives_the_same_frames_or_refuses(data, name):
    path = str(data / "video" / "clips" / name)
    index = frame_index.open_index(path)
    positions = positions_of(index)
    if name == "av1_video.mkv":  # decord's wheel has no AV1
        with pytest.raises(ValueError, match="decord"):
            next(decode.read_decord(path, index, positions))
        return
    found = dict(zip(positions, decode.read_decord(path, index, positions), strict=True))
    for i, frame in enumerate(all_frames(path)):
        if i in found:
            # decord converts colours by another scaler: 3.1 apart at 10 bits a sample, below 3 elsewhere
            assert difference(found[i], frame) <= (4 if "10bits" in name else 3), (name, i)


@pytest.mark.parametrize("pick", ["reference", "key"])
@pytest.mark.parametrize("name", names())
def test_picked_frames_are_the_ones_shown_then(data, name, pick):
    path = str(data / "video" / "clips" / name)
    index = frame_index.open_index(path)
    allowed = list(index.keys if pick == "key" else index.references)
    positions = allowed[:: max(1, len(allowed) // 5)]
    found = dict(zip(positions, decode.read_pyav(path, index, positions, n_threads=1), strict=True))
    for i, frame in enumerate(all_frames(path)):
        if i in found:
            assert difference(found[i], frame) == 0, (name, i)


@pytest.mark.parametrize("signs", [(-1, 0, 0, 1), (1, 0, 0, -1), (0, 1, 1, 0), (0, -1, -1, 0), (0, 1, -1, 0), (-1, 0, 0, -1)])
def test_mirrors_and_turns_of_the_container_are_applied(signs, tmp_path):
    make_clip(tmp_path / "a.mp4", n_frames=3, width=64, height=48)
    data = bytearray((tmp_path / "a.mp4").read_bytes())
    a, b, c, d = (sign << 16 for sign in signs)
    at = data.index(b"tkhd") + 44  # after its version, times, and what else is 40 bytes
    assert struct.unpack(">9i", data[at : at + 36]) == (1 << 16, 0, 0, 0, 1 << 16, 0, 0, 0, 1 << 30)
    data[at : at + 36] = struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 1 << 30)
    (tmp_path / "turned.mp4").write_bytes(data)
    path = str(tmp_path / "turned.mp4")
    (ours,) = decode.read_pyav(path, frame_index.open_index(path), [2], n_threads=1)
    assert np.array_equal(ours, placed(list(all_frames(tmp_path / "a.mp4"))[2], signs))
    assert np.array_equal(ours, list(all_frames(path))[2])


def test_rotated_clips_come_out_as_decord_turns_them(data):
    import decord

    for n in (0, 90, 180, 270):
        path = str(data / "video" / "clips" / f"rot_{n}.mov")
        (ours,) = decode.read_pyav(path, frame_index.open_index(path), [0], n_threads=1)
        assert difference(ours, decord.VideoReader(path)[0].asnumpy()) <= 3


@pytest.mark.parametrize(
    "name", ["yoga.mp4", "making_cake_portrait.mp4", "jesse_dance_720p.mp4", "carphone_distorted_qcif.mp4"]
)
def test_patches_equal_those_of_the_transformers_processor(data, name):
    from PIL import Image
    from transformers.models.paddleocr_vl.image_processing_pil_paddleocr_vl import PaddleOCRVLImageProcessorPil

    processor = PaddleOCRVLImageProcessorPil(min_pixels=3136, max_pixels=1_003_520, image_mean=[0.5] * 3, image_std=[0.5] * 3)
    path = str(data / "video" / "clips" / name)
    index = frame_index.open_index(path)
    for frame in decode.read_pyav(path, index, [0, len(index.times) // 2], n_threads=1):
        expected = processor(images=[Image.fromarray(frame)], return_tensors="np")
        size = patch.smart_resize_processor(*frame.shape[:2])
        pixels = patch.cut(patch.resize(frame, *size))
        # the processor's own arithmetic: rescale in float64 to float32, then mean and deviation in float32
        rescaled = (pixels.astype(np.float64) * (1 / 255)).astype(np.float32)
        normalised = (rescaled - np.float32(0.5)) / np.float32(0.5)
        assert expected["image_grid_thw"].tolist() == [[1, size[0] // 14, size[1] // 14]]
        assert np.array_equal(normalised, expected["pixel_values"])


def test_the_record_holds_exactly_these_patches(data):
    from kvtools.artifact import blob

    path = str(data / "video" / "clips" / "fire2_vfr_rot180.mp4")
    raw = b"".join(clips_module.tokenize(path, "k", VideoRecipe(FrameSampling(n_frames=5))))
    tensors, _ = blob.decode(raw)
    n_frames, rows, cols = tensors["grid"]
    shown = list(all_frames(path))
    times = [frame_index.open_index(path).seconds(i) for i in range(len(shown))]
    for i, seconds in enumerate(tensors["seconds"]):
        frame = np.ascontiguousarray(shown[times.index(seconds)])
        pixels = tensors["pixels"].reshape(n_frames, rows * cols, 3, 14, 14)[i]
        assert np.array_equal(pixels, patch.cut(patch.resize(frame, rows * 14, cols * 14)))


def test_containers_without_believable_times_are_read_in_order(data):
    path = str(data / "video" / "clips" / "mllm_2_cooking.avi")
    index = frame_index.open_index(path)
    assert index.packets is None
    assert not index.is_seekable
    assert frame_index.open_index(str(data / "video" / "clips" / "h265_video.mp4")).is_seekable is False
    assert frame_index.open_index(str(data / "video" / "clips" / "yoga.mp4")).is_seekable is True
