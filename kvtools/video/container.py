"""Video containers opened by PyAV, and what FFmpeg logs while it reads and decodes them.

The log level stays at ERROR for the life of the process: FFmpeg conceals damage from its callers, and only logs it.
"""

import re
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import Any, Self

import av
import av.logging
import av.stream

from kvtools.video.formats import MAYBE_VIDEO, UNKNOWN, content_of

# what a decoder says of its list of reference frames where a stream was cut or joined; the pictures are whole
_REMARKS = ("mmco:", "number of reference frames", "co located POCs unavailable")
# formats that name other files or hosts: only the file that the user gave is read
_LISTS = {"concat", "hls", "dash", "imf", "sdp", "rtsp"}
_PICTURE_BRANDS = {"heic", "heix", "mif1"}


class Damaged(ValueError):
    """A clip of which a frame that was asked for is not whole."""


class FramesMissing(ValueError):
    """Frames asked for did not come out of the decoder; an index made by decoding may find them."""


def open_container(path: str) -> Any:
    """The file as an open PyAV container. Raises OSError where it cannot be opened, ValueError where it is not a video."""
    with open(path, "rb") as file:
        content = content_of(file.read(512))
    if content not in (UNKNOWN, *MAYBE_VIDEO):
        raise ValueError(f"this is not a video: {content}")
    av.logging.set_level(av.logging.ERROR)
    av.logging.set_skip_repeated(False)  # a line that is left out could not be told of its packet
    try:
        with av.logging.Capture(local=False):  # what FFmpeg logs here, the exception says too
            # a name is a path, whatever stands before its colon, and nothing is read but this file
            container = av.open(f"file:{path}", metadata_errors="replace", options={"protocol_whitelist": "file"})
    except (FileNotFoundError, PermissionError):
        raise
    except (av.error.FFmpegError, OSError) as error:
        raise ValueError(f"this is not a readable video ({reason(error)})") from None
    if set(container.format.name.split(",")) & _LISTS:
        container.close()
        raise ValueError(f"this is a list of other files ({container.format.name}), and no video")
    return container


def video_stream(container: Any) -> Any:
    """The stream that FFmpeg would choose: the largest picture, and no cover image where there is a film. Raises ValueError.

    The other streams are not read, so that a sound track that is cut short is no fault of the video.
    """
    stream = container.streams.best("video")
    if stream is None:
        raise ValueError("it has no video stream")
    if stream.codec_context is None:
        raise ValueError("its video has an unknown codec")
    if stream.disposition & av.stream.Disposition.attached_pic:
        raise ValueError("it has no video stream, only a cover picture")
    # the picture itself is the default; beside it lie its thumbnail and depth. Of one put together of tiles, no tile is
    is_whole = stream.disposition & av.stream.Disposition.default
    if container.metadata.get("major_brand") in _PICTURE_BRANDS and len(container.streams.video) > 1 and not is_whole:
        raise ValueError("it is a HEIC picture put together of tiles, of which FFmpeg gives one alone")
    for other in container.streams:
        if other.index != stream.index:
            other.discard = av.stream.Discard.all
    return stream


class VideoLog:
    """A context manager that collects the errors that FFmpeg logs about a video stream."""

    def __init__(self, container: Any, stream: Any) -> None:
        self._format = container.format.name
        self._other_stream = re.compile(rf"stream (?!{stream.index}\b)\d+")
        self._others = {other.codec_context.name for other in container.streams if other.codec_context is not None}
        self._others.discard(stream.codec_context.name)
        self.parser_fault: str | None = None  # the first line about the pictures that was logged while packets were read

    def __enter__(self) -> Self:
        self._capture = av.logging.Capture(local=False)  # decoder threads log too
        self._lines = self._capture.__enter__()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._capture.__exit__(kind, error, trace)

    def of_container(self) -> str | None:
        """The first new line of the container's format about this stream, if there is one."""
        found = self._first(lambda name, text: name == self._format and not self._other_stream.search(text), is_last=False)
        self.parser_fault = self.parser_fault or self.of_decoder()
        return found

    def of_decoder(self) -> str | None:
        """The first new line of the decoder that tells of a picture that is not whole, if there is one."""
        return self._first(
            lambda name, text: name != self._format and name not in self._others and not text.startswith(_REMARKS)
        )

    def _first(self, is_meant: Callable[[str, str], bool], *, is_last: bool = True) -> str | None:
        if not self._lines:
            return None
        lines = [(name, text.strip().rstrip(".")) for level, name, text in self._lines if level <= av.logging.ERROR]
        if is_last:
            self._lines.clear()
        return next((text for name, text in lines if text and is_meant(name, text)), None)


class DecoderFaults:
    """A context manager that turns the errors of FFmpeg about a picture, raised or only logged, into ValueError."""

    def __enter__(self) -> None:
        self._capture = av.logging.Capture(local=False)  # decoder threads log too
        self._lines = self._capture.__enter__()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._capture.__exit__(kind, error, trace)
        logged = [text.strip().rstrip(".") for level, _, text in self._lines if level <= av.logging.ERROR]
        if isinstance(error, av.error.FFmpegError):
            raise ValueError(f"it is damaged ({logged[0] if logged else reason(error)})") from None
        if logged and kind is None:
            raise ValueError(f"it is damaged ({logged[0]})")


def read_packets(container: Any, stream: Any, log: VideoLog) -> Iterator[tuple[Any | None, str | None]]:
    """Each packet of the stream, with what the container says is wrong before it, and at the end None with the rest of that.

    Packets without data are left out: in Theora they repeat the frame before, and decoders take them for the end.
    """
    packets = container.demux(stream)
    while True:
        try:
            packet = next(packets, None)
        except av.error.FFmpegError as error:
            yield None, log.of_container() or reason(error)
            return
        if packet is None:
            yield None, log.of_container()
            return
        if packet.size:
            yield packet, log.of_container()


def decode_packet(context: Any, packet: Any | None, log: VideoLog) -> tuple[list[Any], str | None]:
    """The frames that come out of the decoder for a packet, and what it says is wrong; of None, the last frames."""
    try:
        frames = context.decode(packet)
    except av.error.FFmpegError as error:
        return [], log.of_decoder() or reason(error)
    return frames, log.of_decoder()


def reason(error: BaseException) -> str:
    """What an error says, in lower case."""
    return str(getattr(error, "strerror", None) or error).lower()
