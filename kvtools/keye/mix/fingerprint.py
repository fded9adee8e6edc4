"""Pictures that are the same though they were stored again, resized, or cropped a little.

A fingerprint is the 64-bit perceptual hash of a picture, with those of its crops where it is one to be found again, and a
small blurred picture. The report's rule compares the set bits of two hashes: a Jaccard similarity above 0.95. It finds
pictures that were stored again or resized, and 2 % of those that lost 5 % of their sides. So there is a second rule: where a
hash is near that of a crop of the known picture, the two are fitted, shifted and scaled as a crop is, and are the same where
every block of them agrees. It finds 98 %. Other frames of a still camera have near hashes as well: what moves in them keeps a
block apart.

Where the report looks for candidates by MinHash of the set bits, every hash is compared, which finds all that it would.
Not found: a picture that is mirrored or turned, or that lost more than some 8 % of a side.
Source: Keye-VL report (arXiv 2507.01949), appendix A; the hash: imagehash.phash; the fit: Lucas and Kanade 1981.

Legend: n known pictures, C crops, H and W pixels.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image
from scipy.fft import dct
from scipy.ndimage import gaussian_filter

_SIMILAR = 0.95  # of the report's rule
_SIDE = 48  # pixels of the small picture
_BLUR = 1.2  # of them: fitted pictures differ in what is finer
_CROPS = tuple(
    (left, top, right, bottom)
    for left, right in ((0, 0), (0.05, 0), (0, 0.05), (0.025, 0.025), (0.05, 0.05))
    for top, bottom in ((0, 0), (0.05, 0), (0, 0.05), (0.025, 0.025), (0.05, 0.05))
    if abs(left + right - top - bottom) < 0.01 or left + right == 0 or top + bottom == 0
)
_DCT = dct(np.eye(32, dtype=np.float32), axis=0)[:8]
_REDUCED = 64  # pixels a side, of which crops are made: their hashes need not be exact
_NEAR = 10  # bits of 64 in which a candidate may differ from the nearest crop
_MOST_FITTED = 3  # candidates of one picture, the likeliest first
_SCALES = ((12, 6), (24, 4), (48, 4))  # pixels a side and steps of the fit
_STILL = 1e-3  # of a side: a step after which the fit goes no further
_COARSE = 14.0  # mean difference after the first scale, in grey levels, above which the fit is given up
_APART = 7.0  # mean difference of a block, in grey levels of 255, from which two pictures are not the same


@dataclass(frozen=True)
class Fingerprint:
    """hash: the 64 bits of imagehash.phash as a number. crops: uint64 (C,), the hashes of crops, or (0,).

    small: uint8 (48, 48), grey and blurred.
    """

    hash: int
    crops: np.ndarray
    small: np.ndarray


def fingerprint(picture: Image.Image, *, is_known: bool = False) -> Fingerprint:
    """The fingerprint of a picture. is_known: of one that others are compared with, whose crops are hashed too."""
    grey = picture if picture.mode == "L" else picture.convert("RGB").convert("L")
    small = grey.resize((_SIDE, _SIDE), Image.Resampling.BOX)
    blurred = gaussian_filter(np.asarray(small, np.float32), _BLUR, mode="nearest")
    return Fingerprint(perceptual_hash(grey), _crop_hashes(grey, _CROPS if is_known else ()), np.rint(blurred).astype(np.uint8))


def perceptual_hash(grey: Image.Image) -> int:
    """The 64-bit perceptual hash of a grey picture, as imagehash.phash has it."""
    pixels = np.asarray(grey.resize((32, 32), Image.Resampling.LANCZOS))
    low = dct(dct(pixels, axis=0), axis=1)[:8, :8]
    return int(np.packbits(low > np.median(low)).view(">u8")[0])


def _crop_hashes(grey: Image.Image, crops: Sequence[tuple[float, float, float, float]]) -> np.ndarray:
    """The hash of each crop, uint64 (C,), of a smaller picture: they need not be exact, and a picture has many."""
    reduced = grey.reduce(max(1, min(grey.size) // _REDUCED))
    width, height = reduced.size
    boxes = [(left * width, top * height, (1 - right) * width, (1 - bottom) * height) for left, top, right, bottom in crops]
    pixels_C = [np.asarray(reduced.resize((32, 32), Image.Resampling.BILINEAR, box=box), np.float32) for box in boxes]
    low_C = _DCT @ np.array(pixels_C, np.float32).reshape(-1, 32, 32) @ _DCT.T
    low_C = low_C.reshape(len(crops), 64)
    bits_C = low_C > np.median(low_C, axis=1, keepdims=True) if len(crops) else low_C.astype(bool)
    return np.packbits(bits_C, axis=1).view(">u8").astype(np.uint64).reshape(-1)


class KnownPictures:
    """Pictures that are looked for among others."""

    def __init__(self, fingerprints: Sequence[Fingerprint]) -> None:
        self._hashes_n = np.array([known.hash for known in fingerprints], np.uint64)
        self._crops_nC = np.array([known.crops for known in fingerprints], np.uint64).reshape(len(fingerprints), len(_CROPS))
        self._small_nHW = np.array([known.small for known in fingerprints], np.uint8).reshape(-1, _SIDE, _SIDE)
        self._coarse_nHW = _shrunk(self._small_nHW.astype(np.float32), _SCALES[0][0])

    def __len__(self) -> int:
        return len(self._hashes_n)

    def find(self, other: Fingerprint) -> int | None:
        """The number of a known picture that is the same as another; None where there is none."""
        if not len(self):
            return None
        value = np.uint64(other.hash)
        alike_n = np.bitwise_count(self._hashes_n & value) > _SIMILAR * np.bitwise_count(self._hashes_n | value)
        if alike_n.any():
            return int(alike_n.argmax())
        near = np.flatnonzero((np.bitwise_count(self._crops_nC ^ value) <= _NEAR).any(axis=1))
        if not len(near):
            return None
        small = other.small.astype(np.float32)
        difference = np.abs(self._coarse_nHW[near] - _shrunk(small, _SCALES[0][0])).mean(axis=(1, 2))
        for number in near[np.argsort(difference, kind="stable")][:_MOST_FITTED]:
            if _is_crop(small, self._small_nHW[number].astype(np.float32)):
                return int(number)
        return None


def _is_crop(small_HW: np.ndarray, known_HW: np.ndarray) -> bool:
    """Whether a picture fits a known one, shifted and scaled within it, in every block."""
    box = np.array([0.0, 1.0, 0.0, 1.0])  # left and width, top and height, as shares of the known picture
    for side, n_steps in _SCALES:
        small, known = _shrunk(small_HW, side), _shrunk(known_HW, side)
        rows, columns = (gradient * side for gradient in np.gradient(known))
        along = (np.arange(side) + 0.5) / side
        for _ in range(n_steps):
            across, down = _interpolation(box[0], box[1], side), _interpolation(box[2], box[3], side)
            residual, gain = _residual(small, down @ known @ across.T)
            by_x, by_y = (down @ gradient @ across.T * gain for gradient in (columns, rows))
            jacobian = np.stack([by_x, by_x * along, by_y, by_y * along[:, None]], axis=-1).reshape(-1, 4)
            normal = jacobian.T @ jacobian
            damped = normal + 1e-3 * (np.trace(normal) + 1e-6) * np.eye(4)
            step = np.linalg.solve(damped, jacobian.T @ residual.ravel())
            box += step
            box[::2] = np.clip(box[::2], 0, 0.1)
            box[1::2] = np.clip(box[1::2], 0.8, 1 - box[::2])
            if np.abs(step).max() < _STILL:
                break
        across, down = _interpolation(box[0], box[1], side), _interpolation(box[2], box[3], side)
        residual, _ = _residual(small, down @ known @ across.T)
        if side == _SCALES[0][0] and np.abs(residual).mean() > _COARSE:
            return False
    inner = np.abs(residual)[4:-4, 4:-4]  # the blur mixes in what lies beyond an edge
    return bool(_shrunk(inner, 5).max() < _APART)


def _residual(small_HW: np.ndarray, known_HW: np.ndarray) -> tuple[np.ndarray, float]:
    """The difference of two pictures, brightness and contrast aside, and the contrast that the known one was given."""
    gain = float(np.clip((small_HW.std() + 1e-3) / (known_HW.std() + 1e-3), 0.7, 1.4))
    return (small_HW - small_HW.mean()) - gain * (known_HW - known_HW.mean()), gain


def _interpolation(begin: float, width: float, side: int) -> np.ndarray:
    """The matrix (side, side) that takes a part of a row of pixels, linearly between neighbours."""
    at = np.clip((begin + width * (np.arange(side) + 0.5) / side) * side - 0.5, 0, side - 1)
    left = np.minimum(at.astype(int), side - 2)
    matrix = np.zeros((side, side), np.float32)
    rows = np.arange(side)
    matrix[rows, left] = 1 - (at - left)
    matrix[rows, left + 1] = at - left
    return matrix


def _shrunk(x_HW: np.ndarray, side: int) -> np.ndarray:
    """Means of blocks: (..., side, side) of (..., H, W)."""
    block = x_HW.shape[-1] // side
    means: np.ndarray = x_HW.reshape(*x_HW.shape[:-2], side, block, side, block).mean(axis=(-3, -1))
    return means
