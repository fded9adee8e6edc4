"""Training over a tree, as a user types it: the model, the log, stopping and resuming, refusals."""

import json
import os
import shutil
import signal
import subprocess
import time

import numpy as np
import pytest
from conftest import BIN, shell
from test_devices import write_data

from kvtools.artifact import open_artifact
from kvtools.artifact.state import SaveTimer
from kvtools.artifact.training_log import TrainingLog


@pytest.fixture(scope="module")
def furnished(tmp_path_factory):
    """digits.csv, and f.devices and f.tree of twenty devices that hold it."""
    folder = tmp_path_factory.mktemp("fleet")
    write_data(folder, n=300)
    np.save(folder / "p.npy", np.random.default_rng(0).uniform(0, 50, (20, 2)).astype(np.float32))
    make = "kvtools devices --data digits.csv --partition classes:2 --coordinates p.npy -o f.devices"
    assert shell(folder)(f"{make} && kvtools kma-cluster -k 4 --method k-medoids f.devices -o f.tree").code == 0
    return folder


@pytest.fixture
def fleet(furnished, tmp_path):
    shutil.copytree(furnished, tmp_path, dirs_exist_ok=True)
    return tmp_path


TRAIN = "kvtools etree-train --tree f.tree --data digits.csv f.devices"
KEYS = {"algorithm", "round", "local_epochs", "bytes", "wan_bytes", "simulated_s", "wall_s", "accuracy", "loss"}


def lines_of(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.mark.parametrize("algorithm", ["etree", "fedavg", "hierfavg", "grouped", "gossip", "d-psgd", "individual"])
def test_every_algorithm_trains_logs_and_writes_a_model(sh, fleet, algorithm):
    done = sh(f"{TRAIN} --algorithm {algorithm} --epochs 10 --log run.jsonl | tee f.model | kvtools check -")
    assert (done.code, done.out, done.err) == (0, b"", "")
    bag = open_artifact(str(fleet / "f.model"))
    assert {name: array.shape for name, array in bag.tensors.items()} == {"0.weight": (4, 3), "0.bias": (4,)}
    lines = lines_of(fleet / "run.jsonl")
    assert all(set(line) == KEYS for line in lines)
    assert lines[-1]["local_epochs"] == 10
    assert lines[-1]["accuracy"] == bag.fields["result"]["accuracy"]
    assert [line["bytes"] for line in lines] == sorted(line["bytes"] for line in lines)


def test_it_learns_and_deep_models_do_too(sh, fleet):
    for model in ("softmax", "mlp:12"):
        assert sh(f"{TRAIN} --model {model} --rounds 12 --log {model}.jsonl -o {model}.bag").code == 0
        assert lines_of(fleet / f"{model}.jsonl")[-1]["accuracy"] > 0.4


def test_models_of_a_recipe_and_of_ones_own_are_trained_and_described(sh, fleet):
    (fleet / "m.toml").write_text('[[layers]]\nkind = "linear"\nwidth = 12\n[[layers]]\nkind = "relu"\n')
    (fleet / "own.py").write_text(
        "from torch import nn\n\n\ndef net(shape, n_classes):\n    return nn.Linear(shape[0], n_classes)\n"
    )
    train = "; ".join(f"{TRAIN} --rounds 2 --model {words} -o {name}.model" for name, words in (
        ("a", "m.toml"), ("b", "mlp:12"), ("c", "own.py:net")
    ))  # fmt: skip
    assert (sh(train).code, sh(train + " --force", pipefail=False).err.count("\n")) == (0, 2)
    a, b, c = (open_artifact(str(fleet / f"{name}.model")) for name in "abc")
    for name, array in a.tensors.items():
        assert array == pytest.approx(b.tensors[name], abs=1e-5)
    assert a.fields["architecture"] == {"layers": [{"kind": "linear", "width": 12}, {"kind": "relu"}]}
    assert (c.fields["architecture"], sorted(c.tensors)) == ("own.py:net", ["bias", "weight"])


def test_the_same_seed_gives_the_same_bytes_whatever_the_chunk(sh, fleet):
    assert sh(f"{TRAIN} -o a.model && {TRAIN} --chunk 3 -o b.model && cmp a.model b.model").code == 0
    assert (
        sh(f"{TRAIN} --seed 1 --model mlp:5 -o c.model && {TRAIN} --model mlp:5 -o d.model && ! cmp -s c.model d.model").code
        == 0
    )


def test_a_stopped_run_continues_to_the_same_end(sh, fleet):
    long = [*TRAIN.split()[1:], "--rounds", "300", "--model", "mlp:20"]
    assert sh(f"{TRAIN} --rounds 300 --model mlp:20 -o whole.model --log whole.jsonl", timeout=200).code == 0
    process = subprocess.Popen(
        [str(BIN / "kvtools"), *long, "-o", "part.model", "--log", "part.jsonl"], cwd=fleet, stderr=subprocess.PIPE, text=True
    )
    deadline = time.monotonic() + 60
    while not (fleet / "part.jsonl").exists() and time.monotonic() < deadline:
        os.sched_yield()
    process.send_signal(signal.SIGUSR2)
    words = process.communicate()[1]
    assert (process.returncode, words) == (75, "kvtools etree-train: stopped; run the same command again to continue.\n")
    assert not (fleet / "part.model").exists()
    done = sh(f"{TRAIN} --rounds 300 --model mlp:20 -o part.model --log part.jsonl", timeout=200)
    assert done.code == 0
    assert "resumed after round" in done.err
    assert sh("cmp whole.model part.model").code == 0
    curves = [
        [{k: v for k, v in line.items() if k != "wall_s"} for line in lines_of(fleet / f"{name}.jsonl")]
        for name in ("whole", "part")
    ]
    assert curves[0] == curves[1]
    assert not (fleet / ".part.model.state").exists()


@pytest.fixture
def stopped(fleet):
    """A run of 100,000 rounds into m.model, stopped after a few; the words of its command."""
    words = f"{TRAIN} --rounds 100000 -o m.model"
    process = subprocess.Popen(
        [str(BIN / "kvtools"), *words.split()[1:], "--log", "m.jsonl"], cwd=fleet, stderr=subprocess.DEVNULL
    )
    while process.poll() is None and not (fleet / "m.jsonl").exists():
        time.sleep(0.01)
    process.send_signal(signal.SIGUSR2)
    assert process.wait(60) == 75
    return words


def test_a_stopped_run_with_other_options_is_refused_by_name(sh, fleet, stopped):
    state = fleet / ".m.model.state" / "train.state"
    state_before = state.read_bytes()
    assert open_artifact(str(state)).kind == "etree-train-state"
    done = sh(f"{stopped} --lr 0.1", pipefail=False)
    assert (done.code, done.out) == (2, b"")
    assert done.err == (
        "kvtools etree-train: .m.model.state/train.state: the stopped run had lr 0.05, and this run has 0.1. "
        "Give the same options to resume it, or --force to start over.\n"
    )
    assert state.read_bytes() == state_before
    done = sh(f"{stopped} --rounds 2 --force --log f.jsonl")
    assert (done.code, done.err) == (0, "")
    assert [line["round"] for line in lines_of(fleet / "f.jsonl")] == [1, 2]
    assert not state.exists()


def test_a_damaged_state_is_refused_and_force_starts_over(sh, fleet, stopped):
    state = fleet / ".m.model.state" / "train.state"
    damaged = bytearray(state.read_bytes())
    damaged[-1] ^= 1
    state.write_bytes(damaged)
    done = sh(stopped, pipefail=False)
    assert (done.code, done.err.count("\n")) == (65, 1)
    assert done.err.endswith("The stopped run cannot be resumed. Give --force to start over.\n")
    assert sh(f"{stopped} --rounds 1 --force").code == 0


def test_a_run_that_is_killed_without_warning_goes_on_from_its_last_save(fleet, kv, monkeypatch):
    rounds = f"{TRAIN.removeprefix('kvtools ')} --rounds 9 --every 1"
    assert kv(f"{rounds} -o whole.model --log whole.jsonl")[0] == 0
    monkeypatch.setattr(SaveTimer, "is_due", lambda _: True)
    write, left = TrainingLog.write, iter(range(5))

    def killed(curve, line):
        write(curve, line)
        if next(left, None) is None:
            raise KeyboardInterrupt

    monkeypatch.setattr(TrainingLog, "write", killed)
    assert kv(f"{rounds} -o m.model --log m.jsonl")[0] == 130
    monkeypatch.setattr(TrainingLog, "write", write)
    assert "resumed after round 5" in kv(f"{rounds} -o m.model --log m.jsonl")[1]
    assert (fleet / "m.model").read_bytes() == (fleet / "whole.model").read_bytes()
    whole, continued = ([{**line, "wall_s": 0} for line in lines_of(fleet / name)] for name in ("whole.jsonl", "m.jsonl"))
    assert continued == whole


def test_two_runs_do_not_share_a_state(sh, fleet):
    line = f"{TRAIN} -o m.model"
    words = [str(BIN / "kvtools"), *line.split()[1:], "--rounds", "1000000", "--log", "run.jsonl"]
    running = subprocess.Popen(words, cwd=fleet, stderr=subprocess.DEVNULL)
    try:
        while running.poll() is None and not (fleet / "run.jsonl").exists():
            time.sleep(0.002)
        second = sh(f"{line} --rounds 1 --force")
    finally:
        running.kill()
        running.wait(60)
    assert second.code == 73
    assert second.err == (
        "kvtools etree-train: .m.model.state: another run is at work there. Wait for it, or name another output.\n"
    )


def test_queues_make_a_star_slower_than_a_tree(sh, fleet):
    for algorithm in ("etree", "fedavg"):
        done = sh(f"{TRAIN} --algorithm {algorithm} --routing queues --epochs 5 --log {algorithm}.jsonl -o {algorithm}.model")
        assert done.code == 0
    tree, star = (lines_of(fleet / f"{name}.jsonl")[-1]["simulated_s"] for name in ("etree", "fedavg"))
    assert tree < star


def test_failures_change_the_run_and_it_ends(sh, fleet):
    script = "leaf:10%@2,aggregator:1@4,root@6,partition@8-9,late:2@3"
    done = sh(f"{TRAIN} --rounds 3 --fail {script} --late carry --quorum 0.3 -o a.model --log a.jsonl")
    assert done.code == 0
    assert sh(f"{TRAIN} --rounds 3 -o b.model --log b.jsonl").code == 0
    failed, healthy = (lines_of(fleet / f"{name}.jsonl")[-1] for name in "ab")
    assert failed["simulated_s"] > healthy["simulated_s"]
    assert failed["accuracy"] > healthy["accuracy"] - 0.3


ANOTHER_MODEL = "Give another, such as mlp:64."
MODELS = f"models are softmax, mlp:WIDTH[,WIDTH], cnn, FILE.toml and FILE.py:NAME, with widths up to 1048576. {ANOTHER_MODEL}"
EVENTS = (
    "events are leaf:10%@5, aggregator:1@8, root@12, late:5@3-4, partition@15-18, join:3@4, repeat:10%@5 and reorder@5-8, "
    "between commas. Give events such as leaf:10%@5,root@12."
)
COUNTS = "these are not counts from 1 to 1048576 between commas. Give counts such as 1,5,1, the tree's own."
MADE_OF = "f.devices was made of data with 0126f090bd64"
NO_AGGREGATORS = "needs aggregators, and gossip has none. Choose etree, fedavg, hierfavg or grouped."
BAD = {
    "no tree": (
        "kvtools etree-train --data digits.csv f.devices", 2, "--tree is missing. Give a tree, from kvtools kma-cluster.",
    ),
    "no data": (
        "kvtools etree-train --tree f.tree f.devices", 2,
        "--data is missing. Give the labelled data that the devices were made of.",
    ),
    "stdin twice": (
        "kvtools etree-train --tree - --data digits.csv -", 2,
        "several inputs are -, and stdin can be read only once. Give files for the others.",
    ),
    "late updates of masks": (
        f"{TRAIN} --secure --late carry", 2,
        "--late carry cannot be combined with --secure: late updates are not masked twice. Use --late drop.",
    ),
    "no failures to compare with": (
        f"{TRAIN} --compare", 2, "--compare is about failures. Give them with --fail, or leave it out.",
    ),
    "failures without a tree": (f"{TRAIN} --fail root@3 --algorithm gossip", 2, f"--fail {NO_AGGREGATORS}"),
    "masks without a tree": (f"{TRAIN} --secure --algorithm gossip", 2, f"--secure {NO_AGGREGATORS}"),
    "a tree of others": (
        TRAIN.replace("f.devices", "few.devices"), 65,
        "few.devices: there are 5 devices, and f.tree has 20. Make a tree of this bag.",
    ),
    "a tree of other devices": (
        TRAIN.replace("f.devices", "alike.devices"), 65,
        "alike.devices: f.tree was made of other devices. Give those, or make a tree of this bag.",
    ),
    "devices for a tree": (
        TRAIN.replace("f.tree", "f.devices"), 65,
        "f.devices: this is a bag of kind device, and kind tree is needed. Make one with kvtools kma-cluster.",
    ),
    "other data": (
        TRAIN.replace("digits.csv", "other.csv"), 65,
        f"other.csv: these data have the digest 3756b015b1d4, and {MADE_OF}. Give the same data, or make the devices again.",
    ),
    "no such model": (f"{TRAIN} --model resnet", 2, f"--model resnet: {MODELS}"),
    "a layer without end": (f"{TRAIN} --model mlp:999999999", 2, f"--model mlp:999999999: {MODELS}"),
    "no such recipe": (
        f"{TRAIN} --model none.toml", 66, "--model none.toml: no such file or directory. Look at its name and its permissions.",
    ),  # fmt: skip
    "a recipe of nothing": (
        f"{TRAIN} --model digits.toml", 2,
        "--model digits.toml: a recipe holds `layers` alone, and this one holds depth. Correct the file.",
    ),
    "no images": (
        f"{TRAIN} --model cnn", 2,
        f"--model cnn: cnn takes images of 16 by 16 or more, and these samples have the shape (3,). {ANOTHER_MODEL}",
    ),
    "no such failure": (f"{TRAIN} --fail fire@3", 2, f"--fail fire@3: 'fire@3' is no event; {EVENTS}"),
    "a script without a word": (f"{TRAIN} --fail ''", 2, f"--fail '': the script is empty; {EVENTS}"),
    "too many ratios": (
        f"{TRAIN} --ratios 1,2,3,1", 2,
        "--ratios 1,2,3,1: the tree has 3 ratios, the last of them 1. Give counts such as 1,5,1, the tree's own.",
    ),
    "a ratio that is no number": (f"{TRAIN} --ratios 1,²,1", 2, f"--ratios 1,²,1: {COUNTS}"),
    "a ratio without end": (f"{TRAIN} --ratios 1,10000000000,1", 2, f"--ratios 1,10000000000,1: {COUNTS}"),
    "epochs that are no rounds": (
        f"{TRAIN} --epochs 7", 2,
        "--epochs 7: a round has 5 local epochs; the nearest whole rounds make 5 or 10. Give such a number, or --rounds.",
    ),
    "an infinite number": (f"{TRAIN} --deadline inf", 2, "--deadline inf is not finite. Give a finite number."),
    "a learning rate too high": (
        f"{TRAIN} --model mlp:9 --lr 1e6 --log run.jsonl", 1,
        "training with --lr 1e+06: the loss is nan after round 1: training has diverged. Give a lower --lr.",
    ),
    "updates too large to mask": (
        f"{TRAIN} --secure --lr 1e30", 1,
        "training with --lr 1e+30: an update of 4.83333e+29 is too large for sums in 64 bits. Give a lower --lr.",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_refusals_say_what_is_wrong_and_what_to_do(kv, fleet, name):
    line, code, message = BAD[name]
    text = (fleet / "digits.csv").read_text()
    (fleet / "other.csv").write_text(text.replace(",3\n", ",2\n", 1))
    (fleet / "digits.toml").write_text("depth = 3\n")
    kv("devices --data digits.csv --coordinates p.npy --devices 5 -o few.devices")
    kv("devices --data digits.csv --coordinates p.npy --seed 9 -o alike.devices")
    assert kv(f"{line.removeprefix('kvtools ')} -o out.model") == (code, f"kvtools etree-train: {message}\n")
    assert not (fleet / "out.model").exists()


def test_events_after_the_last_step_are_reported(sh, fleet):
    done = sh(f"{TRAIN} --rounds 1 --fail root@99 -o a.model")
    message = "--fail: step 99 comes after the last step, 5, so that event never happens."
    assert (done.code, done.err) == (0, f"kvtools etree-train: {message}\n")


def test_a_run_into_a_pipe_ends_at_sigterm_as_any_program_does(fleet):
    words = [str(BIN / "kvtools"), *f"{TRAIN} --rounds 100000 --log run.jsonl".split()[1:]]
    with open(fleet / "out", "wb") as out:
        process = subprocess.Popen(words, cwd=fleet, stdout=out, stderr=subprocess.PIPE)
    while process.poll() is None and not (fleet / "run.jsonl").exists():
        time.sleep(0.01)
    process.terminate()
    assert process.wait(60) == 143


def test_the_cost_of_failures_is_logged_against_the_run_without(sh, fleet):
    script = "leaf:30%@2-4,aggregator:1@3,root@6,repeat:20%@2-9,reorder@1-9,join:2@4"
    done = sh(f"{TRAIN} --rounds 3 --fail {script} --regroup 0.7 --compare -o a.model --log a.jsonl")
    assert done.code == 0
    assert sh(f"{TRAIN} --rounds 3 -o b.model --log b.jsonl").code == 0
    failed, healthy = (lines_of(fleet / f"{name}.jsonl") for name in "ab")
    for one, other in zip(failed, healthy, strict=True):
        assert one["accuracy_lost"] == pytest.approx(other["accuracy"] - one["accuracy"], abs=1e-6)
        assert one["simulated_s_lost"] == pytest.approx(one["simulated_s"] - other["simulated_s"], abs=1e-5)
    assert done.err.splitlines()[-1].startswith("kvtools etree-train: failures cost ")
    assert any(" devices before, " in line for line in done.err.splitlines())


def test_repeated_messages_cost_bytes_and_leave_the_model_as_it_is(sh, fleet):
    train = f"{TRAIN} --algorithm fedavg --rounds 3"
    assert sh(f"{train} --log a.jsonl -o a.model").code == 0
    done = sh(f"{train} --fail repeat:100%@2,reorder@1-3 --log b.jsonl -o b.model")
    assert (done.code, done.err) == (0, "")
    a, b = (open_artifact(str(fleet / f"{name}.model")).tensors for name in "ab")
    assert all(np.array_equal(a[name], b[name]) for name in a)
    once, repeated = ([line["bytes"] for line in lines_of(fleet / f"{name}.jsonl")] for name in "ab")
    # 19 devices send to the server and receive from it; a repeated message arrives once more in its step and in the next
    a_round = 2 * 19 * 4 * (3 * 4 + 4)
    assert once == [a_round, 2 * a_round, 3 * a_round]
    assert repeated == [a_round, 3 * a_round, 5 * a_round]
