"""`rl sample`, `rl pairs`, `rl mpo` and `rl grpo` of Keye-VL as a user types them, on a model of random weights."""

import json
import re
import shlex
import subprocess
import time
from collections import Counter

import numpy as np
import pytest
from chat_server import ChatServer, text_of
from conftest import BIN
from random_letters import SUMS, start_model

from kvtools.artifact import open_artifact

GRPO = "rl grpo -q sums.jsonl --model start.model --group 4 --batch 3 --max-new 6 --overlong keep --lr 0.01 --steps 4"


@pytest.fixture
def here(tmp_path):
    """sums.jsonl, pairs.jsonl and start.model."""
    start_model(tmp_path / "start.model")
    (tmp_path / "sums.jsonl").write_text("".join(json.dumps(line) + "\n" for line in SUMS))
    pairs = [{"id": f"p{n}", "prompt": f"{n}?", "chosen": "yes " * (n + 1), "rejected": "no"} for n in range(5)]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(line) + "\n" for line in pairs))
    return tmp_path


def records(path):
    return list(open_artifact(str(path)))


def contents(path):
    return [(row.key, {name: array.tobytes() for name, array in row.tensors.items()}) for row in records(path)]


def log(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def weights(path):
    return {name: array for name, array in open_artifact(str(path)).tensors.items() if array.dtype == np.float32}


def differ(one, other):
    return any((one[name] != other[name]).any() for name in one)


def test_rollouts_hold_what_was_drawn_and_pairs_of_them_train_a_model(here, kv):
    sample = "rl sample -q sums.jsonl --model start.model --group 8 --max-new 6 --reward length:-1 --reward correct:2"
    code, err = kv(f"{sample} -o r.kvs --report report.json", "check -q r.kvs", "rl pairs -q r.kvs -o p.kvs", "check -q p.kvs")
    assert (code, err) == (0, "")
    rows = records("r.kvs")
    assert len({row.key for row in rows}) == len(rows) == 48
    for row in rows:
        fields, tensors = row.fields, row.tensors
        n_new = len(tensors["logprobs"])
        assert tensors["reward"] == pytest.approx(-fields["rewards"]["length"] + 2 * fields["rewards"]["correct"])
        assert fields["rewards"]["length"] == pytest.approx(n_new / 6)
        assert n_new == 6 or fields["ended"] == "stop"
    groups = np.array([float(row.tensors["advantage"]) for row in rows]).reshape(6, 8)
    np.testing.assert_allclose(groups.mean(1), 0, atol=1e-6)
    report = log(here / "report.json")[0]
    assert (report["prompts"], report["answers"]) == (6, 48)
    assert report["reward_length"] == pytest.approx(np.mean([row.fields["rewards"]["length"] for row in rows]))
    code, err = kv("rl mpo -q p.kvs --model start.model --steps 2 --log mpo.jsonl -o aligned.model")
    assert (code, err) == (0, "")
    assert differ(weights("start.model"), weights("aligned.model"))
    assert {"loss", "preference", "quality", "generation", "tokens", "mfu", "seconds", "shift"} <= log(here / "mpo.jsonl")[
        0
    ].keys()


def test_a_stopped_sampling_resumes_to_the_same_records(here, kv, monkeypatch):
    monkeypatch.setattr("kvtools.keye.rl.sample.CHUNK", 2)
    sample = "rl sample -q sums.jsonl --model start.model --group 2 --max-new 4 --reward length"
    assert kv(f"{sample} -o whole.kvs")[0] == 0
    answers = iter([False, False, True])
    monkeypatch.setattr("kvtools.world.Stop.__bool__", lambda _: next(answers))
    assert kv(f"{sample} -o parts.kvs")[0] == 75
    monkeypatch.setattr("kvtools.world.Stop.__bool__", lambda _: False)
    assert kv(f"{sample} -o parts.kvs")[0] == 0
    assert contents("whole.kvs") == contents("parts.kvs")


def test_mpo_begins_at_the_loss_of_a_coin_and_keeps_what_is_best(here, kv):
    line = "rl mpo -q pairs.jsonl --model start.model --valid pairs.jsonl --lr 0.01 --steps 6 --batch 5 --require-gain"
    assert kv(f"{line} --log mpo.jsonl -o aligned.model") == (0, "")
    first, *_, kept = (row for row in log(here / "mpo.jsonl") if "valid_loss" in row)
    assert first["valid_preference"] == pytest.approx(np.log(2), abs=1e-6)
    assert first["valid_quality"] == pytest.approx(2 * np.log(2), abs=1e-6)
    assert first["valid_reward"] == 0 < kept["valid_reward"]
    assert kept["valid_loss"] < first["valid_loss"]


def test_mpo_keeps_the_start_where_the_held_out_reward_fell_though_the_loss_did(here, kv):
    pairs = [{"id": f"p{n}", "prompt": f"{n}?", "chosen": "no", "rejected": "no no no no"} for n in range(5)]
    (here / "longer.jsonl").write_text("".join(json.dumps(line) + "\n" for line in pairs))
    line = "rl mpo -q longer.jsonl --model start.model --valid longer.jsonl --weights 0,0,1 --lr 0.01 --steps 3"
    code, err = kv(f"{line} --require-gain --log mpo.jsonl -o aligned.model")
    rows = [row for row in log(here / "mpo.jsonl") if "valid_loss" in row]
    assert rows[-2]["valid_loss"] < rows[0]["valid_loss"]
    assert rows[-2]["valid_reward"] < rows[0]["valid_reward"] == rows[-1]["valid_reward"] == 0
    assert (code, err) == (1, "kvtools rl mpo: the held-out reward has not risen: 0 before, 0 with the best weights.\n")
    assert not differ(weights("start.model"), weights("aligned.model"))


@pytest.mark.parametrize(
    "line",
    [
        "rl mpo pairs.jsonl --training tower=0.1",
        "rl mpo pairs.jsonl --lora 2",
        "rl grpo sums.jsonl --reward length:-1 --group 4 --max-new 6 --overlong keep",
    ],
)
def test_checkpointed_layers_learn_the_same(here, kv, line):
    for name in ("yes", "no"):
        more = f"-q --model start.model --steps 3 --batch 2 --lr 0.01 --training checkpoint={name} -o {name}.model"
        assert kv(f"{line} {more}") == (0, "")
    assert not differ(weights("yes.model"), weights("no.model"))
    assert differ(weights("yes.model"), weights("start.model"))


@pytest.mark.parametrize("more", ["", " --lora 2"])
def test_a_stopped_mpo_resumes_to_the_same_weights(here, kv, monkeypatch, more):
    line = f"rl mpo -q pairs.jsonl --model start.model --steps 4 --batch 2 --lr 0.01{more}"
    assert kv(f"{line} -o whole.model")[0] == 0
    monkeypatch.setenv("SLURM_JOB_END_TIME", "1")
    assert kv(f"{line} -o parts.model")[0] == 75
    monkeypatch.delenv("SLURM_JOB_END_TIME")
    assert kv(f"{line} -o parts.model")[0] == 0
    assert not differ(weights("whole.model"), weights("parts.model"))
    assert weights("whole.model").keys() == weights("start.model").keys()
    assert differ(weights("start.model"), weights("whole.model"))


@pytest.mark.parametrize("more", ["", " --objective gspo --updates 2 --kl 0.1", " --lora 2 --kl 0.1"])
def test_grpo_learns_to_be_short_and_a_stopped_run_is_the_same(here, kv, monkeypatch, more):
    line = f"{GRPO} --reward length:-1 --modes think:1,no_think:2 --valid sums.jsonl{more}"
    assert kv(f"{line} --log whole.jsonl --rollouts whole.kvs -o whole.model") == (0, "")
    monkeypatch.setenv("SLURM_JOB_END_TIME", "1")
    assert kv(f"{line} --log parts.jsonl --rollouts parts.kvs -o parts.model")[0] == 75
    monkeypatch.delenv("SLURM_JOB_END_TIME")
    assert kv(f"{line} --log parts.jsonl --rollouts parts.kvs -o parts.model")[0] == 0
    assert not differ(weights("whole.model"), weights("parts.model"))
    assert contents("whole.kvs") == contents("parts.kvs")
    rows = log(here / "whole.jsonl")
    steps = [row for row in rows if "loss" in row]
    assert len(steps) == 4
    named = "step loss tokens tokens_per_s seconds reward reward_length kl clip_fraction entropy length repetition mode_think"
    assert set(named.split()) <= steps[0].keys()
    assert steps[0]["mode_think"] == pytest.approx(1 / 3)
    assert "valid_reward_think" in rows[0]
    assert max(row["valid_reward"] for row in rows if "valid_reward" in row) == rows[-1]["valid_reward"]


def test_equal_rewards_change_nothing_and_are_no_gain(here, kv):
    line = f"{GRPO} --valid sums.jsonl --reward cmd:./score --require-gain"
    (here / "score").write_text("#!/bin/sh\nwhile read line; do echo 1; done\n")
    (here / "score").chmod(0o755)
    code, err = kv(f"{line.replace(' -q', '')} --log log.jsonl -o same.model")
    advice = "Give another reward, other prompts, or a higher --temperature."
    told = f"sums.jsonl: the answers to each prompt had equal rewards, so nothing was learnt. {advice}"
    not_risen = "the held-out reward has not risen: 1 before, 1 with the best weights."
    assert code == 1
    assert err.endswith(f"kvtools rl grpo: {told}\nkvtools rl grpo: {not_risen}\n")
    assert not differ(weights("start.model"), weights("same.model"))
    steps = [row for row in log(here / "log.jsonl") if "loss" in row]
    assert [(row["loss"], row["constant"]) for row in steps] == [(0, 1)] * 4
    (here / "score").write_text("#!/bin/sh\nwhile read line; do echo NaN; done\n")
    code, err = kv(f"{GRPO} --reward cmd:./score --log nan.jsonl -o nan.model")
    assert code == 65
    assert re.search(r"sums\.jsonl: (\d+) of \1 rewards are no finite numbers\.", err)
    assert [row["not_finite"] for row in log(here / "nan.jsonl")] == [1] * 4
    assert not differ(weights("start.model"), weights("nan.model"))


def test_held_out_rewards_that_are_missing_are_told_and_no_later_one_stands_for_the_start(here, kv):
    first, rest = "touch asked; while read line; do echo null; done", "read line; echo NaN; while read line; do echo 1; done"
    (here / "score").write_text(f"#!/bin/sh\nif [ -e asked ]; then {rest}; else {first}; fi\n")
    (here / "score").chmod(0o755)
    code, err = kv(f"{GRPO} --valid sums.jsonl --reward cmd:./score --require-gain --log log.jsonl -o same.model")
    assert code == 1
    assert re.search(r"--valid sums\.jsonl: 6 of \d+ answers have no reward and were set aside; \d of \d+ rewards are no", err)
    assert err.endswith("kvtools rl grpo: the held-out reward has not risen: none before, 1 with the best weights.\n")
    rows = log(here / "log.jsonl")
    assert ("valid_reward" in rows[0], rows[0]["valid_set_aside"]) == (False, 1)
    means = [(row["reward"], row["reward_cmd:score"]) for row in rows if "loss" in row]
    assert means == [(1, 1)] * 4, "over the answers whose reward is a number"


def test_a_judge_that_fails_sets_answers_aside_and_none_is_asked_twice(here, kv):
    sums = [{"id": f"w{n}", "prompt": f"{n}?", "answer": f"word {n}"} for n in range(4)]
    (here / "words.jsonl").write_text("".join(json.dumps(line) + "\n" for line in sums))
    line = "rl sample -q words.jsonl --model start.model --group 2 --max-new 6 --reward correct --report report.json --force"

    def verdict(body):
        return "I cannot say" if "word 1" in text_of(body) else '{"Correctness": 1}'

    with ChatServer(verdict, fault=lambda n: 503 if n < 2 else None) as server:
        code, err = kv(f"{line} --judge {server.url} --judge-cache cache.jsonl -o one.kvs")
        why = "none of 3 tries gave an answer of the form that is needed"
        told = f"words.jsonl: 2 of 8 answers have no reward and were set aside ({why})"
        assert (code, err) == (0, f"kvtools rl sample: {told}. Look at the programs and judges of --reward.\n")
        n_calls = server.n_calls
        assert kv(f"{line} --judge {server.url} --judge-cache cache.jsonl -o two.kvs")[0] == 0
        assert server.n_calls == n_calls, "all verdicts are in the cache"
    by_prompt = {}
    for row in records("one.kvs"):
        by_prompt.setdefault(row.fields["prompt"], []).append(row.fields["rewards"]["correct"])
    assert None in by_prompt["w1"]
    assert 1.0 not in by_prompt.pop("w1")
    assert 1.0 in [score for scores in by_prompt.values() for score in scores]
    assert None not in [score for scores in by_prompt.values() for score in scores]
    assert log(here / "report.json")[0]["set_aside"] > 0
    rewards = [[row.fields["rewards"] for row in records(name)] for name in ("one.kvs", "two.kvs")]
    assert rewards[0] == rewards[1]


def test_what_was_read_is_told(here, kv):
    more = [{"id": "w", "prompt": "Why? /think", "answer": "because", "anwser": 1}, {"id": "y", "prompt": "Name it"}]
    (here / "mixed.jsonl").write_text((here / "sums.jsonl").read_text() + "".join(json.dumps(line) + "\n" for line in more))
    code, err = kv("rl sample mixed.jsonl --model start.model --group 8 --max-new 6 --reward length:-1 -o r.kvs")
    told = "8 prompts, 7 with an answer to compare with (6 number, 1 text), modes (7 auto, 1 think); fields not used: anwser."
    assert (code, err) == (0, f"kvtools rl sample: mixed.jsonl: {told}\n")
    _, err = kv("rl pairs r.kvs -o p.kvs", "rl mpo p.kvs --model start.model --valid p.kvs --steps 1 -o aligned.model")
    assert re.search(r"r\.kvs: \d pairs of a better and a worse answer\.", err)
    assert re.search(r"p\.kvs: (\d) pairs of \d+ tokens, and \1 held out\.", err)


ASK = "-q words.jsonl --model start.model --group 4 --max-new 8 --reward correct --overlong keep --judge"
WORDS = f"rl sample {ASK}"
KILLED = {
    "sample": f"{WORDS} URL -o NAME.kvs",
    "grpo": f"rl grpo --batch 4 --lr 0.01 --steps 3 --training save=1 {ASK} URL --rollouts NAME.kvs -o NAME.model",
}


@pytest.mark.parametrize("command", KILLED)
def test_a_run_that_was_killed_goes_on_and_asks_no_judge_for_what_it_has_said(here, kv, command):
    words = [{"id": f"w{n}", "prompt": f"{n}?", "answer": f"word {n}"} for n in range(12)]
    (here / "words.jsonl").write_text("".join(json.dumps(line) + "\n" for line in words))
    with ChatServer(lambda body: json.dumps({"Correctness": len(text_of(body)) % 2}), delay_s=0.02) as server:
        line = KILLED[command].replace("URL", server.url)
        assert kv(line.replace("NAME", "whole")) == (0, "")
        n_whole = server.n_calls
        run = subprocess.Popen([BIN / "kvtools", *shlex.split(line.replace("NAME", "parts"))], cwd=here)
        while server.n_calls < n_whole + 16:
            assert run.poll() is None, "it was to be killed while it asks"
            time.sleep(0.005)
        run.kill()
        run.wait()
        assert kv(line.replace("NAME", "parts")) == (0, "")
        asked = Counter(server.texts)
    assert contents("whole.kvs") == contents("parts.kvs")
    if command == "grpo":
        assert not differ(weights("whole.model"), weights("parts.model"))
    assert all(n >= 2 for n in asked.values())
    assert sum(n - 2 for n in asked.values()) <= 8, "no more are asked again than were on their way"


def test_a_run_with_another_judge_is_another_run_wherever_it_answers(here, kv, monkeypatch):
    (here / "words.jsonl").write_text(json.dumps({"id": "w", "prompt": "Which?", "answer": "word"}) + "\n")
    line = f"rl grpo --batch 1 --steps 2 {ASK} URL -o judged.model"
    codes = []
    monkeypatch.setenv("SLURM_JOB_END_TIME", "1")
    for model in ("tiny", "other", "tiny"):
        with ChatServer(lambda body: '{"Correctness": 1}', models=(model,)) as server:
            code, err = kv(line.replace("URL", server.url))
        monkeypatch.delenv("SLURM_JOB_END_TIME", raising=False)
        assert ("judge" in err) == (model == "other")
        codes.append(code)
    assert codes == [75, 2, 0]


@pytest.mark.parametrize("fault", ["rubbish", 500, "hang"])
def test_a_judge_without_a_verdict_is_never_a_zero(here, kv, fault):
    words = [{"id": "w", "prompt": "Which?", "answer": "word"}]
    (here / "words.jsonl").write_text("".join(json.dumps(line) + "\n" for line in words))
    with ChatServer(lambda body: "yes", fault=lambda n: fault) as server:
        code, err = kv(f"{WORDS} {server.url} --timeout 0.5 -o r.kvs --report report.json")
    assert code == 65
    assert "4 of 4 answers have no reward and were set aside" in err
    assert {row.fields["rewards"]["correct"] for row in records("r.kvs")} <= {None}


def test_a_cut_stream_of_rollouts_is_refused(here, kv):
    assert kv("rl sample -q sums.jsonl --model start.model --group 2 --max-new 4 --reward length -o r.kvs")[0] == 0
    (here / "cut.kvs").write_bytes((here / "r.kvs").read_bytes()[:-40])
    code, err = kv("rl pairs cut.kvs -o p.kvs")
    assert code == 65
    assert "cut.kvs" in err
    assert not (here / "p.kvs").exists()
