"""Arrays in numpy's own files, which others wrote: nothing is unpickled, and damage is a ValueError.

numpy reads a damaged header as Python's literals, and members of an .npz as a zip's, so that faults of either kind come out.
"""

import lzma
import struct
import tokenize
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, BinaryIO

import numpy as np

from kvtools.errors import Corrupt

_FAULTS = (
    tokenize.TokenError, SyntaxError, NotImplementedError, EOFError, MemoryError, OverflowError, TypeError, KeyError,
    IndexError, RecursionError, RuntimeError, zipfile.BadZipFile, zlib.error, lzma.LZMAError, struct.error,
)  # fmt: skip

_OBJECTS = ("Object arrays cannot be loaded", "Python objects in dtype")  # what numpy says of them, read or mapped


def load_array(file: BinaryIO | str, name: str, **options: Any) -> Any:
    """The array of an .npy, or the arrays of an .npz. options: of numpy.load. Raises ValueError for anything else, and Corrupt,
    with the name, for an array of Python objects."""
    with plain_arrays(name):
        return np.load(file, allow_pickle=False, **options)


@contextmanager
def plain_arrays(name: str) -> Iterator[None]:
    """Within it, whatever numpy raises for a damaged file is a ValueError, and an array of Python objects is refused as by
    `load_array`; an .npz is read as its members are asked for."""
    try:
        yield
    except _FAULTS as error:
        reason = " ".join(str(error.args[0] if error.args else "").split()) or type(error).__name__
        raise ValueError(f"numpy cannot read the arrays ({reason})") from None
    except ValueError as error:
        if not any(words in str(error) for words in _OBJECTS):
            raise ValueError(str(error).splitlines()[0]) from None  # what follows are ways to read it all the same
        raise Corrupt(
            f"{name}: an array of it holds Python objects, which are never read. Save it as numbers or as strings, for example "
            "with array.astype(float) or array.astype(str)."
        ) from None
