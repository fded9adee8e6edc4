"""The files of a tar, whose headers are distrusted: nothing is extracted, and lengths that no file has end the reading."""

import tarfile
from collections.abc import Iterator
from typing import Literal


def tar_entries(path_or_file: object, mode: Literal["r", "r:"] = "r") -> Iterator[tuple[tarfile.TarFile, tarfile.TarInfo]]:
    """The entries in the tar's order, each with the open tar. mode: `r:` for no compression, else any.

    Raises tarfile.TarError where it is damaged.
    """
    given = {"name": path_or_file} if isinstance(path_or_file, str) else {"fileobj": path_or_file}
    try:
        with tarfile.open(mode=mode, **given) as tar:
            for entry in tar:
                if entry.size < 0:  # else the next header would be looked for before this one, again and again
                    raise tarfile.ReadError("a file of a length below zero")
                yield tar, entry
    except (ValueError, OverflowError) as error:
        raise tarfile.ReadError(str(error)) from None
