"""Random numbers that depend on the seed and on what they are for, and on nothing else."""

import hashlib
import json
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np


def seed_of(seed: int, *purpose: str | int) -> int:
    """A number below 2^63 for one purpose: blake2b of the run's seed and the words, so that purposes do not share chance."""
    words = json.dumps([seed, *purpose]).encode()
    return int.from_bytes(hashlib.blake2b(words, digest_size=8).digest(), "little") >> 1


def generator(seed: int, *purpose: str | int) -> "np.random.Generator":
    """A numpy generator for one purpose."""
    import numpy as np

    return np.random.default_rng(seed_of(seed, *purpose))
