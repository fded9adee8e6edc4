"""How fast samples are held against evaluation sets, and near duplicates found, and what is found: Markdown on stdout.

Usage: contamination.py [texts=100000] [pictures=10000] [known=5000]

Texts are sentences of real instructions and solutions, drawn anew for each, those of the evaluation set from others; one in a
hundred repeats an evaluation text in another case and with other white space, one in a hundred nearly repeats the text before
it. Pictures are parts of frames of real clips, stored as JPEG; one in a hundred is a picture of the evaluation set, cropped by
5 % and stored again. Two processes share the work, as those of `coldstart-mix --jobs 2` do; pictures are decoded in the time
that is told. Near duplicates are one process's.
"""

import io
import multiprocessing
import random
import resource
import sqlite3
import sys
import tempfile
import time
from pathlib import Path

import av
import numpy as np
from mix import DATA, sentences
from PIL import Image

from kvtools.keye.mix.contamination import EvaluationSet
from kvtools.keye.mix.duplicates import Duplicates, signatures
from kvtools.keye.mix.fingerprint import fingerprint

N_JOBS = 2
N_PARTS = 1_000_000  # seeds of other parts of frames begin here
BAR_S = 60


def main(n_texts="100000", n_pictures="10000", n_known="5000"):
    n_texts, n_pictures, n_known = int(n_texts), int(n_pictures), int(n_known)
    rng = random.Random(0)
    parts = sentences()
    rng.shuffle(parts)
    texts = [" ".join(rng.choices(parts[1000:], k=6)) for _ in range(n_texts)]
    known_texts = [" ".join(rng.choices(parts[:1000], k=3)) + f" {n}" for n in range(n_known)]
    leaks = set(range(0, n_texts, 100))
    for n in leaks:
        texts[n] = f"{texts[n][:200]} {known_texts[rng.randrange(n_known)].upper().replace(' ', '  ')}"
    frames = real_frames()
    known_pictures = [cut(frames, n) for n in range(n_known)]
    pictures = [
        jpeg(cropped(known_pictures[n // 100])) if n % 100 == 0 else jpeg(cut(frames, n + N_PARTS)) for n in range(n_pictures)
    ]

    begun = time.perf_counter()
    fingerprints = [(f"p{n}", fingerprint(picture, is_known=True)) for n, picture in enumerate(known_pictures)]
    evaluation = EvaluationSet.of([(f"t{n}", text) for n, text in enumerate(known_texts)], fingerprints)
    read_s = time.perf_counter() - begun
    begun = time.perf_counter()
    with multiprocessing.get_context("fork").Pool(N_JOBS, start, (evaluation,)) as pool:
        text_found = pool.map(text_leak, texts, chunksize=500)
    text_s = time.perf_counter() - begun
    begun = time.perf_counter()
    with multiprocessing.get_context("fork").Pool(N_JOBS, start, (evaluation,)) as pool:
        picture_found = pool.map(picture_leak, pictures, chunksize=50)
    picture_s = time.perf_counter() - begun
    caught = [text_found[n] is not None for n in sorted(leaks)]
    planted = [picture_found[n] == f"p{n // 100}" for n in range(0, n_pictures, 100)]
    print("| | seconds |\n|---|---|")
    print(f"| fingerprints of {n_known:,} evaluation texts and pictures | {read_s:.1f} |")
    print(f"| {n_texts:,} texts against them | {text_s:.1f} |")
    print(f"| {n_pictures:,} pictures against them, decoded | {picture_s:.1f} |")
    print(f"\nTogether {read_s + text_s + picture_s:.0f} s; the bar is {BAR_S} s.")
    print(f"Of {len(caught)} planted texts {np.mean(caught):.1%} are found,")
    print(f"of {len(planted)} cropped pictures {np.mean(planted):.1%}.")
    others = [found for n, found in enumerate(text_found) if n not in leaks and found is not None]
    print(f"Of the other texts {len(others)} are found.\n")
    duplicates(texts, n_texts)


def duplicates(texts, n_texts):
    print("| texts | near duplicates found | seconds | MiB more |\n|---|---|---|---|")
    for n in (n_texts // 20, n_texts):
        some = [f"{texts[k - 1]} Indeed." if k % 100 == 50 else texts[k] for k in range(n)]
        with tempfile.TemporaryDirectory() as folder:
            database = sqlite3.connect(f"{folder}/d.sqlite", isolation_level=None)
            database.executescript("PRAGMA journal_mode = OFF; PRAGMA synchronous = OFF; PRAGMA cache_size = -16384; BEGIN;")
            before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
            begun = time.perf_counter()
            rows = ((str(k), "think", signatures([text])[0].tobytes()) for k, text in enumerate(some))
            found = sum(earlier is not None for _, earlier in Duplicates(database).filter(rows))
            seconds = time.perf_counter() - begun
            more = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
        print(f"| {n:,} | {found:,} of {len(range(50, n, 100)):,} | {seconds:.1f} | {more:.0f} |", flush=True)


def start(evaluation):
    global EVALUATION  # noqa: PLW0603 of a worker process
    EVALUATION = evaluation


def text_leak(text):
    return EVALUATION.text_leak([text])


def picture_leak(data):
    return EVALUATION.picture_leak([fingerprint(Image.open(io.BytesIO(data)))])


def real_frames(n_clips=60, n_frames=6):
    frames = []
    clips = sorted(path for path in Path(DATA).rglob("*.mp4") if "broken" not in path.parts)
    for clip in clips[:: max(1, len(clips) // n_clips)]:
        with av.open(str(clip)) as container:
            for number, frame in enumerate(container.decode(video=0)):
                if number % 15 == 0:
                    frames.append(frame.to_image())
                if number >= 15 * n_frames:
                    break
    return frames


def cut(frames, seed):
    """A part of a frame, half of each side or more, at 320 pixels."""
    rng = random.Random(seed)
    frame = frames[rng.randrange(len(frames))]
    width, height = (int(side * rng.uniform(0.5, 0.9)) for side in frame.size)
    left, top = rng.randrange(frame.width - width), rng.randrange(frame.height - height)
    return frame.crop((left, top, left + width, top + height)).resize((320, 240))


def cropped(picture):
    return picture.crop((8, 6, picture.width - 8, picture.height - 6))


def jpeg(picture):
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=80)
    return buffer.getvalue()


if __name__ == "__main__":
    main(*sys.argv[1:])
