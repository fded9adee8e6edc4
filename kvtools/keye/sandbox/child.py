"""In the process that runs code: variables, pictures and printed text, in memory, from run to run.

Files are those that were handed in and those that code saves; code sees them by path, in folders that exist in its paths only.
"""

import io
import posixpath
import random
from collections.abc import Callable
from typing import Any

import numpy as np
from PIL import Image

from kvtools.keye.sandbox import isolation, policy
from kvtools.keye.sandbox.messages import receive, send
from kvtools.keye.sandbox.modules import Facade

MAX_PIXELS = 64 << 20  # of one picture, in or out
_FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")  # of pictures that are opened: EPS would start a program
_MAX_NAME = 512  # characters of a path
_MAX_ERROR = 300  # characters of a reason


class OutputLimit(Exception):
    """More was printed, or more pictures saved, than a run may give back."""


class Session:
    """Isolates this process, and runs code in it."""

    def __init__(self, header: dict[str, Any], blobs: list[bytes], facades: dict[str, Facade], replies: int) -> None:
        self._files: dict[str, bytes | Image.Image] = {
            _path(name): blob for name, blob in zip(header["names"], blobs, strict=True)
        }
        self._folders = {"/"}
        self._saved: list[str] = []
        self._printed = io.StringIO()
        self._replies = replies
        self._text_bytes, self._picture_bytes = header["text_bytes"], header["picture_bytes"]
        facades["PIL.Image"].__dict__["open"] = self._open_picture
        facades["os"] = self._os()
        facades["os.path"] = facades["os"].__dict__["path"]
        Image.Image.save = _method(self._save)  # type: ignore[method-assign]
        Image.Image.show = lambda *_, **__: None  # type: ignore[method-assign]
        given = {"__import__": policy.importer(facades), "print": self._print, "open": self._open}
        self._variables: dict[str, Any] = {"__builtins__": policy.builtin_names(**given), **header["variables"]}
        random.seed(0)  # the same code gives the same picture
        np.random.seed(0)  # noqa: NPY002 which code calls
        isolation.enter(header["memory_bytes"], header["cpu_s"])

    def serve(self, requests: int) -> None:
        """Run what comes until the pipe ends."""
        while (message := receive(requests)) is not None:
            self._saved.clear()
            self._printed = io.StringIO()
            kind, reason = self._run(message[0]["code"])
            try:
                pictures, blobs = self._pictures()
            except (OutputLimit, ValueError, OSError, MemoryError) as error:
                pictures, blobs = [], []
                kind, reason = (kind, reason) if kind else _failure(error)
            reply = {"kind": kind, "reason": reason, "text": self._printed.getvalue(), "pictures": pictures}
            send(self._replies, reply, blobs)

    def _run(self, source: str) -> tuple[str | None, str | None]:
        """Run code; what kind of failure it has and why, or None."""
        try:
            exec(policy.compiled(source), self._variables)  # noqa: S102 this is what the sandbox is for
        except BaseException as error:  # noqa: BLE001 whatever the code raises, SystemExit too
            return _failure(error)
        return None, None

    def _pictures(self) -> tuple[list[dict[str, Any]], list[bytes]]:
        rows, blobs = [], []
        n_bytes = 0
        for name in dict.fromkeys(self._saved):
            picture = self._files.get(name)
            if not isinstance(picture, Image.Image):
                continue
            n_bytes += 3 * picture.width * picture.height
            if n_bytes > self._picture_bytes:
                raise OutputLimit(f"saved pictures of more than {self._picture_bytes} bytes")
            rows.append({"name": name, "size": list(picture.size)})
            blobs.append(picture.convert("RGB").tobytes())
        return rows, blobs

    def _print(self, *values: Any, sep: str | None = " ", end: str | None = "\n", **_: Any) -> None:
        text = (" " if sep is None else sep).join(map(str, values)) + ("\n" if end is None else end)
        if self._printed.tell() + len(text) > self._text_bytes:
            raise OutputLimit(f"printed more than {self._text_bytes} characters")
        self._printed.write(text)

    def _open_picture(self, name: Any, *_: Any, **__: Any) -> Image.Image:
        if type(name) is io.BytesIO:
            return _decoded(name)
        found = self._files.get(_path(name))
        if found is None:
            raise FileNotFoundError(f"{_path(name)} is not one of the pictures of this conversation")
        return found.copy() if isinstance(found, Image.Image) else _decoded(io.BytesIO(found))

    def _save(self, picture: Image.Image, name: Any, *args: Any, **options: Any) -> None:
        """What Image.save does here: the picture stays in memory under its name, without the losses of a format."""
        if type(name) is io.BytesIO:
            _SAVE(picture, name, *args, **options)
            return
        if not posixpath.splitext(_path(name))[1]:
            raise ValueError(f"unknown file extension: {_path(name)}")
        self._files[_path(name)] = picture.copy()
        self._saved.append(_path(name))

    def _open(self, name: Any, mode: str = "r", *_: Any, **__: Any) -> io.BytesIO:
        found = self._files.get(_path(name))
        if set(mode) & set("wax+"):
            raise PermissionError(f"{_path(name)}: only pictures can be saved, by Image.save")
        if found is None:
            raise FileNotFoundError(f"{_path(name)} is not one of the files of this conversation")
        if isinstance(found, Image.Image):
            buffer = io.BytesIO()
            _SAVE(found, buffer, "PNG")
            found = buffer.getvalue()
        return io.BytesIO(found)

    def _os(self) -> Facade:
        pure = ("abspath", "basename", "dirname", "isabs", "join", "normpath", "relpath", "split", "splitext")
        path: dict[str, Any] = {name: getattr(posixpath, name) for name in pure}
        path["abspath"] = _path
        path["isfile"] = lambda name: _path(name) in self._files
        path["isdir"] = lambda name: bool(self._listed(_path(name))) or _path(name) in self._folders
        path["exists"] = lambda name: path["isfile"](name) or path["isdir"](name)
        path["getsize"] = lambda name: len(self._open(name).getvalue())
        path["expanduser"] = str
        return Facade("os", {
            "path": Facade("os.path", path), "sep": "/", "curdir": ".", "getcwd": lambda: "/",
            "listdir": lambda name="/": self._listed(_path(name)), "makedirs": self._make_folder, "mkdir": self._make_folder,
            "remove": self._remove, "unlink": self._remove,
        })  # fmt: skip

    def _listed(self, folder: str) -> list[str]:
        inside = folder.rstrip("/") + "/"
        return sorted({name.removeprefix(inside).partition("/")[0] for name in self._files if name.startswith(inside)})

    def _make_folder(self, name: Any, *_: Any, **__: Any) -> None:
        self._folders.add(_path(name))

    def _remove(self, name: Any) -> None:
        if self._files.pop(_path(name), None) is None:
            raise FileNotFoundError(f"{_path(name)} is not one of the files of this conversation")


_SAVE = Image.Image.save


def _method(function: Callable[..., None]) -> Callable[..., None]:
    """A function in the place of a method: of a bound one, the picture would not be an argument."""

    def method(picture: Image.Image, *args: Any, **options: Any) -> None:
        function(picture, *args, **options)

    return method


def _decoded(file: io.BytesIO) -> Image.Image:
    try:
        picture = Image.open(file, formats=_FORMATS)
        if picture.width * picture.height > MAX_PIXELS:
            raise ValueError(f"the picture of {picture.width}x{picture.height} has too many pixels")
        picture.load()
    except Image.DecompressionBombError:
        raise ValueError("the picture has too many pixels") from None
    return picture


def _failure(error: BaseException) -> tuple[str, str]:
    """The kind of a failure, and a sentence of bounded length that names it."""
    named = (("refused", policy.Refused), ("not_python", policy.NotPython), ("output", OutputLimit))
    for kind, types in named:
        if isinstance(error, types):
            return kind, str(error)[:_MAX_ERROR]
    if isinstance(error, MemoryError):
        return "memory", "not enough memory"
    if isinstance(error, RecursionError):
        return "error", "recursion is too deep"
    if isinstance(error, ModuleNotFoundError) and type(error.name) is str:
        return "library", f"the sandbox has no library {error.name[:40]}"
    try:
        text = " ".join(str(error).split())[:_MAX_ERROR]
    except Exception:  # noqa: BLE001 whatever __str__ raises, for want of memory too
        text = ""
    return "error", f"{type(error).__name__}: {text}".rstrip(": ")


def _path(name: Any) -> str:
    text = name if isinstance(name, str) else str(name)
    return posixpath.normpath(posixpath.join("/", text[:_MAX_NAME]))
