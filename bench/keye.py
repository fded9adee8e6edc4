"""What a tiny model learns, stage by stage, by the commands themselves: a Markdown table from results that are kept.

Usage: keye.py [seeds=0,1,2] [what=NAME,NAME...] [scale=1]     an hour; goes on where it was stopped
       keye.py table                                           prints what is kept, and runs nothing

Questions are made by kvtools quiz from real clips without labels (order, match, time, describe), and from the labels of the
fight/no-fight clips by their own split. Scenes are kept on one side (groups); no clip of a test question is in any training,
labelled or not. Models are trained by kvtools pretrain keye from random weights. A model is named for all that made it: a step
whose output is there is not run again, and a changed program does not make another (delete bench/.keye then).

Answers and intervals are those of kvtools answer; all seeds share the questions. Of the rows on positions the figure is how
often a clip is nearest to its own description, of those of some fifty others. scale= multiplies the steps, to try the script.
"""

import csv
import hashlib
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

HERE = Path(__file__).resolve().parent
DATA = Path(os.environ.get("KVTOOLS_DATA") or HERE.parent.parent / "shared" / "data")
KVTOOLS = Path(sys.executable).with_name("kvtools")
FOLDER = HERE / ".keye"
CLIPS = ["video/clips", "video_labelled/asl_gestures", "video_labelled/fight_surv"]
TOKENIZER = DATA / "tokenizer" / "minimind" / "tokenizer.json"
# views of one scene, which must not stand on both sides
SCENES = {"rot": ["rot_0.mov", "rot_90.mov", "rot_180.mov", "rot_270.mov"], "flower": ["flower.mp4", "flower.webm"]}

FRAMES = ["--frames", "6"]
SAID = "described"  # open questions, by which a tower alone is judged
TRAIN = {
    "describe": ["--task", "describe", "--form", "open", "-n", "4000"],
    "describe-choice": ["--task", "describe", "-n", "4000"],
    "time-open": ["--task", "time", "--form", "open", "-n", "8000"],
    "time": ["--task", "time", "-n", "8000"],
    "match": ["--task", "match", "-n", "8000"],
    "order": ["--task", "order", "--form", "check", "-n", "4000"],
}
TEST = {
    SAID: ["--task", "describe", "--form", "open", "-n", "400"],
    "describe": ["--task", "describe", "-n", "400"],
    "time": ["--task", "time", "-n", "400"],
    "match": ["--task", "match", "-n", "400"],
    "order": ["--task", "order", "--form", "check", "-n", "400"],
}
FIGHT = ["--form", "check", "--positive", "fight", "--question", "Do they fight?"]
COMMON = ["--tokenizer", TOKENIZER, "--training", "flip=0.5", "--training", "jitter=0.2"]
SMALL = ["--batch-tokens", "2048", "--length", "2048"]
# name: the stage, how many steps, what it begins with, which questions in which shares, and further words
MIXTURE = {"describe": 1, "describe-choice": 1, "time-open": 1, "time": 3, "match": 4, "order": 1, "fight": 1}
POSITIONS = "positions-"
FLAT, UNROTATED = ["--architecture", "vision.interpolate=false"], ["--architecture", "vision.rope=false"]
STAGES = {
    "matching": ("matching", 400, [], {"describe": 1}, []),
    "alignment": ("alignment", 100, ["matching"], {"describe": 1}, []),
    "multitask": ("multitask", 2500, ["alignment"], MIXTURE, []),
    "annealing-a": ("annealing", 200, ["multitask"], {"time": 3, "match": 3, "order": 1, "fight": 1}, []),
    "annealing-b": ("annealing", 200, ["multitask"], {"describe-choice": 2, "time": 1, "match": 1, "order": 1, "fight": 3}, []),
    "merged": ("merge", 0, ["annealing-a", "annealing-b"], {}, []),
    # without what comes before, all else alike
    "multitask-alone": ("multitask", 2500, [], MIXTURE, []),
    # the report's Table 2: clips of any shape are told apart by what is said of them, where their light is among it
    "positions-untrained": ("matching", 1, [], {"describe": 1}, []),
    "positions-base": ("matching", 400, [], {"describe": 1}, [*FLAT, *UNROTATED]),
    "positions-interpolated": ("matching", 400, [], {"describe": 1}, UNROTATED),
    "positions-interpolated-rope": ("matching", 400, [], {"describe": 1}, []),
}


def made(name, *words):
    """The path of an artifact in the folder; its command is run where it is not there."""
    path = FOLDER / name
    if not path.exists():
        words = [str(word) for word in (*words, "-q", "-o", path)]
        print(f"kvtools {' '.join(words)}", file=sys.stderr, flush=True)
        begun = time.monotonic()
        done = subprocess.run([KVTOOLS, *words], check=False)
        if done.returncode not in (0, 65):  # 65: some clips give no fair question, which is told
            raise SystemExit(done.returncode)
        path.with_suffix(path.suffix + ".s").write_text(f"{time.monotonic() - begun:.1f}")
    return path


def prepare():
    """Streams of clips, and questions: {name: path} of training and of testing."""
    FOLDER.mkdir(exist_ok=True)
    groups, labels = FOLDER / "groups.csv", FOLDER / "labels.csv"
    with open(DATA / "video_labelled" / "fight_surv" / "split.csv") as file:
        fights = [{**row, "file": row["file"].removeprefix("fight_surv/")} for row in csv.DictReader(file)]
    scenes = {name: scene for scene, names in SCENES.items() for name in names}
    scenes |= {path.name: "asl" for path in (DATA / "video_labelled" / "asl_gestures").glob("*.mkv")}
    scenes |= {row["file"]: row["scene_group"] for row in fights}
    groups.write_text("file,group\n" + "".join(f"{name},{scene}\n" for name, scene in scenes.items()))
    labels.write_text("file,label,split\n" + "".join(f"{row['file']},{row['label']},{row['split']}\n" for row in fights))
    all_clips = made(
        "all.kvs", "tokenize-video", *(DATA / part for part in CLIPS), "--fps", 4, "--max-frames", 64, "--frame-tokens", "3:4"
    )
    tested = {row["file"] for row in fights if row["split"] == "test"}
    keys = [json.loads(line)["key"] for line in listed(all_clips)]
    ours = made("ours.kvs", "cat", all_clips, *(word for key in keys if key not in tested for word in ("--key", key)))
    train = {
        name: made(f"train-{name}.kvs", "quiz", ours, *FRAMES, *words, "--split", "train:0.7", "--group", groups)
        for name, words in TRAIN.items()
    }
    test = {
        name: made(f"test-{name}.kvs", "quiz", ours, *FRAMES, *words, "--split", "test:0.3", "--group", groups, "--seed", 1)
        for name, words in TEST.items()
    }
    for side, kept in (("train", train), ("test", test)):
        kept["fight"] = made(f"{side}-fight.kvs", "quiz", all_clips, "--labels", labels, "--split", side, "--frames", 8, *FIGHT)
    return all_clips, train, test


def listed(stream):
    done = subprocess.run([KVTOOLS, "info", "--json", "--records", stream], check=True, stdout=subprocess.PIPE, text=True)
    return done.stdout.splitlines()


def model(name, seed, clips, train, test, scale):
    """The path of a row's model, those before it made first; and the log it left."""
    stage, steps, before, mixture, words = STAGES[name]
    inits = [model(each, seed, clips, train, test, scale)[0] for each in before]
    if stage == "merge":
        told = digest([*map(str, inits)])
        return made(f"{name}-{seed}-{told}.safetensors", "merge", *inits), None
    valid = ["--valid", test[SAID]] if name.startswith(POSITIONS) else []
    words = [
        "--stage", stage, *valid, *(train[each] for each in mixture), "--ratio", ",".join(map(str, mixture.values())),
        "--media", clips, *(word for each in inits for word in ("--init", each)), *COMMON, *SMALL,
        "--steps", max(1, round(steps * scale)), "--seed", seed, *words,
    ]  # fmt: skip
    named = f"{name}-{seed}-{digest(words)}"
    log = FOLDER / f"{named}.log"
    return made(f"{named}.safetensors", "pretrain", "keye", *words, "--log", log), log


def digest(words):
    said = json.dumps([Path(w).name if isinstance(w, Path) else str(w) for w in words])
    return hashlib.blake2b(said.encode(), digest_size=4).hexdigest()


def main():
    given = dict(word.partition("=")[::2] for word in sys.argv[1:])
    seeds = [int(seed) for seed in given.get("seeds", "0,1,2").split(",")]
    names = [*STAGES] if "what" not in given else [n for n in STAGES if n in given["what"].split(",")]
    kept = FOLDER / "results.jsonl"
    if "table" not in given:
        scale = float(given.get("scale", 1))
        clips, train, test = prepare()
        os.environ.setdefault("OMP_NUM_THREADS", "1")
        for seed in seeds:
            for name in names:
                path, log = model(name, seed, clips, train, test, scale)
                found = [json.loads(line) for line in kept.read_text().splitlines()] if kept.exists() else []
                if any(line["model"] == path.name for line in found):
                    continue
                seconds = float(path.with_suffix(".safetensors.s").read_text())
                line = {"name": name, "seed": seed, "model": path.name, "seconds": seconds}
                if name.startswith(POSITIONS):
                    last = json.loads(log.read_text().splitlines()[-1])
                    line |= {"accuracy": last["valid_accuracy"], "loss": last["valid_loss"]}
                elif STAGES[name][0] == "matching":
                    continue
                else:
                    line |= {task: measured(path, clips, questions) for task, questions in test.items() if task != SAID}
                with kept.open("a") as file:
                    file.write(json.dumps(line) + "\n")
                told = {key: round(x["accuracy"], 3) if isinstance(x, dict) else x for key, x in line.items()}
                print(json.dumps(told), file=sys.stderr)
    table(kept)


def measured(path, clips, questions):
    words = [KVTOOLS, "answer", questions, "--media", clips, "--model", path, "--json", "-q"]
    told = json.loads(subprocess.run(words, check=True, stdout=subprocess.PIPE, text=True).stdout)
    return {"n": told["n"], "accuracy": told["share"], "ci95": [told["low"], told["high"]]}


def table(kept):
    lines = {(line["name"], line["seed"]): line for line in map(json.loads, kept.read_text().splitlines())}
    by_name = {name: [line for (each, _), line in sorted(lines.items()) if each == name] for name in STAGES}
    tasks = [*(task for task in TEST if task != SAID), "fight"]
    print(f"| model | {' | '.join(tasks)} | s |")
    print("|---|" + "---|" * (len(tasks) + 1))
    print("| chance | .25 | .25 | .25 | .50 | .54 | |")
    for name, some in by_name.items():
        if not some or name.startswith(POSITIONS):
            continue
        cells = []
        for task in tasks:
            low, high = np.mean([line[task]["ci95"] for line in some], axis=0)
            cells.append(f"{spread(line[task]['accuracy'] for line in some)} [{low:.2f}, {high:.2f}]")
        print(f"| {name} ({len(some)}) | {' | '.join(cells)} | {np.mean([line['seconds'] for line in some]):.0f} |")
    print("\n| positions | right descriptions | loss a clip |\n|---|---|---|")
    for name, some in by_name.items():
        if some and name.startswith(POSITIONS):
            cells = [spread(line[figure] for line in some) for figure in ("accuracy", "loss")]
            print(f"| {name.removeprefix(POSITIONS)} ({len(some)}) | {' | '.join(cells)} |")


def spread(values):
    found = np.array([*values])
    return f"{found.mean():.3f} ± {found.std(ddof=1) if len(found) > 1 else 0:.3f}"


if __name__ == "__main__":
    main()
