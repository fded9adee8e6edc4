"""Slurm as the tests use it: is it there, submit, wait, say what became of a job."""

import os
import re
import shutil
import subprocess
import time

from conftest import BIN, ROOT

EXAMPLES = ROOT / "examples" / "slurm"
# what the test cluster has of what the examples ask for
OUTPUT = ("--output=log-%A-%a.txt", "--open-mode=append")
SMALLER = ("--cpus-per-task=1", "--gres=none")

# a job that was queued again waits for two minutes; at once, its new step meets what is left of the old one, of the same number
_REST_S = 15


def has_two_nodes():
    if shutil.which("sinfo") is None:
        return False
    return len(set(slurm("sinfo -h -N -o %N", check=False).split())) >= 2


def slurm(line, *, check=True):
    """What a command of Slurm prints."""
    return subprocess.run(line.split(), capture_output=True, text=True, check=check).stdout.strip()


def environment(**more):
    """What jobs get: `kvtools` on the PATH, one thread a rank."""
    return os.environ | {"PATH": f"{BIN}:{os.environ['PATH']}", "OMP_NUM_THREADS": "1"} | more


def submit(folder, script, *words, options=(), **more):
    """The number of a job whose output goes to log-JOB-TASK.txt. more: variables of its environment."""
    line = ["sbatch", "--parsable", f"--chdir={folder}", *OUTPUT, *options, str(script), *map(str, words)]
    done = subprocess.run(line, env=environment(**more), capture_output=True, text=True, check=True)
    return done.stdout.strip().split(";")[0]


def wait(number, timeout_s=300):
    """Wait until a job has ended, whoever queues it again; its state and exit code, as `COMPLETED 0`, of each of its tasks."""
    deadline = time.monotonic() + timeout_s
    since: dict[str, float] = {}
    while waiting := slurm(f"squeue -h -j {number} -o %i:%t:%r", check=False).splitlines():
        for job, state, reason in (line.split(":", 2) for line in waiting):
            if (state, reason) != ("PD", "BeginTime"):
                since.pop(job, None)
            elif time.monotonic() - since.setdefault(job, time.monotonic()) > _REST_S:
                slurm(f"scontrol update JobId={job} StartTime=now", check=False)
        if time.monotonic() > deadline:
            slurm(f"scancel {number}", check=False)
            raise AssertionError(f"job {number} did not end: {waiting}")
        time.sleep(0.5)
    told = slurm(f"scontrol show job {number} -o", check=False)
    return [f"{state} {code}" for state, code in re.findall(r"JobState=(\S+).*?ExitCode=(\d+):", told)]


def log(folder, number):
    return "".join(path.read_text() for path in sorted(folder.glob(f"log-{number}-*.txt")))


def until(what, timeout_s=120):
    """Wait until a function returns something true, and return that."""
    deadline = time.monotonic() + timeout_s
    while not (found := what()):
        assert time.monotonic() < deadline, "it never came"
        time.sleep(0.1)
    return found
