"""The failures that a user can meet, each with its exit code.

Library code raises `ValueError` and its kin with the values it found; a failure that has a meaning to the shell is one of
these. `cli.py` prints it, once, as `kvtools CMD: <message>`, and exits with `code`. Our own mistakes are `assert`ions and never
appear here.
"""

from collections.abc import Iterator
from contextlib import contextmanager


class Fault(Exception):
    """A failure with an exit code. The message is one line of whole sentences: WHERE: what is wrong. What to do."""

    code = 1
    is_agreed = False  # whether all ranks know already and end by themselves


class Usage(Fault):
    """The command line asks for something that makes no sense, or lacks something that is required."""

    code = 2


class Corrupt(Fault):
    """An input that is damaged, cut short, or of another kind than the one needed; a retry will not help."""

    code = 65


class Missing(Fault):
    """An input that does not exist or may not be read."""

    code = 66


class CannotCreate(Fault):
    """An output that may not be written, or that exists and `--force` was not given."""

    code = 73


class Stopped(Fault):
    """Stopped early on request with everything saved: run the same command again to continue."""

    code = 75
    is_agreed = True


class NothingDone(Stopped):
    """Stopped early on request before anything was done: a job that is queued again for this would be so for ever."""

    code = 1


class Died(Fault):
    """The end, with this code, of a run that has already printed why; nothing more is printed."""

    def __init__(self, code: int, *, is_agreed: bool = False) -> None:
        super().__init__("")
        self.code = code
        self.is_agreed = is_agreed


class Terminated(BaseException):
    """SIGTERM was received. Neither an Exception nor a Fault, because code that continues after a failure must let it pass: a
    library's `except Exception`, or a command that reports damaged files one by one."""


READABLE = "Look at its name and its permissions."  # what to do where an input cannot be read


def os_reason(error: OSError) -> str:
    """Why the system refused, as a clause in small letters: `no such file or directory`."""
    return (error.strerror or str(error)).lower()


def unreadable(where: str, error: OSError) -> Missing:
    """The refusal of an input that the system does not let kvtools read."""
    return Missing(f"{where}: {os_reason(error)}. {READABLE}")


def unwritable(dst: str, error: OSError) -> CannotCreate:
    """The refusal of an output that the system does not let kvtools write."""
    return CannotCreate(f"{dst}: {os_reason(error)}. Give another name.")


@contextmanager
def raising(fault: type[Fault], where: str, remedy: str = "") -> Iterator[None]:
    """Raise a library's ValueError as a fault that names the option, or the file, that it is about: `WHERE: MESSAGE. REMEDY`"""
    try:
        yield
    except ValueError as error:
        raise fault(f"{where}: {str(error).rstrip('.')}. {remedy}".rstrip()) from None


def reason_of(error: BaseException) -> str:
    """Why something failed, as a clause on one line, also where Python's own text is no more than a key or a type."""
    if isinstance(error, KeyError):
        return f"it has no {error}"
    text = " ".join((str(getattr(error, "strerror", None) or error) or type(error).__name__).split()).rstrip(".")
    if isinstance(error, TypeError | AttributeError):
        return f"one of its values is of another type than is needed ({text})"
    return text
