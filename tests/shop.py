"""A tiny shop for tests of OneRec: users who click within topics, items with semantic IDs, and a command run in this process.

Processes of their own, which the fixture `sh` starts, spend two seconds each on importing torch; `say` spends them once.
"""

import os
import shlex
import signal
from contextlib import contextmanager

import numpy as np
from conftest import Result

from kvtools import cli, world
from kvtools.artifact.bag import write_bag
from kvtools.artifact.files import Sink
from kvtools.artifact.strings import pack

N_ITEMS, N_TOPICS, N_CODES = 40, 5, 8
SIZES = ["width=16", "heads=2", "experts=2", "expert_hidden=8", "decoder_layers=1", "encoder_layers=1", "queries=2"]
SMALL = " ".join(f"--architecture {size}" for size in SIZES) + " --batch 64 --near 0"
TRAIN = f"kvtools pretrain onerec clicks.csv --items items.ids {SMALL}"


def furnish(folder, n_users=30, seed=5):
    """clicks.csv, users.csv, titles.csv; items.ids, where two pairs of items share an ID, and other.ids of the same items."""
    rng = np.random.default_rng(seed)
    rows = ["user_id,item_id,timestamp,rating\n"]
    for user in range(n_users):
        weight = np.where(np.arange(N_ITEMS) % N_TOPICS == user % N_TOPICS, 6.0, 1.0)
        taken = rng.choice(N_ITEMS, rng.integers(5, 14), replace=False, p=weight / weight.sum())
        times = 1000 * user + np.cumsum(rng.integers(1, 60, len(taken)))
        rows += [f"u{user},i{item},{time},{rng.integers(1, 6)}\n" for item, time in zip(taken, times, strict=True)]
    (folder / "clicks.csv").write_text("".join(rows))
    people = [f"u{user},{20 + user % 5},{'fm'[user % 2]}\n" for user in range(n_users)]
    (folder / "users.csv").write_text("user_id,age,gender\n" + "".join(people))
    (folder / "titles.csv").write_text("item_id,title\n" + "".join(f"i{item},Item No. {item}\n" for item in range(N_ITEMS)))
    for name, seed_of_ids in (("items.ids", 1), ("other.ids", 2)):
        number_ids(folder / name, [f"i{item}" for item in range(N_ITEMS)], seed_of_ids)


def number_ids(path, keys, seed):
    """IDs of three codes: the topic, and two at random."""
    rng = np.random.default_rng(seed)
    codes = np.stack([np.arange(len(keys)) % N_TOPICS, *rng.integers(0, N_CODES, (2, len(keys)))], axis=1)
    codes[-2:] = codes[:2]
    books = rng.normal(size=(3, N_CODES, 4)).astype(np.float32)
    tensors = {"codebooks": books, "codes": codes.astype(np.uint16), **pack("keys", keys)}
    write_bag(Sink(str(path)), "semantic-id", tensors, config={}, history=[])


def add_clicks(path, lines):
    """Clicks before all others: what their users did first."""
    head, *rows = path.read_text().splitlines(keepends=True)
    path.write_text("".join([head, *lines, *rows]))


def clicks_of(path):
    """{user: [item, …]} in time order."""
    found = {}
    for row in path.read_text().splitlines()[1:]:
        user, item, *_ = row.split(",")
        found.setdefault(user, []).append(item)
    return found


def say(line, capfd=None):
    """The command, in this process and this folder."""
    if capfd is not None:
        capfd.readouterr()
    with _own_signals():
        code = cli.run(shlex.split(line)[1:])
    out, err = ("", "") if capfd is None else capfd.readouterr()
    return Result(code, out.encode(), err)


@contextmanager
def inside(folder):
    before = os.getcwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)


@contextmanager
def _own_signals():
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGUSR2)}
    try:
        yield
    finally:
        world._stop_signals.clear()
        for number, handler in before.items():
            signal.signal(number, handler)
