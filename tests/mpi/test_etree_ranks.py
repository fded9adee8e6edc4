"""Neither trees nor what is trained over them depend on the number of ranks."""

import numpy as np
import pytest
from conftest import BIN, on_ranks

from kvtools.artifact import open_artifact

pytestmark = [pytest.mark.mpi, pytest.mark.skipif(not (BIN / "mpiexec").exists(), reason="no mpiexec; install the mpich extra")]


@pytest.fixture
def fleet(sh, tmp_path):
    rng = np.random.default_rng(0)
    y = np.arange(600) % 5
    np.savez(tmp_path / "d.npz", x=(rng.normal(size=(600, 8)) + 0.5 * np.eye(5, 8)[y]).astype(np.float32), y=y)
    np.save(tmp_path / "p.npy", rng.uniform(0, 50, (60, 2)).astype(np.float32))
    assert sh("kvtools devices --data d.npz --partition shards:2 --coordinates p.npy -o f.devices").code == 0
    return tmp_path


METHODS = ("k-medoids", "kma", "kma-code", "balanced")
OPTIONS = (
    "--model mlp:9",
    "--algorithm grouped",
    "--algorithm gossip",
    "--secure --fail root@3,leaf:10%@2",
    "-q --fail leaf:40%@2-3,aggregator:1@2,late:20%@3,repeat:50%@1-4,reorder@1-4 --late carry --regroup 0.8 --compare",
)


def test_trees_do_not_depend_on_the_number_of_ranks(sh, fleet):
    for n in (1, 2, 4):
        lines = [f"kvtools kma-cluster -k 7 --method {name} --data d.npz f.devices -o {name}.{n}.tree" for name in METHODS]
        done = sh(on_ranks(n, lines, fleet))
        assert (done.code, done.err) == (0, "")
    for name in METHODS:
        assert sh(f"cmp {name}.1.tree {name}.2.tree && cmp {name}.1.tree {name}.4.tree").code == 0, name


def test_devices_from_a_pipe_reach_all_ranks(sh, fleet):
    piped = sh("mkfifo pipe; cat f.devices > pipe & mpiexec -n 3 kvtools kma-cluster --method k-medoids pipe | kvtools sum -")
    assert piped.code == 0, piped.err
    assert piped.out == sh("kvtools kma-cluster --method k-medoids f.devices | kvtools sum -").out


def test_an_error_ends_all_ranks(sh, fleet):
    done = sh("mpiexec -n 3 kvtools kma-cluster -k 70 --method k-medoids f.devices -o out.tree", pipefail=False)
    assert done.code == 2
    assert "f.devices: 70 groups cannot be made of 60 devices." in done.err


def test_models_do_not_depend_on_the_number_of_ranks(sh, fleet):
    assert sh("kvtools kma-cluster -k 7 --levels 3,1 --method k-medoids f.devices -o f.tree").code == 0
    train = "kvtools etree-train --tree f.tree --data d.npz f.devices --ratios 1,2,2,1 --rounds 2"
    for n in (1, 2, 4):
        lines = [f"{train} {options} --log {i}.{n}.jsonl -o {i}.{n}.model" for i, options in enumerate(OPTIONS)]
        done = sh(on_ranks(n, lines, fleet))
        assert (done.code, done.err) == (0, "")
    for i, options in enumerate(OPTIONS):
        one, *others = (open_artifact(str(fleet / f"{i}.{n}.model")).tensors for n in (1, 2, 4))
        for name, array in one.items():
            for other in others:
                assert other[name] == pytest.approx(array, abs=1e-6), options
        assert [(fleet / f"{i}.{n}.jsonl").read_text().count("\n") for n in (1, 2, 4)] == [2, 2, 2]
