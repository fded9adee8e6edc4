"""Answers to a file of conversations, as a user asks for them: one line each, in order, whole, and resumed."""

import json
import signal
from pathlib import Path

import cinema
import pytest
from cinema import conversation
from shop import say

from kvtools.keye.run import open_answers

transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.usefixtures("modules_of_transformers")
ASK = "kvtools answer --open many.jsonl --media clips.kvs --model m.model --max-new 8"


@pytest.fixture(scope="module")
def top(tmp_path_factory):
    """A model that has learnt colours, and 30 questions, some of text alone, one about a clip that is not there."""
    top = tmp_path_factory.mktemp("open")
    cinema.furnish(top)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(top)
        assert say(f"{cinema.TRAIN} --steps 30 --lr 0.01 -o m.model").code == 0
    asked = [conversation(n % 12 if n % 3 else None, "Which colour?" * (1 + n % 4), "-", n=n) for n in range(30)]
    cinema.write(top / "many.jsonl", [{**each, "id": f"k{n}"} for n, each in enumerate(asked)])
    return top


@pytest.fixture
def here(top, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    for name in ("m.model", "many.jsonl", "clips.kvs"):
        (tmp_path / name).symlink_to(top / name)
    return tmp_path


def lines(path):
    return [json.loads(line) for line in Path(path).read_text().splitlines()]


def test_each_conversation_has_a_line_in_its_place(here, capfd):
    done = say(f"{ASK} --greedy", capfd)
    printed = [json.loads(line) for line in done.out.splitlines()]
    assert done.code == 0
    assert [line["key"] for line in printed] == [f"k{n}" for n in range(30)]
    assert set(printed[0]) == {"key", "text", "tokens", "logprob", "ended"}
    assert {line["ended"] for line in printed} <= {"stop", "length"}
    n_tokens = sum(line["tokens"] for line in printed)
    assert done.err.startswith(f"kvtools answer: many.jsonl: 30 answers of {n_tokens} tokens.")
    alone = say("kvtools chat -q --model m.model --greedy --max-new 8 'Which colour?'", capfd).out.decode()
    assert printed[0]["text"] == alone.rstrip("\n"), "of text alone, and asked alone"


def test_seeds_repeat_shards_add_up_and_files_are_whole(here, capfd):
    assert say(f"{ASK} --seed 3 -o a.jsonl").code == 0
    assert say(f"{ASK} --seed 3 -o a.jsonl", capfd).code == 73
    for n in (0, 1):
        assert say(f"{ASK} --seed 3 --shard {n}/2 -o part{n}.jsonl").code == 0
    assert Path("part0.jsonl").read_text() + Path("part1.jsonl").read_text() == Path("a.jsonl").read_text()
    assert say(f"{ASK} --seed 4 -o b.jsonl").code == 0
    assert lines("a.jsonl") != lines("b.jsonl")
    assert sorted(path.name for path in here.iterdir() if path.name.startswith(".")) == []


def test_a_stopped_run_resumes_to_the_same_bytes(here, monkeypatch, capfd):
    monkeypatch.setattr(open_answers, "_CHUNK", 8)
    assert say(f"{ASK} -o whole.jsonl").code == 0
    answered = open_answers.OpenAnswers._work

    def work(self, chunk):
        calls.append(len(chunk))
        if len(calls) == 2:
            signal.raise_signal(signal.SIGTERM)
        return answered(self, chunk)

    calls = []
    monkeypatch.setattr(open_answers.OpenAnswers, "_work", work)
    done = say(f"{ASK} -o torn.jsonl", capfd)
    assert (done.code, Path("torn.jsonl").exists()) == (75, False)
    assert done.err == "kvtools answer: stopped after 16 of 30 conversations. Run again to continue.\n"
    other = say(f"{ASK} --seed 9 -o torn.jsonl", capfd)
    assert (other.code, "the stopped run had seed 0" in other.err) == (2, True)
    assert say(f"{ASK} -o torn.jsonl").code == 0
    assert (sum(calls), Path("torn.jsonl").read_text()) == (30, Path("whole.jsonl").read_text())
    assert not Path(".torn.jsonl.state").exists()


def test_what_cannot_be_read_is_named_and_the_others_are_answered(here, capfd):
    cinema.write(here / "some.jsonl", [conversation(n, "Which?", "-") for n in (0, 99, 1)])
    (here / "some.jsonl").open("a").write("{\n")
    done = say(ASK.replace("many", "some") + " -q -o some.out", capfd)
    assert (done.code, [line["key"] for line in lines("some.out")]) == (65, ["q0", "q1"])
    assert done.err.splitlines()[0].startswith(
        "kvtools answer: some.jsonl: conversations that cannot be understood were left out"
    )
    assert "q99: c99: no record of that key" in done.err
    cinema.write(here / "none.jsonl", [conversation(99, "Which?", "-")])
    done = say(ASK.replace("many", "none") + " -o none.out", capfd)
    assert (done.code, Path("none.out").exists()) == (65, False)


def test_answers_end_before_a_stop_text_wherever_tokens_fall(here, capfd):
    plain = say("kvtools chat -q --model m.model --greedy --max-new 12 clips.kvs 'Which colour?'", capfd).out.decode().strip()
    assert len(plain) >= 3
    stop = plain[1:3]
    ask = f"kvtools chat --json --model m.model --greedy --max-new 12 --stop XX --stop {stop} clips.kvs 'Which colour?'"
    line = json.loads(say(ask, capfd).out)
    assert (line["answer"], line["ended"], line["tokens"]) == (plain[:1], "stop", 3)
    streamed = say(ask.replace("--json", "-q"), capfd).out.decode()
    assert streamed == plain[:1] + "\n"
    answered = say(f"{ASK} --greedy --stop e -o e.jsonl", capfd)
    assert answered.code == 0
    assert not any("e" in line["text"] for line in lines("e.jsonl"))


def test_the_penalty_is_that_of_transformers(here, capfd):
    assert say("kvtools convert m.model -o hf/", capfd).code == 0
    processor = transformers.AutoProcessor.from_pretrained("hf", trust_remote_code=True)
    model = transformers.AutoModelForImageTextToText.from_pretrained("hf", trust_remote_code=True).eval()
    given = processor.apply_chat_template(
        [{"role": "user", "content": "Say it again."}], add_generation_prompt=True, tokenize=True, return_dict=True,
        return_tensors="pt",
    )  # fmt: skip
    said = {}
    for penalty in (1.0, 1.7, 0.8):
        found = model.generate(**given, do_sample=False, max_new_tokens=16, repetition_penalty=penalty)
        expected = processor.decode(found[0, given["input_ids"].shape[1] :], skip_special_tokens=True)
        line = f"kvtools chat -q --model m.model --greedy --max-new 16 --repetition-penalty {penalty} 'Say it again.'"
        said[penalty] = say(line, capfd).out.decode().removesuffix("\n")
        assert said[penalty] == expected
    assert said[1.0] != said[1.7]
