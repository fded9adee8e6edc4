"""What identifies the file of a clip in its record."""

import hashlib
from pathlib import Path


def digest_of(path: str | Path) -> str:
    """The blake2b of a file, 16 bytes in hexadecimal digits."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()
