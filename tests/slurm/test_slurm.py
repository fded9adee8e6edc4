"""Batch jobs on a real Slurm of two nodes; skipped, and said so, where none is running."""

import shutil
import subprocess
import time

import numpy as np
import pytest
from conftest import BIN, make_clip
from shop import TRAIN, furnish


def has_two_nodes():
    if shutil.which("sinfo") is None:
        return False
    idle = subprocess.run(["sinfo", "-h", "-N", "-o", "%N"], capture_output=True, text=True, check=False)
    return len(set(idle.stdout.split())) >= 2


pytestmark = [pytest.mark.slurm, pytest.mark.skipif(not has_two_nodes(), reason="no Slurm with two nodes is running")]


@pytest.fixture
def job(tmp_path):
    """Submit a script, wait for its end, give its exit code and its log."""

    def run(body, *options):
        script = tmp_path / "job.sbatch"
        script.write_text(f"#!/bin/bash\nset -uo pipefail\nexport PATH={BIN}:$PATH\n{body}\n")
        words = [
            "sbatch",
            "--parsable",
            f"--chdir={tmp_path}",
            "--output=log-%A-%a.txt",
            "--open-mode=append",
            *options,
            str(script),
        ]
        number = subprocess.run(words, capture_output=True, text=True, check=True).stdout.strip().split(";")[0]
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline:
            if not subprocess.run(["squeue", "-h", "-j", number], capture_output=True, text=True, check=False).stdout.strip():
                break
            time.sleep(0.3)
        else:
            subprocess.run(["scancel", number], check=False)
            pytest.fail(f"job {number} did not end")
        return "".join(path.read_text() for path in sorted(tmp_path.glob(f"log-{number}-*.txt")))

    return run


@pytest.fixture
def many(tmp_path, sh):
    for i in range(12):
        make_clip(tmp_path / f"c{i:02}.mp4", n_frames=60 + 5 * i)
    assert sh("kvtools tokenize-video c??.mp4 -o serial.kvs").code == 0
    return sh("kvtools sum serial.kvs").out.split()[0]


def test_two_nodes_give_the_serial_digest(job, many, sh):
    log = job("srun -N2 -n2 --input=0 kvtools tokenize-video c??.mp4 -o a.kvs; echo code $?", "-N2", "-n2")
    assert "code 0" in log, log
    assert sh("kvtools sum a.kvs").out.split()[0] == many


def test_an_array_of_shards_gives_the_serial_digest(job, many, sh):
    job("kvtools tokenize-video c??.mp4 --shard $SLURM_ARRAY_TASK_ID/3 -o p-$SLURM_ARRAY_TASK_ID.kvs", "--array=0-2")
    assert sh("kvtools cat p-0.kvs p-1.kvs p-2.kvs | kvtools sum -").out.split()[0] == many


def test_tasks_that_cannot_see_each_other_are_refused(job, many):
    log = job("srun --mpi=none -n2 kvtools tokenize-video c00.mp4 -o a.kvs; echo code $?", "-n2", "-N2")
    assert "code 2" in log
    assert "--mpi=pmi2" in log


def test_a_signalled_job_ends_with_75_and_run_again_ends_the_same(job, many, sh, tmp_path):
    command = "srun -N2 -n2 --input=0 kvtools tokenize-video --jobs 1 c??.mp4 -o a.kvs"
    # the signal reaches every task of the step, as --signal=USR2@300 would send it; then the job looks at its code
    body = f"""
    {command} & step=$!
    until [ -s .a.kvs.part ]; do sleep 0.01; done
    scancel --signal=USR2 $SLURM_JOB_ID.0
    wait $step; echo code $?
    """
    first = job(body, "-N2", "-n2")
    assert "code 75" in first, first
    assert not (tmp_path / "a.kvs").exists()
    again = job(f"{command}; echo code $?", "-N2", "-n2")
    assert "code 0" in again, again
    assert sh("kvtools sum a.kvs").out.split()[0] == many


@pytest.fixture
def items(tmp_path, sh):
    rng = np.random.default_rng(31)
    np.save(tmp_path / "items.npy", rng.normal(size=(30_000, 48)).astype(np.float32))
    (tmp_path / "items.keys").write_text("".join(f"{i}\n" for i in range(30_000)))
    assert sh(f"{IDS} -o serial.ids").code == 0
    return sh("kvtools sum serial.ids").out.split()[0]


IDS = "kvtools semid-build items.npy --keys items.keys --codes 256 --iterations 10"


def test_ids_from_two_nodes_are_the_serial_ones(job, items, sh):
    log = job(f"srun -N2 -n2 --mpi=pmi2 --input=0 {IDS} -o a.ids; echo code $?", "-N2", "-n2")
    assert "code 0" in log, log
    assert sh("kvtools sum a.ids").out.split()[0] == items


def test_a_fit_stopped_by_the_batch_system_goes_on_where_it_was(job, items, sh, tmp_path):
    line = f"{IDS} --iterations 40 --levels 8 -o b.ids -v"
    log = job(f"kvtools {line.removeprefix('kvtools ')} & pid=$!; until grep -q 'level 1' log-*-*.txt; do sleep 0.1; done; "
              "kill -USR2 $pid; wait $pid; echo code $?", "-n1")  # fmt: skip
    assert "code 75" in log, log
    assert not (tmp_path / "b.ids").exists()
    log = job(f"{line}; echo code $?", "-n1")
    assert "code 0" in log, log
    assert "level 0 pass 2" not in log
    sh(f"{IDS} --iterations 40 --levels 8 -o whole.ids")
    assert sh("cmp b.ids whole.ids").code == 0


@pytest.fixture
def shop(tmp_path):
    furnish(tmp_path, n_users=300)  # more than a chunk of 256, which is what ranks share
    return tmp_path


def test_recommendations_from_two_nodes_are_the_serial_ones(job, shop, sh):
    assert sh(f"{TRAIN} --steps 3 -o m.safetensors").code == 0
    ask = "kvtools recgen --model m.safetensors --beam 16 clicks.csv"
    log = job(f"srun -N2 -n2 --mpi=pmi2 --input=0 {ask} -o a.kvs; echo code $?", "-N2", "-n2")
    assert "code 0" in log, log
    assert sh("kvtools sum a.kvs").out.split()[0] == sh(f"{ask} | kvtools sum -").out.split()[0]


def test_a_training_stopped_by_the_batch_system_goes_on_where_it_was(job, shop, sh):
    line = f"{TRAIN} --steps 300 --training patience=0 --log b.jsonl -o b.safetensors"
    # as --signal=B:USR2@300 would send it, once some steps are done
    log = job(f'{line} & pid=$!; until [ "$(wc -l < b.jsonl)" -ge 5 ]; do sleep 0.05; done 2> /dev/null; '
              "kill -USR2 $pid; wait $pid; echo code $?", "-n1")  # fmt: skip
    assert "code 75" in log, log
    assert "Run again to continue" in log
    assert not (shop / "b.safetensors").exists()
    log = job(f"{line}; echo code $?", "-n1")
    assert "code 0" in log, log
    assert "resumes after step" in log
    assert sh(f"{line.replace('b.', 'whole.')}").code == 0
    assert sh("cmp b.safetensors whole.safetensors").code == 0
