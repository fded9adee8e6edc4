"""Pictures in files, and folders of pictures as clips."""

from collections.abc import Iterator, Sequence
from fractions import Fraction
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from kvtools.video.frame_index import FrameIndex
from kvtools.video.inputs import IMAGE_SUFFIXES, natural_order


def list_frames(directory: str) -> list[str]:
    """Paths of the pictures in a folder of frames, in the order of their names, numbers by value."""
    paths = [p for p in Path(directory).iterdir() if p.suffix.lower() in IMAGE_SUFFIXES and not p.name.startswith(".")]
    return [str(p) for p in sorted(paths, key=lambda p: natural_order(p.name))]


def open_frames(paths: Sequence[str], fps: float) -> FrameIndex:
    """The index of pictures taken `fps` times a second. Raises ValueError where there is none, or the first cannot be read."""
    if not paths:
        raise ValueError("it has no picture (.jpg, .png, .webp or .bmp)")
    height, width = read_picture(paths[0], Path(paths[0]).name).shape[:2]
    time_base = 1 / Fraction(fps).limit_denominator(1_000_000)
    everything = range(len(paths))
    return FrameIndex(everything, time_base, width, height, "pictures", float(len(paths) * time_base), everything, everything)


def read_frames(paths: Sequence[str], positions: Sequence[int]) -> Iterator[np.ndarray]:
    """The pictures at these positions, uint8 (H, W, 3) each; see `read_picture`."""
    for position in positions:
        yield read_picture(paths[position], Path(paths[position]).name)


def read_picture(source: str | BinaryIO, name: str) -> np.ndarray:
    """One upright picture as uint8 (H, W, 3), transparency on white. Raises ValueError, with the name, for other files."""
    try:
        with Image.open(source) as image:
            picture = ImageOps.exif_transpose(image)
            if picture.has_transparency_data:
                rgba = picture.convert("RGBA")
                picture = Image.new("RGB", rgba.size, (255, 255, 255))
                picture.paste(rgba, mask=rgba.getchannel("A"))
            return np.asarray(picture.convert("RGB"))
    except UnidentifiedImageError:
        raise ValueError(f"{name} cannot be read as a picture") from None
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise ValueError(f"{name} cannot be read as a picture ({error})") from None
