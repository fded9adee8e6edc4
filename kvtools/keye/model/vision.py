"""The vision tower: packed patches of images and videos, each at its own size, to one vector a patch.

Source: SigLIP (arXiv 2303.15343) with Keye-VL's changes (spec/keye.md 1.3): positions interpolated to each grid, rotary
embeddings of row and column, attention within an item. Names of weights are those of the published checkpoints.

Not here: videos to patches (kvtools.video), patches to visual tokens (projector.py). Legend: P patches, D width, H heads, X
width of a head, R and C rows and columns of a grid, Y and X rows and columns of the position table.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as nf

from kvtools.keye.model.attention import Segments, attend
from kvtools.keye.model.config import TextConfig, VisionConfig
from kvtools.keye.model.cpu_kernels import linear_gelu
from kvtools.keye.model.layers import layer_norm, matmul_dtype
from kvtools.keye.model.rope import RotaryAngles, apply_rotary, grid_angles
from kvtools.train.checkpointing import run_layer

Grids = Sequence[Sequence[int]]  # frames, rows and columns in patches of each visual item


@dataclass(frozen=True)
class PatchLayout:
    """Row and column of each patch, int64 (P,), and the segments that attend.

    order_P: int64, the raster number of each patch in a row of items, where patches come block by block; None in raster order.
    """

    rows_P: Tensor
    columns_P: Tensor
    order_P: Tensor | None
    segments: Segments
    grids: Grids
    merge: int


def block_order(n_rows: int, n_columns: int, merge: int) -> Tensor:
    """Raster numbers of a frame's patches, one block of merge x merge after another: int64 (rows * columns,)."""
    number = torch.arange(n_rows * n_columns)
    blocks = number.view(n_rows // merge, merge, n_columns // merge, merge).transpose(1, 2)
    return blocks.reshape(-1)


def patch_layout(grids: Grids, *, joint: bool, merge: int = 1, device: torch.device | str = "cpu") -> PatchLayout:
    """The layout of items of those grids; with merge, patches come block by block within a frame.

    joint: an item is one segment; else each frame is. Raises ValueError for an empty grid, and for sides that merge does not
    divide.
    """
    rows, columns, orders, starts, first = [], [], [], [], 0
    for number, (n_frames, n_rows, n_columns) in enumerate(grids):
        if min(n_frames, n_rows, n_columns) < 1 or n_rows % merge or n_columns % merge:
            raise ValueError(
                f"the grid of visual item {number} is {n_frames}, {n_rows}, {n_columns}; sides divisible by {merge} are needed"
            )
        order = block_order(n_rows, n_columns, merge)
        rows.append((order // n_columns).repeat(n_frames))
        columns.append((order % n_columns).repeat(n_frames))
        frames = [first + frame * n_rows * n_columns for frame in range(n_frames)]
        orders += [frame + order for frame in frames]
        starts += [first] if joint else frames
        first += n_frames * n_rows * n_columns
    return PatchLayout(
        torch.cat(rows).to(device),
        torch.cat(columns).to(device),
        torch.cat(orders).to(device) if merge > 1 else None,
        Segments.of(starts, first, device),
        grids,
        merge,
    )


class PatchEmbeddings(nn.Module):
    """Pixels to vectors, with the position embedding of each patch."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.config = config
        self.patch_embedding = nn.Conv2d(3, config.width, config.patch, config.patch)
        self.position_embedding = nn.Embedding(config.table_side**2, config.width)

    def forward(self, pixels_P3HW: Tensor, layout: PatchLayout) -> Tensor:
        """uint8 (P, 3, patch, patch), or floats on the same scale from 0 to 255: (P, D)."""
        # (x / 255 - 0.5) / 0.5 is (x - 127.5) / 127.5: the difference is exact even in bfloat16, the weight is what is divided
        weight = self.patch_embedding.weight.flatten(1)
        centred = pixels_P3HW.flatten(1).to(matmul_dtype(weight)) - 127.5
        patches_PD = nf.linear(centred, weight / 127.5, self.patch_embedding.bias)
        return patches_PD + self.positions(layout)

    def positions(self, layout: PatchLayout) -> Tensor:
        """The position embedding of each patch, (P, D)."""
        table, side = self.position_embedding.weight, self.config.table_side
        if not self.config.interpolate:
            width_P = torch.cat([layout.columns_P.new_full((t * h * w,), w) for t, h, w in layout.grids])
            return nf.embedding((layout.rows_P * width_P + layout.columns_P).clamp(max=side * side - 1), table)
        by_size: dict[tuple[int, int], Tensor] = {}
        parts = []
        for n_frames, n_rows, n_columns in layout.grids:
            size = n_rows, n_columns
            if size not in by_size:
                grid_RCD = interpolate_positions(table.view(side, side, -1), n_rows, n_columns)
                blocks = grid_RCD.reshape(n_rows // layout.merge, layout.merge, n_columns // layout.merge, layout.merge, -1)
                by_size[size] = blocks.transpose(1, 2).reshape(n_rows * n_columns, -1)
            parts.append(by_size[size].repeat(n_frames, 1))
        return torch.cat(parts)


def interpolate_positions(table_YXD: Tensor, n_rows: int, n_columns: int) -> Tensor:
    """Bilinear interpolation of a square table, its corners not aligned: (R, C, D). Two products: gradients are cheap."""
    side = table_YXD.shape[0]
    if n_rows != side:
        table_YXD = (_bilinear_weights(side, n_rows, table_YXD) @ table_YXD.flatten(1)).view(n_rows, side, -1)
    return _bilinear_weights(side, n_columns, table_YXD) @ table_YXD if n_columns != side else table_YXD


def _bilinear_weights(n_from: int, n_to: int, like: Tensor) -> Tensor:
    """The weight of each old position in each new one, (n_to, n_from); at most two a row are not 0, and they sum to 1."""
    position = ((torch.arange(n_to, dtype=torch.float64) + 0.5) * (n_from / n_to) - 0.5).clamp(0, n_from - 1)
    weights = (1 - (position[:, None] - torch.arange(n_from)).abs()).clamp(min=0)
    return weights.to(like.device, like.dtype)


class SelfAttention(nn.Module):
    """Every token of a segment attends to all of it."""

    def __init__(self, config: VisionConfig | TextConfig) -> None:
        super().__init__()
        self.n_heads = config.heads
        self.k_proj, self.v_proj, self.q_proj, self.out_proj = (nn.Linear(config.width, config.width) for _ in range(4))

    def forward(self, x_PD: Tensor, angles: RotaryAngles | None, segments: Segments) -> Tensor:
        """(P, D) to (P, D); angles None: no rotation."""
        shape = len(x_PD), self.n_heads, -1
        q_PHX, k_PHX, v_PHX = (layer(x_PD).view(shape) for layer in (self.q_proj, self.k_proj, self.v_proj))
        if angles is not None:
            q_PHX, k_PHX = (apply_rotary(x, angles).to(v_PHX.dtype) for x in (q_PHX, k_PHX))
        out: Tensor = self.out_proj(attend(q_PHX, k_PHX, v_PHX, segments, is_causal=False).flatten(1))
        return out


class MLP(nn.Module):
    """Two matrices and a GELU, in its tanh form."""

    def __init__(self, config: VisionConfig | TextConfig) -> None:
        super().__init__()
        self.fc1 = nn.Linear(config.width, config.hidden)
        self.fc2 = nn.Linear(config.hidden, config.width)

    def forward(self, x_PD: Tensor) -> Tensor:
        """(P, D) to (P, D)."""
        out: Tensor = self.fc2(linear_gelu(x_PD, self.fc1, tanh=True))
        return out


class EncoderLayer(nn.Module):
    """One of SigLIP's layers, of either tower: x + attention(norm(x)), then x + MLP(norm(x))."""

    def __init__(self, config: VisionConfig | TextConfig) -> None:
        super().__init__()
        self.layer_norm1 = nn.LayerNorm(config.width, eps=config.eps)
        self.self_attn = SelfAttention(config)
        self.layer_norm2 = nn.LayerNorm(config.width, eps=config.eps)
        self.mlp = MLP(config)

    def forward(self, x_PD: Tensor, angles: RotaryAngles | None, segments: Segments) -> Tensor:
        """(P, D) to (P, D)."""
        x_PD = x_PD + self.self_attn(layer_norm(self.layer_norm1, x_PD), angles, segments)
        out: Tensor = x_PD + self.mlp(layer_norm(self.layer_norm2, x_PD))
        return out


class Encoder(nn.Module):
    """The layers of a tower."""

    def __init__(self, config: VisionConfig | TextConfig) -> None:
        super().__init__()
        self.checkpointing = False
        self.layers = nn.ModuleList(EncoderLayer(config) for _ in range(config.layers))

    def forward(self, x_PD: Tensor, angles: RotaryAngles | None, segments: Segments) -> Tensor:
        """(P, D) to (P, D)."""
        for layer in self.layers:
            x_PD = run_layer(layer, x_PD, angles, segments, is_checkpointed=self.checkpointing)
        return x_PD


class VisionTower(nn.Module):
    """SigLIP's vision model without its pooling head (siglip.py has one)."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.config = config
        self.embeddings = PatchEmbeddings(config)
        self.encoder = Encoder(config)
        self.post_layernorm = nn.LayerNorm(config.width, eps=config.eps)
        initialise(self, config.layers)

    def forward(self, pixels_P3HW: Tensor, grids: Grids, *, merge: int = 1) -> Tensor:
        """(P, D) after the last norm, in the order of the patches; with merge, block by block within each frame.

        pixels_P3HW: as PatchEmbeddings takes them, in raster order. Raises ValueError where they are not as many as the grids'.
        """
        grids = [(int(t), int(h), int(w)) for t, h, w in grids]
        shape = sum(t * h * w for t, h, w in grids), 3, self.config.patch, self.config.patch
        if tuple(pixels_P3HW.shape) != shape:
            raise ValueError(f"pixels are {tuple(pixels_P3HW.shape)}, and the grids need {shape}")
        layout = patch_layout(grids, joint=self.config.joint, merge=merge, device=pixels_P3HW.device)
        if layout.order_P is not None:  # the order of what attends does not matter, and bytes are the cheapest to move
            pixels_P3HW = pixels_P3HW[layout.order_P]
        angles = None
        if self.config.rope:
            angles = grid_angles(layout.rows_P, layout.columns_P, self.config.head_dim, self.config.theta)
        x_PD = self.encoder(self.embeddings(pixels_P3HW, layout), angles, layout.segments)
        return layer_norm(self.post_layernorm, x_PD)


def initialise(tower: nn.Module, n_layers: int) -> None:
    """Random weights of a deviation that keeps the size of what they multiply; less, by the depth, where a sublayer ends."""
    for name, parameter in tower.named_parameters():
        if parameter.ndim > 1:
            n_in = parameter[0].numel()
            is_last = name.endswith(("out_proj.weight", "fc2.weight"))
            is_table = "position_embedding" in name or "token_embedding" in name
            deviation = 0.02 if is_table else n_in**-0.5 * ((2 * n_layers) ** -0.5 if is_last else 1)
            nn.init.normal_(parameter, std=deviation)
        elif name.endswith("bias"):
            nn.init.zeros_(parameter)
