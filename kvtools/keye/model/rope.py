"""Positions of tokens in time, row and column, and the rotary embeddings that tell them to attention.

Source: Keye-VL's published model (spec/keye.md 1.5): text counts on all three axes; a visual item starts one after the largest
position so far, its frames `trunc(seconds * 2)` further on the first axis, its merged grid's rows and columns on the others;
the text after it continues after the largest again. Arithmetic as published: seconds as float32, times two in float32, cut to
whole numbers, so that frames less than half a second apart may share a position. Ours: each frame's own time, where the
published code has one step for all frames.

Legend: S tokens of a conversation, V visual items, T frames, P patches, X width of a head, H heads.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from kvtools.keye.model.config import MERGE, mrope_sections


@dataclass(frozen=True)
class RotaryAngles:
    """Cosines and sines of each token's angles, float32 (S, 1, X / 2); computed once a forward, used in every layer."""

    cos: Tensor
    sin: Tensor


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


def mrope_angles(positions_3S: Tensor, head_dim: int, theta: float) -> RotaryAngles:
    """The decoder's rotation for positions (3, S): of the head_dim / 2 angles the first are of time, the next of the row, the
    last of the column (config.mrope_sections), at the frequencies of ordinary rotary embeddings."""
    device = positions_3S.device
    # in float32 and in this order, as everybody does: at position 40,960 one ulp of a frequency is 0.002 of an angle
    frequency = 1.0 / theta ** (torch.arange(0, head_dim, 2, dtype=torch.float32, device=device) / head_dim)
    return _angles(positions_3S, torch.split(frequency, list(mrope_sections(head_dim))))


def grid_angles(rows_P: Tensor, columns_P: Tensor, head_dim: int, theta: float) -> RotaryAngles:
    """The tower's rotation: half of the angles are of the patch's row, half of its column; frames share them."""
    half = head_dim // 2
    frequency = 1.0 / theta ** (torch.arange(0, half, 2, dtype=torch.float32, device=rows_P.device) / half)
    return _angles((rows_P, columns_P), (frequency, frequency))


def _angles(axes: Sequence[Tensor] | Tensor, frequencies: Sequence[Tensor]) -> RotaryAngles:
    angles = torch.cat([axis[:, None].float() * part for axis, part in zip(axes, frequencies, strict=True)], dim=1)
    return RotaryAngles(angles.cos().unsqueeze(1), angles.sin().unsqueeze(1))


def apply_rotary(x_SHX: Tensor, angles: RotaryAngles) -> Tensor:
    """Each pair (j, j + X / 2) of a head rotated by its angle: (S, H, X), in float32, or float64 where x is."""
    wide = x_SHX if x_SHX.dtype in (torch.float32, torch.float64) else x_SHX.float()
    rotated: Tensor = _Rotate.apply(wide, angles.cos.to(wide.dtype), angles.sin.to(wide.dtype))  # type: ignore[no-untyped-call]
    return rotated


class _Rotate(torch.autograd.Function):
    """The rotation and, backward, the one by the opposite angle: four passes over half of x, where cat of products has ten."""

    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        ctx.save_for_backward(cos, sin)
        return _rotate(x, cos, sin, 1)

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, *grads: Tensor) -> tuple[Tensor, None, None]:
        cos, sin = ctx.saved_tensors  # type: ignore[attr-defined]
        return _rotate(grads[0], cos, sin, -1), None, None


def _rotate(x: Tensor, cos: Tensor, sin: Tensor, sign: int) -> Tensor:
    half = x.shape[-1] // 2
    out = torch.empty_like(x, memory_format=torch.contiguous_format)
    low, high = x[..., :half], x[..., half:]
    torch.mul(low, cos, out=out[..., :half]).addcmul_(high, sin, value=-sign)
    torch.mul(high, cos, out=out[..., half:]).addcmul_(low, sin, value=sign)
    return out
