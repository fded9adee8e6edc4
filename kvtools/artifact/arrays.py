"""Arrays in numpy's own files, which others wrote: nothing is unpickled, and what cannot be read is a ValueError.

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

_FAULTS = (
    tokenize.TokenError, SyntaxError, NotImplementedError, EOFError, MemoryError, OverflowError, TypeError, KeyError,
    IndexError, RecursionError, RuntimeError, zipfile.BadZipFile, zlib.error, lzma.LZMAError, struct.error,
)  # fmt: skip


def load_array(file: BinaryIO | str, **options: Any) -> Any:
    """The array of an .npy, or the arrays of an .npz. options: of numpy.load. Raises ValueError for anything else."""
    with plain_arrays():
        return np.load(file, allow_pickle=False, **options)


@contextmanager
def plain_arrays() -> Iterator[None]:
    """Within it, whatever numpy raises for a damaged file is a ValueError; an .npz is read as its members are asked for."""
    try:
        yield
    except _FAULTS as error:
        reason = " ".join(str(error.args[0] if error.args else "").split()) or type(error).__name__
        raise ValueError(f"numpy cannot read the arrays ({reason})") from None
