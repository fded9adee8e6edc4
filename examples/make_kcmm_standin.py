# ruff: noqa: RUF001 the questions are Chinese
"""Write a stand-in for KC-MMBench from clips of your own: the same layout, tasks of the same forms, none of its questions.

    python examples/make_kcmm_standin.py CLIP|FOLDER... -o kcmm-standin [-n 24] [--seed 0]
    kvtools eval-kcmm kcmm-standin --predictions answers.jsonl

The benchmark itself is the dataset Kwai-Keye/KC-MMbench of the Hugging Face hub. This set tries out a pipeline: its questions
are about frames, numbers and colours, its index begins at 9000000, each question says that it is a stand-in, and a score on it
says nothing of a score on KC-MMBench. Two clips are enough. Questions and pictures depend on the clips and the seed alone.

Printed: of each task the number of questions, and the accuracy of two answers without a look: always the most frequent one, and
one drawn among all that the form allows.
"""

import argparse
import collections
import csv
import itertools
import json
import math
import random
import sys
from dataclasses import dataclass
from pathlib import Path

import av
import numpy as np

SUFFIXES = {".mp4", ".mov", ".avi", ".mkv", ".webm"}
MARK = "【替代题，不属于 KC-MMBench / stand-in, not KC-MMBench】"
NOTE = (
    "This folder is a stand-in, made by examples/make_kcmm_standin.py. It is NOT KC-MMBench.\n"
    "Scores on it cannot be compared with published ones.\n"
)
FIRST_INDEX = 9_000_000
N_FRAMES, MOST_DECODED, SIDE = 6, 600, 224  # of a clip: frames that are kept, and read; the longer side of a picture
DISTINCT = 4.0  # mean difference of two frames, in grey levels, from which on their order can be told
TSV = {
    "CPV": "CPV.tsv", "Hot_Videos_Aggregation": "Video_Topic.tsv", "Collection_Order": "Video_Order.tsv",
    "Pornographic_Comment": "PornComment.tsv", "High_like": "High_like.tsv", "SPU": "SPU.tsv",
}  # fmt: skip
Row = tuple[str, str, list[str], float]  # question, answer, pictures, and the probability of guessing the answer


@dataclass
class Clip:
    """Some frames of a clip in their order, as names below images/, and what is asked about."""

    title: str
    pictures: list[str]
    frames: list[np.ndarray]
    seconds: float


def read_clip(path: Path, number: int, images: Path) -> Clip | None:
    """The clip, its pictures written; None where it has fewer than two frames or cannot be read."""
    try:
        with av.open(str(path)) as container:
            every = [(frame.time or 0.0, frame) for frame in itertools.islice(container.decode(video=0), MOST_DECODED)]
    except (av.error.FFmpegError, IndexError, ValueError):
        return None
    if len(every) < 2:
        return None
    chosen = sorted({round(i * (len(every) - 1) / (N_FRAMES - 1)) for i in range(N_FRAMES)})
    clip = Clip(path.stem.replace("_", " "), [], [], every[-1][0] - every[0][0])
    for index in chosen:
        picture = every[index][1].to_image()
        picture.thumbnail((SIDE, SIDE))
        clip.pictures.append(f"standin-{number:03d}-{len(clip.pictures)}.jpg")
        picture.save(images / clip.pictures[-1], quality=90)
        clip.frames.append(np.asarray(picture))
    return clip


def yes(is_so: bool) -> str:
    """The answer to a question of yes or no."""
    return "是" if is_so else "否"


def same_product(rng: random.Random, clips: list[Clip], *, is_same: bool) -> Row:
    """SPU: whether two pictures are of one clip."""
    one, two = rng.sample(clips, 2)
    pictures = rng.sample(one.pictures, 2) if is_same else [rng.choice(one.pictures), rng.choice(two.pictures)]
    return "这两张图片是否来自同一个视频？", yes(is_same), pictures, 0.5


def high_like(rng: random.Random, clips: list[Clip], *, is_long: bool) -> Row:
    """High_like: whether a number, which the question names, is over a threshold."""
    clip = rng.choice(clips)
    likes = rng.randrange(10, 5000)
    threshold = rng.randrange(1, likes) if is_long else rng.randrange(likes, 2 * likes)
    question = f"封面如图。标题：{clip.title}。点赞数：{likes}。点赞数是否超过 {threshold}？"
    return question, yes(likes > threshold), [rng.choice(clip.pictures)], 0.5


def comment(rng: random.Random, clips: list[Clip], *, is_about: bool) -> Row:
    """Pornographic_Comment: whether a comment is about the title."""
    one, two = rng.sample(clips, 2)
    words = (one if is_about else two).title
    question = f"封面如图。标题：{one.title}。语音：无。评论：“{words}，拍得真好”。评论与标题是否一致？"
    return question, yes(words == one.title), [rng.choice(one.pictures)], 0.5


def properties(rng: random.Random, clips: list[Clip], **_: bool) -> Row:
    """CPV: a dictionary of a picture's shape, brightness and colours."""
    clip = rng.choice(clips)
    number = rng.randrange(len(clip.pictures))
    frame = clip.frames[number]
    height, width = frame.shape[:2]
    mean_3 = frame.reshape(-1, 3).mean(0)
    answer: dict[str, str | list[str]] = {"方向": "横" if width > height else "竖" if width < height else "方"}
    answer["亮度"] = "亮" if mean_3.mean() > 110 else "暗"
    strong = [name for name, value in zip("红绿蓝", mean_3, strict=True) if value > mean_3.min() + 8]
    if strong:
        answer["主色"] = strong if len(strong) > 1 else strong[0]
    candidates = {"方向": ["横", "竖", "方"], "亮度": ["亮", "暗"], "主色": ["红", "绿", "蓝"]}
    question = (
        f"商品图如图。标题：{clip.title}。描述：无。候选属性：{json.dumps(candidates, ensure_ascii=False)}。"
        "亮：平均灰度大于 110；主色：比最弱的颜色强 8 级以上。"
        "请输出 JSON：只有多个值时用列表，没有值的属性省略，只输出 JSON，不要分析。"
    )
    return question, json.dumps(answer, ensure_ascii=False), [clip.pictures[number]], 1 / (3 * 2 * 7)


def aggregation(rng: random.Random, clips: list[Clip], **_: bool) -> Row:
    """Hot_Videos_Aggregation: which pictures are of the same clip as the first."""
    anchor, n = rng.choice(clips), rng.randint(2, 4)
    others = [clip for clip in clips if clip is not anchor]
    is_same = [True, *(rng.random() < 0.5 for _ in range(n - 1))]
    pictures = [rng.choice((anchor if same else rng.choice(others)).pictures) for same in is_same]
    question = f"下面是 {n} 个视频的截图，第一个是锚点。各视频是否与锚点属于同一个热点？请输出列表，包括第一个。"
    return question, "_".join(map(yes, is_same)), pictures, 0.5 ** (n - 1)


def order(rng: random.Random, clips: list[Clip], **_: bool) -> Row | None:
    """Collection_Order: frames of one clip in their order; None where too few can be told apart."""
    clip = rng.choice(clips)
    distinct = [0]
    for number, frame in enumerate(clip.frames):
        if all(np.abs(frame.astype(float) - clip.frames[other]).mean() > DISTINCT for other in distinct):
            distinct.append(number)
    if len(distinct) < 2:
        return None
    n = min(len(distinct), rng.randint(2, 3))
    numbers = sorted(rng.sample(distinct, n))
    shown = rng.sample(numbers, n)
    answer = "[" + ", ".join(f"Video {shown.index(number) + 1}" for number in numbers) + "]"
    names = "、".join(f"Video {i + 1}" for i in range(n))
    question = f"同一合集的 {n} 个视频如图，依次为 {names}。请按先后排序，输出形如 [Video 2, Video 1] 的列表。"
    return question, answer, [clip.pictures[number] for number in shown], 1 / math.factorial(n)


MAKERS = {
    "CPV": properties, "Hot_Videos_Aggregation": aggregation, "Collection_Order": order, "Pornographic_Comment": comment,
    "High_like": high_like, "SPU": same_product,
}  # fmt: skip
BALANCED = {"Pornographic_Comment": "is_about", "High_like": "is_long", "SPU": "is_same"}


def make(task: str, clips: list[Clip], n: int, seed: int) -> list[Row]:
    """So many questions of a task, fewer where the clips do not give them."""
    rng = random.Random(f"{seed} {task}")
    rows = []
    for attempt in range(10 * n):
        more = {BALANCED[task]: attempt % 2 == 0} if task in BALANCED else {}
        row = MAKERS[task](rng, clips, **more)
        if row is not None:
            rows.append(row)
        if len(rows) == n:
            break
    return rows


def main() -> None:
    """Read the clips, write the folder, print the baselines."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("sources", nargs="+", metavar="CLIP|FOLDER")
    parser.add_argument("-o", "--output", required=True, metavar="FOLDER")
    parser.add_argument("-n", type=int, default=24, help="questions of each task (24)")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    folder = Path(given.output)
    if folder.exists():
        sys.exit(f"{folder}: exists already. Name another folder.")
    paths = [
        path for source in map(Path, given.sources) for path in (sorted(source.rglob("*")) if source.is_dir() else [source])
    ]
    images = folder / "images"
    images.mkdir(parents=True)
    every = [read_clip(path, i, images) for i, path in enumerate(p for p in paths if p.suffix.lower() in SUFFIXES)]
    clips = [clip for clip in every if clip is not None]
    if len(clips) < 2:
        sys.exit(f"{len(clips)} of the clips can be read, and at least two are needed. Name more clips.")
    (folder / "THIS_IS_NOT_KC-MMBENCH.txt").write_text(NOTE)
    (folder / "subsets").mkdir()
    print(f"{'stand-in task':24} {'n':>4} {'majority':>9} {'random':>7}")
    index = itertools.count(FIRST_INDEX)
    for task, name in TSV.items():
        rows = make(task, clips, given.n, given.seed)
        with open(folder / "subsets" / name, "w", newline="") as file:
            writer = csv.writer(file, delimiter="\t", lineterminator="\n")
            writer.writerow(["index", "question", "answer", "image_path", "category"])
            for question, answer, pictures, _ in rows:
                source = pictures[0] if len(pictures) == 1 else str(pictures)
                writer.writerow([next(index), f"{MARK}\n{question}", answer, source, "stand-in"])
        most = collections.Counter(answer for _, answer, _, _ in rows).most_common(1)
        majority = most[0][1] / len(rows) if rows else 0.0
        chance = sum(p for *_, p in rows) / max(1, len(rows))
        print(f"{task:24} {len(rows):4} {majority:9.1%} {chance:7.1%}")


if __name__ == "__main__":
    main()
