r"""Names of files as text. Python keeps bytes of a name that are not UTF-8 as half letters, which neither UTF-8 nor JSON can
write; users, keys and histories see them as \xNN. And the names of what the system could not write."""

import re
from collections.abc import Iterator
from contextlib import contextmanager

_BYTE = re.compile("[\udc80-\udcff]")  # a byte as Python keeps it, plus 0xDC00


def printable(text: str, *, escape: str = "\\x") -> str:
    r"""A name, or a text that names are in, as text that can be stored. escape: before the two digits of a byte."""
    return _BYTE.sub(lambda found: f"{escape}{ord(found[0]) - 0xDC00:02x}", text)


def printable_json(text: str) -> str:
    r"""A line of JSON that names are in: JSON reads \\xNN as \xNN."""
    return printable(text, escape="\\\\x")


@contextmanager
def naming(dst: str) -> Iterator[None]:
    """Within it, a fault of the system that names no file, such as a full disk, names this one."""
    try:
        yield
    except OSError as error:
        error.filename = error.filename or ("stdout" if dst == "-" else dst)
        raise
