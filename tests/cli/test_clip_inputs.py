"""What tokenize-video takes for a clip: names, lists, folders, tars, pictures; what becomes of stopped runs."""

import io
import json
import os
import shutil
import tarfile
import time
from fractions import Fraction

import av
import numpy as np
import pytest
from conftest import make_clip
from PIL import Image

from kvtools.artifact.stream import Reader
from kvtools.errors import Missing
from kvtools.video import pictures, upright
from kvtools.video.clip import tokenize
from kvtools.video.digest import digest_of
from kvtools.video.inputs import Clip, Search, find_clips
from kvtools.video.listing import read_list
from kvtools.video.recipe import VideoRecipe
from kvtools.video.run_report import is_current


def records(path):
    with open(path, "rb") as file:
        return list(Reader(io.BufferedReader(file), str(path)))


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    make_clip(tmp_path / "a.mp4", n_frames=8, width=64, height=48)
    return tmp_path


def listed(src, **options):
    faults = []
    found = read_list(str(src), root=options.get("root"), is_nul=options.get("is_nul", False),
                      reject=lambda *fault: faults.append(fault))  # fmt: skip
    return found, faults


def listed_text(folder, text):
    (folder / "list.jsonl").write_text(text)
    return listed(folder / "list.jsonl")


def test_names_are_paths_and_no_urls(kv, here):
    names = ["12:30.mp4", "b%03d.mp4", os.fsdecode(b"caf\xe9.mp4"), "x\u2028y.mp4"]
    for name in names:
        shutil.copy("a.mp4", name)
    (here / "names").write_bytes(b"\0".join(os.fsencode(name) for name in names))
    assert kv("tokenize-video -q --list0 names -o out.kvs") == (0, "")
    assert [r.key for r in records("out.kvs")] == ["12:30.mp4", "b%03d.mp4", "caf\\xe9.mp4", "x\u2028y.mp4"]
    code, err = kv("tokenize-video http://127.0.0.1:1/a.mp4 -o no.kvs")
    assert (code, err.count("\n")) == (66, 1)
    assert not os.path.exists("no.kvs")


@pytest.mark.parametrize(
    ("data", "paths"),
    [
        (b"\xef\xbb\xbfa\r\nb c\r\n\r\n", ["a", "b c"]),
        ("x\u2028y\nz\x85\n".encode(), ["x\u2028y", "z\x85"]),
        ("a\nb\n".encode("utf-16"), ["a", "b"]),
        (b"a\rb", ["a", "b"]),
        (b'{"a"}.mp4\n', ['{"a"}.mp4']),
    ],
)
def test_a_list_is_a_path_a_line(tmp_path, data, paths):
    (tmp_path / "list").write_bytes(data)
    assert [each.path for each in listed(tmp_path / "list")[0]] == paths
    found, _ = listed(tmp_path / "list", root="top")
    assert [each.path for each in found] == [f"top/{path}" for path in paths]


def test_a_list_of_json_lines_says_more(kv, here):
    (here / "sub").mkdir()
    os.rename("a.mp4", "sub/a.mp4")
    rows = [
        {"path": "a.mp4", "start": 0.04, "end": 0.2, "label": "cat", "duration": 9},
        {"path": "a.mp4", "start": 0.2},
        {"path": "a.mp4", "key": "whole"},
        {"path": "gone.mp4"},
        {"key": "x"},
    ]
    (here / "sub" / "clips.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    code, err = kv("tokenize-video --list sub/clips.jsonl --report r.json -o out.kvs")
    assert code == 65
    assert err.splitlines()[-1].startswith("kvtools tokenize-video: clips: 3 written; 2 bad; ")
    first, second, whole = records("out.kvs")
    assert [first.key, second.key, whole.key] == ["a.mp4#t=0.04,0.2", "a.mp4#t=0.2", "whole"]
    assert first.tensors["seconds"][0] == pytest.approx(0.04)
    assert first.fields["label"] == "cat"
    assert first.fields["list.duration"] == 9
    report = json.loads((here / "r.json").read_text())
    assert [fault["code"] for fault in report["faults"]] == [65, 66]


def test_a_folder_is_searched_to_the_end(here):
    for name in ("tree/v.vob", "tree/deep/noname", "tree/deep/other/v.mp4"):
        os.makedirs(os.path.dirname(name), exist_ok=True)
        shutil.copy("a.mp4", name)
    os.makedirs("tree/deep/frames")
    for i in range(2):
        Image.new("RGB", (32, 32)).save(f"tree/deep/frames/{i}.tif")
    Image.new("RGB", (32, 32)).save("tree/cover.jpg")
    os.symlink("..", "tree/deep/up")
    os.symlink("nowhere.mp4", "tree/gone.mp4")
    (here / "tree" / "a.srt").write_text("1")
    search = Search()
    search.add("tree")
    assert [clip.key for clip in search.keyed()] == ["deep/frames", "deep/noname", "deep/other/v.mp4", "gone.mp4", "v.vob"]
    assert search.passed_over == {".jpg": 1, ".srt": 1, "link to a folder above it": 1}
    (here / "empty").mkdir()
    with pytest.raises(Missing):
        find_clips(["empty"])


def test_keys_do_not_follow_links_and_tell_clips_apart(here):
    for name in ("x/1/v.mp4", "y/1/v.mp4", "z/2/v.mp4"):
        os.makedirs(os.path.dirname(name))
        shutil.copy("a.mp4", name)
    os.symlink("x/1/v.mp4", "link.mp4")
    clips = find_clips(["x/1/v.mp4", "y/1/v.mp4", "z/2/v.mp4", "link.mp4", "./x/1/v.mp4"])
    assert [clip.key for clip in clips] == ["x/1/v.mp4", "y/1/v.mp4", "2/v.mp4", "link.mp4"]


def test_what_a_list_says_holds_for_all_that_lies_there(here):
    search = Search()
    for key in ("one", "two"):
        search.add("a.mp4", key=key)
    os.mkdir("sub")
    os.link("a.mp4", "sub/a.mp4")
    with tarfile.open("twice.tar", "w") as tar:
        tar.add("a.mp4")
        tar.add("a.mp4")
    for path in ("sub", "twice.tar"):
        search.add(path, key=path, span=(0.1, None), fields={"label": 3})
    clips = search.keyed()
    assert [clip.key for clip in clips] == ["one", "two", "sub/a.mp4", "twice.tar/a.mp4", "twice.tar/a.mp4#2"]
    assert {(clip.start_s, clip.fields["label"]) for clip in clips[2:]} == {(0.1, 3)}
    found, faults = listed_text(here, '{"path": "a.mp4", "x": 1}\n' * 2 + '{"path": "a.mp4", "x": 2}\n')
    assert (len(found), [where.rpartition(": ")[2] for where, _ in faults]) == (2, ["line 3"])


def test_tars_are_read_and_written_as_webdataset_has_them(kv, here):
    (here / "m.json").write_text('{"caption": "x"}')
    with tarfile.open("in.tar", "w") as tar:
        for name, path in (("000.mp4", "a.mp4"), ("000.json", "m.json"), ("001.mp4", "a.mp4"), ("001.cls", "m.json")):
            tar.add(path, name)
    assert kv("tokenize-video -q in.tar -o out.kvs", "cat --tar out.kvs -o out.tar", "cat --tar out.kvs -o 2.tar") == (0, "")
    first, second = records("out.kvs")
    assert (first.key, first.fields["caption"], "caption" in second.fields) == ("000.mp4", "x", False)
    assert (here / "out.tar").read_bytes() == (here / "2.tar").read_bytes()
    whole = (here / "in.tar").read_bytes()
    (here / "cut.tar").write_bytes(whole[: whole.rindex(b"001.mp4") + 900])
    code, err = kv("tokenize-video -q cut.tar -o first.kvs")
    assert (code, [r.key for r in records("first.kvs")]) == (65, ["000.mp4"])
    assert "it is cut short after 000.json" in err
    with tarfile.open("out.tar") as tar:
        assert tar.getnames()[:2] == ["000_mp4.json", "000_mp4.seconds.npy"]
        pixels = np.load(io.BytesIO(tar.extractfile("001_mp4.pixels.npy").read()))
        assert np.array_equal(pixels, second.tensors["pixels"])


def test_records_whose_input_changed_are_made_again(kv, here):
    for name in ("b.mp4", "c.mp4"):
        make_clip(here / name, n_frames=5, width=64, height=48)
    assert kv("tokenize-video a.mp4 b.mp4 c.mp4 -o whole.kvs") == (0, "")
    (here / ".out.kvs.part").write_bytes((here / "whole.kvs").read_bytes()[:-100])
    make_clip(here / "b.mp4", n_frames=7, width=64, height=48)
    code, err = kv("tokenize-video a.mp4 b.mp4 c.mp4 -o out.kvs")
    assert code == 0
    assert "b.mp4: its input is gone or has changed since the run that was stopped." in err
    assert [(r.key, r.fields["source"]["frames"]) for r in records("out.kvs")] == [("a.mp4", 8), ("b.mp4", 7), ("c.mp4", 5)]


@pytest.mark.parametrize(("dated_s", "written_s"), [(0, 1e6), (-1e9, 0), (-1e9, 60), (0, -1e6)])
def test_an_input_that_changed_is_known_whatever_the_clocks_say(here, dated_s, written_s):
    """dated_s: the date that the changed file is given; written_s: that of the stopped run's output; both from now on."""
    clip = Clip("a", str(here / "clip.bin"))
    (here / "clip.bin").write_bytes(b"before")
    fields = {"source": {"bytes": 6, "digest": digest_of(clip.path)}}
    assert is_current(fields, clip, time.time() + written_s)
    (here / "clip.bin").write_bytes(b"behind")
    os.utime(clip.path, (time.time() + dated_s,) * 2)
    assert not is_current(fields, clip, time.time() + written_s)


def test_a_folder_that_is_younger_than_the_output_from_the_future_is_no_older(here):
    (here / "frames").mkdir()
    os.utime(here / "frames", (time.time() + 500,) * 2)
    assert not is_current({}, Clip("a", str(here / "frames")), time.time() + 1000)


def test_an_output_that_is_an_input_is_refused(kv, here):
    before = (here / "a.mp4").read_bytes()
    assert kv("tokenize-video a.mp4 -o a.mp4 --force")[0] == 2
    assert (here / "a.mp4").read_bytes() == before


def test_a_frame_lasts_until_the_next(here):
    with av.open("still.mp4", "w") as container:
        stream = container.add_stream("libx264", rate=30, options={"bf": "0"})
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        stream.codec_context.time_base = Fraction(1, 1000)
        for i, (time, length) in enumerate(((0, 30_000), (30_000, 200), (30_200, 30))):
            frame = av.VideoFrame.from_ndarray(np.full((48, 64, 3), 60 * i, np.uint8), format="rgb24")
            frame.pts, frame.time_base = time, Fraction(1, 1000)
            for packet in stream.encode(frame):
                packet.duration = length
                container.mux(packet)
        container.mux(stream.encode(None))
    head = bytes(next(tokenize("still.mp4", "k", VideoRecipe())))
    assert b'\\"duration\\":30.2' in head


def test_mirrors_turns_and_transparency():
    picture = np.arange(24, dtype=np.uint8).reshape(2, 4, 3)
    assert np.array_equal(upright.oriented(picture, (-1, 0, 0, 1)), picture[:, ::-1])
    assert np.array_equal(upright.oriented(picture, (1, 0, 0, -1)), picture[::-1])
    assert np.array_equal(upright.oriented(picture, (0, 1, -1, 0)), np.rot90(picture, -1))
    assert np.array_equal(upright.oriented(picture, (0, 1, 1, 0)), picture.transpose(1, 0, 2))  # a mirror, then a turn
    clear = np.zeros((1, 2, 4), np.uint8)
    clear[0, 1] = (10, 20, 30, 255)
    assert upright.on_white(clear).tolist() == [[[255, 255, 255], [10, 20, 30]]]


def test_animated_pictures_and_clips_of_several_shapes(kv, here):
    red = Image.new("RGB", (64, 48), (255, 0, 0))
    Image.new("RGB", (64, 48)).save("an.webp", save_all=True, append_images=[red], duration=[100, 300], lossless=True)
    index = pictures.open_animation("an.webp")
    assert (list(index.times), index.duration_s) == ([0, 100], 0.4)
    assert list(pictures.read_animation("an.webp", [1]))[0][0, 0].tolist() == [255, 0, 0]
    (here / "mixed").mkdir()
    red.save("mixed/1.png")
    Image.new("RGB", (48, 64), (0, 255, 0)).save("mixed/2.png")
    code, err = kv("tokenize-video mixed -o m.kvs")
    assert code == 65
    assert "its frame 1 is 48x64, and its first is 64x48" in err
    assert kv("tokenize-video --mixed pad mixed -o m.kvs") == (0, "")
