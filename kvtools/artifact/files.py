"""Where bytes come from and go to: paths, and `-` for the standard streams.

A write to a path is whole or absent: a temporary file beside the target, fsync, `os.replace`. The one invariant: until
`commit` returns, whatever stood at the target still stands there. Devices and pipes given by path are written directly,
since they cannot be replaced. One process writes one target at a time (flock).

Not here: what the bytes mean.
"""

import errno
import fcntl
import os
import shutil
import stat
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO, Self

from kvtools.errors import CannotCreate, Missing, Usage, unreadable, unwritable
from kvtools.names import naming

_IOV_MAX = 1024  # buffers a writev call takes on Linux
_SPOOL_BYTES = 16 << 20
_CHUNK_BYTES = 128 << 10
_PIPE_BYTES = 1 << 20  # the largest pipe an ordinary user may ask for on Linux; fewer, longer system calls


def open_source(src: str) -> BinaryIO:
    """A buffered binary reader of a path or of standard input. Raises Missing where there is nothing to read."""
    if src == "-":
        if sys.stdin is None or sys.stdin.closed:
            raise Missing("stdin is closed. Give a file, or a pipe.")
        if sys.stdin.isatty():
            raise Usage("no input is given, and stdin is a terminal. Name a file, or write into a pipe.")
        widen_pipe(0)
        return open(0, "rb", buffering=1 << 20, closefd=False)
    try:
        if Path(src).is_dir():
            raise Missing(f"{src}: this is a directory. Give a file.")
        return open(src, "rb", buffering=1 << 20)
    except OSError as error:
        raise unreadable(src, error) from None


def open_seekable(src: str) -> BinaryIO:
    """`open_source`, seekable: what comes through a pipe is first copied to a temporary file in $TMPDIR."""
    file = open_source(src)
    if file.seekable():
        return file
    copy = tempfile.TemporaryFile()  # noqa: SIM115 the caller closes it, and it is gone then
    shutil.copyfileobj(file, copy, _PIPE_BYTES)
    copy.seek(0)
    return copy


def is_same_file(src: str, dst: str) -> bool:
    """Whether both names lead to one existing regular file or folder."""
    if "-" in (src, dst) or not os.path.exists(dst):
        return False
    return (os.path.isfile(src) or os.path.isdir(src)) and os.path.samefile(src, dst)


def stamps(*sources: str | None) -> list[list[str | int]]:
    """Name, size and time of change, in ns, of files and of what is in folders, by which inputs are known again unread."""
    paths = [Path(src) for src in sources if src is not None]
    files = [file for path in paths for file in (sorted(path.iterdir()) if path.is_dir() else [path]) if file.is_file()]
    return [[file.name, (stat := file.stat()).st_size, stat.st_mtime_ns] for file in files]


def refuse_existing(dst: str, *, force: bool) -> None:
    """Raise CannotCreate where dst cannot be a file, or is one and `force` is not set."""
    if dst != "-" and not os.path.isdir(Path(dst).parent):
        raise CannotCreate(f"{dst}: its folder does not exist. Make the folder, or name another output.")
    if not dst.endswith("/") and os.path.isdir(dst):
        raise CannotCreate(f"{dst}: this is a directory. Give a file name.")
    if dst != "-" and Path(dst).is_file() and not force:
        raise CannotCreate(f"{dst}: exists already. Give --force to overwrite it.")


def write_line(dst: str, line: str, *, force: bool) -> None:
    """Write one line of text, such as a report, to a path: whole or absent. Raises CannotCreate as `refuse_existing` does."""
    Sink(dst, force=force).write_whole([line.encode() + b"\n"])


class Sink:
    """A destination being written: append with `write`, then `commit`; `abandon` leaves the target as it was."""

    def __init__(self, dst: str, *, force: bool = False, keep_partial: bool = False, is_text: bool = False) -> None:
        """keep_partial: name the temporary file `.NAME.part` and keep it when the sink is abandoned, so that a later run can
        resume it. is_text: it may be shown on a terminal. Raises CannotCreate where dst cannot be written, exists, or is
        written by another run."""
        self.dst = dst
        self.position = 0
        self._keep_partial = keep_partial
        self._partial: Path | None = None
        if dst == "-":
            if sys.stdout.isatty() and not is_text:
                raise Usage("stdout is a terminal, and the output is binary. Give -o FILE, or a pipe.")
            sys.stdout.flush()
            self._fd = os.dup(1)
        else:
            refuse_existing(dst, force=force)
            self._fd = self._create(Path(dst))
        if stat.S_ISFIFO(os.fstat(self._fd).st_mode):
            widen_pipe(self._fd)

    @property
    def is_file(self) -> bool:
        """Whether the bytes go into a regular file, where compressing them pays."""
        return stat.S_ISREG(os.fstat(self._fd).st_mode)

    def partial(self) -> BinaryIO | None:
        """The partial file of an earlier run, for reading; None where there is none."""
        if self._partial is None or os.fstat(self._fd).st_size == 0:
            return None
        return open(self._partial, "rb", buffering=1 << 20)

    def resume_at(self, offset: int) -> None:
        """Keep the first `offset` bytes of the partial file, and append after them."""
        os.ftruncate(self._fd, offset)
        os.lseek(self._fd, offset, os.SEEK_SET)
        self.position = offset

    def write(self, buffers: Sequence[memoryview | bytes]) -> None:
        """Write all buffers in order, without joining them."""
        pending = [memoryview(buffer).cast("B") for buffer in buffers if len(buffer)]
        self.position += sum(len(buffer) for buffer in pending)
        first = 0
        while first < len(pending):
            with naming(self.dst):
                n_bytes = os.writev(self._fd, pending[first : first + _IOV_MAX])
            while first < len(pending) and n_bytes >= len(pending[first]):
                n_bytes -= len(pending[first])
                first += 1
            if n_bytes:
                pending[first] = pending[first][n_bytes:]

    def write_whole(self, buffers: Sequence[memoryview | bytes]) -> None:
        """Write all buffers and commit, or abandon where that fails."""
        try:
            self.write(buffers)
        except BaseException:
            self.abandon()
            raise
        self.commit()

    def commit(self) -> None:
        """Make the output final, or abandon it and raise OSError where the last bytes cannot be stored."""
        if self._partial is not None:
            # the data must be on disk before the name points to it: after a crash a reader finds the old file or the new one
            try:
                with naming(self.dst):
                    os.fsync(self._fd)
                os.replace(self._partial, self.dst)
            except BaseException:
                self.abandon()
                raise
            self._partial = None
            sync(Path(self.dst).parent)
        os.close(self._fd)

    def abandon(self) -> None:
        """Leave the target as it was, and remove the partial file unless it is to be kept and is not empty."""
        if self._partial is not None and not (self._keep_partial and os.fstat(self._fd).st_size):
            self._partial.unlink(missing_ok=True)
        self._partial = None
        os.close(self._fd)

    def _create(self, path: Path) -> int:
        try:
            if path.is_dir():
                raise CannotCreate(f"{path}: this is a directory. Give a file name.")
            if path.exists() and not path.is_file():
                return os.open(path, os.O_WRONLY)
            remove_abandoned(path)
            name = f".{path.name}.part" if self._keep_partial else f".{path.name}.tmp-{os.getpid()}"
            self._partial = path.parent / name
            fd = open_claimed(self._partial)
        except OSError as error:
            raise unwritable(str(path), error) from None
        if fd is None:
            raise CannotCreate(f"{path}: another run is writing it. Wait for it, or name another output.")
        return fd


def open_claimed(path: str | Path) -> int | None:
    """Open a file, made where there is none, and lock it until it is closed; None where another process holds the lock.

    The system releases the lock of a process that ends, however it ends. Over NFS the lock holds between machines, as that of a
    folder would not. Raises OSError where the file cannot be opened.
    """
    while True:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(fd)
            return None
        except OSError:
            return fd  # some network file systems have no flock, and go without this protection
        with suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(fd), os.stat(path)):
                return fd
        os.close(fd)  # who held it has removed or renamed it since we opened it


def remove_abandoned(path: Path) -> None:
    """Remove the temporary files and folders of an output whose writers were killed: nobody holds their locks. Where the file
    system has no locks, they stay."""
    for entry in [entry for entry in os.scandir(path.parent) if entry.name.startswith(f".{path.name}.tmp-")]:
        is_folder = entry.is_dir(follow_symlinks=False)
        with suppress(OSError):
            fd = os.open(entry.path, (os.O_RDONLY if is_folder else os.O_RDWR) | os.O_CLOEXEC)
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(entry.path) if is_folder else os.unlink(entry.path)
            finally:
                os.close(fd)


@contextmanager
def claimed_folder(path: Path) -> Iterator[None]:
    """Within it, a folder that was just made is locked, so that `remove_abandoned` leaves it alone."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        with suppress(OSError):  # some network file systems have no locks of folders, and `remove_abandoned` gets none either
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    finally:
        os.close(fd)


class Spool:
    """A buffer in memory up to 16 MiB, beyond that in an unlinked file in $TMPDIR, so that a process that passes records of
    128 MiB on holds little of them. Iterate for its bytes in pieces, as often as needed."""

    def __init__(self) -> None:
        self._file = tempfile.SpooledTemporaryFile(max_size=_SPOOL_BYTES)  # noqa: SIM115 closed by __exit__
        self._n_bytes = 0

    def append(self, data: bytes | bytearray | memoryview) -> None:
        """Add bytes at the end."""
        self._file.write(data)
        self._n_bytes += len(data)

    def clear(self) -> None:
        """Remove all bytes."""
        self._file.seek(0)
        self._file.truncate()
        self._n_bytes = 0

    def __len__(self) -> int:
        return self._n_bytes

    def __iter__(self) -> Iterator[memoryview]:
        self._file.seek(0)
        while data := self._file.read(_CHUNK_BYTES):
            yield memoryview(data)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Free memory and file."""
        self._file.close()


def widen_pipe(fd: int) -> None:
    """Enlarge a pipe's buffer: with fewer, longer system calls a plain copy ran 2.7 times as fast."""
    # where it is no pipe, not Linux, or above the user's quota, only speed is lost
    with suppress(OSError, AttributeError):
        fcntl.fcntl(fd, fcntl.F_SETPIPE_SZ, _PIPE_BYTES)


def sync(path: Path) -> None:
    """Wait until a file, or the entries of a folder, are on disk."""
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.EBADF):  # file systems that cannot sync a directory
            raise
    finally:
        os.close(fd)
