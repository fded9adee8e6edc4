"""Conversations as requests: their pictures as the bytes of their files, their videos as the frames that the budget allows."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import numpy as np

from kvtools.keye.data.frames import frames_of
from kvtools.keye.data.media import Media, Unreadable
from kvtools.keye.endpoint.request import Request

Item = Mapping[str, Any]


def request_of(
    conversation: Mapping[str, Any], media: Media, sampling: Mapping[str, Any] | None = None, **more: Any
) -> Request:
    """The request that asks for the next message of a conversation in the normal form of conversations.py.

    more: as of Request. Media are read when the request is sent; one that cannot be read is a fault of its reply.
    """
    messages = [
        {"role": message["role"], "content": [_part(part, media) for part in message["content"]]}
        for message in conversation["messages"]
    ]
    return Request(messages, sampling or {}, **more)


def _part(part: Item, media: Media) -> Item:
    if part["type"] == "text":
        return part
    read: Callable[[], Any] = partial(_picture if part["type"] == "image" else _frames, part, media)
    return {"type": part["type"], part["type"]: read}


def _picture(item: Item, media: Media) -> bytes | np.ndarray:
    """The file of a picture, untouched; a frame of a video, or of a record, as a picture."""
    if "second" not in item:
        try:
            return media.file_of(item)
        except Unreadable:
            pass  # it may be a record, and else `fetch` says what is missing
    return frames_of(media.fetch(item))[0]  # type: ignore[no-any-return]


def _frames(item: Item, media: Media) -> list[np.ndarray]:
    return list(frames_of(media.fetch(item)))
