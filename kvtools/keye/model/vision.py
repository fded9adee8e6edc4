"""The vision tower: patches of images and videos at their own size, packed, to one vector a patch.

Source: SigLIP (arXiv 2303.15343) with Keye-VL's changes (spec/keye.md 1.3): positions interpolated to each grid, rotary
embeddings of row and column, attention within an item. Names of weights are those of the published checkpoints.

Not here: videos to patches (kvtools.video), patches to visual tokens (projector.py). Legend: P patches, V visual items, D
width, H heads, X width of a head, R and C rows and columns of a grid, Y and X rows and columns of the table.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as nf

from kvtools.keye.model.attention import Segments, attend
from kvtools.keye.model.config import TextConfig, VisionConfig
from kvtools.keye.model.cpu_kernels import linear_gelu
from kvtools.keye.model.layers import layer_norm, matmul_dtype, run_layer
from kvtools.keye.model.rope import RotaryAngles, apply_rotary, grid_angles

Grids = Sequence[tuple[int, int, int]]


@dataclass(frozen=True)
class Layout:
    """Where patches stand: row and column of each, the segments that attend, and grids by what positions they share."""

    rows_P: Tensor
    columns_P: Tensor
    segments: Segments
    grids: Grids
    merge: int


def block_order(n_rows: int, n_columns: int, merge: int) -> Tensor:
    """The raster numbers of a frame's patches, block after block of merge x merge: (rows * columns,)."""
    number = torch.arange(n_rows * n_columns)
    blocks = number.view(n_rows // merge, merge, n_columns // merge, merge).transpose(1, 2)
    return blocks.reshape(-1)


def layout(grids: Grids, *, joint: bool, merge: int = 1, device: torch.device | str = "cpu") -> Layout:
    """The layout of items of those grids (frames, rows, columns); with merge, patches come block by block within a frame.

    Raises ValueError for a grid that is empty, or whose sides merge does not divide.
    """
    rows, columns, starts, place = [], [], [], 0
    for number, (n_frames, n_rows, n_columns) in enumerate(grids):
        if min(n_frames, n_rows, n_columns) < 1 or n_rows % merge or n_columns % merge:
            raise ValueError(
                f"visual item {number}: a grid of {n_frames}, {n_rows}, {n_columns} found, sides divisible by {merge} expected"
            )
        order = block_order(n_rows, n_columns, merge)
        rows.append((order // n_columns).repeat(n_frames))
        columns.append((order % n_columns).repeat(n_frames))
        n_patches = n_rows * n_columns
        starts += [place] if joint else [place + frame * n_patches for frame in range(n_frames)]
        place += n_frames * n_patches
    segments = Segments.of(starts, place, device)
    return Layout(torch.cat(rows).to(device), torch.cat(columns).to(device), segments, grids, merge)


class Embeddings(nn.Module):
    """Pixels to vectors, and where each patch stands."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.config = config
        self.patch_embedding = nn.Conv2d(3, config.width, config.patch, config.patch)
        self.position_embedding = nn.Embedding(config.table_side**2, config.width)

    def forward(self, pixels_P3HW: Tensor, where: Layout) -> Tensor:
        """uint8 (P, 3, patch, patch), or floats on the same scale from 0 to 255: (P, D)."""
        # (x / 255 - 0.5) / 0.5 is (x - 127.5) / 127.5: the difference is exact even in bfloat16, the weight is what is divided
        weight = self.patch_embedding.weight.flatten(1)
        dtype = matmul_dtype(weight)
        centred_PX = pixels_P3HW.flatten(1).to(dtype) - 127.5
        seen_PD = nf.linear(centred_PX, weight / 127.5, self.patch_embedding.bias)
        return seen_PD + self.positions(where)

    def positions(self, where: Layout) -> Tensor:
        """What the table says of each patch's place, (P, D)."""
        table, side = self.position_embedding.weight, self.config.table_side
        if not self.config.interpolate:
            width_P = torch.cat([where.columns_P.new_full((t * h * w,), w) for t, h, w in where.grids])
            return nf.embedding((where.rows_P * width_P + where.columns_P).clamp(max=side * side - 1), table)
        made: dict[tuple[int, int], Tensor] = {}
        parts = []
        for n_frames, n_rows, n_columns in where.grids:
            if (n_rows, n_columns) not in made:
                grid_RCD = _stretched(table.view(side, side, -1), n_rows, n_columns)
                merge = where.merge
                blocks = grid_RCD.reshape(n_rows // merge, merge, n_columns // merge, merge, -1).transpose(1, 2)
                made[n_rows, n_columns] = blocks.reshape(n_rows * n_columns, -1)
            parts.append(made[n_rows, n_columns].repeat(n_frames, 1))
        return torch.cat(parts)


def _stretched(table_YXD: Tensor, n_rows: int, n_columns: int) -> Tensor:
    """Bilinear interpolation of the table, its corners not aligned: (rows, columns, D). Two products: gradients are cheap."""
    side = table_YXD.shape[0]
    if n_rows != side:
        table_YXD = (_weights(side, n_rows, table_YXD) @ table_YXD.flatten(1)).view(n_rows, side, -1)
    return _weights(side, n_columns, table_YXD) @ table_YXD if n_columns != side else table_YXD


def _weights(n_from: int, n_to: int, like: Tensor) -> Tensor:
    """How much of each old place is in each new one, (n_to, n_from); two numbers a row, which sum to 1."""
    place = ((torch.arange(n_to, dtype=torch.float64) + 0.5) * (n_from / n_to) - 0.5).clamp(0, n_from - 1)
    weights = (1 - (place[:, None] - torch.arange(n_from)).abs()).clamp(min=0)
    return weights.to(like.device, like.dtype)


class SelfAttention(nn.Module):
    """Every patch of a segment sees all of it."""

    def __init__(self, config: VisionConfig | TextConfig) -> None:
        super().__init__()
        self.n_heads = config.heads
        self.k_proj, self.v_proj, self.q_proj, self.out_proj = (nn.Linear(config.width, config.width) for _ in range(4))

    def forward(self, x_PD: Tensor, angles: RotaryAngles | None, segments: Segments) -> Tensor:
        n_patches = len(x_PD)
        q, k, v = (layer(x_PD).view(n_patches, self.n_heads, -1) for layer in (self.q_proj, self.k_proj, self.v_proj))
        if angles is not None:
            q, k = apply_rotary(q, angles).to(v.dtype), apply_rotary(k, angles).to(v.dtype)
        out: Tensor = self.out_proj(attend(q, k, v, segments, is_causal=False).flatten(1))
        return out


class Feed(nn.Module):
    """Two matrices and a GELU, in its tanh form."""

    def __init__(self, config: VisionConfig | TextConfig) -> None:
        super().__init__()
        self.fc1 = nn.Linear(config.width, config.hidden)
        self.fc2 = nn.Linear(config.hidden, config.width)

    def forward(self, x_PD: Tensor) -> Tensor:
        out: Tensor = self.fc2(linear_gelu(x_PD, self.fc1.weight, self.fc1.bias, tanh=True))
        return out


class Block(nn.Module):
    """One of SigLIP's layers, of either tower: x + attention(norm(x)), then x + feed(norm(x))."""

    def __init__(self, config: VisionConfig | TextConfig) -> None:
        super().__init__()
        self.layer_norm1 = nn.LayerNorm(config.width, eps=config.eps)
        self.self_attn = SelfAttention(config)
        self.layer_norm2 = nn.LayerNorm(config.width, eps=config.eps)
        self.mlp = Feed(config)

    def forward(self, x_PD: Tensor, angles: RotaryAngles | None, segments: Segments) -> Tensor:
        x_PD = x_PD + self.self_attn(layer_norm(self.layer_norm1, x_PD), angles, segments)
        out: Tensor = x_PD + self.mlp(layer_norm(self.layer_norm2, x_PD))
        return out


class Encoder(nn.Module):
    """The layers of a tower."""

    def __init__(self, config: VisionConfig | TextConfig) -> None:
        super().__init__()
        self.checkpointing = False
        self.layers = nn.ModuleList(Block(config) for _ in range(config.layers))

    def forward(self, x_PD: Tensor, angles: RotaryAngles | None, segments: Segments) -> Tensor:
        for layer in self.layers:
            x_PD = run_layer(layer, x_PD, angles, segments, is_checkpointed=self.checkpointing)
        return x_PD


class VisionTower(nn.Module):
    """SigLIP's vision model without its head (matching.py has one)."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.config = config
        self.embeddings = Embeddings(config)
        self.encoder = Encoder(config)
        self.post_layernorm = nn.LayerNorm(config.width, eps=config.eps)
        initialise(self, config.layers)

    def forward(self, pixels_P3HW: Tensor, grids: Grids, *, merge: int = 1) -> Tensor:
        """(P, D) after the last norm, in the order of the patches; with merge, block by block within each frame.

        Raises ValueError where the pixels are not as many as the grids' patches.
        """
        grids = [(int(t), int(h), int(w)) for t, h, w in grids]
        n_patches = sum(t * h * w for t, h, w in grids)
        side = self.config.patch
        if tuple(pixels_P3HW.shape) != (n_patches, 3, side, side):
            raise ValueError(f"pixels {tuple(pixels_P3HW.shape)} found, {(n_patches, 3, side, side)} of the grids expected")
        where = layout(grids, joint=self.config.joint, merge=merge, device=pixels_P3HW.device)
        if merge > 1:  # the order of what attends does not matter; bytes are the cheapest to move
            orders, place = [], 0
            for n_frames, n_rows, n_columns in grids:
                first = place + torch.arange(n_frames)[:, None] * n_rows * n_columns
                orders.append((first + block_order(n_rows, n_columns, merge)).flatten())
                place += n_frames * n_rows * n_columns
            pixels_P3HW = pixels_P3HW[torch.cat(orders).to(pixels_P3HW.device)]
        angles = None
        if self.config.rope:
            angles = grid_angles(where.rows_P, where.columns_P, self.config.head_dim, self.config.theta)
        x_PD = self.encoder(self.embeddings(pixels_P3HW, where), angles, where.segments)
        return layer_norm(self.post_layernorm, x_PD)


def initialise(tower: nn.Module, n_layers: int) -> None:
    """Weights of a deviation that keeps the size of what they multiply; those that end a sublayer less, by the depth."""
    for name, parameter in tower.named_parameters():
        if parameter.ndim > 1:
            n_in = parameter[0].numel()
            is_last = name.endswith(("out_proj.weight", "fc2.weight"))
            is_table = "position_embedding" in name or "token_embedding" in name
            deviation = 0.02 if is_table else n_in**-0.5 * ((2 * n_layers) ** -0.5 if is_last else 1)
            nn.init.normal_(parameter, std=deviation)
        elif name.endswith("bias"):
            nn.init.zeros_(parameter)
