"""Clips into questions, as a user types it: nothing to be known but by looking, and every clip on one side."""

import json
import shutil
import subprocess
from collections import Counter

import pytest
from conftest import BIN, make_clip
from shop import inside, say

from kvtools.keye.data.media import Media
from kvtools.keye.quiz.clips import Side


@pytest.fixture(scope="module")
def made_once(tmp_path_factory):
    """videos/: five clips of two seconds, each of its own colours, moving; clips.kvs: their stream, eight frames each."""
    import av
    import numpy as np

    top = tmp_path_factory.mktemp("made")
    (top / "videos").mkdir()
    for number in range(5):
        base = np.random.default_rng(number).integers(0, 255, 3)
        with av.open(str(top / "videos" / f"v{number}.mp4"), "w") as container:
            stream = container.add_stream("libx264", rate=10, options={"threads": "1"})
            stream.width, stream.height, stream.pix_fmt = 112, 84, "yuv420p"
            for i in range(20):
                picture = np.full((84, 112, 3), base, np.uint8)
                picture[:, : 6 * i] = 255 - base
                container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
            container.mux(stream.encode(None))
    words = ["tokenize-video", "--fps", "4", "--frame-tokens", "4:16", "videos", "-o", "clips.kvs"]
    subprocess.run([BIN / "kvtools", *words], cwd=top, check=True)
    return top


@pytest.fixture
def top(tmp_path, made_once):
    (tmp_path / "videos").symlink_to(made_once / "videos")
    shutil.copy(made_once / "clips.kvs", tmp_path)
    return tmp_path


def questions(done):
    return [json.loads(line)["json"] for line in done.out.splitlines()]


def test_questions_come_of_a_stream_with_their_answers(sh, top):
    done = sh("kvtools quiz clips.kvs --frames 5 --choices 3 -n 90 | tee q.kvs | kvtools cat --json -")
    assert (done.code, done.err) == (0, "")
    asked = questions(done)
    assert Counter(question["task"] for question in asked) == {"order": 30, "match": 30, "time": 30}
    assert Counter(question["answer"] for question in asked) == {"A": 30, "B": 30, "C": 30}
    assert {question["chance"] for question in asked} == {1 / 3}
    assert sh("kvtools check q.kvs").code == 0
    assert "kvtools quiz clips.kvs" in sh("kvtools info q.kvs").out.decode()
    assert "kvtools tokenize-video" in sh("kvtools info q.kvs").out.decode()
    with Media([str(top / "clips.kvs")]) as media:
        for question in asked:
            shown = [media.fetch(part) for part in question["messages"][0]["content"] if part["type"] != "text"]
            assert len({(visual.n_tokens, tuple(visual.grid)) for visual in shown}) == 1


def test_the_same_words_make_the_same_questions_and_another_seed_others(sh, top):
    first, again, other = (
        sh(f"kvtools quiz clips.kvs --frames 5 -n 30 --choices 3 --seed {n} | kvtools sum -").out for n in (0, 0, 1)
    )
    assert first == again != other
    assert sh("cat clips.kvs | kvtools quiz - --frames 5 -n 30 --choices 3 --seed 0 | kvtools sum -").out == first


def test_files_and_folders_are_asked_about_by_the_same_names(sh, top):
    done = sh("kvtools quiz videos --task order --frames 4 --choices 3 -n 6 | kvtools cat --json -")
    assert (done.code, done.err) == (0, "")
    asked = questions(done)
    assert {question["clips"][0] for question in asked} <= {f"v{n}.mp4" for n in range(5)}
    with Media([str(top / "videos")]) as media:
        assert all(media.fetch(part) for q in asked for part in q["messages"][0]["content"] if part["type"] != "text")


def test_a_bad_clip_does_not_lose_the_others(sh, top):
    make_clip(top / "cut.mp4")
    (top / "cut.mp4").write_bytes((top / "cut.mp4").read_bytes()[:500])
    done = sh("kvtools quiz cut.mp4 videos none.mp4 --task order --form check --frames 4 -n 4 -o q.kvs")
    assert done.code == 66
    (top / "none.mp4").write_bytes(b"x")
    done = sh("kvtools quiz cut.mp4 videos none.mp4 --task order --form check --frames 4 -n 4 -o q.kvs")
    assert done.code == 65
    assert "clips that cannot be read were left out, 2 in all (cut.mp4: " in done.err
    assert done.err.count("\n") == 1
    assert json.loads(sh("kvtools info --json q.kvs").out)["records"] == 4
    strict = sh("kvtools quiz --strict cut.mp4 videos --task order --form check --frames 4 -n 4 -o r.kvs")
    assert (strict.code, strict.err.count("\n"), (top / "r.kvs").exists()) == (65, 1, False)


def test_sides_share_no_clip(sh, top):
    used = []
    for side in ("train:0.5", "test:0.5"):
        done = sh(f"kvtools quiz clips.kvs --task order --form check --frames 4 --split {side} -n 40 | kvtools cat --json -")
        asked = questions(done)
        assert {question["split"] for question in asked} == {side.split(":")[0]}
        used.append({key for question in asked for key in question["clips"]})
    assert used[0]
    assert used[1]
    assert not used[0] & used[1]
    assert used[0] | used[1] == {f"v{n}.mp4" for n in range(5)}


def test_groups_stay_on_one_side_and_likeness_across_is_reported(sh, top):
    make_clip(top / "one.mp4")
    (top / "two.mp4").write_bytes((top / "one.mp4").read_bytes())
    sh("kvtools tokenize-video --fps 4 --frame-tokens 4:16 one.mp4 two.mp4 -o twins.kvs")
    line = "kvtools quiz twins.kvs clips.kvs --task order --form check --frames 4 -n 20 -o q.kvs --force --split"
    apart = next(share for share in (0.1, 0.3, 0.5, 0.7, 0.9) if len(side_of("one.mp4", "two.mp4", share)) == 2)
    stderr = [sh(f"{line} {side}").err for side in (f"train:{apart}", f"test:{1 - apart:.1f}")]
    assert all("look like one on the other side of the split" in each and ".mp4 like " in each for each in stderr)
    (top / "g.csv").write_text("file,group\none.mp4,same\ntwo.mp4,same\n")
    assert not any(
        "look like" in sh(f"{line} {side} --group g.csv").err for side in (f"train:{apart}", f"test:{1 - apart:.1f}")
    )


def side_of(*keys_and_share):
    *keys, share = keys_and_share
    return {Side("train", share).holds(key) for key in keys}


def test_labels_are_asked_by_their_own_split(sh, top):
    rows = [f"x/v{n}.mp4,{'calm' if n < 2 else 'fight'},{'test' if n == 4 else 'train'}\n" for n in range(4)]
    (top / "labels.csv").write_text("file,label,split\n" + "".join(rows))
    line = "kvtools quiz clips.kvs --labels labels.csv --form check --positive fight --question 'Is it a fight?' --split train"
    done = sh(f"{line} | kvtools cat --json -")
    asked = questions(done)
    assert {question["clips"][0]: question["answer"] for question in asked} == {
        "v0.mp4": "no", "v1.mp4": "no", "v2.mp4": "yes", "v3.mp4": "yes",
    }  # fmt: skip
    assert {question["chance"] for question in asked} == {0.5}
    assert asked[0]["messages"][0]["content"][1]["text"] == "Is it a fight?"
    whole = sh("kvtools quiz clips.kvs --labels labels.csv --form open | kvtools cat --json -")
    assert "does not name were left out, 1 in all (v4.mp4)" in whole.err
    assert Counter(question["answer"] for question in questions(whole)) == {"calm": 2, "fight": 2}


def test_fewer_questions_than_asked_for_is_reported(sh, top):
    done = sh("kvtools quiz clips.kvs --task order --form check --frames 8 -n 4000 -o q.kvs")
    assert done.code == 0
    assert "questions made of 4000" in done.err
    assert sh("kvtools quiz -q clips.kvs --task order --form check --frames 8 -n 4000 -o q.kvs --force").err == ""


@pytest.mark.parametrize(
    ("line", "code", "words"),
    [
        ("kvtools quiz none.kvs", 66, "none.kvs: no such file or directory. Look at its name and its permissions."),
        (
            "kvtools quiz clips.kvs --task sing",
            2,
            "--task sing is not known. Give one of order, match, time, describe, or several with commas.",
        ),
        (
            "kvtools quiz clips.kvs --frames 3",
            2,
            "--frames 3 has no 4 orders that differ enough. Give more --frames, or fewer --choices.",
        ),
        (
            "kvtools quiz clips.kvs --task time --frames 4",
            2,
            "--frames 4 has too few moments for 4 options of --task time. Give 5 or more.",
        ),
        (
            "kvtools quiz clips.kvs --frames 60",
            65,
            "clips.kvs: no question could be made of 5 clips: clips with too few frames for order were left out, 5 in all (",
        ),
        (
            "kvtools quiz clips.kvs --split train",
            2,
            "--split train has no fraction. Give one, as train:0.7, or --labels with a column split.",
        ),
        (
            "kvtools quiz clips.kvs --split valid:0.5",
            2,
            "--split valid:0.5 is not a side. Give train:FRACTION or test:FRACTION, with a fraction between 0 and 1.",
        ),
        (
            "kvtools quiz clips.kvs --split train:x",
            2,
            "--split train:x is not a side. Give train:FRACTION or test:FRACTION, with a fraction between 0 and 1.",
        ),
        (
            "kvtools quiz clips.kvs --question What?",
            2,
            "--question is used only with --labels. Give --labels CSV, or leave it out.",
        ),
        (
            "kvtools quiz clips.kvs --labels two.csv --positive calm",
            2,
            "--positive is used only with --form check. Give both, or leave it out.",
        ),
        (
            "kvtools quiz clips.kvs --labels two.csv --form check --positive Fight",
            2,
            "--positive Fight is not a label. Give one of calm, fight.",
        ),
        (
            "kvtools quiz clips.kvs --labels two.csv --task order",
            2,
            "--task and --labels cannot be used together. Give one of them.",
        ),
        (
            "kvtools quiz clips.kvs --labels one.csv",
            65,
            "one.csv: all 1 clips have the label 'calm'. Give clips of two labels or more.",
        ),
        ("kvtools quiz clips.kvs --labels bad.csv", 65, "bad.csv: there is no column file among a. Add it."),
        ("kvtools quiz clips.kvs --labels files.csv", 65, "files.csv: there is no column label. Add it."),
        (
            "kvtools quiz clips.kvs --group none.csv",
            66,
            "none.csv: no such file or directory. Look at its name and its permissions.",
        ),
        (
            "kvtools quiz clips.kvs -o clips.kvs --force",
            2,
            "clips.kvs: this is both an input and the output. Name another output.",
        ),
        ("kvtools quiz clips.kvs -o bad.csv", 73, "bad.csv: exists already. Give --force to overwrite it."),
        (
            "kvtools quiz bad.csv",
            65,
            "bad.csv: no clip could be read: clips that cannot be read were left out, 1 in all (bad.csv: this is not a ",
        ),
        (
            "kvtools quiz clips.kvs --frame-tokens 9",
            2,
            "--frame-tokens 9 is not a range. Give LOW:HIGH with 1 <= LOW <= HIGH, as 128:768.",
        ),
    ],
)
def test_errors_are_one_line_with_their_code(top, capfd, line, code, words):
    (top / "bad.csv").write_text("a\n1\n")
    (top / "one.csv").write_text("file,label\nv0.mp4,calm\n")
    (top / "two.csv").write_text("file,label\nv0.mp4,calm\nv1.mp4,fight\n\n")  # a blank line is none
    (top / "files.csv").write_text("file\nv0.mp4\n")
    with inside(top):
        done = say(line, capfd)
    assert (done.code, done.out) == (code, b""), done.err
    assert done.err.removeprefix("kvtools quiz: ").startswith(words)
    assert "Traceback" not in done.err
    assert done.err.count("\n") == 1, done.err


def test_a_broken_pipe_and_a_stream_of_something_else_are_refused(sh, top):
    cut = sh("head -c 3000 clips.kvs | kvtools quiz -")
    assert (cut.code, cut.out, cut.err.count("\n")) == (65, b"", 1)
    other = sh("kvtools quiz clips.kvs --frames 5 --choices 3 -n 3 | kvtools quiz -")
    assert (other.code, other.err) == (
        65,
        (
            "kvtools quiz: stdin: this is a stream of kind conversation, and kind "
            "video is needed. Make one with kvtools tokenize-video.\n"
        ),
    )


@pytest.mark.data
def test_real_clips_give_questions_that_blind_guesses_do_not_answer(sh, tmp_path, data):
    clips = data / "video" / "clips"
    names = " ".join(
        f"{clips}/{n}" for n in ("chaplin.mp4", "yoga.mp4", "nasa_13013.mp4", "basketball_gym.mp4", "mllm_2_cooking.avi")
    )
    sh(f"kvtools tokenize-video --fps 2 --frame-tokens 4:16 {names} -o clips.kvs")
    done = sh("kvtools quiz clips.kvs -n 240 | kvtools cat --json -")
    assert done.code == 0
    asked = questions(done)
    for task in ("order", "match", "time"):
        answers = Counter(question["answer"] for question in asked if question["task"] == task)
        assert answers == {"A": 20, "B": 20, "C": 20, "D": 20}
