"""A recommender is moved towards a reward: what a user types, what the log says, stops and goes on, and ranks."""

import json
import shutil
import time

import numpy as np
import pytest
from conftest import BIN, unsaid
from safetensors.numpy import load_file
from shop import TRAIN, furnish, inside, say

RL = "kvtools rl ecpo --model m.safetensors clicks.csv --group 8 --batch 16 --peak 1e10"


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The tiny shop with a model and a ranker."""
    folder = tmp_path_factory.mktemp("shop")
    furnish(folder, n_users=40)
    with inside(folder):
        assert say(f"{TRAIN} --near 3 --steps 40 --peak 1e10 -o m.safetensors").code == 0
        ranker = "kvtools rl pscore --model m.safetensors clicks.csv --reward hit --reward column:rating:0.5 --peak 1e10"
        assert say(f"{ranker} --steps 3 --log ranker.jsonl -o ranker.safetensors").code == 0
    return folder


@pytest.fixture
def shop(trained, tmp_path, monkeypatch):
    shutil.copytree(trained, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def log_of(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_reward_makes_a_model_that_recommends_and_a_log_that_tells_the_figures_before_and_after(shop, capfd):
    done = say(
        f"{RL} --reward pscore:ranker.safetensors --reward format:0.5 --steps 4 --log rl.jsonl -o better.safetensors", capfd
    )
    assert (done.code, done.out, unsaid(done.err)) == (0, b"", "")
    assert say("kvtools recgen --model better.safetensors --beam 8 -k 3 clicks.csv -o found.kvs").code == 0
    lines = log_of(shop / "rl.jsonl")
    assert lines[0]["step"] == 0
    assert {"valid_reward", "valid_hr@10", "valid_ndcg@10", "valid_legal_share"} <= lines[0].keys()
    steps = [line for line in lines if "loss" in line]
    assert [line["step"] for line in steps] == [1, 2, 3, 4]
    expected = {
        "loss",
        "tokens",
        "tokens_per_s",
        "mfu",
        "seconds",
        "reward",
        "reward_pscore:ranker.safetensors",
        "reward_format",
    }
    expected |= {"kl", "clip_fraction", "entropy", "length", "legal_share", "repetition", "groups_without_update"}
    assert all(expected <= line.keys() for line in steps)
    last = lines[-1]
    assert last["valid_reward_before"] == pytest.approx(lines[0]["valid_reward"])
    best = max(line["valid_reward"] for line in lines[:-1] if "valid_reward" in line)
    assert last["valid_reward"] == pytest.approx(best), "the best weights are kept"
    assert last["gain_ci95"][0] <= last["gain"] <= last["gain_ci95"][1]
    told = json.loads(say("kvtools info --json better.safetensors", capfd).out)
    assert [step["command"] for step in told["history"]] == ["pretrain onerec", "rl ecpo"]
    assert say("kvtools plot rl.jsonl -o rl.png").code == 0


def test_the_reward_rises_in_training(shop):
    # towards ratings, which items differ in; held-out figures of forty users are noise
    line = f"{RL} --reward column:rating --lr 0.01 --batch 40 --training next_token=0 --training valid=100% --steps 25"
    assert say(f"{line} --log rl.jsonl -o better.safetensors").code == 0
    rewards = [line["reward"] for line in log_of(shop / "rl.jsonl") if "loss" in line]
    assert np.mean(rewards[-5:]) > np.mean(rewards[:5])


@pytest.mark.parametrize("command", ["ecpo --sampling sample --training sync=2", "gbpo"])
def test_stopped_and_run_again_it_ends_with_the_same_bytes_and_the_same_rollouts(shop, capfd, monkeypatch, command):
    line = f"{RL.replace('ecpo', command)} --reward hit --reward format --steps 3 --training valid=2"
    assert say(f"{line} --rollouts whole.kvs -o whole.safetensors").code == 0
    monkeypatch.setenv("SLURM_JOB_END_TIME", str(int(time.time())))
    again = f"{line} --rollouts parts.kvs -o parts.safetensors"
    stopped = [say(again, capfd) for _ in range(3)]
    assert [done.code for done in stopped] == [75, 75, 75]
    assert not (shop / "parts.safetensors").exists()
    assert not (shop / "parts.kvs").exists()
    monkeypatch.delenv("SLURM_JOB_END_TIME")
    assert say(again, capfd).code == 0
    ours, theirs = load_file(shop / "parts.safetensors"), load_file(shop / "whole.safetensors")
    assert all(ours[name].tobytes() == theirs[name].tobytes() for name in theirs)
    sums = [say(f"kvtools sum {name}.kvs", capfd).out.split()[0] for name in ("whole", "parts")]
    assert sums[0] == sums[1]
    assert say("kvtools check parts.kvs").code == 0
    assert sorted(shop.glob(".*")) == [], "nothing is left behind"


def test_rollouts_say_what_was_proposed_and_what_it_earned(shop, capfd):
    assert say(f"{RL} --reward hit --reward column:rating:0.1 --steps 2 --rollouts all.kvs -o b.safetensors").code == 0
    records = [json.loads(line) for line in say("kvtools cat --json all.kvs", capfd).out.splitlines()]
    assert 2 * 16 * 7 < len(records) <= 2 * 16 * 8, "a beam may end at what its user has, and proposes nothing then"
    assert {record["step"] for record in records} == {1, 2}
    first = records[0]
    assert first["rewards"].keys() == {"hit", "column:rating"}
    assert first["item"].startswith("i")
    groups = {}
    for record in records:
        groups.setdefault((record["step"], record["user"]), []).append(record["item"])
    assert all(len(items) == len(set(items)) for items in groups.values())


def test_grpo_takes_a_recommender_too_and_a_recipe_goes_round(shop, capfd):
    line = RL.replace("ecpo", "grpo")
    assert say(f"{line} --reward hit --steps 1 --training epsilon=0.3 -o a.safetensors").code == 0
    (shop / "recipe.toml").write_bytes(say("kvtools info --config a.safetensors", capfd).out)
    assert say("kvtools rl grpo --model m.safetensors clicks.csv --config recipe.toml -o b.safetensors").code == 0
    ours, theirs = load_file(shop / "a.safetensors"), load_file(shop / "b.safetensors")
    assert all(ours[name].tobytes() == theirs[name].tobytes() for name in theirs)
    printed = say("kvtools rl ecpo --config recipe.toml --print-config", capfd).out
    assert printed == (shop / "recipe.toml").read_bytes()


def test_require_gain_is_1_where_nothing_was_learnt(shop, capfd):
    done = say(f"{RL} --reward hit --lr 0 --steps 1 --require-gain -o same.safetensors", capfd)
    assert done.code == 1
    assert (
        done.err == "kvtools rl ecpo: --require-gain: the held-out reward has not risen. Train longer, or with another rate.\n"
    )
    before, after = load_file(shop / "m.safetensors"), load_file(shop / "same.safetensors")
    weights = [name for name in before if not name.endswith(("load", "recent"))]
    assert all(before[name].tobytes() == after[name].tobytes() for name in weights), "the weights of the start are kept"


def test_what_is_held_out_is_read_from_another_file_where_one_is_given(shop):
    rows = (shop / "clicks.csv").read_text().splitlines(keepends=True)
    (shop / "few.csv").write_text("".join([rows[0], *(row for row in rows if row.startswith(("u1,", "u2,", "u3,")))]))
    assert say(f"{RL} --reward hit --steps 1 --valid few.csv --log rl.jsonl -o b.safetensors").code == 0
    assert log_of(shop / "rl.jsonl")[0]["valid_users"] == 3


def test_listed_items_and_play_time_are_rewards_too(shop):
    (shop / "farm.txt").write_text("i0\ni5\ni10\n")
    rows = (shop / "clicks.csv").read_text().splitlines()
    rng = np.random.default_rng(0)
    watched = [f"{row},{rng.integers(1, 90)},{rng.integers(10, 100)}" for row in rows[1:]]
    (shop / "watched.csv").write_text("\n".join([f"{rows[0]},playtime,duration", *watched]) + "\n")
    line = RL.replace("clicks.csv", "watched.csv").replace("ecpo", "gbpo")
    more = "--listed farm.txt --training listed_target=0.01 --log rl.jsonl"
    assert say(f"{line} --reward hit --reward duration --steps 2 {more} -o b.safetensors").code == 0
    steps = [line for line in log_of(shop / "rl.jsonl") if "loss" in line]
    assert all(0 <= line["listed_share"] <= 1 and -1 <= line["reward_duration"] <= 1 for line in steps)


def test_a_run_with_another_list_is_another_run(shop, capfd, monkeypatch):
    (shop / "farm.txt").write_text("i0\ni5\n")
    (shop / "other.txt").write_text("i1\n")
    line = f"{RL} --reward hit --steps 2 -o b.safetensors"
    monkeypatch.setenv("SLURM_JOB_END_TIME", str(int(time.time())))
    assert say(f"{line} --listed farm.txt", capfd).code == 75
    monkeypatch.delenv("SLURM_JOB_END_TIME")
    for more in ("", " --listed other.txt"):
        done = say(line + more, capfd)
        assert (done.code, "listed" in done.err) == (2, True), done.err
    assert say(f"{line} --listed farm.txt", capfd).code == 0


def test_a_ranker_says_how_far_it_can_be_trusted(shop, capfd):
    told = json.loads(say("kvtools info --json ranker.safetensors", capfd).out)
    names = {f"{start}_{name}" for start in ("auc", "pscore_auc") for name in ("hit", "column:rating")}
    assert told["auc"].keys() == names
    assert [line["loss"] > 0 for line in log_of(shop / "ranker.jsonl") if "loss" in line] == [True] * 3
    again = "kvtools rl pscore --model m.safetensors clicks.csv --steps 2 --peak 1e10 -o"
    assert [say(f"{again} {name}").code for name in ("a.safetensors", "b.safetensors")] == [0, 0]
    ours, theirs = load_file(shop / "a.safetensors"), load_file(shop / "b.safetensors")
    assert all(ours[name].tobytes() == theirs[name].tobytes() for name in theirs)


@pytest.mark.mpi
@pytest.mark.skipif(not (BIN / "mpiexec").exists(), reason="no mpiexec; install the mpich extra")
def test_two_ranks_propose_what_one_does(sh, shop):
    line = f"{RL} --reward hit --reward format --steps 1 --sampling sample"
    assert say(f"{line} --rollouts one.kvs --log one.jsonl -o one.safetensors").code == 0
    done = sh(f"mpiexec -n 2 {line} --rollouts two.kvs --log two.jsonl -o two.safetensors")
    assert (done.code, unsaid(done.err)) == (0, "")
    one, two = (sh(f"kvtools cat --json {name}.kvs").out for name in ("one", "two"))
    assert one == two
    for key in ("reward", "legal_share", "loss", "repetition"):
        assert log_of(shop / "one.jsonl")[1][key] == pytest.approx(log_of(shop / "two.jsonl")[1][key], rel=1e-4)
