"""Video containers opened by PyAV, and FFmpeg's errors as ValueError.

The log level stays at ERROR for the life of the process: FFmpeg conceals damage from its callers, and only logs it.
"""

from types import TracebackType
from typing import Any

import av
import av.logging

from kvtools.video.inputs import MAYBE_VIDEO, UNKNOWN, content_of


class FramesMissing(ValueError):
    """Frames asked for did not come out of the decoder; an index made by decoding may find them."""


def open_container(path: str) -> Any:
    """The file as an open PyAV container. Raises OSError where it cannot be opened, ValueError where it is not a video."""
    av.logging.set_level(av.logging.ERROR)
    with open(path, "rb") as file:
        content = content_of(file.read(512))
    if content not in (UNKNOWN, *MAYBE_VIDEO):
        raise ValueError(f"this is not a video: {content}")
    try:
        with av.logging.Capture(local=False):  # what FFmpeg logs here, the exception says too
            return av.open(path, metadata_errors="replace")
    except (FileNotFoundError, PermissionError):
        raise
    except (av.error.FFmpegError, OSError) as error:
        raise ValueError(f"this is not a readable video ({reason(error)})") from None


def video_stream(container: Any) -> Any:
    """The stream that FFmpeg would choose: the largest picture, and no cover image where there is a film. Raises ValueError."""
    stream = container.streams.best("video")
    if stream is None:
        raise ValueError("it has no video stream")
    if stream.codec_context is None:
        raise ValueError("its video has an unknown codec")
    return stream


class DecoderFaults:
    """A context manager that turns the errors of FFmpeg, raised or only logged, into ValueError with the first logged line."""

    def __enter__(self) -> None:
        self._capture = av.logging.Capture(local=False)  # decoder threads log too
        self._lines = self._capture.__enter__()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._capture.__exit__(kind, error, trace)
        logged = [text.strip().rstrip(".") for level, _, text in self._lines if level <= av.logging.ERROR]
        if isinstance(error, av.error.FFmpegError):
            raise ValueError(f"it is damaged ({logged[0] if logged else reason(error)})") from None
        if logged and (kind is None or kind in (GeneratorExit, FramesMissing)):
            raise ValueError(f"it is damaged ({logged[0]})")


def reason(error: BaseException) -> str:
    """What an error says, in lower case."""
    return str(getattr(error, "strerror", None) or error).lower()
