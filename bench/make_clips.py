"""Eight 1080p H.264 clips of 15 s from real ones, since no 1080p clip is at hand: scaled up, 30 frames a second, x264's
defaults (medium, B-frames) at crf 21. Usage: make_clips.py DIRECTORY"""

import os
import sys
from fractions import Fraction
from pathlib import Path

import av

SOURCES = (
    "jesse_dance_720p.mp4",
    "cockatoo_720p_444.mp4",
    "yongen_vertical_704x1216.mp4",
    "flower.mp4",
    "bigbuckbunny_720p.mp4",
    "yoga.mp4",
    "chaplin.mp4",
    "mllm_3_baby_playing.mp4",
)
RATE, N_FRAMES = 30, 450


def pictures(path):
    """The clip's frames, over and over."""
    while True:
        with av.open(str(path)) as container:
            yield from container.decode(video=0)


def make(source, target):
    frames = pictures(source)
    first = next(frames)
    width, height = (1920, 1080) if first.width > first.height else (1080, 1920)
    partial = target.with_suffix(".part.mp4")
    with av.open(str(partial), "w") as container:
        stream = container.add_stream("libx264", rate=RATE, options={"crf": "21", "preset": "medium"})
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        for i in range(N_FRAMES):
            frame = next(frames).reformat(width, height, "yuv420p")
            frame.pts, frame.time_base = i, Fraction(1, RATE)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    os.replace(partial, target)


directory = Path(sys.argv[1])
directory.mkdir(parents=True, exist_ok=True)
clips = Path(os.environ["KVTOOLS_DATA"]) / "video" / "clips"
for name in SOURCES:
    target = directory / f"hd_{Path(name).stem}.mp4"
    if not target.exists():
        print(f"making {target}", file=sys.stderr)
        make(clips / name, target)
