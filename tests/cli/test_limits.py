"""What a model was trained with goes with it, and clips of one key are told apart: as a user meets both."""

import json

import cinema
import numpy as np
import pytest
from cinema import SMALL, conversation
from PIL import Image
from shop import inside, say

from kvtools.artifact.files import Sink
from kvtools.artifact.stream import Head, Writer

SHOWN = {"type": "image", "image": "wide.png"}


@pytest.fixture(scope="module")
def top(tmp_path_factory):
    """A model trained on rows of 256 tokens with 100 positions; two streams that name different clips alike."""
    top = tmp_path_factory.mktemp("limits")
    cinema.furnish(top, 4)
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (1200, 1600, 3), dtype=np.uint8)).save(top / "wide.png")
    two = {"role": "user", "content": [SHOWN, SHOWN, {"type": "text", "text": "Which?"}]}
    cinema.write(top / "photos.jsonl", [{"messages": [two, {"role": "assistant", "content": "Both."}]}])
    for name, shade in (("day", 200), ("night", 20)):
        (top / name).mkdir()
        with Writer(Sink(str(top / name / "clips.kvs")), Head("video")) as writer:
            for key, grey in (("a", shade), ("b", 7)):
                pixels, grid = np.full((64, 3, 14, 14), grey, np.uint8), np.array([4, 4, 4], np.int32)
                tensors = {"pixels": pixels, "grid": grid, "seconds": np.arange(4) / 2}
                writer.write(key, tensors, fps=2.0, duration=2.0, source=[56, 56])
    with inside(top):
        line = f"kvtools pretrain keye photos.jsonl {SMALL} --architecture language.positions=100 --steps 1 --strict"
        assert say(f"{line} -o small.model").code == 0
    return top


def test_two_photos_share_a_row_and_the_model_carries_its_limits(top, capfd, monkeypatch):
    monkeypatch.chdir(top)
    done = say("kvtools info --json small.model", capfd)
    assert json.loads(done.out)["limits"] == {"picture": [4, 192], "frame": [128, 768], "clip": 192, "row": 256}
    done = say("kvtools chat --model small.model --greedy --max-new 1 --json wide.png wide.png Which?", capfd)
    said = json.loads(done.out)
    assert (said["prompt_tokens"] <= 256, said["visual_tokens"] > 120) == (True, True)
    assert done.err == (
        f"kvtools chat: the longest prompt has {said['prompt_tokens']} tokens, and the model 100 positions. Answers to it may "
        "make no sense.\n"
    )


def test_who_asks_a_model_to_go_beyond_is_told(top, capfd, monkeypatch):
    monkeypatch.chdir(top)
    line = "kvtools chat --model small.model --greedy --max-new 1 --json -q"
    done = say(f"{line} --max-tokens 400 --frame-tokens 4:900 day/clips.kvs Well?", capfd)
    assert done.code == 0
    assert "--max-tokens 400 goes beyond the 192 tokens that the model was trained with." in done.err
    assert "--frame-tokens 900 goes beyond the 768 tokens" in done.err
    assert say(f"{line} --max-tokens 12 day/clips.kvs Well?", capfd).err == ""


def test_clips_of_one_key_are_refused_with_both_names_and_told_apart_by_a_prefix(top, capfd, monkeypatch):
    monkeypatch.chdir(top)
    both = "night/clips.kvs: record 0 and day/clips.kvs: record 0 are both named 'a', and differ."
    cinema.write(top / "q.jsonl", [{**conversation(None, "Is it?", "yes"), "form": "check", "answer": "yes"}])
    for line in (
        "cat day/clips.kvs night/clips.kvs -o all.kvs",
        "quiz day/clips.kvs night/clips.kvs -o all.kvs",
        "answer q.jsonl --media day/clips.kvs --media night/clips.kvs --model small.model",
        "pretrain keye q.jsonl --media day/clips.kvs --media night/clips.kvs -o all.kvs",
    ):
        done = say(f"kvtools {line} -q", capfd)
        assert (done.code, both in done.err, (top / "all.kvs").exists()) == (65, True, False), line
    joined = b"".join((top / name / "clips.kvs").read_bytes() for name in ("day", "night"))
    (top / "raw.kvs").write_bytes(joined)
    assert "raw.kvs: record 2 and raw.kvs: record 0 are both named 'a'" in say("kvtools check raw.kvs", capfd).err
    assert say("kvtools cat --prefix day/clips.kvs night/clips.kvs -o all.kvs", capfd).code == 0
    assert say("kvtools check all.kvs", capfd).code == 0
    lines = say("kvtools info --json --records all.kvs", capfd).out.splitlines()
    assert [json.loads(line)["key"] for line in lines] == ["day/clips/a", "day/clips/b", "night/clips/a", "night/clips/b"]
    again = say("kvtools cat day/clips.kvs day/clips.kvs -o twice.kvs", capfd)
    assert (again.code, again.err) == (0, "")
