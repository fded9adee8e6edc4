"""Random numbers that depend on the seed and on what they are for, and on nothing else."""

import hashlib
import json
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np


def seed_for(seed: int, *purpose: str | int) -> int:
    """A seed below 2^63 for one purpose: blake2b of the run's seed and the purpose, so that no two purposes share numbers."""
    text = json.dumps([seed, *purpose]).encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little") >> 1


def rng_for(seed: int, *purpose: str | int) -> "np.random.Generator":
    """A numpy generator for one purpose."""
    import numpy as np

    return np.random.default_rng(seed_for(seed, *purpose))
