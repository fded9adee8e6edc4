"""tokenize-video against the decode-only floor and the peers, in one run, interleaved; Markdown on stdout.

Usage: video.py DIRECTORY_OF_HD_CLIPS PEERS_PYTHON. "Work" leaves out what comes before the first clip: the others start
their clock after their imports, and from ours we take the time of the same command on one frame of the smallest clip.
"Whole command" takes all of it, for everybody. Ours includes writing the stream through a pipe.
"""

import functools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROUNDS = 3
OPTIONS = ("", "--decoder decord", "--pick reference", "--pick key")
CONTESTANTS = ("floor-auto", "floor-2", "floor-decord", "keye", "qwen")
HERE = Path(__file__).parent


def ours(clips, *options):
    begun = time.perf_counter()
    command = ["kvtools", "tokenize-video", "-q", *options, *clips]
    writer = subprocess.Popen(command, stdout=subprocess.PIPE)
    subprocess.run(["cat"], stdin=writer.stdout, stdout=subprocess.DEVNULL, check=True)
    if writer.wait():
        raise SystemExit(f"kvtools ended with {writer.returncode}")
    return time.perf_counter() - begun


def theirs(python, name, wanted):
    """What a contestant says of itself, and how long its whole command took."""
    with tempfile.NamedTemporaryFile("w", suffix=".json") as file:
        json.dump(wanted, file)
        file.flush()
        begun = time.perf_counter()
        done = subprocess.run([python, HERE / "peers.py", name, file.name], capture_output=True, text=True, check=True)
        whole = time.perf_counter() - begun
    return json.loads(done.stdout.splitlines()[-1]), whole


def chosen(clips):
    """{path: seconds} of the frames kvtools takes."""
    with tempfile.NamedTemporaryFile(suffix=".kvs") as file:
        subprocess.run(["kvtools", "tokenize-video", "-q", "--force", "-o", file.name, *clips], check=True)
        from kvtools.artifact import open_artifact

        return {path: r.tensors["seconds"].tolist() for path, r in zip(clips, open_artifact(file.name), strict=True)}


def measure(title, clips, python):
    """Print a table of seconds for all clips, each contestant in turn, ROUNDS times over."""
    wanted = chosen(clips)
    for name in ("keye", "qwen"):  # a clip that one cannot read is nobody's
        for path, why in theirs(python, name, wanted)[0]["failed"]:
            print(f"- left out for all: {Path(path).name} ({name}: {why})")
            del wanted[path]
    clips = list(wanted)
    n_frames = sum(map(len, wanted.values()))
    smallest = min(clips, key=os.path.getsize)

    def run_ours(*options):
        return ours(clips, *options) - start_up, ours(clips, *options)

    def run_theirs(name):
        result, whole = theirs(python, name, wanted)
        # the last frame of an AVI has no time to be recognised by; the peers choose frames of their own
        assert abs(result["frames"] - n_frames) <= 2 or name in ("keye", "qwen"), (name, result)
        return result["seconds"], whole

    start_up = statistics.median(ours([smallest], "--frames", "1") for _ in range(5))
    runs = {f"kvtools {o}".strip(): functools.partial(run_ours, *o.split()) for o in OPTIONS}
    runs |= {name: functools.partial(run_theirs, name) for name in CONTESTANTS}
    figures = {name: [] for name in runs}
    for _ in range(ROUNDS):
        for name, run in runs.items():
            figures[name].append(run())
    work = {name: statistics.median(w for w, _ in values) for name, values in figures.items()}
    whole = {name: statistics.median(w for _, w in values) for name, values in figures.items()}
    print(f"\n### {title}: {len(clips)} clips, {n_frames} frames at 2 fps; our start-up {start_up:.2f} s\n")
    print("| contestant | work, s: median (least – most) | frames/s | kvtools is | whole command, s | kvtools is |")
    print("|---|---|---|---|---|---|")
    for name, values in figures.items():
        least, most = min(w for w, _ in values), max(w for w, _ in values)
        rate = f"{n_frames / work[name]:.1f}" if "pick" not in name else ""
        ratios = [f"{base[name] / base['kvtools']:.2f}×" for base in (work, whole)]
        print(
            f"| {name} | {work[name]:.2f} ({least:.2f} – {most:.2f}) | {rate} | {ratios[0]} | {whole[name]:.2f} | {ratios[1]} |"
        )
    floor = min((name for name in CONTESTANTS if "floor" in name), key=work.get)
    print(f"\nThe floor is {floor}; kvtools reaches {work[floor] / work['kvtools']:.2f} of it.\n", flush=True)


def main():
    hd = sorted(str(path) for path in Path(sys.argv[1]).glob("hd_*.mp4"))
    import av

    def is_small(path):
        with av.open(str(path)) as container:
            return min(container.streams.best("video").width, container.streams.best("video").height) <= 480

    folder = Path(os.environ["KVTOOLS_DATA"]) / "video" / "clips"
    measure("1080p, 15 s each", hd, sys.argv[2])
    measure("Real clips up to 480p", [str(path) for path in sorted(folder.iterdir()) if is_small(path)], sys.argv[2])


main()
