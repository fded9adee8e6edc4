"""Commands on several ranks: efficiency against one rank, and bytes that a rank receives; Markdown tables on stdout.

Usage: ranks.py [efficiency] [bytes] [COMMAND...] [NAME=VALUE]...      both, of all commands: eight minutes on two idle cores
Commands: tokenise, semid-build, recgen, etree-train, pretrain-keye, pretrain-onerec
Names: ranks (2: of efficiency; bytes takes 1,2,4), rounds (1: the median of several)

efficiency: one thread and one core a rank, where there are as many cores. A command runs on a small and on a large input, and
the difference is its work: the start is left out, and told beside. By the clock, work on one rank over ranks times work on
several: it counts on an idle machine alone. By processor time, work on one rank over ranks times that of the busiest of
several, which loaded machines tell, too: it knows unequal parts, and what one rank does while others wait, and not the time
that messages take.

bytes: what a rank receives by each kind of message, counted around the collectives: of n bytes on p ranks an all-gather gives
it (p - 1) n, an exchange n (p - 1) / p, a broadcast n, a sum of gradients 2 n (p - 1) / p, as gloo's and NCCL's rings do, and a
message from rank to rank n. Differences of the large and the small input, divided by what the large one has more: steps,
rounds, users or clips. They are held against the formulas of scale.md, in the last column, where the data
do not matter.

A run is this script under mpiexec with the word `rank`: kvtools in this process, which then tells what it used and received.
"""

import json
import os
import resource
import shlex
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from engine import KEYE, ONEREC
from ours import CLICKS, DATA, KVTOOLS

CLIPS, MNIST = DATA.parent / "video" / "clips", DATA.parent / "fl" / "mnist"
GRAPH = DATA.parent / "net" / "etree_authors" / "data100.in"
N_CLIPS = 160  # each of the real ones four times, in mixed order
N_ROWS, WIDTH, N_CODES = 200_000, 64, 1024
N_GROUPS, N_WEIGHTS = 10, 7850  # of softmax regression of MNIST; a round sums them five times
MIB = 1 << 20


@dataclass(frozen=True)
class Work:
    """A command with {} for its size. unit: what a large input has more of than a small one."""

    line: str
    small: str
    large: str
    unit: str
    n_more: int
    shared: float | None = None  # bytes of the arrays that ranks sum for each unit; None where it depends on the data


WORKS = {
    "tokenise": Work("tokenize-video {} --jobs 1", "few", "many", "clip", N_CLIPS - 4),
    "semid-build": Work(
        f"semid-build items.npy --keys keys --levels 1 --codes {N_CODES} --init random --iterations {{}}",
        "2", "52", "iteration", 50, N_CODES * (2 * 8 * WIDTH + 8),
    ),
    "recgen": Work("recgen --model shop.model --beam 128 --users {} clicks.inter", "few.txt", "many.txt", "user", 496),
    "etree-train": Work(
        f"etree-train --tree fleet.tree --data {MNIST} fleet.devices --rounds {{}}", "2", "102", "round", 100,
        5 * 8 * N_GROUPS * N_WEIGHTS,
    ),
    "pretrain-keye": Work(f"{KEYE} --size small --batch-tokens 1024 --steps {{}}", "2", "7", "step", 5),
    "pretrain-onerec": Work(f"{ONEREC} --size 0.015b --batch 1024 --steps {{}}", "2", "12", "step", 10),
}  # fmt: skip


def furnish(folder):
    """Clips, vectors, clicks with their IDs and a recommender, and a fleet."""
    clips = sorted(CLIPS.iterdir())
    mixed = np.random.default_rng(0).permutation(N_CLIPS) % len(clips)
    for name, n in {"few": 4, "many": N_CLIPS}.items():
        (folder / name).mkdir()
        for place, number in enumerate(mixed[:n]):
            (folder / name / f"{place:03d}-{clips[number].name}").symlink_to(clips[number])
    np.save(folder / "items.npy", np.random.default_rng(0).standard_normal((N_ROWS, WIDTH), dtype=np.float32))
    (folder / "keys").write_text("".join(f"{i}\n" for i in range(N_ROWS)))
    (folder / "clicks.inter").symlink_to(CLICKS["ml-100k"])
    users = list(dict.fromkeys(row.split("\t")[0] for row in CLICKS["ml-100k"].read_text().splitlines()[1:]))
    (folder / "few.txt").write_text("\n".join(users[:16]))
    (folder / "many.txt").write_text("\n".join(users[:512]))
    for line in (
        f"embed -q {CLICKS['ml-100k'].with_suffix('.item')} -o items.kvs",
        "semid-build -q items.kvs --codes 64 -o items.ids",
        f"{ONEREC} -q --size 0.015b --batch 1024 --steps 2 -o shop.model",
        f"devices -q --data {MNIST} --partition shards:2 --graph {GRAPH} -o fleet.devices",
        f"kma-cluster -q -k {N_GROUPS} --method balanced --data {MNIST} fleet.devices -o fleet.tree",
    ):
        subprocess.run([KVTOOLS, *shlex.split(line)], cwd=folder, check=True)


def run(folder, line, n):
    """What each rank of a command used and received."""
    words = [sys.executable, __file__, "rank", *shlex.split(line), "-q", "--force", "-o", "made"]
    if n > 1:
        words = [str(KVTOOLS.with_name("mpiexec")), "-n", str(n), *words]
    one_thread = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(words, cwd=folder, env=one_thread, stderr=subprocess.PIPE, text=True, check=False)
    told = sorted((json.loads(x) for x in done.stderr.splitlines() if x.startswith("{")), key=lambda one: one["rank"])
    if done.returncode or len(told) != n:
        sys.exit(f"kvtools {line} on {n} ranks ended with {done.returncode}:\n{done.stderr}")
    return told


class Counting:
    """A communicator of mpi4py that counts what its rank receives, in bytes and messages."""

    def __init__(self, comm, received):
        self._comm, self._received, self._p = comm, received, comm.Get_size()

    def __getattr__(self, name):
        return getattr(self._comm, name)

    def _count(self, name, n_bytes):
        self._received[name] += n_bytes
        self._received["messages"] += 1

    def Iallgather(self, mine, everyone):
        self._count("gathered", (self._p - 1) * n_bytes_of(mine))
        return self._comm.Iallgather(mine, everyone)

    def Ialltoall(self, mine, slices):
        self._count("exchanged", n_bytes_of(mine) * (self._p - 1) // self._p)
        return self._comm.Ialltoall(mine, slices)

    def Ibcast(self, buffer, root):
        self._count("broadcast", n_bytes_of(buffer) if self._comm.Get_rank() != root else 0)
        return self._comm.Ibcast(buffer, root=root)

    def Irecv(self, buffer, source):
        self._count("sent to it", n_bytes_of(buffer))
        return self._comm.Irecv(buffer, source=source)


def n_bytes_of(buffer):
    return memoryview(buffer[0] if isinstance(buffer, list) else buffer).nbytes


def count_gradients(received):
    """Count the gradients that torch.distributed sums, as its rings move them, and the weights that it sends."""
    import torch.distributed as dist

    summed, sent = dist.all_reduce, dist.broadcast

    def all_reduce(tensor, *args, **options):
        p = dist.get_world_size()
        received["gradients"] += 2 * tensor.nbytes * (p - 1) // p
        received["messages"] += 1
        return summed(tensor, *args, **options)

    def broadcast(tensor, src, *args, **options):
        received["weights"] += tensor.nbytes if src != dist.get_rank() else 0
        received["messages"] += 1
        return sent(tensor, src, *args, **options)

    dist.all_reduce, dist.broadcast = all_reduce, broadcast


def rank(words):
    """Run kvtools in this process; then a line of JSON with its seconds, and the bytes that it received."""
    from kvtools import cli, launcher, world
    from kvtools.train.device import let_waiting_threads_sleep

    let_waiting_threads_sleep()
    cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {cores[launcher.launched_rank() % len(cores)]})
    received = Counter()
    before = world.World.__init__

    def init(self, comm=None):
        before(self, None if comm is None else Counting(comm, received))

    world.World.__init__ = init
    if "pretrain" in words:
        count_gradients(received)
    begun = time.perf_counter()
    code = cli.run(words)
    usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    told = {
        "rank": launcher.launched_rank(),
        "wall": time.perf_counter() - begun,
        "cpu": sum(one.ru_utime + one.ru_stime for one in usages),
        "received": received,
    }
    # one write, so that lines of ranks do not mix
    os.write(2, f"\n{json.dumps(told)}\n".encode())
    sys.exit(code)


def seconds(told):
    """By the clock, and of the processor of the busiest rank."""
    return np.array([max(one["wall"] for one in told), max(one["cpu"] for one in told)])


def efficiency(folder, names, n, rounds):
    print(f"\n### {n} ranks against one, one thread a rank: work, and the start beside it\n")
    print("| | work on one, s: clock / processor | start, s | efficiency by the clock | by processor time |")
    print("|---|---|---|---|---|")
    for name in names:
        work, found, told = WORKS[name], [], []
        for _ in range(rounds):
            small, large = (
                [seconds(run(folder, work.line.format(size), k)) for k in (1, n)] for size in (work.small, work.large)
            )
            one, several = (after - before for before, after in zip(small, large, strict=True))
            found.append(one / (n * several))
            told.append([*one, small[0][0]])
        clock, processor = map(statistics.median, zip(*found, strict=True))
        one_s, one_cpu_s, start_s = map(statistics.median, zip(*told, strict=True))
        print(f"| {name} | {one_s:.1f} / {one_cpu_s:.1f} | {start_s:.1f} | {clock:.2f} | {processor:.2f} |", flush=True)


def received_bytes(folder, names, ranks):
    print("\n### What a rank receives, MiB, the most of any rank\n")
    print("| | a | ranks | in all | of which | messages | 2 n (p - 1) / p of the sums |\n|---|---|---|---|---|---|---|")
    for name in names:
        work = WORKS[name]
        for n in ranks:
            small, large = (run(folder, work.line.format(size), n) for size in (work.small, work.large))
            pairs = zip(small, large, strict=True)
            more = [Counter(after["received"]) for _, after in pairs]
            for one, before in zip(more, small, strict=True):
                one.subtract(before["received"])
            most = max(more, key=lambda one: sum(one.values()) - one["messages"])
            n_messages = most.pop("messages", 0) / work.n_more
            told = {kind: n_bytes / work.n_more / MIB for kind, n_bytes in most.items() if n_bytes}
            parts = ", ".join(f"{kind} {mib:.3g}" for kind, mib in told.items()) or "none"
            expected = "" if work.shared is None else f"{2 * work.shared * (n - 1) / n / MIB:.3g}"
            print(
                f"| {name} | {work.unit} | {n} | {sum(told.values()):.3g} | {parts} | {n_messages:.0f} | {expected} |",
                flush=True,
            )


def main():
    given = dict(word.split("=") for word in sys.argv[1:] if "=" in word)
    words = [word for word in sys.argv[1:] if "=" not in word]
    tables = [word for word in words if word not in WORKS] or ["efficiency", "bytes"]
    names = [word for word in words if word in WORKS] or list(WORKS)
    ranks = [int(n) for n in given.pop("ranks", "").split(",") if n]
    rounds = int(given.pop("rounds", 1))
    assert not given, given
    assert {*tables} <= {"efficiency", "bytes"}, tables
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        furnish(folder)
        if "efficiency" in tables:
            for n in ranks or [2]:
                efficiency(folder, names, n, rounds)
        if "bytes" in tables:
            received_bytes(folder, names, ranks or [1, 2, 4])


if __name__ == "__main__":
    rank(sys.argv[2:]) if sys.argv[1:2] == ["rank"] else main()
