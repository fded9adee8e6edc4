"""Conversations as examples, and examples joined into packed rows: what a model is trained on.

A row is flat: its conversations one after another, `segments` their first tokens. Every conversation has its own positions and
never sees its neighbours (attention.py). The invariant: the tokens of pictures and videos in a row are as many as a quarter of
its patches, in the same order. Written and read as `sequence` records.

Not here: which conversations go together (learn/packing.py), in which order they come (feed.py), what a row costs (flops.py).
Legend: S tokens, V visual items, T frames of all of them, P patches, G conversations.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from kvtools.artifact import kinds
from kvtools.keye.data.chat_template import Chat, Conversation, visuals
from kvtools.keye.data.media import Media
from kvtools.keye.model.config import MERGE
from kvtools.keye.model.inputs import Example, PackedRow, Visual
from kvtools.keye.model.rope import mrope_positions
from kvtools.train import packing


def example(
    conversation: Conversation, chat: Chat, media: Media | None, *, key: str = "", tokens_per_second: int = 2
) -> Example:
    """A conversation with what it shows. Raises media.Unreadable, and ValueError for what is not of the normal form."""
    shown = _fetched(conversation, media)
    tokens, targets = chat.encode(conversation, [visual.n_tokens for visual in shown])
    places = _places(tokens, shown, chat, tokens_per_second)
    is_as_is = conversation.get("as_is") is True
    return Example(key or str(conversation.get("id", "")), tokens, targets, places, shown, is_as_is)


def prompt(
    conversation: Conversation, chat: Chat, media: Media | None, *, mode: str | None = None, tokens_per_second: int = 2
) -> Example:
    """A conversation up to where the assistant speaks next: no targets. Raises as `example`."""
    shown = _fetched(conversation, media)
    tokens = chat.prompt(conversation, [visual.n_tokens for visual in shown], mode=mode)
    place = _places(tokens, shown, chat, tokens_per_second)
    return Example(str(conversation.get("id", "")), tokens, np.zeros(len(tokens), np.uint8), place, shown)


def shortened(conversation: Conversation, chat: Chat, n_visual_tokens: Sequence[int], length: int) -> Conversation | None:
    """The conversation without as many of its last messages as leave at most `length` tokens and an answer to learn at the
    end; None where its first answer does not fit."""
    messages = list(conversation["messages"])
    ends = [n for n, message in enumerate(messages, start=1) if message["role"] == "assistant" and message.get("loss", True)]
    for end in reversed(ends):
        cut = {**conversation, "messages": messages[:end]}
        if len(chat.encode(cut, n_visual_tokens[: len(visuals(cut))])[0]) <= length:
            return cut
    return None


def join(examples: Sequence[Example]) -> PackedRow:
    """One row of some conversations, in their order."""
    shown = [visual for each in examples for visual in each.visuals]
    starts = np.cumsum([0, *map(len, examples)])[:-1]
    return PackedRow(
        np.concatenate([np.empty(0, np.int32), *(each.tokens for each in examples)]),
        np.concatenate([np.empty(0, np.uint8), *(each.targets for each in examples)]),
        starts.astype(np.int32),
        np.concatenate([np.empty((3, 0), np.int32), *(each.positions for each in examples)], axis=1),
        np.concatenate([visual.pixels_P3HW for visual in shown]) if shown else None,
        np.array([visual.grid for visual in shown], np.int32).reshape(-1, 3),
        np.concatenate([np.empty(0), *(visual.seconds for visual in shown)]),
        tuple(each.key for each in examples),
        frozenset(each.key for each in examples if each.as_is),
    )


def pack(examples: Sequence[Example], length: int, *, window: int | None = None) -> list[PackedRow]:
    """Rows of at most `length` tokens. Raises ValueError where one conversation alone is longer."""
    rows = packing.pack([len(each) for each in examples], length, window=window)
    return [join([examples[place] for place in row]) for row in rows]


def owners(row: PackedRow, visual_tokens: tuple[int, int]) -> list[int]:
    """The number of the conversation that each picture or video of a row is in. visual_tokens: ids that stand for them."""
    n_before = np.concatenate([[0], np.isin(row.tokens, visual_tokens).cumsum()])
    first_token = np.cumsum([0, *(row.grid.astype(np.int64).prod(axis=1) // MERGE**2)])[:-1]
    ends = n_before[[*row.segments[1:].tolist(), len(row)]]
    return np.searchsorted(ends, first_token, side="right").tolist()  # type: ignore[no-any-return]


def to_record(row: PackedRow) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """The tensors of a `sequence` record, and the fields to go with them."""
    tensors = {"tokens": row.tokens, "targets": row.targets, "segments": row.segments, "positions": row.positions}
    if row.pixels is not None:
        tensors |= {"pixels": row.pixels, "grid": row.grid, "seconds": row.seconds}
    return tensors, {"keys": list(row.keys), **({"as_is": sorted(row.as_is)} if row.as_is else {})}


def from_record(tensors: Mapping[str, np.ndarray], fields: Mapping[str, Any]) -> PackedRow:
    """The row of a `sequence` record. Raises ValueError where its parts do not belong together."""
    kinds.check("sequence", "stream", tensors, fields)
    starts, n = tensors["segments"], len(tensors["tokens"])
    if not len(starts) or starts[0] != 0 or (np.diff(starts) <= 0).any() or starts[-1] >= n:
        raise ValueError(f"segments: first tokens rising from 0 to below {n} expected")
    grid = tensors.get("grid", np.empty((0, 3), np.int32))
    pixels, seconds = tensors.get("pixels"), tensors.get("seconds", np.empty(0))
    n_patches = int(grid.astype(np.int64).prod(axis=1).sum())
    if (0 if pixels is None else len(pixels)) != n_patches or len(seconds) != int(grid[:, 0].sum()) or (grid <= 0).any():
        raise ValueError(f"grid: {n_patches} patches and a time a frame expected")
    keys = fields.get("keys") or [f"{fields['key']}.{n}" for n in range(len(starts))]
    if not isinstance(keys, list) or len(keys) != len(starts):
        raise ValueError(f"keys: one a conversation, {len(starts)}, expected")
    tokens, targets, places = (tensors[name] for name in ("tokens", "targets", "positions"))
    as_is = frozenset(map(str, fields.get("as_is", ())))
    return PackedRow(tokens, targets, starts, places, pixels, grid, seconds, tuple(map(str, keys)), as_is)


def _fetched(conversation: Conversation, media: Media | None) -> tuple[Visual, ...]:
    items = visuals(conversation)
    if items and media is None:
        raise ValueError(f"{len(items)} pictures and videos found, none expected where there is no place to look for them")
    return tuple(media.fetch(item) for item in items) if media is not None else ()


def _places(tokens: np.ndarray, shown: Sequence[Visual], chat: Chat, tokens_per_second: int) -> np.ndarray:
    grids = [visual.grid.tolist() for visual in shown]
    seconds = [visual.seconds for visual in shown]
    return mrope_positions(tokens, chat.image_token, chat.video_token, grids, seconds, tokens_per_second=tokens_per_second)
