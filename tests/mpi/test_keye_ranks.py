"""Keye-VL is trained by any number of ranks as by one, to the rounding of sums, and one rank's end is everybody's."""

import json
import os
import sys
import time

import cinema
import numpy as np
import pytest
from cinema import TRAIN, conversation, write
from conftest import BIN, on_ranks

pytestmark = [pytest.mark.mpi, pytest.mark.skipif(not (BIN / "mpiexec").exists(), reason="no mpiexec; install the mpich extra")]


@pytest.fixture
def here(tmp_path):
    cinema.furnish(tmp_path, 24)
    return tmp_path


def figures(path, *names):
    return np.array([[line[n] for n in names] for line in map(json.loads, path.read_text().splitlines()) if "loss" in line])


STAGES = ("multitask", "matching")


def test_training_on_any_number_of_ranks_is_training_on_one(sh, here):
    line = f"{TRAIN} --steps 5 --batch-tokens 1536 --training jitter=0.2"
    names = ("loss", "accuracy", "grad_norm", "tokens")
    for n in (1, 2, 3):
        done = sh(on_ranks(n, [f"{line} --stage {s} --log {s}.{n}.jsonl -o {s}.{n}.model" for s in STAGES], here))
        assert (done.code, done.err) == (0, "")
    for stage in STAGES:
        one, *others = (figures(here / f"{stage}.{n}.jsonl", *names) for n in (1, 2, 3))
        assert len(one) == 5, "one rank writes the log"
        for other in others:
            # gradients are sums in another order; five steps of AdamW, which divides by their size, carry that on
            np.testing.assert_allclose(other, one, rtol=1e-4)
    assert not [name for name in os.listdir(here) if "state" in name]


RANKS = """
import hashlib, sys
import numpy as np
sys.path[:0] = sys.argv[1:]
from test_keye_training import loader_of, task_of, talk, weights
from kvtools.train.loop import Plan, Trainer
from kvtools.train.resume import train_state
from kvtools.world import World

world = World.open()
source = loader_of([talk(n) for n in range(30)])
task = task_of(source=source, world=world, batch_tokens=1024)
run = Trainer(task, Plan(epochs=4, n_steps=4, warmup=0, lr=1e-2, n_microbatches=3), train_state(None, {}), world)
losses = [step.metrics["loss"] for step in run.run(False)]
task.close()
told = hashlib.sha256(b"".join(x.numpy().tobytes() for x in weights(task).values()) + repr(losses).encode())
everyone = world.gather_array(np.frombuffer(told.digest(), np.uint8)[None])
if world.is_root:
    print(len(everyone), len(np.unique(everyone, axis=0)))
"""


def test_all_ranks_hold_the_same_weights_to_the_bit(sh, here):
    (here / "ranks.py").write_text(RANKS)
    tests = os.path.dirname(os.path.dirname(__file__))
    done = sh(f"mpiexec -n 3 {sys.executable} ranks.py {tests} {tests}/unit")
    assert (done.code, done.out.split()) == (0, [b"3", b"1"]), done.err


def test_what_was_stopped_on_two_ranks_goes_on_on_two_ranks(sh, here):
    line = f"mpiexec -n 2 {TRAIN} --steps 3 --training flip=0.5"
    stopped = sh(f"{line} -o m", SLURM_JOB_END_TIME=str(int(time.time())))
    assert stopped.code == 75
    assert stopped.err.count("Run again to continue") == 1, stopped.err
    again = sh(f"{line} -o m")
    assert (again.code, again.err.count("resumes after step 1")) == (0, 1), again.err
    assert sh(f"{line} -o whole").code == 0
    assert (here / "m").read_bytes() == (here / "whole").read_bytes()


def test_what_cannot_be_read_is_told_once_and_a_fault_ends_all_ranks(sh, here):
    talks = [conversation(n, "Which colour?", "red") for n in range(8)]
    write(here / "asked.jsonl", [*talks, conversation(99, "Which colour?", "red")])
    done = sh(f"mpiexec -n 2 {TRAIN} --steps 2 -o m")
    assert (done.code, done.err.count("q99: c99: ")) == (65, 1), done.err
    assert (here / "m").exists()
    begun = time.monotonic()
    done = sh(f"mpiexec -n 2 {TRAIN} --steps 2 --strict -o n", pipefail=False)
    assert (done.code, (here / "n").exists()) == (65, False)
    assert "Repair the input, or run without --strict." in done.err
    done = sh(f"mpiexec -n 2 {TRAIN.replace('asked.jsonl', '-')} -o n", pipefail=False)
    assert (done.code, "an input is -, and 2 ranks cannot share stdin. Give a file." in done.err) == (2, True)
    assert time.monotonic() - begun < 100
