"""Texts that were met before, word for word or nearly: MinHash of runs of words, in bands, in a table on disk.

The first of a set of duplicates is kept, so callers bring texts in an order that does not depend on where they were read.
Memory does not grow with the number of texts. Similarity is an estimate of 128 permutations, +- 0.04 at 0.8 (one standard
deviation).

Source: Broder 1997; bands after Leskovec, Rajaraman and Ullman, Mining of Massive Datasets, section 3.4; datasketch.
"""

import sqlite3
import zlib
from collections.abc import Iterable, Iterator, Sequence
from functools import cache, lru_cache
from hashlib import blake2b
from typing import Any

import numpy as np

from kvtools.keye.mix.words import words_of

N_PERMUTATIONS = 128
SHINGLE = 5  # words
# odd numbers of 64 bits drawn once: sums of products with them mix well in their upper half (Dietzfelbinger et al. 1997)
_MULTIPLIERS = np.array(
    [0x9E3779B97F4A7C15, 0xC2B2AE3D27D4EB4F, 0x165667B19E3779F9, 0xD6E8FEB86659FD93, 0xA0761D6478BD642F], np.uint64
)
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
        hashed = _empty_hash().copy()
        hashed.update_batch(_shingle_hashes(words_of(text)))
        row[:] = hashed.hashvalues
    return made


def _shingle_hashes(words: Sequence[str]) -> list[int]:
    """A number below 2**32 for each run of 5 words, of the whole where there are fewer; of equal runs the same.

    From the checksums of words, so that each word is hashed once and not in five runs.
    """
    word_hashes = np.fromiter(map(_word_hash, words), np.uint64, len(words))
    n = min(SHINGLE, max(1, len(words)))
    mixed = np.zeros(max(1, len(words) - n + 1), np.uint64)
    for place in range(min(n, len(words))):
        mixed += (word_hashes[place : place + len(mixed)] + np.uint64(place + 1)) * _MULTIPLIERS[place]
    hashes: list[int] = (mixed >> np.uint64(32)).tolist()
    return hashes


@lru_cache(maxsize=1 << 16)
def _word_hash(word: str) -> int:
    return zlib.crc32(word.encode("utf-8", "surrogatepass"))


@cache
def _empty_hash() -> Any:
    """The hash of no text, whose permutations are drawn once."""
    from datasketch import MinHash

    return MinHash(num_perm=N_PERMUTATIONS, seed=1, hashfunc=int)  # runs of words come as numbers already


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
