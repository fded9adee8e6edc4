"""Items of conversations into patches: the right frames, true times, budgets kept, and what is not there named."""

import base64
import io

import numpy as np
import pytest
from conftest import make_clip
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from small_media import clip_of, picture, shades, write_stream

from kvtools.artifact.files import Sink
from kvtools.artifact.stream import Head, Writer
from kvtools.errors import Corrupt
from kvtools.keye.data.chat_template import ChatTemplate
from kvtools.keye.data.frames import of_pictures, resized, spliced, take
from kvtools.keye.data.media import Media, Unreadable
from kvtools.keye.data.processor import Processor
from kvtools.keye.model.inputs import Visual
from kvtools.video import patch, pictures
from kvtools.video.patch import Budget
from kvtools.video.pictures import picture_size, read_picture

VIDEO = {"type": "video", "video": "a"}


@pytest.fixture
def stream(tmp_path):
    return write_stream(tmp_path / "clips.kvs", {"a": clip_of(range(0, 80, 10), begin=1.0), "b": clip_of([200, 210], 1.0)})


@pytest.mark.parametrize(
    ("words", "expected", "seconds"),
    [
        ({}, [0, 10, 20, 30, 40, 50, 60, 70], [1, 1.5, 2, 2.5, 3, 3.5, 4, 4.5]),
        ({"seconds": [3.1, 0.8, 4.7]}, [40, 0, 70], [3, 1, 4.5]),
        ({"seconds": [1.25]}, [0], [1]),  # a tie goes to the earlier
        ({"frames": 3}, [0, 40, 70], [1, 3, 4.5]),
        ({"frames": 1}, [0], [1]),
        ({"frames": 99}, [0, 10, 20, 30, 40, 50, 60, 70], [1, 1.5, 2, 2.5, 3, 3.5, 4, 4.5]),
        ({"fps": 1}, [0, 20, 50, 70], [1, 2, 3.5, 4.5]),
        ({"fps": 1, "min_frames": 6, "max_frames": 7}, [0, 10, 30, 40, 60, 70], [1, 1.5, 2.5, 3, 4, 4.5]),
        ({"max_frames": 2}, [0, 70], [1, 4.5]),
        ({"video_start": 2, "video_end": 3.2}, [20, 30, 40], [2, 2.5, 3]),
        ({"video_start": 4, "frames": 1}, [60], [4]),
        ({"seconds": [4, 1], "shown": [0, 0.5]}, [60, 0], [0, 0.5]),
    ],
)
def test_frames_of_a_record_are_those_asked_for(stream, words, expected, seconds):
    with Media([stream]) as media:
        visual = media.fetch({**VIDEO, **words})
    assert shades(visual) == expected
    assert visual.seconds.tolist() == seconds
    assert (visual.grid.tolist(), visual.is_video) == ([len(expected), 4, 6], True)
    assert visual.n_tokens == 6 * len(expected)


def test_a_picture_may_be_a_frame_of_a_video(stream):
    with Media([stream]) as media:
        visual = media.fetch({"type": "image", "image": "a", "second": 2.1})
        assert (shades(visual), visual.grid.tolist(), visual.is_video) == ([20], [1, 4, 6], False)
        assert shades(media.fetch({"type": "image", "image": "b"})) == [200]


def test_cuts_are_shown_one_after_another(stream):
    cuts = [{"video": "a", "seconds": [2, 3]}, {"video": "b", "seconds": [0, 1]}]
    with Media([stream]) as media:
        visual = media.fetch({"type": "video", "video": cuts})
        assert shades(visual) == [20, 40, 200, 210]
        assert visual.seconds.tolist() == [2, 3, 3.5, 4.5]
        small = media.fetch({"type": "video", "video": cuts, "shown": [0, 1, 2, 3], "size": [28, 28]})
        assert (small.grid.tolist(), small.seconds.tolist()) == ([4, 2, 2], [0, 1, 2, 3])


@given(st.integers(1, 60), st.integers(1, 300))
@settings(max_examples=30, deadline=None)
def test_the_cap_of_a_video_is_never_passed(tmp_path_factory, n_frames, cap):
    path = tmp_path_factory.getbasetemp() / "many.kvs"
    stream = write_stream(path, {"a": clip_of([7] * n_frames)})
    with Media([stream], budget=Budget(cap, 1, 768)) as media:
        if cap < 6:
            with pytest.raises(Unreadable, match="a frame costs 6 tokens"):
                media.fetch(VIDEO)
            return
        visual = media.fetch(VIDEO)
    assert visual.n_tokens <= cap
    assert len(visual.seconds) == min(n_frames, cap // 6)


def test_files_are_decoded_and_sized_within_the_budget(tmp_path):
    make_clip(tmp_path / "clip.mp4")
    Image.fromarray(picture(90, 300, 500)).save(tmp_path / "p.png")
    with Media([str(tmp_path)], budget=Budget(64, 4, 16), image_tokens=(4, 20)) as media:
        video = media.fetch({"type": "video", "video": "clip.mp4"})
        assert video.seconds.tolist() == [0.0, 0.64, 1.32, 1.96]
        assert video.n_tokens <= 64
        assert media.fetch({"type": "video", "video": "clip.mp4", "frames": 2}).seconds.tolist() == [0.0, 1.96]
        exact = media.fetch({"type": "video", "video": "clip.mp4", "seconds": [1.96, 0.04]})
        assert exact.seconds.tolist() == pytest.approx([1.96, 0.04])
        shown = media.fetch({"type": "image", "image": "p.png"})
        assert (shown.n_tokens <= 20, shown.is_video, shades(shown)) == (True, False, [90])
        frame = media.fetch({"type": "image", "image": "clip.mp4", "second": 1.0})
        assert (frame.grid[0], frame.seconds.tolist()) == (1, [1.0])


def test_words_about_sizes_and_moments_are_honoured(tmp_path, stream):
    make_clip(tmp_path / "clip.mp4")
    Image.fromarray(picture(90, 300, 500)).save(tmp_path / "p.png")
    with Media([str(tmp_path), stream]) as media:

        def shown(kind, name, **words):
            visual = media.fetch({"type": kind, kind: name, **words})
            return visual.grid.tolist(), visual.seconds.tolist()

        assert shown("image", "p.png", max_pixels=40 * 784)[0] == [1, 8, 16]
        assert shown("image", "p.png", min_pixels=400 * 784)[0] == [1, 32, 52]
        assert shown("image", "p.png", resized_height=60, resized_width=200)[0] == [1, 4, 14]
        assert shown("video", "a", resized_height=60, resized_width=56)[0] == [8, 4, 4]
        assert shown("video", "a", max_pixels=784, frames=2) == ([2, 2, 2], [1, 4.5])
        assert shown("video", "clip.mp4", frames=2, max_pixels=6 * 784)[0] == [2, 4, 4]
        assert shown("video", "clip.mp4", frames=4, total_pixels=24 * 784, min_pixels=784)[0] == [4, 4, 4]
        assert shown("video", "clip.mp4", video_start=0.52, video_end=1.0, max_frames=2)[1] == [0.52, 1.0]
        assert shown("video", "clip.mp4", seconds=[1.0], resized_height=56, resized_width=56) == ([1, 4, 4], [1.0])
        assert shown("image", "clip.mp4", second=2.0)[1] == [1.96]  # when the last frame ends


def test_a_list_of_pictures_is_a_video(tmp_path):
    for n in range(5):
        Image.fromarray(picture(10 * n)).save(tmp_path / f"{n}.png")
    names = [f"{n}.png" for n in range(5)]
    with Media([str(tmp_path)], budget=Budget(24, 1, 6)) as media:

        def shown(names, **words):
            visual = media.fetch({"type": "video", "video": names, **words})
            assert visual.is_video
            return shades(visual), visual.seconds.tolist()

        assert shown(names[:3]) == ([0, 10, 20], [0, 0.5, 1])
        assert shown(names[:2], fps=4) == ([0, 10], [0, 0.25])
        assert shown([names[1], names[0]], seconds=[2, 7.5]) == ([10, 0], [2, 7.5])
        assert shown(names[:4], fps=1, video_start=1, max_frames=2) == ([10, 30], [1, 3])
        assert media.fetch({"type": "video", "video": names}).n_tokens <= 24


def test_what_one_conversation_shows_shares_the_room(tmp_path, stream):
    for name, height in (("a.png", 280), ("b.png", 560)):
        Image.fromarray(picture(9, height, 560)).save(tmp_path / name)
    items = [{"type": "image", "image": "a.png"}, {"type": "image", "image": "b.png"}, VIDEO]
    with Media([str(tmp_path), stream]) as media:
        processor = Processor(ChatTemplate.open(None), media)
        talk = {"messages": [{"role": "user", "content": items}, {"role": "assistant", "content": "x"}]}
        alone = processor.example(talk)
        assert [visual.n_tokens for visual in alone.visuals] == [200, 400, 48]
        row = processor.example(talk, max_tokens=len(alone) - 324)
        assert [visual.n_tokens for visual in row.visuals] == [98, 196, 24]
        assert (len(row) <= len(alone) - 324, row.targets.sum()) == (True, alone.targets.sum())
        asked = Processor(ChatTemplate.open(None), media, max_prompt=400).prompt(talk)
        assert (len(asked) <= 400, len(asked.visuals)) == (True, 3)
        cuts = {**VIDEO, "seconds": [1, 2, 3], "shown": [0, 1, 2]}
        assert media.fetch(cuts, max_tokens=9).grid.tolist() == [3, 2, 4]  # frames that are named stay


def test_wide_numbers_are_scaled_and_not_clipped(tmp_path):
    ramp = np.linspace(0, 1, 84 * 56).reshape(56, 84)
    for name, values in {"16.png": (ramp * 65535).astype(np.uint16), "16.tif": (ramp * 65535).astype(np.uint16),
                         "unit.tif": ramp.astype(np.float32), "wide.tif": (ramp * 9e4 - 7).astype(np.float32),
                         "32.tif": (ramp * 2**20).astype(np.int32), "8.tif": (ramp * 255).astype(np.float32),
                         }.items():  # fmt: skip
        Image.fromarray(values).save(tmp_path / name)
        found = read_picture(str(tmp_path / name), name)[..., 0]
        assert np.abs(found - ramp * 255).max() <= 1, name


def test_a_huge_picture_is_reduced_while_it_is_read(tmp_path, capfd, monkeypatch):
    monkeypatch.setattr(pictures, "_HUGE", 100_000)
    rng = np.random.default_rng(0)
    small = Image.fromarray(rng.integers(0, 255, (6, 9, 3), dtype=np.uint8)).resize((900, 600))
    exif = Image.Exif()
    exif[0x0112] = 6
    small.save(tmp_path / "x.jpg", exif=exif, quality=95)
    small.save(tmp_path / "x.png")
    turned, reduced = (read_picture(str(tmp_path / f"x.{suffix}"), "x", 40_000) for suffix in ("jpg", "png"))
    assert (turned.shape, reduced.shape) == ((450, 300, 3), (200, 300, 3))
    assert np.abs(reduced - np.asarray(small.reduce(3)).astype(int)).max() <= 1
    assert picture_size(str(tmp_path / "x.jpg"), "x") == (900, 600)
    monkeypatch.setattr(pictures, "_MAX_PIXELS", 500_000)
    with pytest.raises(
        ValueError, match="x cannot be read as a picture .it has 900x600 pixels, and at most 500,000 are decoded"
    ):
        read_picture(str(tmp_path / "x.png"), "x")
    assert capfd.readouterr().err == ""


def test_the_frame_of_a_file_at_a_second_is_the_one_that_tokenizing_gives(tmp_path):
    make_clip(tmp_path / "clip.mp4")
    with Media([str(tmp_path)]) as media:
        whole = media.fetch({"type": "video", "video": "clip.mp4", "frames": 4})
        chosen = media.fetch({"type": "video", "video": "clip.mp4", "seconds": whole.seconds[[2, 0]].tolist()})
        assert (chosen.pixels_P3HW == take(whole, [2, 0]).pixels_P3HW).all()


def test_files_of_one_name_in_two_folders_must_be_equal_and_an_absolute_path_needs_no_folder(tmp_path):
    for folder, shade in ("one", 10), ("two", 10), ("three", 90):
        (tmp_path / folder).mkdir()
        Image.fromarray(picture(shade)).save(tmp_path / folder / "p.png")
    folders = [str(tmp_path / name) for name in ("one", "two", "three")]
    with Media(folders[:2]) as media:
        assert shades(media.fetch({"type": "image", "image": "p.png"})) == [10]
    with Media(folders) as media:
        with pytest.raises(Unreadable, match=r"one/p\.png and .*three/p\.png differ"):
            media.fetch({"type": "image", "image": "p.png"})
        assert shades(media.fetch({"type": "image", "image": f"{folders[2]}/p.png"})) == [90]


def test_a_picture_may_be_written_out():
    written = io.BytesIO()
    Image.fromarray(picture(30)).save(written, "PNG")
    address = "data:image/png;base64," + base64.b64encode(written.getvalue()).decode()
    with Media() as media:
        assert shades(media.fetch({"type": "image", "image": address})) == [30]


@pytest.mark.parametrize(
    ("item", "words"),
    [
        ({"type": "video", "video": "none.mp4"}, "none.mp4: no record of that key, and no such file in "),
        (
            {"type": "image", "image": "https://x/y.png"},
            "https://x/y.png: web addresses and videos in base64 are not read; give a file, a key, or a picture in base64",
        ),
        (
            {"type": "image", "image": "data:image/png;base64,AAAA"},
            "data:image/png;base64,AAAA: the base64 picture is not a picture: data of another format, or damaged",
        ),
        ({"type": "image", "image": "data:image/png;base64,A*"}, "data:image/png;base64,A*: "),
        (
            {"type": "image", "image": "data:image/png,AAAA"},
            "data:image/png,AAAA: this data URL has no ;base64, and a picture in base64 is needed",
        ),
        (
            {"type": "video", "video": "data:video/mp4;base64,AAAA"},
            (
                "data:video/mp4;base64,AAAA: web addresses and videos in base64 are "
                "not read; give a file, a key, or a picture in base64"
            ),
        ),
        ({"type": "video", "video": "cut.mp4"}, "cut.mp4: "),
        ({"type": "video", "video": "cut.mp4", "seconds": [1]}, "cut.mp4: "),
        ({"type": "image", "image": "cut.mp4"}, "cut.mp4: it is not a picture: an MP4 video"),
        ({"type": "video", "video": 3}, "3: the source is not a string, and a path or a key is needed"),
        ({"type": "video"}, "null: the source is not a string, and a path or a key is needed"),
        ({**VIDEO, "seconds": []}, "a: seconds is empty, and needs at least one"),
        ({**VIDEO, "seconds": ["x"]}, "a: "),
        ({**VIDEO, "seconds": [1, 100]}, "a: second 100 is outside of the clip, whose frames are at 1 to 4.5 s"),
        ({**VIDEO, "seconds": [0.7]}, "a: second 0.7 is outside of the clip"),
        ({"type": "image", "image": "a", "second": 4.8}, "a: second 4.8 is outside of the clip"),
        ({"type": "video", "video": "clip.mp4", "seconds": [2.07]}, "clip.mp4: second 2.07 is outside of the clip"),
        ({"type": "image", "image": "clip.mp4", "second": -1}, "clip.mp4: second -1 is outside of the clip"),
        ({**VIDEO, "video_start": 9}, "a: it has no frame between 9 s and 4.5 s, and its frames are at 1 to 4.5 s"),
        ({**VIDEO, "fps": "2"}, "a: fps is '2', and must be a number"),
        ({**VIDEO, "min_frames": 1.5, "fps": 1}, "a: min_frames is 1.5, and must be a whole number of 1 or more"),
        ({**VIDEO, "resized_width": 56}, "a: resized_width is given alone, and resized_height and resized_width belong"),
        ({"type": "video", "video": ["x.jpg", {"video": "a"}]}, '["x.jpg", {"video": "a"}]: its list holds frames and cuts'),
        ({"type": "video", "video": ["p.png"], "seconds": [0, 1]}, '["p.png"]: seconds has 2 times for 1 frames'),
        ({"type": "image", "image": "page.jpg"}, "page.jpg: it is not a picture: HTML"),
        ({"type": "video", "video": "page.jpg"}, "page.jpg: this is not a video: HTML"),
        ({**VIDEO, "shown": [1]}, "a: shown has 1 times for 8 frames, and needs one for each, finite and never falling"),
        (
            {**VIDEO, "seconds": [1, 2], "shown": [1, 0]},
            "a: shown has 2 times for 2 frames, and needs one for each, finite and never falling",
        ),
        ({**VIDEO, "size": [30, 28]}, "a: size is 30x28, and both must be multiples of 28 above 0"),
        ({**VIDEO, "size": [28]}, "a: "),
        ({"type": "video", "video": []}, "[]: the list of cuts is empty"),
        ({**VIDEO, "video_start": 2, "video_end": 1.5}, "a: video_end is 1.5 s, and must not be before video_start, 2 s"),
        ({"type": "video", "video": [{"video": "none"}]}, '[{"video": "none"}]: no record of that key, and no such file in '),
        ({"type": "video", "video": "clip.mp4", "frames": 0}, "clip.mp4: frames is 0, and must be a whole number of 1 or more"),
        ({"type": "video", "video": "clip.mp4", "fps": -1}, "clip.mp4: fps is -1, and must be a finite number above 0"),
    ],
)
def test_what_cannot_be_shown_is_unreadable_by_its_name(tmp_path, stream, item, words):
    make_clip(tmp_path / "clip.mp4")
    (tmp_path / "cut.mp4").write_bytes((tmp_path / "clip.mp4").read_bytes()[:900])
    (tmp_path / "page.jpg").write_text(" <!DOCTYPE html><title>404</title>")
    with Media([str(tmp_path), stream]) as media, pytest.raises(Unreadable) as caught:
        media.fetch(item)
    assert str(caught.value).startswith(words)
    assert "\n" not in str(caught.value)


def test_a_damaged_record_is_unreadable_and_the_others_are_not(tmp_path):
    path = tmp_path / "clips.kvs"
    write_stream(path, {"a": clip_of(range(8)), "b": clip_of([9, 8])})
    data = bytearray(path.read_bytes())
    data[len(data) // 4] ^= 1
    path.write_bytes(data)
    with Media([str(path)]) as media:
        with pytest.raises(Unreadable, match="^a: "):
            media.fetch(VIDEO)
        assert shades(media.fetch({"type": "video", "video": "b"})) == [9, 8]


def test_streams_of_other_kinds_and_pipes_are_refused(tmp_path):
    with Writer(Sink(str(tmp_path / "c.kvs")), Head("conversation")) as writer:
        writer.write("a", {"json": np.zeros(1, np.uint8)})
    with pytest.raises(
        Corrupt, match="this is a stream of kind conversation, and kind video is needed. Make one with kvtools tokenize-video."
    ):
        Media([str(tmp_path / "c.kvs")])
    with pytest.raises(Corrupt, match="^stdin: records of a pipe cannot be looked up by key. Write them to a file.$"):
        Media(["-"])


def test_what_was_read_is_kept_up_to_a_limit(stream):
    with Media([stream], cache_bytes=60_000) as media:
        one = media.fetch({"type": "video", "video": "b"})
        assert media.fetch({"type": "video", "video": "b"}).pixels_P3HW is one.pixels_P3HW
        assert one.pixels_P3HW.nbytes < 60_000 < media.fetch(VIDEO).pixels_P3HW.nbytes
        assert media.fetch(VIDEO).pixels_P3HW is not media.fetch(VIDEO).pixels_P3HW


def test_resizing_is_that_of_tokenize_video_and_cutting_comes_back():
    rng = np.random.default_rng(0)
    frames = [rng.integers(0, 256, (56, 84, 3), dtype=np.uint8) for _ in range(2)]
    visual = of_pictures(frames, 56, 84, np.arange(2.0), is_video=True)
    expected = np.concatenate([patch.cut(patch.resize(f, 28, 56)) for f in frames])
    assert (resized(visual, 28, 56).pixels_P3HW == expected).all()
    assert resized(visual, 56, 84) is visual
    joined = spliced([visual, Visual(visual.pixels_P3HW, visual.grid, visual.seconds + 7, is_video=True)])
    assert joined.seconds.tolist() == [0, 1, 1.5, 2.5]


@pytest.mark.data
def test_llamafactorys_demos_are_seen(data):
    from kvtools.keye.data.chat_template import ChatTemplate
    from kvtools.keye.data.conversations import open_conversations
    from kvtools.keye.data.processor import Processor

    chat = ChatTemplate.open(None)
    source = open_conversations(str(data / "reasoning" / "llamafactory" / "mllm_demo.json"))
    with Media([source.root], image_tokens=(4, 64)) as media:
        rows = [Processor(chat, media).example(conversation) for conversation in source.conversations]
    assert [len(row.visuals) for row in rows] == [2, 1, 1, 2, 1, 1]
    assert all((row.tokens == chat.image_token).sum() == sum(v.n_tokens for v in row.visuals) for row in rows)
