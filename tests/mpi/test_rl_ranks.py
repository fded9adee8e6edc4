"""`rl sample` and `rl grpo` of Keye-VL give the records and the weights of one rank on any number of ranks."""

import json

import numpy as np
import pytest
from conftest import BIN, on_ranks, shell
from random_letters import start_model

from kvtools.artifact import open_artifact

pytestmark = [pytest.mark.mpi, pytest.mark.skipif(not (BIN / "mpiexec").exists(), reason="no mpiexec; install the mpich extra")]

# 40 prompts are three chunks, and ten are five: an odd number, for two ranks
SAMPLE = "kvtools rl sample -q sums.jsonl --model start.model --group 2 --max-new 6 --reward length -o {n}.sample.kvs"
GRPO = (
    "kvtools rl grpo -q sums.jsonl --model start.model --group 4 --batch 10 --max-new 6 --training chunk=8 --overlong keep"
    " --reward length:-1 --reward correct --modes think:1,no_think:1 --lr 0.01 --steps 3 --valid held.jsonl --kl 0.1"
    " --rollouts {n}.rollouts.kvs --log {n}.jsonl -o {n}.model"
)


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    """The folder of both runs, and the digest of each output."""
    folder = tmp_path_factory.mktemp("ranks")
    start_model(folder / "start.model")
    asked = [{"id": f"s{n}", "prompt": f"{n}+{n}=?", "answer": 2 * n} for n in range(40)]
    (folder / "sums.jsonl").write_text("".join(json.dumps(line) + "\n" for line in asked))
    (folder / "held.jsonl").write_text("".join(json.dumps(line) + "\n" for line in asked[:4]))
    outputs = [f"{n}.{name}" for n in (1, 2) for name in ("sample.kvs", "rollouts.kvs", "model")]
    for n, more in ((2, []), (1, [f"kvtools sum {' '.join(outputs)}"])):
        lines = [line.format(n=n) for line in (SAMPLE, GRPO)] + more
        done = shell(folder)(on_ranks(n, lines, folder), OMP_NUM_THREADS="1")
        assert (done.code, done.err) == (0, "")
    return folder, dict(reversed(line.split("  ")) for line in done.out.decode().splitlines())


@pytest.mark.parametrize("name", ["sample.kvs", "rollouts.kvs", "model"])
def test_records_and_weights_are_those_of_one_rank(ran, name):
    sums = ran[1]
    assert sums[f"1.{name}"] == sums[f"2.{name}"]


def test_the_order_of_records_is_that_of_one_rank(ran):
    for name in ("sample.kvs", "rollouts.kvs"):
        one, two = ([record.key for record in open_artifact(str(ran[0] / f"{n}.{name}"))] for n in (1, 2))
        assert one == two


def test_the_log_tells_the_means_of_all_ranks(ran):
    named = ("reward", "reward_correct", "length", "entropy", "mode_think", "legal_share", "clip_fraction", "loss")
    curves = [
        np.array([[line[name] for name in named] for line in map(json.loads, text.splitlines()) if "loss" in line])
        for text in ((ran[0] / f"{n}.jsonl").read_text() for n in (1, 2))
    ]
    assert curves[0].shape == (3, len(named))
    np.testing.assert_allclose(*curves, rtol=1e-6, atol=1e-9)
