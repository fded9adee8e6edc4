import io
import os
import random
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvtools.artifact import blob, zstd_frame
from kvtools.artifact.directory import new_directory
from kvtools.artifact.files import Sink, claimed_folder, open_claimed, remove_abandoned
from kvtools.artifact.state import RunState
from kvtools.artifact.stream import Head, Reader, Writer
from kvtools.artifact.stream_index import Index
from kvtools.errors import CannotCreate, Corrupt, Missing, Usage


def records_of(n=4, seed=0):
    rng = np.random.default_rng(seed)
    return [(f"k{n - i}", {"x": rng.integers(0, 9, 40 * i, dtype=np.uint8), "y": rng.normal(size=i)}) for i in range(n)]


def write(path, records, level=None, **head):
    with Writer(Sink(str(path), force=True), Head("video", **head), level=level) as writer:
        for key, tensors in records:
            writer.write(key, tensors)
    return path.read_bytes()


def read(raw):
    return list(Reader(io.BufferedReader(io.BytesIO(raw)), "test"))


@pytest.fixture(params=[0, 1, 9])
def raw(request, tmp_path):
    return write(tmp_path / "a.kvs", records_of(), request.param)


def test_every_truncation_is_refused(raw):
    for n in range(len(raw)):
        with pytest.raises(Corrupt, match="test: "):
            read(raw[:n])


def test_every_flipped_bit_is_refused(raw):
    for bit in range(8 * len(raw)):
        damaged = bytearray(raw)
        damaged[bit // 8] ^= 1 << bit % 8
        with pytest.raises(Corrupt, match="test: "):
            read(bytes(damaged))


def test_flipped_bits_of_a_large_compressed_stream_are_refused(tmp_path):
    # 4,000 bits of records long enough for entropy tables, whose padding no decoder looks at
    text = np.frombuffer(b"the quick brown fox jumps over the lazy dog " * 2000, np.uint8).copy()
    text[::97] = np.random.default_rng(0).integers(0, 255, len(text[::97]))
    raw = write(tmp_path / "a.kvs", [(f"k{i}", {"x": np.roll(text, i)}) for i in range(3)], 1)
    chosen = random.Random(0)
    for _ in range(4000):
        damaged = bytearray(raw)
        damaged[chosen.randrange(len(raw))] ^= 1 << chosen.randrange(8)
        with pytest.raises(Corrupt):
            read(bytes(damaged))


def test_faults_name_the_record(raw, tmp_path):
    last_mark = raw.rfind(zstd_frame.MARK.to_bytes(4, "little"))
    with pytest.raises(Corrupt, match="record 3"):
        read(raw[: last_mark + 90])
    with pytest.raises(Corrupt, match="after record 2 without its end mark"):
        read(raw[:last_mark])


@pytest.mark.parametrize("extra", [b"\0", b"garbage", zstd_frame.skippable(0x184D2A55, b"x"), b"\x28\xb5\x2f\xfd"])
def test_after_the_end_only_another_stream_may_come(raw, extra):
    with pytest.raises(Corrupt):
        read(raw + extra)


def test_an_unknown_frame_is_refused(raw):
    at = raw.find(zstd_frame.MARK.to_bytes(4, "little"))
    with pytest.raises(Corrupt, match="unknown frame"):
        read(raw[:at] + zstd_frame.skippable(0x184D2A5A, b"hello") + raw[at:])


def test_lost_and_swapped_records_are_refused(tmp_path):
    raw = write(tmp_path / "a.kvs", records_of(), 0)
    mark = zstd_frame.MARK.to_bytes(4, "little")
    starts = [i for i in range(len(raw)) if raw.startswith(mark, i)]
    first, second, third = starts[:3]
    for order in (raw[:first] + raw[second:], raw[:first] + raw[second:third] + raw[first:second] + raw[third:]):
        with pytest.raises(Corrupt, match="lost or out of order"):
            read(order)


def test_concatenated_streams_are_one(tmp_path):
    a, b = write(tmp_path / "a.kvs", records_of(3)), write(tmp_path / "b.kvs", records_of(2, 1), 0)
    assert [r.key for r in read(a + b)] == ["k3", "k2", "k1", "k2", "k1"]
    assert [r.number for r in read(a + b)] == [0, 1, 2, 3, 4]
    (tmp_path / "ab.kvs").write_bytes(a + b)
    with open(tmp_path / "ab.kvs", "rb") as file:
        index = Index(file, "ab")
        assert len(index) == 5
        assert [index.fetch(i).number for i in range(5)] == [0, 1, 2, 3, 4]


def test_streams_of_two_kinds_are_not_one(tmp_path):
    a = write(tmp_path / "a.kvs", records_of())
    with Writer(Sink(str(tmp_path / "b.kvs")), Head("rollout")) as writer:
        writer.write("k", {"x": np.ones(3)})
    with pytest.raises(Corrupt, match="^test: records of kind rollout follow records of kind video. Join streams of one"):
        read(a + (tmp_path / "b.kvs").read_bytes())


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.tuples(st.text(max_size=9), st.integers(0, 300_000)), max_size=5),
    st.sampled_from([0, 1, 3]),
    st.integers(0, 99),
)
def test_what_is_written_is_read(tmp_path_factory, shapes, level, seed):
    rng = np.random.default_rng(seed)
    records = [(key, {"x": rng.integers(0, 50, n, dtype=np.uint8)}) for key, n in shapes]
    found = read(write(tmp_path_factory.mktemp("s") / "a.kvs", records, level))
    assert [r.key for r in found] == [key for key, _ in records]
    assert all(np.array_equal(r.tensors["x"], t["x"]) for r, (_, t) in zip(found, records, strict=True))


def test_same_records_give_same_bytes_and_compression_does_not_see_pieces(tmp_path):
    tensors = {"x": np.arange(300_000, dtype=np.int32)}
    a = write(tmp_path / "a.kvs", [("k", tensors)], 1)
    with Writer(Sink(str(tmp_path / "b.kvs")), Head("video"), level=1) as writer:
        whole = b"".join(blob.encode(tensors, {"kind": "video", "key": "k"}))
        writer.write_pieces("k", [memoryview(whole)[i : i + 1000] for i in range(0, len(whole), 1000)])
    assert a == (tmp_path / "b.kvs").read_bytes()


def test_zstd_accepts_the_file_and_yields_safetensors(raw, tmp_path):
    (tmp_path / "a.kvs").write_bytes(raw)
    assert subprocess.run(["zstd", "-tq", tmp_path / "a.kvs"], check=False).returncode == 0
    plain = subprocess.run(["zstd", "-dc", tmp_path / "a.kvs"], check=True, capture_output=True).stdout
    assert plain == b"".join(bytes(r.raw) for r in read(raw))
    from safetensors.numpy import load

    first = load(bytes(read(raw)[1].raw))
    assert np.array_equal(first["x"], records_of()[1][1]["x"])


def test_two_hundred_records_are_fetched_at_once(tmp_path):
    records = [(f"clip-{i:03}", {"x": np.full(1000 + i, i, np.int32)}) for i in range(200)]
    write(tmp_path / "a.kvs", records)
    with open(tmp_path / "a.kvs", "rb") as file:
        index = Index(file, "a")
        keys = [key for key, _ in records] * 5
        random.Random(0).shuffle(keys)
        with ThreadPoolExecutor(200) as pool:
            found = list(pool.map(index.fetch, keys))
        assert all(r.key == key and (r.tensors["x"] == int(key[-3:])).all() for r, key in zip(found, keys, strict=True))
        with pytest.raises(Missing):
            index.fetch("clip-999")


def test_the_index_refuses_a_cut_or_damaged_file(tmp_path):
    raw = write(tmp_path / "a.kvs", records_of())
    for damaged in (
        raw[:-1],
        raw[:-9],
        raw[: len(raw) // 2],
        raw[:-5] + b"\1" + raw[-4:],
        b"",
        raw[:100] + b"\xff" + raw[101:],
    ):
        (tmp_path / "b.kvs").write_bytes(damaged)
        with open(tmp_path / "b.kvs", "rb") as file, pytest.raises(Corrupt):
            index = Index(file, "b")
            for i in range(len(index)):
                index.fetch(i)


def test_no_allocation_follows_an_unchecked_length(tmp_path):
    import struct
    import zlib

    raw = write(tmp_path / "a.kvs", records_of(), 0)
    at = raw.find(zstd_frame.MARK.to_bytes(4, "little"))
    for n_stored, n_raw in ((1 << 60, 1 << 60), (200, 1 << 27), (1 << 27, 200), (1 << 20, zstd_frame.MAX_RAW_BYTES + 1)):
        mark = struct.pack("<QQQI", 0, n_stored, n_raw, 0)
        damaged = raw[: at + 8] + mark + zlib.crc32(mark).to_bytes(4, "little") + raw[at + 40 :]
        with pytest.raises(Corrupt):
            read(damaged)


def test_a_failed_write_leaves_the_old_file(tmp_path):
    before = write(tmp_path / "a.kvs", records_of())
    with pytest.raises(RuntimeError), Writer(Sink(str(tmp_path / "a.kvs"), force=True), Head("video")) as writer:
        writer.write("k", {"x": np.ones(9)})
        raise RuntimeError
    assert (tmp_path / "a.kvs").read_bytes() == before
    assert os.listdir(tmp_path) == ["a.kvs"]


def test_an_existing_file_is_not_overwritten_unasked(tmp_path):
    write(tmp_path / "a.kvs", records_of())
    with pytest.raises(CannotCreate, match="--force"):
        Sink(str(tmp_path / "a.kvs"))


def test_two_writers_of_one_file_are_refused(tmp_path):
    first = Sink(str(tmp_path / "a.kvs"), keep_partial=True)
    with pytest.raises(CannotCreate, match="another run"):
        Sink(str(tmp_path / "a.kvs"), keep_partial=True)
    first.abandon()


@pytest.mark.parametrize("cut", [0, 200, 700, 900, 10_000])
def test_a_resumed_stream_equals_an_uninterrupted_one(tmp_path, cut):
    whole = write(tmp_path / "a.kvs", records_of(), 0)
    (tmp_path / ".b.kvs.part").write_bytes(whole[:cut])
    with Writer(Sink(str(tmp_path / "b.kvs"), keep_partial=True), Head("video"), level=0) as writer:
        done = writer.resume()
        for key, tensors in records_of():
            if key not in done:
                writer.write(key, tensors)
    assert (tmp_path / "b.kvs").read_bytes() == whole


@pytest.mark.parametrize("n_kept", [5, 20])
def test_a_partial_stream_with_a_damaged_head_is_refused(tmp_path, n_kept):
    whole = write(tmp_path / "a.kvs", records_of(), 0)
    dst, left_behind = str(tmp_path / "b.kvs"), tmp_path / ".b.kvs.part"
    left_behind.write_bytes(whole[:n_kept] + b"?" + whole[n_kept + 1 :])
    with pytest.raises(Corrupt) as fault, Writer(Sink(dst, keep_partial=True), Head("video"), level=0) as writer:
        writer.resume()
    remedy = "The stopped run cannot be resumed. Give --force to start over."
    assert str(fault.value) == f"{left_behind}: the head is damaged. {remedy}"
    assert len(left_behind.read_bytes()) == len(whole)
    with Writer(Sink(dst, keep_partial=True), Head("video"), level=0) as writer:
        assert writer.resume(start_over=True) == set()
    assert Path(dst).exists()


STEP = {"id": "0", "command": "tokenize-video", "version": "1", "argv": ["a.mp4"], "inputs": [], "parents": []}


@pytest.mark.parametrize(
    ("stopped", "said"),
    [
        ({"config": {"fps": 1}, "history": [STEP]}, "fps 1, and this run has 2"),
        ({"config": {"fps": 2}, "history": [STEP | {"argv": ["b.mp4"]}]}, 'argv ["b.mp4"], and this run has ["a.mp4"]'),
        ({"config": {"fps": 2}, "history": [STEP | {"version": "0"}]}, 'version "0", and this run has "1"'),
        ({"config": {"fps": 2}}, 'argv null, and this run has ["a.mp4"]'),
    ],
)
def test_a_partial_stream_of_other_options_is_refused_with_the_option(tmp_path, stopped, said):
    head = Head("video", [STEP], {"fps": 2})
    whole = write(tmp_path / "a.kvs", records_of(), 0, **stopped)
    dst = str(tmp_path / "b.kvs")
    (tmp_path / ".b.kvs.part").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(Usage) as fault, Writer(Sink(dst, keep_partial=True), head, level=0) as writer:
        writer.resume()
    remedy = "Give the same options to resume it, or --force to start over."
    assert str(fault.value) == f"{dst}: the stopped run had {said}. {remedy}"
    with Writer(Sink(dst, keep_partial=True), head, level=0) as writer:
        assert writer.resume(start_over=True) == set()


def test_a_stream_without_a_key_index_is_read_and_indexed(tmp_path):
    raw = write(tmp_path / "a.kvs", records_of(), 0)
    begin = raw.rfind(zstd_frame.KEYS.to_bytes(4, "little"))
    sizes = np.frombuffer(raw[raw.rfind(zstd_frame.SEEK.to_bytes(4, "little")) + 8 : -9], "<u4").reshape(-1, 2)[:-1]
    without = raw[:begin] + zstd_frame.seek_table(map(tuple, sizes))
    assert [r.key for r in read(without)] == ["k4", "k3", "k2", "k1"]
    (tmp_path / "b.kvs").write_bytes(without)
    with open(tmp_path / "b.kvs", "rb") as file:
        index = Index(file, "b")
        assert index.fetch("k2").number == 2
        assert index.keys == ["k1", "k2", "k3", "k4"]


def test_what_killed_writers_left_is_removed_and_what_is_being_written_is_not(tmp_path):
    others = {tmp_path / ".a.tmp-2", tmp_path / ".ab.tmp-1", tmp_path / "a.tmp-1"}
    for path in (*others, tmp_path / ".a.tmp-1", tmp_path / ".train.state.tmp-1"):
        path.write_bytes(b"x")
    for folder in (".m.tmp-1", ".m.tmp-2"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "config.json").write_text("{}")
    held = open_claimed(tmp_path / ".a.tmp-2")
    Sink(str(tmp_path / "a")).write_whole([b"1"])
    RunState(str(tmp_path), "model", {}).forget()
    with claimed_folder(tmp_path / ".m.tmp-2"), new_directory(str(tmp_path / "m")) as folder:
        remove_abandoned(tmp_path / "m")
        (folder / "config.json").write_text("{}")
    assert {*tmp_path.iterdir()} == {*others, tmp_path / "a", tmp_path / "m", tmp_path / ".m.tmp-2"}
    assert (tmp_path / "m" / "config.json").exists()
    os.close(held)
