"""Hashes of pairs of a user and an item, by their keys: what a model was trained on, so that an evaluation can tell leaks.

64 bits a pair: among ten million pairs, one in two million million others is taken for one of them. Not here: times, and how
often a pair occurs.
"""

import hashlib

import numpy as np

from kvtools.onerec.interactions.histories import Histories

_ODD = np.uint64(0x9E3779B97F4A7C15)  # that of splitmix64, as the shifts below


def pair_hashes(histories: Histories, item_keys: np.ndarray) -> np.ndarray:
    """int64 (n,): the hash of the user and the item of each interaction. item_keys: strings, those of the catalogue."""
    users_U, items_I = (_hashes(keys) for keys in (histories.user_keys, item_keys))
    x = np.repeat(users_U, np.diff(histories.offsets)) * _ODD + items_I[histories.items]
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return np.asarray((x ^ (x >> np.uint64(31))).view(np.int64))


def _hashes(keys: np.ndarray) -> np.ndarray:
    digests = b"".join(hashlib.blake2b(key.encode(), digest_size=8).digest() for key in keys.tolist())
    return np.frombuffer(digests, "<u8").astype(np.uint64)
