"""Captions of clips by their pixels alone: brightness, colour, where the light is, and how much moves.

For clips that have no captions, to start training with: they teach a tower and a projector what words mean. They follow the
rules below, which are ours, and say nothing of what the clip shows. Legend: T frames, Y rows, X columns, C channels.
"""

import colorsys

import numpy as np

_HUES = ("red", "orange", "yellow", "green", "cyan", "blue", "purple", "pink")
_HUE_ENDS = (15, 45, 70, 165, 195, 260, 295, 345)  # degrees; beyond the last, red again
_GREY = 10.0  # levels of 255 between the strongest and the weakest channel, below which a clip is grey
_BRIGHTNESS = ((80.0, "dark"), (105.0, "dim"), (130.0, "light"), (256.0, "bright"))  # mean level, below
_MOTION = ((1.5, "still"), (5.0, "slow"), (256.0, "fast"))  # mean change between neighbouring frames in levels, below
_SIDED = 12.0  # levels by which one half is lighter than the other


def description(thumbnails_TYXC: np.ndarray) -> str:
    """Four words, as "dark, blue, light above, slow", of thumbnails float (T, 8, 8, 3) in levels of 255."""
    level, mean_C = float(thumbnails_TYXC.mean()), thumbnails_TYXC.mean((0, 1, 2))
    motion = float(np.abs(np.diff(thumbnails_TYXC, axis=0)).mean()) if len(thumbnails_TYXC) > 1 else 0.0
    return ", ".join(
        [_below(_BRIGHTNESS, level), _hue(mean_C), _bright_side(thumbnails_TYXC.mean((0, 3))), _below(_MOTION, motion)]
    )


def _hue(mean_C: np.ndarray) -> str:
    if mean_C.max() - mean_C.min() < _GREY:
        return "grey"
    degrees = colorsys.rgb_to_hsv(*(mean_C / 255).tolist())[0] * 360
    return next((hue for hue, end in zip(_HUES, _HUE_ENDS, strict=True) if degrees < end), _HUES[0])


def _bright_side(level_YX: np.ndarray) -> str:
    rows, columns = (side // 2 for side in level_YX.shape)
    above = float(level_YX[:rows].mean() - level_YX[rows:].mean())
    left = float(level_YX[:, :columns].mean() - level_YX[:, columns:].mean())
    if max(abs(above), abs(left)) < _SIDED:
        return "even"
    if abs(above) >= abs(left):
        return "light above" if above > 0 else "light below"
    return "light left" if left > 0 else "light right"


def _below(ends: tuple[tuple[float, str], ...], value: float) -> str:
    return next(word for end, word in ends if value < end)
