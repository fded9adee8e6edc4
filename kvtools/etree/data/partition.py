"""Which device holds which samples: IID, label skew in five forms, quantity skew, natural owners, or as a file says.

Legend: N samples, n devices, C classes. The invariant: every sample has one owner, every device at least one sample; `checked`
asserts it of every partition, drawn here or read. All random numbers come from the seed and the form of the partition.

Two different things are called Dirichlet(a). `dirichlet:A` splits each class over the devices (Hsu et al. 2019, Flower's
DirichletPartitioner): sizes differ. `mixture:A` draws for each device of equal size its own mixture of classes (pfl-research):
sizes are equal; the last devices in the draw take what is left. Not here: what the samples are.
"""

import hashlib
import re
from typing import Any, BinaryIO

import numpy as np

from kvtools.artifact.json_text import read_json
from kvtools.chance import rng_for

FORMS = "iid, shards:S, classes:C, dirichlet:A, mixture:A, quantity:SIGMA, natural or file:FILE"


def parse(form: str) -> tuple[str, float]:
    """A partition's name and its number, 0 where it has none. Raises ValueError for other text."""
    match = re.fullmatch(r"(iid|natural)|(shards|classes):([1-9]\d*)|(dirichlet|mixture|quantity):(\d*\.?\d+(?:e-?\d+)?)", form)
    if not match:
        raise ValueError(f"the forms are {FORMS}")
    name, number = match[1] or match[2] or match[4], float(match[3] or match[5] or 0)
    largest = 100.0 if name == "quantity" else 1e6  # exp(100 times a normal number) is still a number
    if match[4] and not 0 < number <= largest:
        raise ValueError(f"the number of {name} is above 0 and up to {largest:g}")
    return name, number


def partition(
    form: str, y_N: np.ndarray, n_devices: int, seed: int, users_N: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """The samples of each device: index int64 (N,), device after device, and offsets int64 (n+1,) into it.

    y_N: labels, int64 (N,). users_N: who wrote each sample, strings (N,), for `natural`, which assigns the users to the devices
    in turn. Raises ValueError where the samples are too few or the users unknown.
    """
    name, number = parse(form)
    if not 1 <= n_devices <= len(y_N):
        raise ValueError(f"{n_devices} devices cannot share {len(y_N)} training samples, since each device gets at least one")
    rng = rng_for(seed, "partition", form, n_devices)
    if name == "natural":
        if users_N is None:
            raise ValueError("the data have no column user, and natural assigns samples by it")
        _, user_N = np.unique(users_N, return_inverse=True)
        owner_N = user_N % n_devices
    elif name == "iid":
        owner_N = np.empty(len(y_N), np.int64)
        owner_N[rng.permutation(len(y_N))] = np.arange(len(y_N)) * n_devices // len(y_N)
    elif name == "shards":
        owner_N = _shards(y_N, n_devices, int(number), rng)
    elif name == "classes":
        owner_N = _classes(y_N, n_devices, int(number), rng)
    elif name == "dirichlet":
        owner_N = _dirichlet(y_N, n_devices, number, rng)
    elif name == "mixture":
        owner_N = _mixture(y_N, n_devices, number, rng)
    else:
        weight_n = rng.lognormal(0, number, n_devices)
        owner_N = np.empty(len(y_N), np.int64)
        owner_N[rng.permutation(len(y_N))] = np.repeat(np.arange(n_devices), _counts(weight_n, len(y_N)))
    _fill_empty(owner_N, n_devices)
    order = np.argsort(owner_N, kind="stable")
    offsets = np.concatenate([[0], np.cumsum(np.bincount(owner_N, minlength=n_devices))])
    return checked(order, offsets, len(y_N))


def checked(index: np.ndarray, offsets: np.ndarray, n_samples: int) -> tuple[np.ndarray, np.ndarray]:
    """The same index (N,) and offsets (n+1,), int64.

    Raises ValueError unless every sample has one owner and every device a sample.
    """
    is_bad = (index < 0) | (index >= n_samples)
    if is_bad.any():
        raise ValueError(f"sample {int(index[is_bad][0])} does not exist: the samples are 0 to {n_samples - 1}")
    count_N = np.bincount(index, minlength=n_samples)
    if (count_N > 1).any():
        raise ValueError(f"sample {int(np.argmax(count_N > 1))} is on several devices")
    if (count_N == 0).any():
        raise ValueError(f"sample {int(np.argmax(count_N == 0))} is on no device")
    if (np.diff(offsets) <= 0).any():
        raise ValueError(f"device {int(np.argmax(np.diff(offsets) <= 0))} has no samples")
    return index.astype(np.int64), offsets.astype(np.int64)


def read_partition(file: BinaryIO, n_samples: int) -> tuple[np.ndarray, np.ndarray]:
    """A partition from JSON: a list of sample numbers for each device, or {device: [numbers]} in the order written.

    Returns index, int64 (N,), and offsets, int64 (n+1,), as `partition`. Raises ValueError for other JSON, and as `checked`.
    """
    lists = load_json(file)
    lists = list(lists.values()) if isinstance(lists, dict) else lists
    is_list = isinstance(lists, list) and bool(lists) and all(isinstance(numbers, list) for numbers in lists)
    if not is_list or not all(type(number) is int for numbers in lists for number in numbers):
        raise ValueError("this JSON is not a list of sample numbers for each device")
    offsets = np.cumsum([0, *map(len, lists)])
    return checked(np.array([number for numbers in lists for number in numbers], np.int64), offsets, n_samples)


def load_json(file: BinaryIO) -> Any:
    """What a file holds as JSON. Raises ValueError where it is not JSON."""
    try:
        return read_json(file.read())
    except ValueError as fault:
        raise ValueError(f"this is not JSON ({fault})") from None


def digest(index: np.ndarray, offsets: np.ndarray) -> str:
    """32 hex digits that differ between partitions; the order of a device's samples counts. index: int (N,).
    offsets: int (n+1,)."""
    return hashlib.blake2b(np.int64(offsets).tobytes() + np.int64(index).tobytes(), digest_size=16).hexdigest()


def histogram(y_N: np.ndarray, index: np.ndarray, offsets: np.ndarray, n_classes: int) -> np.ndarray:
    """How many samples of each class each device holds, int32 (n, C). y_N: labels, int (N,)."""
    n_devices = len(offsets) - 1
    owner = np.repeat(np.arange(n_devices), np.diff(offsets))
    flat = np.bincount(owner * n_classes + y_N[index], minlength=n_devices * n_classes)
    return flat.reshape(n_devices, n_classes).astype(np.int32)


def _shards(y_N: np.ndarray, n_devices: int, n_shards: int, rng: np.random.Generator) -> np.ndarray:
    """Samples sorted by label, cut into n * S pieces, S of them to each device (McMahan et al. 2017)."""
    if n_devices * n_shards > len(y_N):
        raise ValueError(f"{n_devices * n_shards} shards cannot be cut from {len(y_N)} samples")
    shard_N = np.arange(len(y_N)) * (n_devices * n_shards) // len(y_N)
    owner_S = np.empty(n_devices * n_shards, np.int64)
    owner_S[rng.permutation(n_devices * n_shards)] = np.arange(n_devices * n_shards) // n_shards
    owner_N = np.empty(len(y_N), np.int64)
    # samples of one class in random order, so that a shard does not follow the order of the file
    shuffled = rng.permutation(len(y_N))
    owner_N[shuffled[np.argsort(y_N[shuffled], kind="stable")]] = owner_S[shard_N]
    return owner_N


def _classes(y_N: np.ndarray, n_devices: int, n_per_device: int, rng: np.random.Generator) -> np.ndarray:
    """Each device gets n_per_device of the classes, so that the numbers of holders of two classes differ by at most one; the
    samples of a class are spread evenly over its holders."""
    classes = np.unique(y_N)
    if n_per_device > len(classes):
        raise ValueError(f"{n_per_device} classes for each device are more than the {len(classes)} classes of the data")
    if n_per_device * n_devices < len(classes):
        raise ValueError(
            f"{n_per_device} of {len(classes)} classes on each of {n_devices} devices leave classes without a device"
        )
    holders: list[list[int]] = [[] for _ in classes]
    for device in rng.permutation(n_devices).tolist():
        n_holders = np.array([len(devices) for devices in holders]) + rng.random(len(classes)) / 2
        for k in np.argsort(n_holders)[:n_per_device].tolist():
            holders[k].append(device)
    owner_N = np.empty(len(y_N), np.int64)
    for label, devices in zip(classes.tolist(), holders, strict=True):
        rows = rng.permutation(np.flatnonzero(y_N == label))
        owner_N[rows] = np.array(devices)[np.arange(len(rows)) * len(devices) // len(rows)]
    return owner_N


def _dirichlet(y_N: np.ndarray, n_devices: int, alpha: float, rng: np.random.Generator) -> np.ndarray:
    """Each class is split over the devices by a Dirichlet distribution of parameter alpha."""
    owner_N = np.empty(len(y_N), np.int64)
    for label in np.unique(y_N).tolist():
        rows = rng.permutation(np.flatnonzero(y_N == label))
        # a Dirichlet sample from gamma samples, in log space: for a tiny alpha all of them would underflow to zero
        log_n = np.log(rng.gamma(alpha + 1, size=n_devices)) + np.log(rng.random(n_devices)) / alpha
        owner_N[rows] = np.repeat(np.arange(n_devices), _counts(np.exp(log_n - log_n.max()), len(rows)))
    return owner_N


def _mixture(y_N: np.ndarray, n_devices: int, alpha: float, rng: np.random.Generator) -> np.ndarray:
    """Each device, all of equal size, draws its own mixture of classes, Dirichlet with parameter alpha times the classes'
    fractions; a class that is used up is left out."""
    classes, y_N = np.unique(y_N, return_inverse=True)
    rows = [rng.permutation(np.flatnonzero(y_N == k)) for k in range(len(classes))]
    left_C = np.array([len(rows_k) for rows_k in rows])
    alpha_C = alpha * (left_C / left_C.sum()) * len(classes)
    owner_N = np.empty(len(y_N), np.int64)
    sizes = np.diff(np.arange(n_devices + 1) * len(y_N) // n_devices)
    for device in rng.permutation(n_devices).tolist():
        log_C = np.log(rng.gamma(alpha_C + 1)) + np.log(rng.random(len(classes))) / alpha_C
        n_wanted = int(sizes[device])
        while n_wanted:
            weight_C = np.where(left_C > 0, np.exp(log_C - log_C[left_C > 0].max()), 0)
            take_C = np.minimum(_counts(weight_C, n_wanted), left_C)
            for k in np.flatnonzero(take_C).tolist():
                owner_N[rows[k][left_C[k] - take_C[k] : left_C[k]]] = device
            left_C -= take_C
            n_wanted -= int(take_C.sum())
    return owner_N


def _counts(weight_n: np.ndarray, total: int) -> np.ndarray:
    """Whole numbers in proportion to the weights that sum to `total`, int64 (n,): largest remainders, ties to the lower
    index."""
    exact_n = weight_n / weight_n.sum() * total
    count_n: np.ndarray = np.floor(exact_n).astype(np.int64)
    rounded_up = np.argsort(count_n - exact_n, kind="stable")[: total - int(count_n.sum())]
    count_n[rounded_up] += 1
    return count_n


def _fill_empty(owner_N: np.ndarray, n_devices: int) -> None:
    """Give each device without samples the last sample of the device that has most."""
    count_n = np.bincount(owner_N, minlength=n_devices)
    for device in np.flatnonzero(count_n == 0).tolist():
        giver = int(count_n.argmax())
        owner_N[np.flatnonzero(owner_N == giver)[-1]] = device
        count_n[giver] -= 1
        count_n[device] += 1
