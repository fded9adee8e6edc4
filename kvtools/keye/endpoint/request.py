"""What is asked of a server, and what comes back.

Messages are those of conversations: {"role", "content"}, the content a string or a list of parts. A part is
{"type": "text", "text"}, {"type": "image", "image": picture} or {"type": "video", "video": [picture, …]}, whose frames are sent
as pictures, one after the other. A picture is uint8 (H, W, 3), the bytes of a file, a path, or a data: URL; or a function gives
the picture, or the list of frames. Files are read when the request is sent, so that a long list of requests is small.

Not here: which frames of a video are shown, and what the reply means.
"""

import base64
import hashlib
import io
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

Message = Mapping[str, Any]

# what servers take as it is, by the first bytes of the file; other pictures are sent as PNG
_SIGNATURES = {b"\x89PNG\r\n\x1a\n": "png", b"\xff\xd8\xff": "jpeg", b"GIF8": "gif"}
_FRAME_QUALITY = 95  # of JPEG, for frames that were in a compressed video


@dataclass(frozen=True)
class Request:
    """One question. sampling: fields of the protocol, such as temperature and max_tokens.

    accept: whether a text is an answer; one that is not is asked for again, up to `tries` times in all. temperature_step: each
    further try is hotter by so much, up to 2 (the evaluator of KC-MMBench has 0.5, and 5 tries). tag: tells equal
    questions apart that shall each have an answer of their own.
    """

    messages: Sequence[Message]
    sampling: Mapping[str, Any] = field(default_factory=dict)
    accept: Callable[[str], bool] | None = None
    tries: int = 5
    temperature_step: float = 0.0
    tag: str = ""

    def key(self, model: str | None) -> str:
        """A digest of all that the answer depends on, the bytes of the pictures included, and not the server.

        Raises ValueError, with the path, for a file that cannot be read.
        """
        messages = [{"role": m["role"], "content": _digested(m["content"])} for m in self.messages]
        asked = [model or "", messages, dict(self.sampling), self.temperature_step, self.tag]
        return hashlib.blake2b(json.dumps(asked, sort_keys=True).encode(), digest_size=16).hexdigest()

    def wire_messages(self) -> list[dict[str, Any]]:
        """The messages as the protocol has them, pictures in base64. Raises ValueError for one that cannot be read."""
        return [{"role": m["role"], "content": _on_the_wire(m["content"])} for m in self.messages]

    def temperature(self, n_tries: int) -> float | None:
        """The temperature after so many tries; None where the server's default holds."""
        asked = self.sampling.get("temperature")
        if not (self.temperature_step and n_tries):
            return asked
        return min(2.0, (asked or 0.0) + self.temperature_step * n_tries)


@dataclass(frozen=True)
class Reply:
    """What came back for request `index`. fault: why there is no answer, as a clause; `text` is then the last one that was not
    accepted, or empty. is_unreadable: a picture cannot be read, and nothing was asked. seconds: of the calls, without waiting.
    n_calls: of this run, 0 for an answer of the cache."""

    index: int
    text: str
    fault: str | None = None
    finish: str = ""
    prompt_tokens: int = 0
    answer_tokens: int = 0
    temperature: float | None = None
    seconds: float = 0.0
    n_calls: int = 0
    is_unreadable: bool = False


def _digested(content: Any) -> Any:
    if isinstance(content, str):
        return content
    return [part["text"] if part["type"] == "text" else [part["type"], *map(_digest, _pictures(part))] for part in content]


def _digest(picture: Any) -> str:
    data = picture.tobytes() + str(picture.shape).encode() if isinstance(picture, np.ndarray) else _file_bytes(picture)
    return hashlib.blake2b(data, digest_size=16).hexdigest()


def _on_the_wire(content: Any) -> Any:
    return content if isinstance(content, str) else [wired for part in content for wired in _wired(part)]


def _wired(part: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    if part["type"] == "text":
        yield {"type": "text", "text": part["text"]}
        return
    for picture in _pictures(part):
        yield {"type": "image_url", "image_url": {"url": _data_url(picture, is_frame=part["type"] == "video")}}


def _pictures(part: Mapping[str, Any]) -> Sequence[Any]:
    source = part[part["type"]]
    source = source() if callable(source) else source
    if part["type"] == "video" and isinstance(source, str | bytes):
        raise ValueError("a video is sent as a list of its frames")
    return [source] if part["type"] == "image" else source


def _file_bytes(picture: str | bytes) -> bytes:
    if isinstance(picture, bytes):
        return picture
    if picture.startswith("data:"):
        return picture.encode()
    try:
        return Path(picture).read_bytes()
    except OSError as error:
        raise ValueError(f"{picture}: {(error.strerror or str(error)).lower()}") from None


def _data_url(picture: Any, *, is_frame: bool) -> str:
    if isinstance(picture, str) and picture.startswith("data:"):
        return picture
    if not isinstance(picture, np.ndarray):
        data = _file_bytes(picture)
        suffix = next((suffix for begin, suffix in _SIGNATURES.items() if data.startswith(begin)), None)
        if data.startswith(b"RIFF") and data[8:12] == b"WEBP":
            suffix = "webp"
        if suffix is not None:
            return f"data:image/{suffix};base64,{base64.b64encode(data).decode()}"
        picture = _decoded(data, picture if isinstance(picture, str) else "a picture")
    data = _encoded(picture, "jpeg" if is_frame else "png")
    return f"data:image/{'jpeg' if is_frame else 'png'};base64,{base64.b64encode(data).decode()}"


def _decoded(data: bytes, name: str) -> np.ndarray:
    from kvtools.video.pictures import read_picture

    return read_picture(io.BytesIO(data), name)


def _encoded(frame_HWC: np.ndarray, suffix: str) -> bytes:
    from PIL import Image

    buffer = io.BytesIO()
    options: dict[str, Any] = {"quality": _FRAME_QUALITY} if suffix == "jpeg" else {"compress_level": 1}
    Image.fromarray(frame_HWC).save(buffer, suffix, **options)
    return buffer.getvalue()
