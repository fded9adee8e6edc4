"""Keye-VL for transformers, as kvtools writes it beside a model: a SigLIP tower, a projector, and Qwen3 with M-RoPE.

Self-contained: it needs torch and transformers (tested with 5.23), and no flash-attn. Weights have the names of the published
Keye-VL-8B. Inputs are those of processing_keye.py. Source: arXiv 2507.01949. Not here: training code beyond `labels`.

Legend: B rows, S tokens of a row, D width, P patches in raster order, M visual tokens.
"""

import numpy as np
import torch
from torch import nn
from torch.nn import functional as nf
from transformers import Qwen3ForCausalLM

from .configuration_keye import KeyeConfig


def rotated(x, cos, sin):
    """Each pair (j, j + X / 2) of a head, rotated by its angle. x: (P, H, X)."""
    low, high = x.float().chunk(2, dim=-1)
    return torch.cat([low * cos - high * sin, high * cos + low * sin], dim=-1).to(x.dtype)


class KeyeVisionEmbeddings(nn.Module):
    """Patches as vectors, each with the position of its row and column, interpolated to the picture's grid."""

    def __init__(self, config):
        super().__init__()
        self.config, self.side = config, config.image_size // config.patch_size
        self.patch_embedding = nn.Conv2d(config.num_channels, config.hidden_size, config.patch_size, config.patch_size)
        self.position_embedding = nn.Embedding(self.side**2, config.hidden_size)

    def forward(self, pixels, grids):
        """pixels: (P, 3, patch, patch), from -1 to 1. Returns (P, D)."""
        patches = self.patch_embedding(pixels).flatten(1)
        return patches + torch.cat([self.positions(t, h, w) for t, h, w in grids]).to(patches.dtype)

    def positions(self, n_frames, n_rows, n_columns):
        """The position embeddings of one picture or video, (P, D)."""
        table = self.position_embedding.weight
        if not self.config.interpolate:
            order = torch.arange(n_rows * n_columns, device=table.device).clamp(max=len(table) - 1)
            return table[order].repeat(n_frames, 1)
        square = table.float().view(1, self.side, self.side, -1).permute(0, 3, 1, 2)
        grid = nf.interpolate(square, (n_rows, n_columns), mode="bilinear", align_corners=False)
        return grid[0].flatten(1).T.repeat(n_frames, 1)


class KeyeVisionAttention(nn.Module):
    """Every patch of a segment attends to all of it."""

    def __init__(self, config):
        super().__init__()
        self.n_heads = config.num_attention_heads
        width = config.hidden_size
        self.k_proj, self.v_proj, self.q_proj, self.out_proj = (nn.Linear(width, width) for _ in range(4))

    def forward(self, x, rotation, lengths):
        """x: (P, D). lengths: patches of each segment."""
        q, k, v = (layer(x).view(len(x), self.n_heads, -1) for layer in (self.q_proj, self.k_proj, self.v_proj))
        if rotation is not None:
            q, k = rotated(q, *rotation), rotated(k, *rotation)
        segments = zip(*(part.split(lengths) for part in (q, k, v)), strict=True)
        attended = [nf.scaled_dot_product_attention(*(y.transpose(0, 1)[None] for y in segment)) for segment in segments]
        return self.out_proj(torch.cat([y[0].transpose(0, 1) for y in attended]).flatten(1))


class KeyeVisionMLP(nn.Module):
    """Two matrices and a GELU, in its tanh form."""

    def __init__(self, config):
        super().__init__()
        self.fc1 = nn.Linear(config.hidden_size, config.intermediate_size)
        self.fc2 = nn.Linear(config.intermediate_size, config.hidden_size)

    def forward(self, x):
        """(P, D) to (P, D)."""
        return self.fc2(nf.gelu(self.fc1(x), approximate="tanh"))


class KeyeVisionLayer(nn.Module):
    """One of the tower's layers."""

    def __init__(self, config):
        super().__init__()
        self.layer_norm1 = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.self_attn = KeyeVisionAttention(config)
        self.layer_norm2 = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.mlp = KeyeVisionMLP(config)

    def forward(self, x, rotation, lengths):
        """(P, D) to (P, D)."""
        x = x + self.self_attn(self.layer_norm1(x), rotation, lengths)
        return x + self.mlp(self.layer_norm2(x))


class KeyeVisionTower(nn.Module):
    """Patches of pictures and videos of any sizes to vectors."""

    def __init__(self, config):
        super().__init__()
        self.config = config
        self.embeddings = KeyeVisionEmbeddings(config)
        self.encoder = nn.Module()  # only a name of published checkpoints
        self.encoder.layers = nn.ModuleList(KeyeVisionLayer(config) for _ in range(config.num_hidden_layers))
        self.post_layernorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)

    def forward(self, pixels, grids):
        """grids: frames, rows and columns of each item. Returns (P, D)."""
        lengths = [n for t, h, w in grids for n in ([t * h * w] if self.config.joint else [h * w] * t)]
        rotation = self.rotation(grids, pixels.device) if self.config.rope else None
        x = self.embeddings(pixels, grids)
        for layer in self.encoder.layers:
            x = layer(x, rotation, lengths)
        return self.post_layernorm(x)

    def rotation(self, grids, device):
        """Cosines and sines, (P, 1, X / 2): half of the angles are of the patch's row, half of its column."""
        half = self.config.hidden_size // self.config.num_attention_heads // 2
        frequency = 1.0 / self.config.rope_theta ** (torch.arange(0, half, 2, dtype=torch.float32, device=device) / half)
        places = [torch.cartesian_prod(torch.arange(h), torch.arange(w)).repeat(t, 1) for t, h, w in grids]
        angles = (torch.cat(places).to(device)[..., None].float() * frequency).flatten(1)[:, None]
        return angles.cos(), angles.sin()


class KeyeProjector(nn.Module):
    """Blocks of merge x merge patches to visual tokens of the decoder's width."""

    def __init__(self, config):
        super().__init__()
        self.merge = config.vision_config.spatial_merge_size
        width = config.vision_config.hidden_size
        self.pre_norm = nn.LayerNorm(width, eps=1e-5)
        self.linear_1 = nn.Linear(width * self.merge**2, width * self.merge**2)
        self.linear_2 = nn.Linear(width * self.merge**2, config.hidden_size)

    def forward(self, x, grids):
        """(P, D of the tower) to (M, D of the decoder)."""
        blocks = []
        for item, (t, h, w) in zip(self.pre_norm(x).split([t * h * w for t, h, w in grids]), grids, strict=True):
            block = item.view(t, h // self.merge, self.merge, w // self.merge, self.merge, -1).transpose(2, 3)
            blocks.append(block.reshape(t * h * w // self.merge**2, -1))
        return self.linear_2(nf.gelu(self.linear_1(torch.cat(blocks))))


class KeyeRotaryEmbedding(nn.Module):
    """M-RoPE: of the angles of a head the first are of time, the next of the row, the last of the column."""

    def __init__(self, config):
        super().__init__()
        self.base, self.head_dim = config.rope_base, config.head_dim
        side = self.head_dim // 2 * 3 // 8
        self.sections = [self.head_dim // 2 - 2 * side, side, side]
        self.positions = None  # (3, B, S), which the model sets before each call of the decoder

    def forward(self, x, position_ids):
        """Cosines and sines, (B, S, X) each. position_ids: (B, S), for text without `positions`."""
        positions = position_ids.expand(3, *position_ids.shape) if self.positions is None else self.positions
        exponent = torch.arange(0, self.head_dim, 2, dtype=torch.float32, device=x.device) / self.head_dim
        parts = torch.split(1.0 / self.base**exponent, self.sections)
        angles = torch.cat([axis[..., None].float() * part for axis, part in zip(positions, parts, strict=True)], dim=-1)
        angles = torch.cat([angles, angles], dim=-1)
        return angles.cos().to(x.dtype), angles.sin().to(x.dtype)


class KeyeForConditionalGeneration(Qwen3ForCausalLM):
    """The whole model. pixel_values and the other visual inputs are those of KeyeProcessor."""

    config_class = KeyeConfig
    input_modalities = ("image", "video", "text")
    main_input_name = "input_ids"
    # published tensors that the published model does not compute with
    _keys_to_ignore_on_load_unexpected = [r"packing_position_embedding", r"vision_model\.head\.", r"position_ids"]

    def __init__(self, config):
        super().__init__(config)
        self.visual = nn.Module()  # only a name of published checkpoints
        self.visual.vision_model = KeyeVisionTower(config.vision_config)
        self.mlp_AR = KeyeProjector(config)
        self.model.rotary_emb = KeyeRotaryEmbedding(config)
        self.rope_deltas = None  # (B, 1): by how much the position after a prompt differs from its number of tokens
        self.post_init()

    def get_image_features(self, pixel_values, image_grid_thw):
        """Visual tokens of pictures or videos, (M, D)."""
        grids = [tuple(grid) for grid in torch.as_tensor(image_grid_thw).tolist()]
        tower = self.visual.vision_model
        pixels = pixel_values.to(tower.post_layernorm.weight.device, tower.embeddings.patch_embedding.weight.dtype)
        return self.mlp_AR(tower(pixels.flatten(0, -4), grids), grids)

    def forward(
        self, input_ids=None, attention_mask=None, position_ids=None, past_key_values=None, inputs_embeds=None, labels=None,
        pixel_values=None, image_grid_thw=None, pixel_values_videos=None, video_grid_thw=None, second_per_grid_ts=None,
        video_seconds=None, **kwargs,
    ):  # fmt: skip
        """position_ids: (3, B, S), by default computed. Other arguments as Qwen3's, and KeyeProcessor's outputs."""
        n_past = int(past_key_values.get_seq_length()) if past_key_values is not None else 0
        if inputs_embeds is None:
            inputs_embeds = self.get_input_embeddings()(input_ids)
        if n_past == 0:
            for pixels, grid, token in (
                (pixel_values, image_grid_thw, self.config.image_token_id),
                (pixel_values_videos, video_grid_thw, self.config.video_token_id),
            ):
                if pixels is not None:
                    is_item = (input_ids == token)[..., None].expand_as(inputs_embeds)
                    found = self.get_image_features(pixels, grid).to(inputs_embeds)
                    if int(is_item.sum()) != found.numel():
                        n_tokens = int((input_ids == token).sum())
                        raise ValueError(f"input_ids have {n_tokens} visual tokens, and {len(found)} were encoded")
                    inputs_embeds = inputs_embeds.masked_scatter(is_item, found)
        if position_ids is None or position_ids.ndim != 3:
            times = video_seconds if video_seconds is not None else second_per_grid_ts
            visual = image_grid_thw, video_grid_thw, times
            position_ids = self.positions(input_ids, inputs_embeds, attention_mask, n_past, visual)
        self.model.rotary_emb.positions = position_ids
        return super().forward(
            attention_mask=attention_mask, past_key_values=past_key_values, inputs_embeds=inputs_embeds, labels=labels, **kwargs
        )

    def positions(self, input_ids, inputs_embeds, attention_mask, n_past, visual):
        """(3, B, S): those of a prompt, or of tokens after it."""
        n_rows, n_tokens = inputs_embeds.shape[:2]
        if n_past and self.rope_deltas is not None:
            new = torch.arange(n_past, n_past + n_tokens, device=inputs_embeds.device) + self.rope_deltas.to(
                inputs_embeds.device
            )
            return new.expand(3, n_rows, n_tokens)
        if input_ids is None:
            return torch.arange(n_past, n_past + n_tokens, device=inputs_embeds.device).expand(3, n_rows, n_tokens)
        is_kept = torch.ones_like(input_ids, dtype=torch.bool)
        if attention_mask is not None and attention_mask.shape == input_ids.shape:
            is_kept = attention_mask.bool()
        found, self.rope_deltas = self.get_rope_index(input_ids, *visual, is_kept)
        return found

    def get_rope_index(self, input_ids, image_grid_thw, video_grid_thw, times, is_kept):
        """Positions of whole prompts, (3, B, S), 1 where a row is padded; and (B, 1), what follows them less S.

        times: the seconds between the frames of each video, or the second of each frame of all videos.
        """
        images = iter([(grid, np.zeros(1)) for grid in _rows(image_grid_thw)])
        videos = iter(list(zip(_rows(video_grid_thw), _seconds(_rows(video_grid_thw), times), strict=True)))
        positions, next_ = torch.ones(3, *input_ids.shape, dtype=torch.long), []
        for row, (ids, kept) in enumerate(zip(input_ids.cpu(), is_kept.cpu(), strict=True)):
            found = self._row_positions(ids[kept].numpy(), images, videos)
            positions[:, row, kept] = torch.from_numpy(found)
            next_.append(int(found.max()) + 1 if found.size else 0)
        deltas = torch.tensor(next_)[:, None] - input_ids.shape[1]
        return positions.to(input_ids.device), deltas.to(input_ids.device)

    def _row_positions(self, ids, images, videos):
        """int64 (3, S) of one row without padding; takes its items from the iterators."""
        config = self.config
        visual = np.flatnonzero((ids == config.image_token_id) | (ids == config.video_token_id))
        parts, token, position = [], 0, 0
        while token < len(ids):
            ahead = visual[visual >= token]
            end = int(ahead[0]) if len(ahead) else len(ids)
            parts.append(np.broadcast_to(np.arange(position, position + end - token), (3, end - token)))
            token, position = end, position + end - token
            if len(ahead):
                (_, h, w), seconds = next(images if ids[token] == config.image_token_id else videos)
                merge = config.vision_config.spatial_merge_size
                frame = ((seconds - seconds[0]).astype(np.float32) * np.float32(config.vision_config.tokens_per_second)).astype(
                    int
                )
                item = np.stack(np.meshgrid(frame, np.arange(h // merge), np.arange(w // merge), indexing="ij")).reshape(3, -1)
                parts.append(item + position)
                token, position = token + item.shape[1], int(parts[-1].max()) + 1
        return np.concatenate([np.zeros((3, 0), int), *parts], axis=1)

    def _expand_inputs_for_generation(self, expand_size=1, is_encoder_decoder=False, input_ids=None, **kwargs):
        """Repeat each row for beams and several answers; visual inputs are repeated with their row, an item at a time."""
        if expand_size == 1 or input_ids is None:
            return input_ids, kwargs
        for kind, token in (("image", self.config.image_token_id), ("video", self.config.video_token_id)):
            grid, pixels = f"{kind}_grid_thw", "pixel_values" if kind == "image" else "pixel_values_videos"
            if kwargs.get(grid) is not None:
                order = self._item_order(input_ids == token, _rows(kwargs[grid]), expand_size)
                sizes = [t * h * w for t, h, w in _rows(kwargs[grid])]
                items = kwargs[pixels].split(sizes)
                times = kwargs.get("video_seconds") if kind == "video" else None
                if times is not None:
                    of_items = torch.as_tensor(times).split([t for t, _, _ in _rows(kwargs[grid])])
                    kwargs["video_seconds"] = torch.cat([of_items[i] for i in order])
                if kind == "video" and kwargs.get("second_per_grid_ts") is not None:
                    kwargs["second_per_grid_ts"] = torch.as_tensor(kwargs["second_per_grid_ts"])[order]
                kwargs[pixels], kwargs[grid] = torch.cat([items[i] for i in order]), kwargs[grid][order]
        visual = (
            "pixel_values",
            "image_grid_thw",
            "pixel_values_videos",
            "video_grid_thw",
            "second_per_grid_ts",
            "video_seconds",
        )
        kept = {name: kwargs.pop(name) for name in visual if name in kwargs}
        input_ids, kwargs = super()._expand_inputs_for_generation(expand_size, is_encoder_decoder, input_ids, **kwargs)
        return input_ids, {**kwargs, **kept}

    def _item_order(self, is_item, grids, expand_size):
        """The numbers of the items in the order of the repeated rows."""
        merge = self.config.vision_config.spatial_merge_size**2
        order, number = [], 0
        for n_tokens in is_item.sum(1).tolist():
            mine, n_left = [], n_tokens
            while n_left > 0:
                n_left -= int(np.prod(grids[number])) // merge
                mine.append(number)
                number += 1
            order += mine * expand_size
        return order


def _rows(grid):
    return [] if grid is None else torch.as_tensor(grid).tolist()


def _seconds(grids, times):
    """The seconds of each video's frames. times: as get_rope_index; None: a frame a second, as published."""
    n_frames = [t for t, _, _ in grids]
    if times is None:
        return [np.arange(n, dtype=np.float64) for n in n_frames]
    times = torch.as_tensor(times, dtype=torch.float64).cpu().numpy()
    if len(times) == len(n_frames) and len(times) != sum(n_frames):
        return [np.arange(n) * time for n, time in zip(n_frames, times, strict=True)]
    return np.split(times, np.cumsum(n_frames)[:-1])
