"""Jobs that are killed, cancelled, at their time limit, queued again, or on a node that is drained: they end soon, and their
results are those of a run that nobody disturbed. Skipped where no Slurm of two nodes runs."""

import os
import signal
import time
from pathlib import Path

import pytest
from batch import has_two_nodes, log, slurm, submit, until, wait
from conftest import shell
from shop import TRAIN, furnish

pytestmark = [pytest.mark.slurm, pytest.mark.skipif(not has_two_nodes(), reason="no Slurm with two nodes is running")]
LONGEST_WAIT_S = 30
LINE = f"{TRAIN} --steps 400 --training patience=0 --log curve.jsonl -o made.safetensors"
SCRIPT = f"""#!/bin/bash
#SBATCH --nodes=2 --ntasks-per-node=1 --requeue
srun --mpi=pmi2 --input=0 {{}} {LINE}
rc=$?
[ $rc = 75 ] && scontrol requeue "$SLURM_JOB_ID"
exit $rc
"""


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The model of a run on two nodes that nobody disturbs."""
    folder = tmp_path_factory.mktemp("whole")
    furnish(folder)
    (folder / "job.sbatch").write_text(SCRIPT.format("--kill-on-bad-exit=1"))
    number = submit(folder, "job.sbatch")
    assert wait(number) == ["COMPLETED 0"], log(folder, number)
    return (folder / "made.safetensors").read_bytes()


@pytest.fixture
def start(tmp_path):
    """Submit the job, and wait until it is in the middle of its training."""
    furnish(tmp_path)

    def submitted(options=(), *, of_srun="--kill-on-bad-exit=1"):
        (tmp_path / "job.sbatch").write_text(SCRIPT.format(of_srun))
        number = submit(tmp_path, "job.sbatch", options=options)
        until(lambda: n_steps(tmp_path) >= 5)
        return number

    return submitted


def n_steps(folder):
    path = folder / "curve.jsonl"
    return path.read_text().count("\n") if path.exists() else 0


def ranks(folder):
    """The processes that train in this folder, the launchers not counted."""
    for path in Path("/proc").glob("[0-9]*"):
        try:
            words = (path / "cmdline").read_bytes().split(b"\0")
            if os.readlink(path / "cwd") == str(folder) and b"pretrain" in words and b"srun" not in words[0]:
                yield int(path.name)
        except OSError:
            continue


def ends_as(folder, number, whole):
    assert wait(number) == ["COMPLETED 0"], log(folder, number)
    assert (folder / "made.safetensors").read_bytes() == whole


@pytest.mark.parametrize("of_srun", ["--kill-on-bad-exit=1", "--kill-on-bad-exit=0"])
def test_a_rank_is_killed(start, tmp_path, whole, of_srun):
    number = start(of_srun=of_srun)
    begin = time.monotonic()
    os.kill(max(ranks(tmp_path)), signal.SIGKILL)
    (state,) = wait(number)
    assert state.startswith("FAILED"), log(tmp_path, number)
    assert time.monotonic() - begin < LONGEST_WAIT_S
    assert not (tmp_path / "made.safetensors").exists()
    assert shell(tmp_path)("ls -A -I lock .made.safetensors.state 2> /dev/null | wc -l").out in (b"0\n", b"1\n")
    ends_as(tmp_path, submit(tmp_path, "job.sbatch"), whole)


def test_a_job_is_cancelled(start, tmp_path, whole):
    number = start()
    begin = time.monotonic()
    slurm(f"scancel {number}")
    wait(number)
    assert time.monotonic() - begin < LONGEST_WAIT_S
    assert not list(ranks(tmp_path))
    ends_as(tmp_path, submit(tmp_path, "job.sbatch"), whole)


def test_a_job_that_nears_its_time_limit_saves_queues_itself_again_and_ends(start, tmp_path, whole):
    number = start(["--time=9"])
    slurm(f"scancel --signal=USR2 {number}.0")  # what --signal=USR2@SECONDS sends
    ends_as(tmp_path, number, whole)
    assert "Run again to continue" in log(tmp_path, number)
    assert "resumes after step" in log(tmp_path, number)


def test_a_node_is_drained_and_its_job_queued_again(start, tmp_path, whole):
    number = start()
    try:
        slurm("scontrol update NodeName=n2 State=drain Reason=test")
        slurm(f"scontrol requeue {number}")
        until(lambda: slurm(f"squeue -h -j {number} -o %t") == "PD")
        slurm(f"scontrol update JobId={number} StartTime=now", check=False)
    finally:
        until(lambda: not slurm("squeue -h -w n2 -o %i"))
        slurm("scontrol update NodeName=n2 State=resume")
    ends_as(tmp_path, number, whole)
