"""tokenize-video against the decode-only floor and the peers, in one run, interleaved; Markdown on stdout.

Usage: video.py DIRECTORY_OF_HD_CLIPS PEERS_PYTHON. Our time is the whole command, start-up and writing through a pipe
included; the others' times leave their imports out.
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

ROUNDS = 5
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
    with tempfile.NamedTemporaryFile("w", suffix=".json") as file:
        json.dump(wanted, file)
        file.flush()
        done = subprocess.run([python, HERE / "peers.py", name, file.name], capture_output=True, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def frame_rate(python, name, wanted):
    result = theirs(python, name, wanted)
    return result["frames"] / result["seconds"]


def chosen(clips, *options):
    """{path: seconds} of the frames kvtools takes."""
    with tempfile.NamedTemporaryFile(suffix=".kvs") as file:
        subprocess.run(["kvtools", "tokenize-video", "-q", "--force", "-o", file.name, *options, *clips], check=True)
        from kvtools.artifact import open_artifact

        return {path: r.tensors["seconds"].tolist() for path, r in zip(clips, open_artifact(file.name), strict=True)}


def measure(title, clips, python):
    """Print a table of sampled frames a second, each contestant in turn, ROUNDS times over."""
    wanted = chosen(clips)
    for name in ("keye", "qwen"):  # a clip that one cannot read is nobody's
        for path, why in theirs(python, name, wanted)["failed"]:
            print(f"- left out for all: {Path(path).name} ({name}: {why})")
            del wanted[path]
    clips = list(wanted)
    n_frames = sum(map(len, wanted.values()))
    runs = {
        "kvtools": lambda: n_frames / ours(clips),
        "kvtools --decoder decord": lambda: n_frames / ours(clips, "--decoder", "decord"),
        "kvtools --pick reference": lambda: n_frames / ours(clips, "--pick", "reference"),
        "kvtools --pick key": lambda: n_picked_by_key / ours(clips, "--pick", "key"),
    }
    n_picked_by_key = sum(map(len, chosen(clips, "--pick", "key").values()))
    for name in ("floor-auto", "floor-2", "floor-decord", "keye", "qwen"):
        runs[name] = functools.partial(frame_rate, python, name, wanted)
    figures = {name: [] for name in runs}
    for _ in range(ROUNDS):
        for name, run in runs.items():
            figures[name].append(run())
    medians = {name: statistics.median(values) for name, values in figures.items()}
    print(f"\n### {title}: {len(clips)} clips, {n_frames} frames sampled at 2 fps\n")
    print("| contestant | sampled frames/s, median (least – most of 5) | kvtools is |\n|---|---|---|")
    for name, values in figures.items():
        ratio = medians["kvtools"] / medians[name]
        print(f"| {name} | {medians[name]:.1f} ({min(values):.1f} – {max(values):.1f}) | {ratio:.2f}× |")
    floor = max(("floor-auto", "floor-2", "floor-decord"), key=medians.get)
    print(f"\nThe floor is {floor}: kvtools reaches {medians['kvtools'] / medians[floor]:.2f} of it.\n", flush=True)


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
