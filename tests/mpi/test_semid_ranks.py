"""Semantic IDs from any number of ranks are the same; one rank's end is everybody's."""

import os
import signal
import subprocess
import time

import numpy as np
import pytest
from conftest import BIN, on_ranks, unsaid

pytestmark = [pytest.mark.mpi, pytest.mark.skipif(not (BIN / "mpiexec").exists(), reason="no mpiexec; install the mpich extra")]


@pytest.fixture
def items(tmp_path):
    rng = np.random.default_rng(21)
    x = rng.normal(size=(60, 24))[rng.integers(0, 60, 20_000)] + 0.5 * rng.normal(size=(20_000, 24))
    np.save(tmp_path / "items.npy", x.astype(np.float32))
    (tmp_path / "items.keys").write_text("".join(f"{i}\n" for i in range(len(x))))


BUILD = "kvtools semid-build items.npy --keys items.keys --codes 64 --iterations 6"


OPTIONS = (
    "",
    "--collisions nearest --init random",
    "--method balanced --collisions extend",
    "--levels 1 --iterations 9999",  # so many that each of four ranks takes compiled passes
)


def test_ids_and_report_do_not_depend_on_the_number_of_ranks(sh, items, tmp_path):
    for n in (1, 2, 4):
        done = sh(on_ranks(n, [f"{BUILD} {options} -o {i}.{n}.ids" for i, options in enumerate(OPTIONS)], tmp_path))
        assert (done.code, unsaid(done.err)) == (0, "")
    for i, options in enumerate(OPTIONS):
        assert sh(f"cmp {i}.1.ids {i}.2.ids && cmp {i}.1.ids {i}.4.ids").code == 0, options


def test_vectors_from_a_pipe_reach_all_ranks(sh, items):
    # a named pipe: mpiexec itself gives up on a reader of its stdin that is slow to start
    piped = sh(f"mkfifo pipe; cat items.npy > pipe & mpiexec -n 3 {BUILD.replace('items.npy', 'pipe')} | kvtools sum -")
    assert piped.code == 0, piped.err
    assert piped.out == sh(f"{BUILD} | kvtools sum -").out


def test_too_few_rows_are_reported_once(sh, items):
    done = sh(f"mpiexec -n 3 {BUILD.replace('64', '30000')} -o out.ids", pipefail=False)
    assert done.code == 65
    sentence = "items.npy: 20000 vectors are too few for 30000 codes. Give fewer --codes, or more items."
    assert [line for line in done.err.splitlines() if "kvtools" in line] == [f"[r0/3] kvtools semid-build: {sentence}"]


def test_a_rank_killed_on_the_way_ends_all_and_leaves_no_output(sh, items, tmp_path):
    command = [
        str(BIN / "mpiexec"),
        "-n",
        "3",
        str(BIN / "kvtools"),
        *BUILD.split()[1:],
        "--iterations",
        "5000",
        "-o",
        "out.ids",
    ]
    command += ["--levels", "16", "-v"]
    launcher = subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, text=True, start_new_session=True)
    for line in launcher.stderr:
        if "pass 2" in line:
            break
    ranks = subprocess.run(["pgrep", "-f", "semid-build items.npy"], capture_output=True, text=True, check=True).stdout.split()
    victims = [int(pid) for pid in ranks if b"PMI_RANK=2\0" in environment(int(pid))]
    os.kill(victims[0], signal.SIGKILL)
    begun = time.monotonic()
    launcher.stderr.read()
    assert launcher.wait(30) != 0
    assert time.monotonic() - begun < 10
    # levels that are ready stay for the next run in the folder of the state
    assert [name for name in os.listdir(tmp_path) if "out.ids" in name and name != ".out.ids.state"] == []


def environment(pid):
    try:
        with open(f"/proc/{pid}/environ", "rb") as file:
            return file.read()
    except OSError:
        return b""
