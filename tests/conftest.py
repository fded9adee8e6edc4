"""What all tests share: the command as a user runs it, the real data folder, and small clips made here."""

import os
import re
import shlex
import subprocess
import sys
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

# test files run side by side, one a core: threads that wait for one another on a busy core spin, and are slower than one
os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np  # noqa: E402
import pytest  # noqa: E402

ROOT = Path(__file__).parents[1]
DATA = Path(os.environ.get("KVTOOLS_DATA", ROOT.parent / "shared" / "data"))
BIN = Path(sys.executable).parent


IS_REWRITING = bool(os.environ.get("KVTOOLS_GOLDEN"))  # `make golden` sets it


def read_golden(path, lines):
    """The lines of a golden file; `make golden` writes `lines` into it first."""
    if IS_REWRITING:
        path.write_text("".join(line + "\n" for line in lines))
    return path.read_text().splitlines()


@dataclass
class Result:
    code: int
    out: bytes
    err: str


def n_skipped(rows):
    """How many rows were skipped in all, the repaired ones not counted."""
    return sum(rows.counts[reason] for reason in rows.skipped)


def on_ranks(n, lines, folder):
    """A shell command that runs these lines of kvtools, one after another, on n ranks that start once."""
    (folder / f"on_{n}_ranks.txt").write_text("".join(f"{line}\n" for line in lines))
    return f"mpiexec -n {n} {sys.executable} {Path(__file__).parent / 'series.py'} on_{n}_ranks.txt"


@pytest.fixture
def sh(tmp_path):
    """Run a shell pipeline in a scratch folder, `kvtools` on the PATH; the exit code is the pipeline's last failure."""
    return shell(tmp_path)


def shell(folder):
    """What `sh` gives, in that folder: for fixtures that are made once for many tests."""

    def run(line, *, timeout=120, stdin=None, pipefail=True, **env):
        environment = {k: v for k, v in os.environ.items() if not k.startswith("SLURM_")} | env
        environment["PATH"] = f"{BIN}:{os.environ['PATH']}"
        flags = ["-euo", "pipefail", "-c"] if pipefail else ["-c"]
        done = subprocess.run(
            ["bash", *flags, line],
            cwd=folder,
            env=environment,
            input=stdin,
            capture_output=True,
            timeout=timeout,
            check=False,
        )
        return Result(done.returncode, done.stdout, done.stderr.decode())

    return run


@pytest.fixture(scope="module")
def modules_of_transformers(tmp_path_factory):
    """Models' own modules, as transformers copies and imports them, in a folder of this test file, and offline.

    Without it a file that runs later in the same process is given the package that an earlier one imported."""

    def forget():
        for name in [name for name in sys.modules if name.startswith("transformers_modules")]:
            del sys.modules[name]

    folder = str(tmp_path_factory.mktemp("modules"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", folder)
        patch.setenv("HF_HUB_OFFLINE", "1")
        patch.syspath_prepend(folder)
        forget()
        yield
        forget()


@pytest.fixture
def kv(tmp_path, monkeypatch, capfd):
    """Run commands one after the other in a scratch folder, in this process, since an interpreter that loads torch takes
    seconds; the first code that is not 0, and what stderr had."""
    from kvtools import cli

    monkeypatch.chdir(tmp_path)

    def run(*lines):
        capfd.readouterr()
        codes = [cli.run(shlex.split(line)) for line in lines]
        return next((code for code in codes if code), 0), capfd.readouterr().err

    return run


@pytest.fixture(scope="session")
def data():
    """The folder of real data, or a skip that says what was not tested."""
    if not (DATA / "video" / "clips").is_dir():
        pytest.skip(f"no real data at {DATA}; set KVTOOLS_DATA")
    return DATA


@pytest.fixture(scope="session")
def clips(data):
    return sorted((data / "video" / "clips").iterdir())


@pytest.fixture
def clip(tmp_path):
    """clip.mp4: two seconds of a moving square, 25 frames a second, made here with a seed."""
    return make_clip(tmp_path / "clip.mp4")


def make_clip(path, n_frames=50, width=160, height=120, rate=25):
    import av

    rng = np.random.default_rng(7)
    background = rng.integers(0, 255, (height, width, 3), dtype=np.uint8) // 4
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=rate, options={"threads": "1", "bf": "2", "g": "12"})
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        stream.codec_context.time_base = Fraction(1, rate)
        for i in range(n_frames):
            picture = background.copy()
            picture[20:60, 2 * i % (width - 40) : 2 * i % (width - 40) + 40] = (250, 3 * i % 255, 90)
            for packet in stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")):
                container.mux(packet)
        for packet in stream.encode(None):
            container.mux(packet)
    return path


def unsaid(err):
    """What stderr holds beside the lines that tell what was read, that items share codes, and that some repeat."""
    lines = err.splitlines(keepends=True)
    return "".join(
        line
        for line in lines
        if not re.search(
            r"\d rows? read, [\d,]+ kept|items with \d+ codes each|items have the codes of another|\d+ prompts, \d+ with"
            r"|validation interactions repeat an earlier item of the user",
            line,
        )
    )
