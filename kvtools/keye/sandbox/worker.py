"""The process that runs code: it loads the libraries once, and makes a child of itself for each session.

Started by session.py as `python -I -m kvtools.keye.sandbox.worker`. Messages both ways are a length, JSON, and the blobs that
the JSON counts. A child computes in memory alone: its pictures are handed to it, what it saves is handed back, and before it
runs anything the kernel takes all other system calls from it (seccomp.py); memory and time are limited everywhere.
"""

import importlib
import io
import json
import os
import posixpath
import resource
import select
import signal
import struct
import time
from types import SimpleNamespace
from typing import Any

from PIL import Image

from kvtools.keye.sandbox import policy, seccomp

MAX_MESSAGE_BYTES = 256 << 20
_MAX_PIXELS = 64 << 20  # of one picture, in or out


class OutputLimit(Exception):
    """More was printed, or more pictures saved, than a run may give back."""


def send(fd: int, header: dict[str, Any], blobs: list[bytes] | None = None) -> None:
    """Write a message."""
    blobs = blobs or []
    text = json.dumps({**header, "blobs": [len(blob) for blob in blobs]}).encode()
    for part in (struct.pack("<I", len(text)), text, *blobs):
        view = memoryview(part)
        while view:
            view = view[os.write(fd, view) :]


def receive(fd: int, deadline: float | None = None) -> tuple[dict[str, Any], list[bytes]] | None:
    """The next message; None at the end of the pipe. Raises TimeoutError past the deadline (time.monotonic()), ValueError for
    bytes that are no message."""
    size = _read(fd, 4, deadline)
    if size is None:
        return None
    text = _read(fd, min(struct.unpack("<I", size)[0], MAX_MESSAGE_BYTES), deadline)
    header = json.loads(text or b"")
    if not isinstance(header, dict) or sum(header["blobs"]) > MAX_MESSAGE_BYTES:
        raise ValueError("a message above its limit")
    blobs = [_read(fd, n, deadline) or b"" for n in header["blobs"]]
    if [len(blob) for blob in blobs] != header["blobs"]:
        return None
    return header, blobs


def _read(fd: int, n_bytes: int, deadline: float | None) -> bytes | None:
    data = bytearray()
    while len(data) < n_bytes:
        if deadline is not None and not select.select([fd], [], [], max(0.0, deadline - time.monotonic()))[0]:
            raise TimeoutError
        part = os.read(fd, min(n_bytes - len(data), 1 << 20))
        if not part:
            return None
        data += part
    return bytes(data)


def main() -> None:
    """Serve sessions until stdin ends."""
    requests, replies = os.dup(0), os.dup(1)
    null = os.open(os.devnull, os.O_RDWR)
    for fd in (0, 1):
        os.dup2(null, fd)
    facades = {name: policy.facade(importlib.import_module(name)) for name in policy.MODULES}
    Image.init()  # plugins are files, which a child cannot open any more
    Image.MAX_IMAGE_PIXELS = _MAX_PIXELS // 2  # Pillow refuses above twice this
    send(replies, {"ready": True})
    child: _Child | None = None
    while (message := receive(requests)) is not None:
        header, blobs = message
        if child is not None and header["op"] != "run":
            child.end()
            child = None
        if header["op"] == "open":
            child = _Child(header, blobs, facades, close=(requests, replies))
            send(replies, {"ok": True})
        elif header["op"] == "run":
            reply = ({"ok": False, "reason": "the session has ended"}, []) if child is None else child.run(header)
            if child is not None and not child.is_alive:
                child = None
            send(replies, *reply)
    if child is not None:
        child.end()


class _Child:
    """A session's process, and the pipes to it."""

    def __init__(
        self, header: dict[str, Any], blobs: list[bytes], facades: dict[str, SimpleNamespace], close: tuple[int, ...]
    ) -> None:
        to_child, self._to = os.pipe()
        self._from, from_child = os.pipe()
        self._timeout_s = header["timeout_s"]
        self.is_alive = True
        self._pid = os.fork()
        if self._pid == 0:
            for fd in (*close, self._to, self._from):
                os.close(fd)
            try:
                _Session(header, blobs, facades, from_child).serve(to_child)
            finally:
                os._exit(0)
        os.close(to_child)
        os.close(from_child)

    def run(self, header: dict[str, Any]) -> tuple[dict[str, Any], list[bytes]]:
        """What the child answers, or why it does not."""
        try:
            send(self._to, header)
            message = receive(self._from, time.monotonic() + self._timeout_s)
            if message is not None:
                return message
            reason = self._death()
        except TimeoutError:
            reason = f"stopped after {self._timeout_s:g} s"
        except (ValueError, KeyError, TypeError, OSError):
            reason = "the answer of the process is no message"
        self.end()
        return {"ok": False, "reason": reason, "is_over": True}, []

    def end(self) -> None:
        """Kill the child, whatever it does."""
        if self.is_alive:
            os.kill(self._pid, signal.SIGKILL)
            os.waitpid(self._pid, 0)
            os.close(self._to)
            os.close(self._from)
        self.is_alive = False

    def _death(self) -> str:
        _, status = os.waitpid(self._pid, 0)
        os.close(self._to)
        os.close(self._from)
        self.is_alive = False
        if os.WIFSIGNALED(status):
            number = os.WTERMSIG(status)
            return "stopped by its processor time" if number == signal.SIGXCPU else f"ended by {signal.Signals(number).name}"
        return "ended without an answer"


class _Session:
    """In the child: variables and files that live from run to run."""

    def __init__(self, header: dict[str, Any], blobs: list[bytes], facades: dict[str, SimpleNamespace], replies: int) -> None:
        self._files: dict[str, Any] = {_path(name): blob for name, blob in zip(header["names"], blobs, strict=True)}
        self._saved: list[str] = []
        self._printed = io.StringIO()
        self._replies = replies
        self._text_bytes, self._picture_bytes = header["text_bytes"], header["picture_bytes"]
        facades["PIL.Image"].open = self._open_picture
        facades["PIL"] = SimpleNamespace(**{n.removeprefix("PIL."): f for n, f in facades.items() if n.startswith("PIL.")})
        facades["numpy"].__dict__.update({n: facades[f"numpy.{n}"] for n in ("fft", "linalg", "random")})
        facades["os"] = self._os()
        facades["os.path"] = facades["os"].path
        Image.Image.save = lambda picture, name, *_, **__: self._keep(picture, name)  # type: ignore[method-assign]
        given = {"__import__": policy.importer(facades), "print": self._print, "open": self._open, "type": lambda x: type(x)}  # noqa: PLW0108 no class of types
        self._variables: dict[str, Any] = {"__builtins__": policy.builtin_names(**given), **header["variables"]}
        self._limit(header)

    def serve(self, requests: int) -> None:
        """Run what comes until the pipe ends."""
        while (message := receive(requests)) is not None:
            self._saved.clear()
            self._printed = io.StringIO()
            reason = self._run(message[0]["code"])
            try:
                pictures, blobs = self._pictures()
            except (OutputLimit, ValueError, OSError, MemoryError) as error:
                pictures, blobs, reason = [], [], reason or str(error) or "not enough memory"
            text = self._printed.getvalue()
            send(self._replies, {"ok": reason is None, "reason": reason, "text": text, "pictures": pictures}, blobs)

    def _run(self, source: str) -> str | None:
        """Run code; why it failed, or None."""
        try:
            program = compile(policy.check(source), "code", "exec")
            exec(program, self._variables)  # noqa: S102 this is what the sandbox is for
        except OutputLimit as error:
            return str(error)
        except MemoryError:
            return "not enough memory"
        except RecursionError:
            return "recursion is too deep"
        except ValueError as error:
            return str(error) or "ValueError"
        except BaseException as error:  # noqa: BLE001 whatever the code raises, SystemExit too
            return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}".rstrip(": ")
        return None

    def _limit(self, header: dict[str, Any]) -> None:
        with open("/proc/self/statm", encoding="ascii") as file:
            used = int(file.read().split()[0]) * resource.getpagesize()
        memory = used + header["memory_bytes"]
        seconds = max(1, int(header["cpu_s"]))
        for what, limit in (
            (resource.RLIMIT_AS, memory), (resource.RLIMIT_CPU, seconds), (resource.RLIMIT_CORE, 0), (resource.RLIMIT_FSIZE, 0),
            (resource.RLIMIT_NPROC, 0),
        ):  # fmt: skip
            resource.setrlimit(what, (limit, limit))
        seccomp.install()

    def _pictures(self) -> tuple[list[dict[str, Any]], list[bytes]]:
        rows, blobs = [], []
        for name in dict.fromkeys(self._saved):
            picture = self._files[name].convert("RGB")
            rows.append({"name": name, "size": list(picture.size)})
            blobs.append(picture.tobytes())
            if sum(map(len, blobs)) > self._picture_bytes:
                raise OutputLimit(f"pictures above {self._picture_bytes} bytes")
        return rows, blobs

    def _print(self, *values: Any, sep: str = " ", end: str = "\n", **_: Any) -> None:
        self._printed.write((" " if sep is None else sep).join(map(str, values)) + ("\n" if end is None else end))
        if self._printed.tell() > self._text_bytes:
            raise OutputLimit(f"printed more than {self._text_bytes} bytes")

    def _open_picture(self, name: Any, *_: Any, **__: Any) -> Image.Image:
        if isinstance(name, io.BytesIO):
            return Image.open(name)
        found = self._files.get(_path(name))
        if found is None:
            raise FileNotFoundError(f"{name} is not one of the pictures of this conversation")
        if isinstance(found, Image.Image):
            return found.copy()
        try:
            picture = Image.open(io.BytesIO(found))
            if picture.width * picture.height > _MAX_PIXELS:
                raise ValueError(f"a picture of {picture.width}x{picture.height} has too many pixels")
            picture.load()
        except Image.DecompressionBombError:
            raise ValueError("the picture has too many pixels") from None
        return picture

    def _keep(self, picture: Image.Image, name: Any) -> None:
        """What Image.save does here: the picture stays in memory under its name, without the losses of a format."""
        if isinstance(name, io.IOBase):
            raise PermissionError("a picture can be saved under a name only")
        self._files[_path(name)] = picture.copy()
        self._saved.append(_path(name))

    def _open(self, name: Any, mode: str = "r", **_: Any) -> Any:
        found = self._files.get(_path(name))
        if "w" in mode or "a" in mode or "+" in mode:
            raise PermissionError(f"{name}: only pictures can be saved, by Image.save")
        if found is None or isinstance(found, Image.Image):
            raise FileNotFoundError(f"{name} is not one of the files of this conversation")
        return io.BytesIO(found)

    def _os(self) -> SimpleNamespace:
        pure = ("join", "basename", "dirname", "splitext", "normpath", "split")
        path = SimpleNamespace(**{name: getattr(posixpath, name) for name in pure})
        path.exists = path.isfile = lambda name: _path(name) in self._files
        path.isdir = lambda _name: True
        return SimpleNamespace(path=path, sep="/", makedirs=lambda *_, **__: None, mkdir=lambda *_, **__: None)


def _path(name: Any) -> str:
    return posixpath.normpath(posixpath.join("/", str(name)))


if __name__ == "__main__":
    main()
