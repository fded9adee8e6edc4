"""Files that were cut without re-encoding, against PyAV's decode of the same file in order; damage that was planted in them."""

import hashlib
import random
import shutil
import subprocess

import av
import numpy as np
import pytest

from kvtools.video import decode, frame_index
from kvtools.video.container import Damaged, FramesMissing
from kvtools.video.nal import KEY, REFERENCE

N_CUTS = 70  # of each film: 210 in all
FILMS = {
    "open": ("libx264", "open-gop=1:keyint=24:min-keyint=24:scenecut=0:bframes=3:b-pyramid=normal:ref=4:threads=1"),
    "closed": ("libx264", "keyint=20:min-keyint=20:scenecut=0:bframes=2:threads=1"),
    "temporal": ("libx264", "open-gop=1:keyint=30:min-keyint=30:bframes=3:direct=temporal:ref=3:threads=1"),
}


@pytest.fixture(scope="module", params=FILMS)
def film(request, tmp_path_factory):
    """A film of 200 frames, and the digests of its frames."""
    codec, settings = FILMS[request.param]
    path = tmp_path_factory.mktemp("cuts") / "whole.mp4"
    rng = np.random.default_rng(3)
    ground = rng.integers(0, 255, (96, 128, 3), dtype=np.uint8)
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=25, options={"x264-params": settings})
        stream.width, stream.height, stream.pix_fmt = 128, 96, "yuv420p"
        for i in range(200):
            picture = np.roll(ground, (i, 2 * i), axis=(0, 1))
            picture[20:50, i % 90 : i % 90 + 30] = (i, 255 - i, 90)
            for packet in stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")):
                container.mux(packet)
        for packet in stream.encode(None):
            container.mux(packet)
    return path, set(shown(path))


def digest(picture):
    return hashlib.blake2b(np.ascontiguousarray(picture).tobytes()).hexdigest()


def shown(path):
    """The digest of every frame that PyAV shows, in order."""
    with av.open(str(path)) as container:
        return [digest(frame.to_ndarray(format="rgb24")) for frame in container.decode(video=0)]


def given(path):
    """The digest of every frame that we give."""
    for by_decoding in (False, True):
        index = frame_index.open_index(str(path), by_decoding=by_decoding)
        try:
            frames = list(decode.read_pyav(str(path), index, range(len(index.times)), n_threads=1))
        except FramesMissing:
            continue
        return [digest(frame) for frame in frames]
    raise AssertionError("the second index is made of the frames that come out")


def cut(source, target, begin, n_packets):
    """Copy packets from the begin-th key frame on."""
    with av.open(str(source)) as old, av.open(str(target), "w") as new:
        stream = new.add_stream_from_template(old.streams.video[0])
        packets = [packet for packet in old.demux(video=0) if packet.size]
        keys = [i for i, packet in enumerate(packets) if packet.is_keyframe]
        first = keys[begin % len(keys)]
        taken = packets[first : first + n_packets]
        shift = min(packet.dts for packet in taken)
        for packet in taken:
            packet.pts, packet.dts, packet.stream = packet.pts - shift, packet.dts - shift, stream
            new.mux(packet)


def test_cuts_give_the_frames_that_are_shown(film, tmp_path):
    path, whole = film
    chosen = random.Random(7)
    for number in range(N_CUTS):
        target = tmp_path / ("cut.mp4", "cut.mkv")[number % 2]
        cut(path, target, chosen.randrange(20), chosen.randrange(1, 30))
        frames = given(target)
        assert frames == shown(target)
        assert set(frames) <= whole


def test_cuts_by_ffmpeg_give_the_frames_that_ffmpeg_shows(film, tmp_path):
    path, _ = film
    ffmpeg = shutil.which("ffmpeg") or pytest.skip("ffmpeg is not installed")
    chosen = random.Random(11)
    for number in range(8):
        target = tmp_path / ("cut.mp4", "cut.mkv")[number % 2]
        begin, length = f"{chosen.uniform(0, 7):.2f}", f"{chosen.uniform(0.3, 5):.2f}"
        quiet = [ffmpeg, "-v", "error", "-y"]
        subprocess.run([*quiet, "-ss", begin, "-i", path, "-t", length, "-c", "copy", target], check=True)
        every_frame = ["-fps_mode", "passthrough", "-f", "rawvideo", "-pix_fmt", "yuv420p", "-"]
        done = subprocess.run([*quiet, "-i", target, *every_frame], capture_output=True, check=True)
        planes = np.frombuffer(done.stdout, np.uint8).reshape(-1, 96 * 3 // 2, 128)
        frames = [av.VideoFrame.from_ndarray(each, format="yuv420p").to_ndarray(format="rgb24") for each in planes]
        assert given(target) == [digest(frame) for frame in frames], (begin, length)


def test_leading_pictures_without_a_time_are_no_damage():
    """Some muxers write no time for what a cut moves before 0; no decoder shows it."""

    def damaged(*, untimed_are_shown):
        steps = [
            (0, KEY | REFERENCE, None),
            (None, REFERENCE, "a fault"),
            (None, 0, "a fault"),
            (80, REFERENCE, None),
            (40, 0, None),
        ]
        order = [0, 1, 2, 4, 3] if untimed_are_shown else [0, 4, 3]
        frames = [frame_index._Shown(packet, None, None, 1, packet == 0, False) for packet in order]
        return frame_index._damaged(frames, steps)

    assert damaged(untimed_are_shown=False) == {}
    assert damaged(untimed_are_shown=True) == {1: "a fault", 2: "a fault", 3: "a fault", 4: "a fault"}


def test_planted_damage_is_refused(film, tmp_path):
    path, whole = film
    data, chosen = path.read_bytes(), random.Random(5)
    n_refused = 0
    for _ in range(12):
        film_bytes = bytearray(data)
        at = chosen.randrange(len(data) // 10, len(data) * 8 // 10)
        for offset in range(0, 24, 3):
            film_bytes[at + offset] ^= 1 << chosen.randrange(8)
        target = tmp_path / f"damaged{path.suffix}"
        target.write_bytes(film_bytes)
        try:
            given(target)
        except (Damaged, ValueError):
            n_refused += 1
    assert n_refused >= 6, "bits that the entropy coder does not notice are not noticed by anyone"


def test_a_cut_outside_of_the_span_is_no_damage(film, tmp_path):
    from kvtools.video.clip import Attempt, tokenize
    from kvtools.video.recipe import VideoRecipe
    from kvtools.video.sample import FrameSampling

    path, _ = film
    target = tmp_path / "short.mkv"
    cut(path, target, 0, 200)
    target.write_bytes(target.read_bytes()[: target.stat().st_size * 6 // 10])
    with pytest.raises(Damaged):
        list(tokenize(str(target), "k", VideoRecipe()))
    assert list(tokenize(str(target), "k", VideoRecipe(FrameSampling(end_s=1.0))))
    assert b'"missing"' in bytes(next(tokenize(str(target), "k", VideoRecipe(), Attempt(salvage=True)))).replace(b"\\", b"")
