"""Pictures in files, and folders of pictures as clips."""

import math
import struct
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path
from typing import BinaryIO, cast

import av
import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError
from PIL.PngImagePlugin import PngImageFile

from kvtools.video.container import DecoderFaults
from kvtools.video.decode import read_pyav
from kvtools.video.formats import HEIC
from kvtools.video.frame_index import FrameIndex, open_index
from kvtools.video.inputs import IMAGE_SUFFIXES, content_of, natural_order

_HUGE = 50_000_000  # pixels, 150 MB of them decoded: larger ones are reduced while they are read
_MAX_PIXELS = 300_000_000  # that are decoded at once, 1.2 GB in Pillow
_ORIENTATION = 0x0112  # the tag of EXIF; from 5 on, height and width are exchanged
_REDUCIBLE = ("L", "LA", "RGB", "RGBA", "CMYK", "YCbCr", "F", "I")
# this module has limits of its own, and reports what it cannot read; Pillow would print its warnings between our lines
Image.MAX_IMAGE_PIXELS = None
warnings.filterwarnings("ignore", module=r"PIL\.")


def list_frames(directory: str) -> list[str]:
    """Paths of the pictures in a folder of frames, in the order of their names, numbers by value."""
    paths = [p for p in Path(directory).iterdir() if p.suffix.lower() in IMAGE_SUFFIXES and not p.name.startswith(".")]
    return [str(p) for p in sorted(paths, key=lambda p: natural_order(p.name))]


def open_frames(paths: Sequence[str], fps: float) -> FrameIndex:
    """The index of pictures taken `fps` times a second. Raises ValueError where there is none, or the first is no picture."""
    if not paths:
        raise ValueError("it has no picture, such as .jpg, .png or .webp")
    height, width = picture_size(paths[0], Path(paths[0]).name)
    time_base = 1 / (Fraction(fps).limit_denominator(1_000_000) or Fraction(fps))
    everything = range(len(paths))
    return FrameIndex(everything, time_base, width, height, "pictures", float(len(paths) * time_base), everything, everything)


def read_frames(paths: Sequence[str], positions: Sequence[int], n_pixels: int | None = None) -> Iterator[np.ndarray]:
    """The pictures at these positions, uint8 (H, W, 3) each; see `read_picture`."""
    for position in positions:
        yield read_picture(paths[position], Path(paths[position]).name, n_pixels)


def is_animation(path: str) -> bool:
    """Whether a file is WebP or AVIF, which Pillow reads whole: FFmpeg reads no animated WebP, and one tile of an AVIF."""
    with open(path, "rb") as file:
        begin = file.read(16)
    return (begin[:4] == b"RIFF" and begin[8:12] == b"WEBP") or (begin[4:8] == b"ftyp" and begin[8:12] in (b"avif", b"avis"))


def open_animation(path: str) -> FrameIndex:
    """The index of the frames of an animated picture, from how long each is shown; a still picture is shown for a second.

    Raises ValueError where it cannot be read.
    """
    ends_ms = [0]
    with _raising(path, "it"), Image.open(path) as image:
        for number in range(getattr(image, "n_frames", 1)):
            image.seek(number)
            image.load()  # only then is the duration of this frame known
            ends_ms.append(ends_ms[-1] + max(1, round(image.info.get("duration", 0) or 1000)))
        everything = range(len(ends_ms) - 1)
        duration_s = ends_ms[-1] / 1000
        codec = (image.format or "").lower()
        return FrameIndex(ends_ms[:-1], Fraction(1, 1000), image.width, image.height, codec, duration_s, everything, everything)


def read_animation(path: str, positions: Sequence[int]) -> Iterator[np.ndarray]:
    """The frames of an animated picture at these positions, uint8 (H, W, 3) each, transparency on white."""
    with _raising(path, "it"), Image.open(path) as image:
        for position in positions:
            image.seek(position)
            yield np.asarray(_on_white(ImageOps.exif_transpose(image)))


def picture_size(source: str, name: str) -> tuple[int, int]:
    """Height and width of an upright picture, which is not decoded. Raises ValueError, with the name, for other files."""
    if _is_heic(source):
        return _read_heic(source, name).shape[:2]
    with _raising(source, name), Image.open(source) as image:
        is_on_its_side = _exif(image).get(_ORIENTATION, 1) >= 5
        return (image.width, image.height) if is_on_its_side else (image.height, image.width)


def read_picture(source: str | BinaryIO, name: str, n_pixels: int | None = None) -> np.ndarray:
    """One upright picture as uint8 (H, W, 3), transparency on white; wider numbers are scaled to 8 bits (`_as_8_bits`).

    n_pixels: how many the caller needs; a huge picture (`_HUGE`) is then reduced by a whole factor while it is decoded. Raises
    ValueError, with the name, for other files, and for a picture too large to be decoded.
    """
    if isinstance(source, str) and _is_heic(source):
        return _read_heic(source, name)
    with _raising(source, name), Image.open(source) as image:
        picture = _as_8_bits(_reduced(image, n_pixels))
        ImageOps.exif_transpose(picture, in_place=True)
        return np.asarray(_on_white(picture))


def _is_heic(path: str) -> bool:
    """Whether a file is a picture that FFmpeg reads and Pillow does not."""
    if not path.lower().endswith((".heic", ".heif")):
        return False
    with open(path, "rb") as file:
        return content_of(file.read(512)) == HEIC


def _read_heic(path: str, name: str) -> np.ndarray:
    try:
        return next(read_pyav(path, open_index(path), [0], n_threads=1))
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from None


def _on_white(picture: Image.Image) -> Image.Image:
    if picture.has_transparency_data:
        rgba = picture.convert("RGBA")
        picture = Image.new("RGB", rgba.size, (255, 255, 255))
        picture.paste(rgba, mask=rgba.getchannel("A"))
    return picture if picture.mode == "RGB" else picture.convert("RGB")


@contextmanager
def _raising(source: str | BinaryIO, name: str) -> Iterator[None]:
    """Raises what Pillow has against a file as ValueError, with its name and what the file holds instead."""
    try:
        yield
    except UnidentifiedImageError:
        raise ValueError(f"{name} is not a picture: {_content_of(source)}") from None
    except (OSError, SyntaxError, ValueError, MemoryError, struct.error, StopIteration) as error:
        reason = str(error) or "it does not fit into memory"
        raise ValueError(f"{name} cannot be read as a picture ({reason})") from None


def _reduced(image: Image.Image, n_pixels: int | None) -> Image.Image:
    """The picture; a huge one with fewer pixels, but no fewer than n_pixels."""
    n_needed = n_pixels if n_pixels and image.width * image.height > _HUGE else 0
    if n_needed:
        factor = max(1, math.isqrt(image.width * image.height // n_needed))
        image.draft(None, (image.width // factor, image.height // factor))  # JPEG alone is decoded at a fraction of its size
    if image.width * image.height > _MAX_PIXELS:
        raise OSError(f"it has {image.width}x{image.height} pixels, and at most {_MAX_PIXELS:,} are decoded")
    if n_needed and image.mode in _REDUCIBLE and (factor := math.isqrt(image.width * image.height // n_needed)) > 1:
        exif = _exif(image)
        small = _reduced_by_ffmpeg(image, factor) if (image.format, image.mode) == ("PNG", "RGB") else image.reduce(factor)
        small.getexif().update(exif)  # how it is turned
        image.close()
        return small
    return image


def _reduced_by_ffmpeg(image: Image.Image, factor: int) -> Image.Image:
    """A PNG, which Pillow would hold at four bytes a pixel and FFmpeg holds at three: 12,000 x 9,000 pixels in 450 MB."""
    file = cast("PngImageFile", image).fp
    assert file is not None, "it was opened just now"
    file.seek(0)
    with DecoderFaults(), av.open(file) as container:
        container.streams.video[0].thread_count = 1  # else each thread holds a frame
        frames = container.decode(video=0)
        small = next(frames).reformat(image.width // factor, image.height // factor, "rgb24", interpolation="AREA")
        frames.close()  # and with it the large frame
    return Image.fromarray(small.to_ndarray())


def _exif(image: Image.Image) -> Image.Exif:
    """What stands before the pixels: PNG's own method would decode them to look behind."""
    return Image.Image.getexif(image)


def _as_8_bits(picture: Image.Image) -> Image.Image:
    """A grey picture of 16 or 32 bits, or of floats, scaled to 0…255 where Pillow would clip it.

    Whole numbers of 16 bits are divided by 257. Floats of 0…1 are multiplied by 255, and of 0…255 stay as they are. All others
    go from their least value to their greatest; what is not finite becomes black.
    """
    if picture.mode not in ("I", "F") and not picture.mode.startswith("I;16"):
        return picture
    values = np.asarray(picture)
    if picture.mode != "F" and values.min() >= 0 and values.max() < 1 << 16:
        return Image.fromarray((values.astype(np.uint32) * 255 // 65535).astype(np.uint8))
    finite = np.nan_to_num(values.astype(np.float32), nan=0, posinf=0, neginf=0)
    low, high = float(finite.min()), float(finite.max())
    if low >= 0 and high <= 255:
        low, high = 0.0, 1.0 if high <= 1 else 255.0
    scaled = (finite - low) * (255 / (high - low)) if high > low else finite * 0
    return Image.fromarray(scaled.round().astype(np.uint8))


def _content_of(source: str | BinaryIO) -> str:
    """What a file that is no picture holds instead, as far as its first bytes tell."""
    if isinstance(source, str):
        with open(source, "rb") as file:
            head = file.read(512)
    else:
        source.seek(0)
        head = source.read(512)
    return content_of(head)
