"""Small videos of plain shades, and streams of them."""

import numpy as np

from kvtools.artifact.files import Sink
from kvtools.artifact.stream import Head, Writer
from kvtools.keye.data.frames import of_pictures


def picture(value, height=56, width=84):
    return np.full((height, width, 3), value, np.uint8)


def clip_of(values, step=0.5, height=56, width=84, begin=0.0):
    """A video whose frames are of one shade each."""
    seconds = begin + step * np.arange(len(values))
    return of_pictures([picture(v, height, width) for v in values], height, width, seconds, is_video=True)


def shades(visual):
    return visual.pixels_P3HW.reshape(int(visual.grid[0]), -1).mean(1).round().astype(int).tolist()


def write_stream(path, clips, kind="video"):
    with Writer(Sink(str(path), force=True), Head(kind)) as writer:
        for key, visual in clips.items():
            tensors = {"pixels": visual.pixels_P3HW, "grid": visual.grid, "seconds": visual.seconds}
            writer.write(key, tensors, fps=2.0, duration=1.0, source={})
    return str(path)
