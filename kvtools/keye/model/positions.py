"""Positions of a conversation's tokens in time, row and column. Without torch, so that packing starts quickly.

Source: Keye-VL's published model (spec/keye.md 1.5): text counts on all three axes; a visual item starts one after the largest
position so far, its frames `trunc(seconds * 2)` further on the first axis, its merged grid's rows and columns on the others;
the text after it continues after the largest again. Arithmetic as published: seconds as float32, times two in float32, cut to
whole numbers, so that frames less than half a second apart may share a position. Ours: each frame's own time, where the
published code has one step for all frames.

Legend: S tokens of a conversation, V visual items, T frames.
"""

from collections.abc import Sequence

import numpy as np

from kvtools.keye.model.config import MERGE


def mrope_positions(
    tokens_S: np.ndarray,
    image_token: int,
    video_token: int,
    grids_V3: Sequence[Sequence[int]] | np.ndarray,
    seconds: Sequence[np.ndarray],
    *,
    tokens_per_second: int = 2,
) -> np.ndarray:
    """The position of each token of one conversation, int32 (3, S): time, row, column.

    grids_V3: frames, rows and columns in patches of each visual item, in order. seconds: float64 (T,), the times of each item's
    frames, of which only the distances from the first count; an image has one frame. Raises ValueError unless the visual tokens
    are those of the grids.
    """
    is_visual_S = (tokens_S == image_token) | (tokens_S == video_token)
    if len(grids_V3) != len(seconds):
        raise ValueError(f"{len(seconds)} items have times, and {len(grids_V3)} have grids")
    positions_3S = np.empty((3, len(tokens_S)), np.int32)
    token, position = 0, 0  # the next ones
    for number, (grid, times) in enumerate(zip(grids_V3, seconds, strict=True)):
        item_3N = _item_positions(grid, times, number, tokens_per_second)
        n_tokens = item_3N.shape[1]
        ahead = np.flatnonzero(is_visual_S[token:])
        first = token + int(ahead[0]) if len(ahead) else len(tokens_S)
        item = tokens_S[first : first + n_tokens]
        if len(item) < n_tokens or (item != item[0]).any() or not is_visual_S[first]:
            raise ValueError(f"visual item {number} needs {n_tokens} visual tokens one after another, and has fewer")
        positions_3S[:, token:first] = np.arange(position, position + first - token, dtype=np.int32)
        positions_3S[:, first : first + n_tokens] = position + first - token + item_3N
        token = first + n_tokens
        position = int(positions_3S[:, first:token].max()) + 1
    if is_visual_S[token:].any():
        raise ValueError(f"{int(is_visual_S[token:].sum())} visual tokens stand after the last of {len(grids_V3)} visual items")
    positions_3S[:, token:] = np.arange(position, position + len(tokens_S) - token, dtype=np.int32)
    return positions_3S


def _item_positions(grid: Sequence[int], times: np.ndarray, number: int, tokens_per_second: int) -> np.ndarray:
    """Time, row and column of each token of a visual item from its own first: int (3, its tokens)."""
    n_frames, n_rows, n_columns = (int(n) for n in grid)
    if n_rows % MERGE or n_columns % MERGE or len(times) != n_frames:
        raise ValueError(
            f"visual item {number} has a grid of {n_frames}, {n_rows}, {n_columns} and {len(times)} times; sides divisible by "
            f"{MERGE} and one time a frame are needed"
        )
    since_first = np.asarray(times, np.float64) - float(times[0])
    time_T = (since_first.astype(np.float32) * np.float32(tokens_per_second)).astype(np.int32)
    axes = np.meshgrid(time_T, np.arange(n_rows // MERGE), np.arange(n_columns // MERGE), indexing="ij")
    return np.stack([axis.reshape(-1) for axis in axes])
