"""Recommendations are the same from any number of ranks, training is nearly so, and one rank's end is everybody's."""

import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from conftest import BIN, on_ranks, unsaid
from shop import TRAIN, furnish

pytestmark = [pytest.mark.mpi, pytest.mark.skipif(not (BIN / "mpiexec").exists(), reason="no mpiexec; install the mpich extra")]

N_USERS = 600  # more than two chunks of 256 users, which are what ranks share


@pytest.fixture
def shop(tmp_path):
    furnish(tmp_path, N_USERS)
    return tmp_path


def losses(path):
    return [line["loss"] for line in map(json.loads, path.read_text().splitlines()) if "loss" in line]


def test_recommendations_and_figures_do_not_depend_on_the_number_of_ranks(sh, shop):
    assert sh(f"{TRAIN} --steps 4 -o m.safetensors").code == 0
    ask = "kvtools recgen --model m.safetensors --beam 16 clicks.csv"
    figures = []
    for n in (1, 2, 3):
        done = sh(on_ranks(n, [f"{ask} -o {n}.kvs", f"{ask} --evaluate test --json"], shop))
        assert (done.code, unsaid(done.err)) == (0, "")
        figures.append({name: x for name, x in json.loads(done.out).items() if name != "seconds"})
    sums = sh("kvtools sum 1.kvs 2.kvs 3.kvs").out.decode().splitlines()
    assert len({line.split()[0] for line in sums[:3]}) == 1, sums
    assert figures[0] == figures[1] == figures[2]
    assert figures[0]["users"] == N_USERS


OPTIONS = ("", "--near 3 --users users.csv --training accumulate=3")


def test_training_on_two_ranks_is_training_on_one_and_gives_the_same_bytes_again(sh, shop):
    lines = {
        n: [f"{TRAIN} --steps 6 --training dropout=0 {o} --log {i}.{n}.jsonl -o {i}.{n}" for i, o in enumerate(OPTIONS)]
        for n in (1, 2)
    }
    lines[2] += [f"{TRAIN} --steps 4 --training dropout=0.3 -o {name}" for name in ("again", "first")]
    for n in (1, 2):
        done = sh(on_ranks(n, lines[n], shop))
        assert (done.code, unsaid(done.err)) == (0, "")
    for i in range(len(OPTIONS)):
        # gradients are sums in another order; six steps of AdamW, which divides by their size, carry that on
        np.testing.assert_allclose(losses(shop / f"{i}.2.jsonl"), losses(shop / f"{i}.1.jsonl"), rtol=1e-4)
        assert len(losses(shop / f"{i}.2.jsonl")) == 6, "one rank writes the log"
    assert not [name for name in os.listdir(shop) if "state" in name]
    assert sh("cmp again first").code == 0


RANKS = """
import hashlib, sys
import numpy as np
sys.path.insert(0, sys.argv[1])
from test_loop import Toy, plan
from kvtools.train.loop import Trainer
from kvtools.train.resume import train_state
from kvtools.world import World

world = World.open()
task = Toy(dropout=0.5)
run = Trainer(task, plan(), train_state(None, {}), world)
losses = [step.metrics["loss"] for step in run.run(False) if step.metrics]
told = hashlib.sha256(b"".join(x.numpy().tobytes() for x in task.model.state_dict().values()) + repr(losses).encode())
everyone = world.gather_array(np.frombuffer(told.digest(), np.uint8)[None])
if world.is_root:
    print(len(everyone), len(np.unique(everyone, axis=0)))
"""


def test_all_ranks_hold_the_same_weights_to_the_bit(sh, shop):
    (shop / "ranks.py").write_text(RANKS)
    unit = os.path.join(os.path.dirname(os.path.dirname(__file__)), "unit")
    done = sh(f"mpiexec -n 3 {sys.executable} ranks.py {unit}")
    assert (done.code, done.out.split()) == (0, [b"3", b"1"]), done.err


def test_what_was_stopped_on_two_ranks_goes_on_on_two_ranks(sh, shop):
    line = f"mpiexec -n 2 {TRAIN} --steps 5 --training dropout=0.3"
    stopped = sh(f"{line} -o m.safetensors", SLURM_JOB_END_TIME=str(int(time.time())))
    assert stopped.code == 75
    assert stopped.err.count("Run again to continue") == 1, stopped.err
    again = sh(f"{line} -o m.safetensors")
    assert again.code == 0
    assert again.err.count("resumes after step 1") == 1
    assert sh(f"{line} -o whole.safetensors && cmp m.safetensors whole.safetensors").code == 0


@pytest.mark.parametrize(
    ("line", "code", "words"),
    [
        (f"{TRAIN} --steps 2%  -o m", 2, "--steps 2%"),
        (
            "kvtools recgen --model m -k 9 --beam 3 clicks.csv --json",
            2,
            "-k 9 is larger than --beam 3. Raise --beam or lower -k.",
        ),
        ("kvtools recgen --model nothing clicks.csv --json", 66, "nothing: no such file"),
        (
            "kvtools recgen --model items.ids clicks.csv --json",
            65,
            "kind model is needed. Make one with kvtools pretrain onerec.",
        ),
        (f"{TRAIN} -o clicks.csv", 73, "clicks.csv: exists already"),
    ],
)
def test_a_fault_ends_all_ranks_with_its_code(sh, shop, line, code, words):
    begun = time.monotonic()
    done = sh(f"mpiexec -n 3 {line}", pipefail=False)
    assert (done.code, done.out) == (code, b"")
    assert words in done.err
    assert time.monotonic() - begun < 60


def test_a_rank_killed_on_the_way_ends_all_and_leaves_nothing_at_the_output(sh, shop):
    line = f"{TRAIN} --steps 100000 --training patience=0 --log log.jsonl -o m.safetensors"
    command = [str(BIN / "mpiexec"), "-n", "3", str(BIN / "kvtools"), *line.split()[1:]]
    launcher = subprocess.Popen(command, cwd=shop, stderr=subprocess.PIPE, text=True, start_new_session=True)
    log = shop / "log.jsonl"
    while launcher.poll() is None and not (log.exists() and log.read_text().count("\n") >= 3):
        time.sleep(0.01)
    victims = [pid for pid in map(int, filter(str.isdigit, os.listdir("/proc"))) if is_rank(pid, 2, shop)]
    assert len(victims) == 1
    os.kill(victims[0], signal.SIGKILL)
    begun = time.monotonic()
    launcher.stderr.read()
    assert launcher.wait(30) != 0
    assert time.monotonic() - begun < 10
    assert not [name for name in os.listdir(shop) if name.startswith("m.safetensors") or ".tmp-" in name]


def is_rank(pid, rank, folder):
    """Whether a process is this rank of a command that runs in the folder."""
    try:
        with open(f"/proc/{pid}/environ", "rb") as file:
            words = file.read().split(b"\0")
        return b"PMI_RANK=%d" % rank in words and os.readlink(f"/proc/{pid}/cwd") == str(folder)
    except OSError:
        return False
