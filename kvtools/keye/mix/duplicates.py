"""Texts that were met before, word for word or nearly: MinHash of runs of words, in bands, in a table on disk.

The first of a set of duplicates is kept, so callers bring texts in an order that does not depend on where they were read.
Memory does not grow with the number of texts. Similarity is an estimate of 128 permutations, +- 0.04 at 0.8 (one standard
deviation).

Source: Broder 1997; bands after Leskovec, Rajaraman and Ullman, Mining of Massive Datasets, section 3.4; datasketch.
"""

import sqlite3
import zlib
from collections.abc import Iterable, Iterator, Sequence
from functools import cache
from hashlib import blake2b
from typing import Any

import numpy as np

from kvtools.keye.mix.words import ngrams, words_of

N_PERMUTATIONS = 128
SHINGLE = 5  # words
_BANDS = 16  # of 8 values each: two texts of similarity 0.8 share a band with probability 0.95, of 0.5 with 0.06
_SCHEMA = """
CREATE TABLE signatures (number INTEGER PRIMARY KEY, name TEXT, signature BLOB);
CREATE TABLE bands (band INTEGER, number INTEGER, PRIMARY KEY (band, number)) WITHOUT ROWID;
"""
_MARKS = ",".join("?" * _BANDS)
_SAME_BAND = f"SELECT DISTINCT name, signature FROM bands JOIN signatures USING (number) WHERE band IN ({_MARKS}) ORDER BY name"  # noqa: S608


def signatures(texts: Sequence[str]) -> np.ndarray:
    """MinHash of each text's runs of 5 words: uint32 (n, 128). Depends on the text alone."""
    made = np.empty((len(texts), N_PERMUTATIONS), np.uint32)
    for row, text in zip(made, texts, strict=True):
        hashed = _empty_hash()
        hashed.clear()
        hashed.update_batch([gram.encode("utf-8", "surrogatepass") for gram in ngrams(words_of(text), SHINGLE)] or [b""])
        row[:] = hashed.hashvalues
    return made


@cache
def _empty_hash() -> Any:
    """The hash of no text, whose permutations are drawn once."""
    from datasketch import MinHash

    # a checksum is hash enough: the permutations mix it, and it costs a tenth of the library's SHA-1
    return MinHash(num_perm=N_PERMUTATIONS, seed=1, hashfunc=zlib.crc32)


class Duplicates:
    """Texts met so far, by their signatures; similarity above `threshold` makes a duplicate."""

    def __init__(self, database: sqlite3.Connection, threshold: float = 0.8) -> None:
        self._database, self._threshold = database, threshold
        for statement in filter(str.strip, _SCHEMA.split(";")):  # executescript would end the caller's transaction
            database.execute(statement)

    def filter(self, texts: Iterable[tuple[str, str, bytes]]) -> Iterator[tuple[str, str | None]]:
        """(name, the name of the earlier text that it repeats, or None) of each (name, group, signature's bytes).

        Groups do not mix.
        """
        for name, group, signature in texts:
            yield name, self._met(name, group, np.frombuffer(signature, np.uint32))

    def _met(self, name: str, group: str, signature: np.ndarray) -> str | None:
        salt = zlib.crc32(group.encode())
        bands = [
            int.from_bytes(hashed, "little", signed=True)
            for number, part in enumerate(signature.reshape(_BANDS, -1))
            for hashed in [blake2b(part.tobytes(), digest_size=8, key=b"%d %d" % (salt, number)).digest()]
        ]
        for earlier, stored in self._database.execute(_SAME_BAND, bands):
            if float(np.mean(np.frombuffer(stored, np.uint32) == signature)) > self._threshold:
                return str(earlier)
        query = "INSERT INTO signatures (name, signature) VALUES (?, ?)"
        number = self._database.execute(query, (name, signature.tobytes())).lastrowid
        self._database.executemany("INSERT OR IGNORE INTO bands VALUES (?, ?)", [(band, number) for band in bands])
        return None
