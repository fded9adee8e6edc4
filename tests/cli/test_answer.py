"""Models that answer questions, as a user asks them: how many are right, and what is refused."""

import json
from dataclasses import replace

import cinema
import pytest
from cinema import TRAIN, conversation
from shop import say

from kvtools.artifact.files import Sink
from kvtools.keye.checkpoint import weights as checkpoint
from kvtools.keye.model.keye import Keye
from kvtools.keye.quiz.multiple_choice import score


def asked_of(number, said, answer, form, choices):
    fields = {"task": "fair", "form": form, "choices": choices, "chance": 0.5, "clips": [f"c{number}"]}
    return {**conversation(number, "Is it?", said), **fields, "answer": answer}


@pytest.fixture(scope="module")
def top(tmp_path_factory):
    """A model that has learnt to say yes, one that has not, and questions whose answer is yes three times of four."""
    top = tmp_path_factory.mktemp("answers")
    cinema.furnish(top)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(top)
        words = ["no", "yes", "yes", "yes"] * 2
        asked = [asked_of(n, word, word, "check", ["yes", "no"]) for n, word in enumerate(words)]
        cinema.write(top / "questions.jsonl", asked)
        cinema.write(top / "yes.jsonl", [conversation(n, "Is it?", "yes") for n in range(12)])
        line = TRAIN.replace("asked.jsonl", "yes.jsonl")
        assert say(f"{line} --steps 60 --lr 0.01 -o yes.model").code == 0
        assert say(f"{line} --steps 1 --lr 1e-9 -o fresh.model").code == 0
    return top


def test_right_answers_are_counted_a_line_a_model(sh, top):
    line = "kvtools answer questions.jsonl --media clips.kvs --model yes.model --model fresh.model --json"
    done = sh(f"cd {top}; {line}")
    assert (done.code, done.err) == (0, "")
    first, second = map(json.loads, done.out.splitlines())
    assert {name: first[name] for name in ("model", "task", "right", "n", "share", "chance")} == {
        "model": "yes.model", "task": "fair", "right": 6, "n": 8, "share": 0.75, "chance": 0.5,
    }  # fmt: skip
    assert 0 <= first["low"] < 0.75 < first["high"] <= 1
    assert (second["model"], second["n"]) == ("fresh.model", 8)
    table = sh(f"cd {top}; cat questions.jsonl | kvtools answer - --media clips.kvs --model yes.model").out.splitlines()
    assert table[0].split() == b"model task right of share 95 % chance".split()
    assert table[1].split()[:5] == b"yes.model fair 6 8 0.75".split()


def test_a_model_reads_videos_with_its_own_tokens_per_second(top, monkeypatch, capfd):
    monkeypatch.chdir(top)
    model, weights = checkpoint.load("yes.model")
    model.config = replace(model.config, tokens_per_second=8)
    checkpoint.save(
        Sink("fast.model", force=True), model, tokenizer_json=weights.files["tokenizer.json"], fields={}, history=[]
    )
    times = []

    def hidden(self, tokens_S, positions_3S, *rest):
        times.append(positions_3S[0][tokens_S == self.config.video_token].unique().diff().tolist())
        return whole(self, tokens_S, positions_3S, *rest)

    whole = Keye.hidden
    monkeypatch.setattr(Keye, "hidden", hidden)
    cinema.write(top / "one.jsonl", [asked_of(0, "yes", "yes", "check", ["yes", "no"])])
    for command in ("answer one.jsonl --media clips.kvs", "chat clips.kvs Well? --max-new 1 -q"):
        assert say(f"kvtools {command} --model fast.model", capfd).code == 0
    of_answer, of_chat = times[0], times[1]
    assert of_answer == [4], "frames of clip c0 are half a second apart"
    assert set(of_chat) >= {4}


def test_a_question_that_cannot_be_read_is_named_and_the_others_are_answered(top, monkeypatch, capfd):
    monkeypatch.chdir(top)
    (top / "torn.jsonl").write_text((top / "questions.jsonl").read_text() + '{"id": \n')
    done = say("kvtools answer torn.jsonl --media clips.kvs --model yes.model --json", capfd)
    assert (done.code, json.loads(done.out)["n"]) == (65, 8)
    assert done.err.startswith(
        "kvtools answer: torn.jsonl: conversations that cannot be understood were left out, 1 in all (line 9: not JSON"
    )


def test_an_interval_is_over_clips_not_questions():
    asked = [{"id": str(n), "task": "t", "answer": "yes", "clips": [f"c{n % 2}"], "chance": 0.5} for n in range(100)]
    (of_two,) = score(asked, ["yes" if n % 2 else "no" for n in range(100)])
    assert (of_two.low, of_two.share, of_two.high) == (0.0, 0.5, 1.0)
    (of_all,) = score([{**each, "clips": [each["id"]]} for each in asked], ["yes" if n % 2 else "no" for n in range(100)])
    assert 0.3 < of_all.low < 0.45 < 0.55 < of_all.high < 0.7


def test_tasks_are_marked_apart():
    asked = [{"id": str(n), "task": "ab"[n % 2], "answer": "yes", "chance": n % 2 / 2} for n in range(4)]
    found = score(asked, ["yes", "no", "yes", "yes"])
    assert [(one.task, one.right, one.n, one.chance) for one in found] == [("a", 2, 2, 0.0), ("b", 1, 2, 0.5)]


REFUSED = [
    ("questions.jsonl --media clips.kvs", 2, "--model is missing. Give a model that kvtools pretrain keye has written."),
    ("- --media clips.kvs --model -", 2, "several inputs are -, and stdin can be read only once. Give files for the others."),
    (
        "yes.jsonl --media clips.kvs --model yes.model",
        65,
        "yes.jsonl: q0: the question has no answer. Make questions with kvtools quiz.",
    ),
    (
        "open.jsonl --media clips.kvs --model yes.model",
        65,
        (
            "open.jsonl: q0: the form is 'open', and only questions of the forms choice and check have options. "
            "Make questions with kvtools quiz."
        ),
    ),
    (
        "wrong.jsonl --media clips.kvs --model yes.model",
        65,
        "wrong.jsonl: q0: the answer is 'perhaps', and the options are yes, no. Make questions with kvtools quiz.",
    ),
    (
        "questions.jsonl --model yes.model",
        65,
        "c0: no record of that key, and no such file in the current folder. Look at --media.",
    ),
    (
        "questions.jsonl --media clips.kvs --model clips.kvs",
        65,
        (
            "clips.kvs: this is a stream of kind video, and kind model is needed. Make one with kvtools pretrain "
            "keye or kvtools convert."
        ),
    ),
    (
        "none.jsonl --media clips.kvs --model yes.model",
        66,
        "none.jsonl: no such file or directory. Look at its name and its permissions.",
    ),
    (
        "questions.jsonl --media none --model yes.model",
        66,
        "none: no such file or directory. Look at its name and its permissions.",
    ),
]


@pytest.mark.parametrize(("line", "code", "words"), REFUSED)
def test_what_cannot_be_answered_is_refused_in_one_line(top, monkeypatch, capfd, line, code, words):
    monkeypatch.chdir(top)
    cinema.write(top / "open.jsonl", [asked_of(0, "I", "I", "open", [])])
    cinema.write(top / "wrong.jsonl", [asked_of(0, "yes", "perhaps", "check", ["yes", "no"])])
    done = say(f"kvtools answer {line}", capfd)
    assert (done.code, done.out, done.err) == (code, b"", f"kvtools answer: {words}\n")
