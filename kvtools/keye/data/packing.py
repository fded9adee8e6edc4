"""Examples joined into packed rows, and rows written and read as `sequence` records.

A row is flat: its conversations one after another, `segments` their first tokens. Every conversation has its own positions and
never attends to its neighbours (model/attention.py). The invariant: a row has one visual token for MERGE x MERGE of its
patches, in the same order. A row may hold references in place of its patches (references.py); its grids and times stand in it.

Not here: how a conversation becomes an example (processor.py), which rows an epoch has (dataloader.py), what a row costs
(model/flops.py). Legend: S tokens, V pictures and videos, G conversations.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from kvtools.artifact import kinds
from kvtools.keye.model.config import MERGE, ModelConfig
from kvtools.keye.model.inputs import Example, PackedRow, Visual
from kvtools.train import packing


def collate(examples: Sequence[Example]) -> PackedRow:
    """One row of these conversations, in their order."""
    visuals = [visual for example in examples for visual in example.visuals]
    starts = np.cumsum([0, *map(len, examples)])[:-1]
    return PackedRow(
        np.concatenate([np.empty(0, np.int32), *(example.tokens for example in examples)]),
        np.concatenate([np.empty(0, np.uint8), *(example.targets for example in examples)]),
        starts.astype(np.int32),
        np.concatenate([np.empty((3, 0), np.int32), *(example.positions for example in examples)], axis=1),
        _patches(visuals),
        np.array([visual.grid for visual in visuals], np.int32).reshape(-1, 3),
        np.concatenate([np.empty(0), *(visual.seconds for visual in visuals)]),
        tuple(example.key for example in examples),
        frozenset(example.key for example in examples if example.as_is),
    )


def joined(row: PackedRow, other: PackedRow) -> PackedRow:
    """The conversations of both, in one row; their pictures and videos are read."""
    pixels = [x.pixels for x in (row, other) if x.pixels is not None]
    return PackedRow(
        np.concatenate([row.tokens, other.tokens]),
        np.concatenate([row.targets, other.targets]),
        np.concatenate([row.segments, other.segments + np.int32(len(row))]),
        np.concatenate([row.positions, other.positions], axis=1),
        np.concatenate(pixels) if pixels else None,
        np.concatenate([row.grid, other.grid]),
        np.concatenate([row.seconds, other.seconds]),
        (*row.keys, *other.keys),
        row.as_is | other.as_is,
    )


def filler_row(config: ModelConfig) -> PackedRow:
    """A row of one conversation that is a small black picture and nothing else, to compute with where there is nothing to
    learn."""
    pixels = np.zeros((MERGE**2, 3, config.vision.patch, config.vision.patch), np.uint8)
    picture = Visual(pixels, np.array([1, MERGE, MERGE], np.int32), np.zeros(1), is_video=False)
    tokens = np.array([config.image_token], np.int32)
    return collate([Example("", tokens, np.zeros(1, np.uint8), np.zeros((3, 1), np.int32), (picture,))])


def with_patches(row: PackedRow, visuals: Sequence[Visual]) -> PackedRow:
    """The row with the patches of these pictures and videos in place of references to them."""
    return replace(row, pixels=_patches(visuals), references=())


def by_reference(row: PackedRow, references: Sequence[Mapping[str, Any]]) -> PackedRow:
    """The row with references, one a picture or video, in place of patches."""
    return replace(row, pixels=None, references=tuple(references))


def _patches(visuals: Sequence[Visual]) -> np.ndarray | None:
    return np.concatenate([visual.pixels_P3HW for visual in visuals]) if visuals else None


def pack(examples: Sequence[Example], length: int, *, window: int | None = None) -> list[PackedRow]:
    """Rows of at most `length` tokens; window: how many neighbours are packed together, by default all.

    Raises ValueError for a conversation that alone is longer.
    """
    rows = packing.pack([len(example) for example in examples], length, window=window)
    return [collate([examples[index] for index in row]) for row in rows]


def conversation_indices(row: PackedRow, visual_tokens: tuple[int, int]) -> list[int]:
    """For each of the V pictures and videos, which of the row's conversations it is in.

    visual_tokens: the ids of image tokens and of video tokens.
    """
    n_before = np.concatenate([[0], np.isin(row.tokens, visual_tokens).cumsum()])
    first_token = np.cumsum([0, *(row.grid.astype(np.int64).prod(axis=1) // MERGE**2)])[:-1]
    ends = n_before[[*row.segments[1:].tolist(), len(row)]]
    return np.searchsorted(ends, first_token, side="right").tolist()  # type: ignore[no-any-return]


def to_record(row: PackedRow) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """The tensors of a `sequence` record, and the JSON fields that go with them."""
    tensors = {"tokens": row.tokens, "targets": row.targets, "segments": row.segments, "positions": row.positions}
    if row.pixels is not None:
        tensors["pixels"] = row.pixels
    if len(row.grid):
        tensors |= {"grid": row.grid, "seconds": row.seconds}
    lists = {"as_is": sorted(row.as_is), "references": list(row.references)}
    return tensors, {"keys": list(row.keys), **{name: values for name, values in lists.items() if values}}


def from_record(tensors: Mapping[str, np.ndarray], fields: Mapping[str, Any]) -> PackedRow:
    """The row of a `sequence` record. Raises ValueError where its parts do not belong together."""
    kinds.check("sequence", "stream", tensors, fields)
    segments, n_tokens = tensors["segments"], len(tensors["tokens"])
    if not len(segments) or segments[0] != 0 or (np.diff(segments) <= 0).any() or segments[-1] >= n_tokens:
        raise ValueError(f"segments are {segments.tolist()[:8]}, and must rise from 0 to below the {n_tokens} tokens")
    grid = tensors.get("grid", np.empty((0, 3), np.int32))
    pixels, seconds = tensors.get("pixels"), tensors.get("seconds", np.empty(0))
    n_patches, n_frames = int(grid.astype(np.int64).prod(axis=1).sum()), int(grid[:, 0].sum())
    references = fields.get("references") or ()
    if references:
        _require_references(references, len(grid), has_pixels=pixels is not None)
    n_found = n_patches if references else 0 if pixels is None else len(pixels)
    if n_found != n_patches or len(seconds) != n_frames or (grid <= 0).any():
        raise ValueError(f"{n_found} patches and {len(seconds)} times, and grid needs {n_patches} patches and {n_frames} times")
    keys = fields.get("keys") or [f"{fields['key']}.{n}" for n in range(len(segments))]
    if not isinstance(keys, list) or len(keys) != len(segments):
        raise ValueError(f"keys are {str(keys)[:80]}, and the {len(segments)} conversations need one each")
    as_is = frozenset(map(str, fields.get("as_is", ())))
    tokens, targets, positions = tensors["tokens"], tensors["targets"], tensors["positions"]
    return PackedRow(
        tokens, targets, segments, positions, pixels, grid, seconds, tuple(map(str, keys)), as_is, tuple(references)
    )  # fmt: skip


def _require_references(references: Any, n_visuals: int, *, has_pixels: bool) -> None:
    """Raise ValueError unless there is one reference a picture or video, and no patches beside them."""
    is_one = lambda part: isinstance(part, dict) and part.get("type") in ("image", "video") and part["type"] in part
    if not (isinstance(references, list) and all(map(is_one, references))):
        raise ValueError(f"references are {str(references)[:80]}, and each must be a picture or a video with its source")
    if has_pixels or len(references) != n_visuals:
        raise ValueError(
            f"references are {len(references)} and grids {n_visuals}, and each needs one of the other and no patches"
        )
