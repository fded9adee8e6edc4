"""The rotary embeddings that tell attention the positions of tokens (positions.py) and of patches.

Legend: S tokens of a conversation, P patches, X width of a head, H heads.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from kvtools.keye.model.config import mrope_sections


@dataclass(frozen=True)
class RotaryAngles:
    """Cosines and sines of each token's angles, float32 (S, 1, X / 2); computed once a forward, used in every layer."""

    cos: Tensor
    sin: Tensor


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
