"""Ranks: the same records for any number of them, and one rank's end is everybody's."""

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest
from conftest import BIN, make_clip

pytestmark = [pytest.mark.mpi, pytest.mark.skipif(not (BIN / "mpiexec").exists(), reason="no mpiexec; install the mpich extra")]


@pytest.fixture
def clips_here(tmp_path):
    for i in range(7):
        make_clip(tmp_path / f"c{i}.mp4", n_frames=5 + 11 * i)
    (tmp_path / "c3.mp4").write_text("no video at all")


def test_records_and_order_do_not_depend_on_the_number_of_ranks(sh, clips_here):
    outs = {}
    for n in (1, 2, 4):
        done = sh(f"mpiexec -n {n} kvtools tokenize-video c?.mp4 -o r{n}.kvs --jobs 1", pipefail=False)
        assert done.code == 65, done.err
        assert done.err.count("c3.mp4") == 1
        outs[n] = sh(f"cat r{n}.kvs").out
    assert outs[1] == outs[2] == outs[4]


def test_real_clips_give_one_digest(sh, data):
    names = " ".join(
        str(data / "video" / "clips" / n) for n in ("yoga.mp4", "h265_video.mp4", "mllm_2_cooking.avi", "av1_video.mkv")
    )
    digests = {sh(f"mpiexec -n {n} kvtools tokenize-video {names} | kvtools sum -").out for n in (1, 2, 4)}
    assert len(digests) == 1


@pytest.mark.parametrize("compress", ["", "--compress 0", "--compress 5"])
def test_bytes_do_not_depend_on_who_compresses(sh, tmp_path, compress):
    for i in range(5):
        make_clip(tmp_path / f"c{i}.mp4", n_frames=5 + 7 * i)
    whole = (tmp_path / "c3.mp4").read_bytes()
    (tmp_path / "c2.mp4").write_bytes(whole[: len(whole) // 2])
    names = "c0.mp4 c1.mp4 c2.mp4 c3.mp4 c4.mp4"
    for to in ("-o {}.kvs", "> {}.kvs"):
        for n in (1, 2, 3):
            done = sh(f"mpiexec -n {n} kvtools tokenize-video {names} --salvage --force {compress} {to.format(n)}")
            assert (done.code, done.err.count("c2.mp4")) == (65, 1)
        assert sh("cmp 1.kvs 2.kvs && cmp 1.kvs 3.kvs").code == 0, to


def test_a_fault_on_rank_0_ends_all_with_its_code(sh, clips_here):
    sh("touch there.kvs")
    begun = time.monotonic()
    done = sh("mpiexec -n 3 kvtools tokenize-video c0.mp4 -o there.kvs", timeout=30)
    assert done.code == 73
    assert "--force" in done.err
    assert time.monotonic() - begun < 5


def test_one_rank_raising_ends_all_within_seconds(sh, clips_here, tmp_path):
    (tmp_path / "sitecustomize.py").write_text(
        "import os, sys\n"
        "if os.environ.get('PMI_RANK') == '2' and 'tokenize-video' in sys.orig_argv:\n"
        "    import kvtools.video.spread as s\n"
        "    def broken(*_): raise RuntimeError('disk on fire')\n"
        "    s._send = broken\n"
    )
    begun = time.monotonic()
    done = sh("mpiexec -n 3 kvtools tokenize-video c?.mp4 -o a.kvs", PYTHONPATH=str(tmp_path), timeout=30)
    assert done.code == 1
    assert "[r2/3] kvtools tokenize-video: unexpected: RuntimeError: disk on fire" in done.err
    assert time.monotonic() - begun < 10
    assert not (tmp_path / "a.kvs").exists()


def test_plumbing_under_mpi_speaks_once(sh, tmp_path):
    make_clip(tmp_path / "clip.mp4")
    sh("kvtools tokenize-video clip.mp4 -o a.kvs")
    assert sh("mpiexec -n 3 kvtools sum a.kvs").out == sh("kvtools sum a.kvs").out


def test_a_signal_stops_all_ranks_together_and_the_run_resumes(sh, tmp_path):
    for i in range(16):
        make_clip(tmp_path / f"c{i:02}.mp4", n_frames=60)
    sh("kvtools tokenize-video c??.mp4 -o whole.kvs")
    words = [
        "-n",
        "2",
        str(BIN / "kvtools"),
        "tokenize-video",
        *(f"c{i:02}.mp4" for i in range(16)),
        "--jobs",
        "1",
        "-o",
        "a.kvs",
    ]
    environment = {k: v for k, v in os.environ.items() if not k.startswith("SLURM_")}
    run = subprocess.Popen([str(BIN / "mpiexec"), *words], cwd=tmp_path, stderr=subprocess.PIPE, env=environment)
    partial = tmp_path / ".a.kvs.part"
    while run.poll() is None and (not partial.exists() or partial.stat().st_size < 1000):
        time.sleep(0.005)
    # the ranks alone: their command begins with the interpreter, the launcher's and its proxy's do not
    subprocess.run(["pkill", "-USR2", "-f", f"^[^ ]*python[0-9.]* {BIN}/kvtools tokenize-video c00.mp4"], check=True)
    assert run.wait(20) == 75
    assert sh("mpiexec -n 2 kvtools tokenize-video c??.mp4 -o a.kvs --jobs 1").code == 0
    assert sh("cmp a.kvs whole.kvs").code == 0


def test_a_signal_to_one_rank_stops_all_between_blocks_and_the_run_resumes(sh, tmp_path):
    for i in range(4):
        make_clip(tmp_path / f"clip{i}.mp4", n_frames=40)
    names = [f"c{i:02}.mp4" for i in range(60)]
    for i, name in enumerate(names):
        (tmp_path / name).symlink_to(f"clip{i % 4}.mp4")
    sh("kvtools tokenize-video c??.mp4 -o whole.kvs")
    words = ["-n", "3", str(BIN / "kvtools"), "tokenize-video", *names, "--jobs", "1", "-o", "a.kvs"]
    run = subprocess.Popen([str(BIN / "mpiexec"), *words], cwd=tmp_path, stderr=subprocess.PIPE)
    partial = tmp_path / ".a.kvs.part"
    while run.poll() is None and (not partial.exists() or partial.stat().st_size < 1000):
        time.sleep(0.005)
    pids = subprocess.check_output(["pgrep", "-f", f"{BIN}/kvtools tokenize-video c00"], text=True).split()
    (first,) = [pid for pid in pids if b"\0PMI_RANK=1\0" in Path(f"/proc/{pid}/environ").read_bytes()]
    os.kill(int(first), signal.SIGUSR2)
    assert run.wait(20) == 75
    assert sh("mpiexec -n 2 kvtools tokenize-video c??.mp4 -o a.kvs --jobs 1").code == 0
    assert sh("cmp a.kvs whole.kvs").code == 0


SUMS = """
import numpy as np
from kvtools.world import World
world = World.open()
class Counting:
    def __init__(self, comm):
        self.comm, self.sent = comm, 0
    def __getattr__(self, name):
        return getattr(self.comm, name)
    def Ialltoall(self, mine, theirs):
        self.sent += mine[0].nbytes * (world.size - 1) // world.size
        return self.comm.Ialltoall(mine, theirs)
    def Iallgather(self, mine, theirs):
        self.sent += mine[0].nbytes * (world.size - 1)
        return self.comm.Iallgather(mine, theirs)
world._comm = Counting(world._comm)
for dtype in (np.float32, np.float64, np.int64, np.uint8):
    for shape in ((1,), (1023,), (5, 0), (700, 3), (2, 3, 400_001)):
        arrays = [(50 * np.random.default_rng(rank).normal(size=shape)).astype(dtype) for rank in range(world.size)]
        total = arrays[0]
        for array in arrays[1:]:
            total = (total + array).astype(dtype)
        before = world._comm.sent
        summed = world.sum_array(arrays[world.rank])
        if arrays[0].nbytes > 1 << 20:
            assert world._comm.sent - before <= 2 * arrays[0].nbytes, "a rank sends at most twice the array"
        assert summed.dtype == dtype and np.array_equal(summed, total), (dtype, shape)
world.close()
"""


@pytest.mark.parametrize("n", [2, 3])
def test_sums_are_added_in_rank_order_at_twice_the_array(sh, tmp_path, n):
    (tmp_path / "sums.py").write_text(SUMS)
    assert sh(f"mpiexec -n {n} {BIN}/python sums.py").code == 0
