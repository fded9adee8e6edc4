"""Runs killed at random moments, started again until they end, and held against one that nothing disturbed; Markdown on stdout.

Usage: kills.py FOLDER [kills=50] [seed=0] [only=NAME]. Inputs are made with a seed in FOLDER. A run is killed by SIGKILL, the
main process alone, or all ranks of mpiexec at once, at a moment drawn evenly over the time that a whole run takes. States are
written every 0.05 s, where commands do every minute: a kill comes in the middle of a state's write about as often as between
two. The same command then runs again; what it has written in the end must be the undisturbed run's, byte for byte. Processes
that outlive the killed one by 30 s are counted. One interpreter loads the libraries, and each run is a fork of it; ranks
are started by mpiexec.
"""

import hashlib
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import scipy.spatial
import torch

from kvtools import cli
from kvtools.artifact import state
from kvtools.commands import etree_train, kma_cluster, semid_build, tokenize_video

EVERY_S = 0.05
WAIT_S = 30
MOST_FAULTS = 5
FLEET = "devices --data digits.csv --devices 60 --coordinates where.npy --partition classes:2 -o fleet.devices"
TREE = "kma-cluster --groups 8 --levels 2,1 --data digits.csv --pretrain 30 fleet.devices -o"
# NAME: ranks, the command without its output, a second output
RUNS = {
    "semid-build": (1, "semid-build --codes 128 --levels 3 vectors.npy --keys keys.txt -o", ""),
    "semid-build --method rq-vae": (1, "semid-build --method rq-vae --codes 16 --epochs 6 few.npy --keys few.txt -o", ""),
    "kma-cluster": (1, TREE, ""),
    "etree-train": (1, "etree-train --tree fleet.tree --data digits.csv --rounds 60 fleet.devices -o", "--log"),
    "tokenize-video": (1, "tokenize-video --jobs 1 clips -o", ""),
}
RUNS |= {f"{name}, 2 ranks": (2, *rest) for name, (_, *rest) in RUNS.items() if "rq-vae" not in name}
LOADED = (etree_train, kma_cluster, semid_build, tokenize_video, scipy.spatial, torch)


def furnish():
    """The inputs, in this folder."""
    import av

    rng = np.random.default_rng(0)
    np.save("vectors.npy", rng.normal(size=(4_000, 24)).astype(np.float32))
    Path("keys.txt").write_text("\n".join(f"i{n}" for n in range(4_000)))
    np.save("few.npy", rng.normal(size=(400, 16)).astype(np.float32))
    Path("few.txt").write_text("\n".join(f"i{n}" for n in range(400)))
    x, y = rng.normal(size=(3000, 16)), np.arange(3000) % 10
    x[np.arange(3000), y] += 2
    rows = [",".join([*(f"{value:.4f}" for value in row), str(label)]) for row, label in zip(x, y, strict=True)]
    Path("digits.csv").write_text("\n".join(rows) + "\n")
    np.save("where.npy", rng.normal(size=(60, 2)) * 30)
    Path("clips").mkdir()
    for n in range(10):
        with av.open(f"clips/{n:02}.mp4", "w") as container:
            stream = container.add_stream("libx264", rate=8)
            stream.width, stream.height, stream.pix_fmt = 160, 120, "yuv420p"
            for _ in range(16):
                frame = av.VideoFrame.from_ndarray(rng.integers(0, 255, (120, 160, 3), dtype=np.uint8), format="rgb24")
                container.mux(stream.encode(frame))
            container.mux(stream.encode())
    for words in (FLEET, f"{TREE} fleet.tree"):
        assert wait(start(words.split(), 1, "made.txt")) == 0, Path("made.txt").read_text()


def start(words, n_ranks, said):
    """The id of a process that runs a command, in a session of its own."""
    if n_ranks > 1:
        with open(said, "ab") as file:
            mpiexec = ["mpiexec", "-n", str(n_ranks), sys.executable, __file__, "--rank"]
            return subprocess.Popen(
                [*mpiexec, *words], stdin=subprocess.DEVNULL, stdout=file, stderr=file, start_new_session=True
            ).pid
    if pid := os.fork():
        return pid
    os.setsid()
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    for fd in (1, 2):
        os.dup2(os.open(said, os.O_WRONLY | os.O_APPEND | os.O_CREAT), fd)
    code = run(words)
    sys.stdout.flush()
    os._exit(code)


def run(words):
    """The exit code of a command whose states are written often."""
    state.SaveTimer.__init__.__kwdefaults__["every_s"] = EVERY_S
    return cli.run(words)


def wait(pid, until=None):
    """The exit code; None where it is still running at that moment of the monotonic clock."""
    while True:
        found, status = os.waitpid(pid, os.WNOHANG)
        if found:
            return os.waitstatus_to_exitcode(status)
        if until is not None and time.monotonic() > until:
            return None
        time.sleep(0.005)


def below(pid):
    """The ids of a process and of all that it has started, mpiexec's proxies and the ranks among them."""
    parents = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            parents[int(folder.name)] = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
        except OSError:
            continue
    found = [pid]
    for each in found:
        found += [child for child, parent in parents.items() if parent == each]
    return found


def kill(pid, n_ranks):
    """Kill the process, or all ranks; returns how many others are left after WAIT_S."""
    family = below(pid)
    for each in family if n_ranks > 1 else [pid]:
        try:
            os.kill(each, signal.SIGKILL)
        except ProcessLookupError:
            continue
    wait(pid)
    until = time.monotonic() + WAIT_S
    while (left := [each for each in family if Path(f"/proc/{each}/stat").exists()]) and time.monotonic() < until:
        time.sleep(0.01)
    return len(left)


def digests(folder):
    """Of each file, hidden ones too: nothing may be left behind. Times that a log tells are left out."""
    found = {}
    for path in sorted(folder.rglob("*")):
        data = path.read_bytes() if path.is_file() else b""
        if path.suffix == ".jsonl":
            import json

            lines = [json.loads(line) for line in data.splitlines()]
            data = repr([{k: v for k, v in line.items() if not k.endswith("wall_s")} for line in lines]).encode()
        found[path.name] = hashlib.blake2b(data).hexdigest()
    return found


def drill(name, n_kills, rng):
    """A row of the table."""
    n_ranks, command, more = RUNS[name]
    whole, killed = Path("whole"), Path("killed")

    def words(folder):
        # the same words in both, since the history holds them: the outputs are put into the folder by a link
        shutil.rmtree("out", ignore_errors=True) if Path("out").is_dir() and not Path("out").is_symlink() else None
        Path("out").unlink(missing_ok=True)
        Path("out").symlink_to(folder)
        return [*command.split(), "out/result", *([more, "out/log.jsonl"] if more else [])]

    said = Path("said.txt")
    for folder in (whole, killed):
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
    said.unlink(missing_ok=True)
    begin = time.monotonic()
    code = wait(start(words(whole), n_ranks, "said.txt"))
    assert code == 0, said.read_text()
    whole_s, expected = time.monotonic() - begin, digests(whole)
    kills = states = runs = equal = left = 0
    faults = []
    said.unlink()
    while (kills < n_kills or any(killed.iterdir())) and len(faults) < MOST_FAULTS:
        pid, code = start(words(killed), n_ranks, "said.txt"), None
        code = wait(pid, time.monotonic() + rng.uniform(0, whole_s) if kills < n_kills else None)
        if code is None:
            left += kill(pid, n_ranks)
            kills += 1
            states += any(killed.rglob(".*"))
        if code is None and not (killed / "result").exists():
            continue
        runs += 1
        found = digests(killed)
        if code is None:  # killed between the output's last rename and its own end: a state may be left, and is not used
            found = {name: found[name] for name in found.keys() & expected.keys()}
        equal += not code and found == expected
        if code:
            faults.append(f"code {code}: {said.read_text().splitlines()[-1:]}")
        elif found != expected:
            faults.append(f"differs: {sorted(k for k in found.keys() | expected.keys() if found.get(k) != expected.get(k))}")
        shutil.rmtree(killed)
        killed.mkdir()
    return [name, f"{whole_s:.1f}", kills, states, f"{equal} of {runs}", left], faults


def main():
    """Print the table."""
    options = {"kills": "50", "seed": "0", "only": ""} | dict(word.split("=", 1) for word in sys.argv[2:])
    os.makedirs(sys.argv[1], exist_ok=True)
    os.chdir(sys.argv[1])
    if not Path("fleet.tree").exists():
        furnish()
    rng = random.Random(int(options["seed"]))
    print("| run | seconds undisturbed | kills | with something kept | equal in the end | orphans |")
    print("|---|---|---|---|---|---|")
    for name in RUNS:
        if options["only"] in ("", name):
            row, faults = drill(name, int(options["kills"]), rng)
            print(f"| {' | '.join(map(str, row))} |", *faults, sep="\n", flush=True)


if __name__ == "__main__":
    sys.exit(run(sys.argv[2:])) if sys.argv[1] == "--rank" else main()
