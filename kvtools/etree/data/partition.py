"""Which device holds which samples: IID, label skew in five forms, quantity skew, natural owners, or as a file says.

Legend: N samples, n devices, C classes. The invariant: every sample has one owner, every device at least one sample; `checked`
asserts it of every partition, made here or read. All chance comes from the seed and the name of the partition.

Two different things are called Dirichlet(a). `dirichlet:A` splits each class over the devices (Hsu et al. 2019, Flower's
DirichletPartitioner): sizes differ. `mixture:A` draws for each device of equal size its own mixture of classes (pfl-research):
sizes are equal; devices late in the draw take what is left. Not here: what the samples are.
"""

import hashlib
import json
import re
from typing import BinaryIO

import numpy as np

from kvtools.chance import rng_for

FORMS = "iid, shards:S, classes:C, dirichlet:A, mixture:A, quantity:SIGMA, natural or file:FILE"


def parse(words: str) -> tuple[str, float]:
    """A partition's name and its number, 0 where it has none; raises ValueError for others."""
    match = re.fullmatch(
        r"(iid|natural)|(shards|classes):([1-9]\d*)|(dirichlet|mixture|quantity):(\d*\.?\d+(?:e-?\d+)?)", words
    )
    if not match:
        raise ValueError(f"{FORMS} expected")
    name, number = match[1] or match[2] or match[4], float(match[3] or match[5] or 0)
    largest = 100.0 if name == "quantity" else 1e6  # exp(100 times a normal number) is still a number
    if match[4] and not 0 < number <= largest:
        raise ValueError(f"{FORMS} expected, the number above 0 and up to {largest:g}")
    return name, number


def partition(
    words: str, y_N: np.ndarray, n_devices: int, seed: int, users_N: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """The samples of each device: index int64 (N,), device after device, and offsets int64 (n+1,) into it.

    y_N: int64. users_N: who wrote each sample, for `natural`, which makes as many devices as there are users; others are given
    to devices in turn, so that n_devices of them come out. Raises ValueError where it cannot be done.
    """
    name, number = parse(words)
    if not 1 <= n_devices <= len(y_N):
        raise ValueError(f"{n_devices} devices found, from 1 to the {len(y_N)} training samples expected")
    chance = rng_for(seed, "partition", words, n_devices)
    if name == "natural":
        if users_N is None:
            raise ValueError("natural found, but the data do not tell who wrote a sample")
        _, user_N = np.unique(users_N, return_inverse=True)
        owner_N = user_N % n_devices
    elif name == "iid":
        owner_N = np.empty(len(y_N), np.int64)
        owner_N[chance.permutation(len(y_N))] = np.arange(len(y_N)) * n_devices // len(y_N)
    elif name == "shards":
        owner_N = _shards(y_N, n_devices, int(number), chance)
    elif name == "classes":
        owner_N = _classes(y_N, n_devices, int(number), chance)
    elif name == "dirichlet":
        owner_N = _dirichlet(y_N, n_devices, number, chance)
    elif name == "mixture":
        owner_N = _mixture(y_N, n_devices, number, chance)
    else:
        weight_n = chance.lognormal(0, number, n_devices)
        owner_N = np.empty(len(y_N), np.int64)
        owner_N[chance.permutation(len(y_N))] = np.repeat(np.arange(n_devices), _counts(weight_n, len(y_N)))
    _feed_the_empty(owner_N, n_devices)
    order = np.argsort(owner_N, kind="stable")
    offsets = np.concatenate([[0], np.cumsum(np.bincount(owner_N, minlength=n_devices))])
    return checked(order, offsets, len(y_N))


def checked(index: np.ndarray, offsets: np.ndarray, n_samples: int) -> tuple[np.ndarray, np.ndarray]:
    """The same, int64, once it is sure that every sample has one owner and every device a sample. Raises ValueError."""
    if len(index) and not (index.min() >= 0 and index.max() < n_samples):
        bad = int(index[(index < 0) | (index >= n_samples)][0])
        raise ValueError(f"sample {bad} found, samples 0 to {n_samples - 1} expected")
    count_N = np.bincount(index, minlength=n_samples)
    if (count_N > 1).any():
        raise ValueError(f"sample {int(np.argmax(count_N > 1))} found on several devices, on one expected")
    if (count_N == 0).any():
        raise ValueError(f"sample {int(np.argmax(count_N == 0))} found on no device, on one expected")
    if (np.diff(offsets) <= 0).any():
        raise ValueError(f"device {int(np.argmax(np.diff(offsets) <= 0))} found without samples, at least one expected")
    return index.astype(np.int64), offsets.astype(np.int64)


def read_partition(file: BinaryIO, n_samples: int) -> tuple[np.ndarray, np.ndarray]:
    """A partition from JSON: a list of lists of sample numbers, a device each, or {device: [numbers]} in the order written."""
    try:
        words = json.load(file)
    except RecursionError:
        raise ValueError("lists in lists in lists found, a list of lists of sample numbers expected") from None
    lists = list(words.values()) if isinstance(words, dict) else words
    if (
        not isinstance(lists, list)
        or not lists
        or not all(isinstance(some, list) and all(type(number) is int for number in some) for some in lists)
    ):
        raise ValueError("a list of lists of sample numbers expected, a device each")
    offsets = np.cumsum([0, *map(len, lists)])
    return checked(np.array([number for some in lists for number in some], np.int64), offsets, n_samples)


def digest(index: np.ndarray, offsets: np.ndarray) -> str:
    """32 hex digits that tell one partition from another; the order of a device's samples counts."""
    return hashlib.blake2b(np.int64(offsets).tobytes() + np.int64(index).tobytes(), digest_size=16).hexdigest()


def histogram(y_N: np.ndarray, index: np.ndarray, offsets: np.ndarray, n_classes: int) -> np.ndarray:
    """int32 (n, C): how many samples of each class each device holds."""
    n_devices = len(offsets) - 1
    owner = np.repeat(np.arange(n_devices), np.diff(offsets))
    flat = np.bincount(owner * n_classes + y_N[index], minlength=n_devices * n_classes)
    return flat.reshape(n_devices, n_classes).astype(np.int32)


def _shards(y_N: np.ndarray, n_devices: int, n_shards: int, chance: np.random.Generator) -> np.ndarray:
    """Samples sorted by label, cut into n * S pieces, S of them to each device (McMahan et al. 2017)."""
    if n_devices * n_shards > len(y_N):
        raise ValueError(f"{n_devices * n_shards} shards found, at most {len(y_N)} expected, one a sample")
    shard_N = np.arange(len(y_N)) * (n_devices * n_shards) // len(y_N)
    owner_S = np.empty(n_devices * n_shards, np.int64)
    owner_S[chance.permutation(n_devices * n_shards)] = np.arange(n_devices * n_shards) // n_shards
    owner_N = np.empty(len(y_N), np.int64)
    # samples of one class in random order, so that a shard is no run of the file
    shuffled = chance.permutation(len(y_N))
    owner_N[shuffled[np.argsort(y_N[shuffled], kind="stable")]] = owner_S[shard_N]
    return owner_N


def _classes(y_N: np.ndarray, n_devices: int, n_each: int, chance: np.random.Generator) -> np.ndarray:
    """Each device gets n_each of the classes, dealt like cards so that each class has as many holders as any other, give or
    take one; the samples of a class are spread evenly over its holders."""
    classes = np.unique(y_N)
    if n_each > len(classes):
        raise ValueError(f"{n_each} classes a device found, at most {len(classes)} expected")
    if n_each * n_devices < len(classes):
        raise ValueError(f"{n_each} of {len(classes)} classes on {n_devices} devices leave some to nobody; more expected")
    holders: list[list[int]] = [[] for _ in classes]
    for device in chance.permutation(n_devices).tolist():
        lengths = np.array([len(some) for some in holders]) + chance.random(len(classes)) / 2
        for place in np.argsort(lengths)[:n_each].tolist():
            holders[place].append(device)
    owner_N = np.empty(len(y_N), np.int64)
    for label, mine in zip(classes.tolist(), holders, strict=True):
        rows = chance.permutation(np.flatnonzero(y_N == label))
        owner_N[rows] = np.array(mine)[np.arange(len(rows)) * len(mine) // len(rows)]
    return owner_N


def _dirichlet(y_N: np.ndarray, n_devices: int, alpha: float, chance: np.random.Generator) -> np.ndarray:
    owner_N = np.empty(len(y_N), np.int64)
    for label in np.unique(y_N).tolist():
        rows = chance.permutation(np.flatnonzero(y_N == label))
        # as gammas in log space: tiny alphas underflow to zero everywhere otherwise
        log_n = np.log(chance.gamma(alpha + 1, size=n_devices)) + np.log(chance.random(n_devices)) / alpha
        owner_N[rows] = np.repeat(np.arange(n_devices), _counts(np.exp(log_n - log_n.max()), len(rows)))
    return owner_N


def _mixture(y_N: np.ndarray, n_devices: int, alpha: float, chance: np.random.Generator) -> np.ndarray:
    classes, y_N = np.unique(y_N, return_inverse=True)
    piles = [chance.permutation(np.flatnonzero(y_N == place)) for place in range(len(classes))]
    left_C = np.array([len(pile) for pile in piles])
    share_C = left_C / left_C.sum()
    owner_N = np.empty(len(y_N), np.int64)
    sizes = np.diff(np.arange(n_devices + 1) * len(y_N) // n_devices)
    for device in chance.permutation(n_devices).tolist():
        log_C = np.log(chance.gamma(alpha * share_C * len(classes) + 1)) + np.log(chance.random(len(classes))) / (
            alpha * share_C * len(classes)
        )
        want = int(sizes[device])
        while want:
            weight_C = np.where(left_C > 0, np.exp(log_C - log_C[left_C > 0].max()), 0)
            take_C = np.minimum(_counts(weight_C, want), left_C)
            for place in np.flatnonzero(take_C).tolist():
                owner_N[piles[place][left_C[place] - take_C[place] : left_C[place]]] = device
            left_C -= take_C
            want -= int(take_C.sum())
    return owner_N


def _counts(weight_n: np.ndarray, total: int) -> np.ndarray:
    """`total` in whole numbers in proportion to the weights: largest remainders, ties to the lower number."""
    exact_n = weight_n / weight_n.sum() * total
    count_n: np.ndarray = np.floor(exact_n).astype(np.int64)
    short = np.argsort(count_n - exact_n, kind="stable")[: total - int(count_n.sum())]
    count_n[short] += 1
    return count_n


def _feed_the_empty(owner_N: np.ndarray, n_devices: int) -> None:
    """Each device without samples gets the last one of the device that then has most."""
    count_n = np.bincount(owner_N, minlength=n_devices)
    for device in np.flatnonzero(count_n == 0).tolist():
        giver = int(count_n.argmax())
        owner_N[np.flatnonzero(owner_N == giver)[-1]] = device
        count_n[giver] -= 1
        count_n[device] += 1
