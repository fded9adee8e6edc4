"""Texts that were met before, word for word or nearly: MinHash of runs of words, in bands, in a table on disk.

The first of a set of duplicates is kept, so callers bring texts in an order that does not depend on where they were read.
Memory does not grow with the number of texts. Similarity is an estimate of 128 permutations, +- 0.04 at 0.8 (one standard
deviation).

Source: Broder 1997; bands after Leskovec, Rajaraman and Ullman, Mining of Massive Datasets, section 3.4; datasketch.
"""

import hashlib
import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice

import numpy as np

from kvtools.keye.mix.words import ngrams, words_of

N_PERMUTATIONS = 128
SHINGLE = 5  # words
_BANDS = 16  # of 8 values each: two texts of similarity 0.8 share a band with probability 0.95, of 0.5 with 0.06
_BATCH = 512


def signatures(texts: Sequence[str]) -> np.ndarray:
    """MinHash of each text's runs of 5 words: uint32 (n, 128). Depends on the text alone."""
    from datasketch import MinHash

    shingles = [[gram.encode() for gram in ngrams(words_of(text), SHINGLE)] or [b""] for text in texts]
    made = MinHash.bulk(shingles, num_perm=N_PERMUTATIONS, seed=1)
    return np.array([hashed.hashvalues for hashed in made]).astype(np.uint32).reshape(len(texts), N_PERMUTATIONS)


class Duplicates:
    """Texts met so far; similarity above `threshold` makes a duplicate."""

    def __init__(self, database: sqlite3.Connection, threshold: float = 0.8) -> None:
        self._database, self._threshold = database, threshold
        database.execute("CREATE TABLE IF NOT EXISTS seen (id INTEGER PRIMARY KEY, name TEXT, signature BLOB)")
        database.execute("CREATE TABLE IF NOT EXISTS bands (band INTEGER, id INTEGER, PRIMARY KEY (band, id)) WITHOUT ROWID")

    def filter(self, texts: Iterable[tuple[str, str, str]]) -> Iterator[tuple[str, str | None]]:
        """(name, the name of the earlier text that it repeats, or None) of each (name, group, text); groups do not mix."""
        texts = iter(texts)
        while batch := list(islice(texts, _BATCH)):
            for (name, group, _), signature in zip(batch, signatures([text for _, _, text in batch]), strict=True):
                yield name, self._met(name, group, signature)

    def _met(self, name: str, group: str, signature: np.ndarray) -> str | None:
        bands = [_digest(group, number, band) for number, band in enumerate(np.split(signature, _BANDS))]
        marks = ",".join("?" * len(bands))
        found = self._database.execute(
            f"SELECT name, signature FROM seen WHERE id IN (SELECT id FROM bands WHERE band IN ({marks})) ORDER BY id",  # noqa: S608 only marks
            bands,
        )
        for earlier, stored in found:
            if float(np.mean(np.frombuffer(stored, np.uint32) == signature)) > self._threshold:
                return str(earlier)
        row = self._database.execute("INSERT INTO seen (name, signature) VALUES (?, ?)", (name, signature.tobytes())).lastrowid
        self._database.executemany("INSERT OR IGNORE INTO bands VALUES (?, ?)", [(band, row) for band in bands])
        return None


def _digest(group: str, number: int, band: np.ndarray) -> int:
    """A band's name in the table: 64 bits, as sqlite has them. Two that collide are only compared for nothing."""
    data = b"%d %s " % (number, group.encode()) + band.tobytes()
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "little", signed=True)
