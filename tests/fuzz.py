"""Damaged inputs of every format, by the hundred thousand: a reader gives a value or refuses; never a crash, a hang or a hoard.

    python tests/fuzz.py [--cases 100000] [--seed 0] [TARGET...]     a Markdown table on stdout; exits 1 if anything was found

A case is a good file of the format, cut, joined with itself, with bits turned, repeated or put in, most often such as the
format itself uses. Fine are results, refusals (errors.Fault) and ValueError, which commands turn into refusals. Found is any
other exception, a case of more than 10 seconds, and one that wants more than 8 GiB. Case n of a target depends on seed and n
alone; `--only N` runs it again, with its traceback. tests/unit/test_fuzz.py runs a few hundred cases of each.
"""

import argparse
import io
import os
import random
import resource
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from contextlib import suppress
from pathlib import Path

import same_outputs

from kvtools.errors import Fault

LONGEST_S = 10
MEMORY_BYTES = 8 << 30
MADE = ["convert-csv", "embed", "semid", "devices"]
TOKENS = [
    b"", b"\0", b"\n", b"\r", b'"', b"'", b",", b";", b"\t", b"[", b"]", b"{", b"}", b":", b"#", b"%", b"\\",
    b"\\u0000", b"\\ud800", b"\xff", b"\xfe\xff",
    b"\xef\xbb\xbf", b"\xf0\x9f\x8e\xb5", b"nan", b"NaN", b"inf", b"-1", b"0", b"1e999", b"1e-999", b"null",
    b"true", b"99999999999999999999", b"-9223372036854775808", b"[" * 3000, b'{"a":' * 2000, b'""', b"\x7f\xff\xff\xff",
    b"\xff" * 8,
    b"\x80\0\0\0\0\0\0\0", b"a" * 70000,
]  # fmt: skip


def stream_of(path):
    from kvtools.artifact.stream import Reader

    with open(path, "rb", buffering=1 << 16) as file:
        for _ in Reader(file, "x"):
            pass


def artifact_of(path):
    from kvtools.artifact import Bag, open_artifact

    artifact = open_artifact(path)
    if not isinstance(artifact, Bag):
        for _ in artifact:
            pass


def tree_of(path):
    from kvtools.etree.data.fleet import read_tree
    from kvtools.world import World

    read_tree(path, World())


def devices_of(path):
    from kvtools.etree.data.devices import delays_of, read_devices
    from kvtools.world import World

    devices, _ = read_devices(path, World())
    delays_of(devices, "x")


def ids_of(path):
    from kvtools.onerec.semantic_ids.ids import SemanticIds

    SemanticIds.open(path)


def conversations_of(path):
    from kvtools.artifact.documents import parsed
    from kvtools.keye.data.conversation_files import read_conversation_documents
    from kvtools.keye.data.conversations import normalise

    with open(path, "rb") as file:
        for _, document in read_conversation_documents(file, raw=True):
            value = parsed(document) if isinstance(document, bytes) else document
            with suppress(ValueError, KeyError, TypeError, AttributeError):  # for callers, a document that cannot be understood
                normalise(value)


def interactions_of(path):
    from kvtools.onerec.interactions.stream import open_interactions

    open_interactions(path)


def catalogue_of(path):
    from kvtools.onerec.items.catalogue import read_catalogue

    with open(path, "rb") as file:
        read_catalogue(file, "x")


def predictions_of(path):
    from kvtools.onerec.recommend.predictions import read_predictions

    read_predictions(path)


def matrix_of(path):
    from kvtools.etree.network.readers import read_matrix

    with open(path, "rb") as file:
        read_matrix(file, "x")


def coordinates_of(path):
    from kvtools.etree.network.readers import read_coordinates

    with open(path, "rb") as file:
        read_coordinates(file, "x")


def graph_of(path):
    from kvtools.etree.network.graphs import read_graph

    with open(path, "rb") as file:
        read_graph(file, "x")


def labelled_of(path):
    from kvtools.etree.data.labelled import read_labelled

    read_labelled(path)


def tar_of(path):
    from kvtools.video.tar import members

    members(path)


GML = b'graph [ node [ id 0 label "a" ] node [ id 1 label "b" ] edge [ source 0 target 1 delay 3.5 ] ]\n'
LEAF = b'{"users": ["u"], "num_samples": [2], "user_data": {"u": {"x": [[1, 2], [3, 4]], "y": [0, 1]}}}'


def npz():
    import numpy as np

    file = io.BytesIO()
    np.savez(file, x=np.ones((4, 3), np.float32), y=np.arange(4))
    return file.getvalue()


def tarred(folder):
    import tarfile

    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as tar:
        for name in ("llava.json", "clicks.csv", "pictures/0.png"):
            tar.add(folder / name, name)
    return file.getvalue()


def targets(folder):
    """{name: (reader, suffix, good files)}."""
    text = {name: (folder / name).read_bytes()[:4000] for name in ("clicks.csv", "clicks.inter", "lists.txt", "digits.csv")}
    chats = [(folder / name).read_bytes() for name in ("llava.json", "messages.jsonl")]
    places = [b"name,latitude,longitude\na,1.5,2\nb,3,-4\n", (folder / "where.npy").read_bytes()]
    return {
        "stream": (stream_of, ".kvs", [(folder / name).read_bytes() for name in ("clicks.kvs", "items.kvs")]),
        "bag": (artifact_of, ".safetensors", [(folder / name).read_bytes() for name in ("items.ids", "fleet.devices")]),
        "tree": (tree_of, ".tree", [(folder / "fleet.tree").read_bytes()]),
        "devices": (devices_of, ".devices", [(folder / "fleet.devices").read_bytes()]),
        "semantic-ids": (ids_of, ".ids", [(folder / "items.ids").read_bytes()]),
        "conversations": (conversations_of, ".json", chats),
        "interactions": (interactions_of, ".csv", [text["clicks.csv"], text["clicks.inter"], text["lists.txt"]]),
        "catalogue": (catalogue_of, ".item", [(folder / name).read_bytes() for name in ("films.item", "keywords.json")]),
        "predictions": (predictions_of, ".csv", [b"user,item,score\n1,2,0.5\n1,3,0.1\n", b'{"user":"1","items":["2","3"]}\n']),
        "delays": (matrix_of, ".csv", [b"0,1,2\n1,0,3\n2,3,0\n", (folder / "pings.csv").read_bytes(), b",a,b\na,0,1\nb,1,0\n"]),
        "coordinates": (coordinates_of, ".csv", places),
        "graphs": (graph_of, ".gml", [GML, (folder / "edges.txt").read_bytes(), GML.replace(b"delay", b"weight")]),
        "samples": (labelled_of, ".csv", [text["digits.csv"]]),
        "samples-npz": (labelled_of, ".npz", [npz()]),
        "samples-leaf": (labelled_of, ".json", [LEAF]),
        "samples-tar": (labelled_of, ".tar", [tarred(folder)]),
        "tar": (tar_of, ".tar", [tarred(folder)]),
    }  # fmt: skip


def case_of(good, rng):
    """One damaged file of a few good ones."""
    data = bytearray(rng.choice(good))
    for _ in range(rng.choice((1, 1, 1, 2, 3, 6))):
        at = rng.randrange(len(data) + 1)
        how = rng.randrange(8)
        if how == 0:
            del data[at:]
        elif how == 1:
            del data[at : at + rng.choice((1, 2, 8, 64))]
        elif how == 2 and at < len(data):
            data[at] ^= 1 << rng.randrange(8)
        elif how == 3 and at < len(data):
            data[at] = rng.randrange(256)
        elif how == 4:
            data[at:at] = rng.choice(TOKENS)
        elif how == 5:
            token = rng.choice(TOKENS)
            data[at : at + len(token)] = token
        elif how == 6:
            n = rng.choice((1, 4, 16, 200))
            data[at:at] = data[at : at + n] * rng.choice((1, 2, 30))
        else:
            other = rng.choice(good)
            data[at:] = other[rng.randrange(len(other) + 1) :]
    return bytes(data)


def expired(*_):
    raise TimeoutError(f"more than {LONGEST_S} s")


def run(name, target, n_cases, seed, folder, only=None, longest_s=LONGEST_S):
    """({fault: (how often, the first case)}, the longest case in seconds) of a target. longest_s: 0 sets no alarm."""
    read, suffix, good = target
    path = Path(folder, f"case{suffix}")
    found, first, longest = Counter(), {}, 0.0
    for number in range(n_cases) if only is None else [only]:
        path.write_bytes(case_of(good, random.Random(f"{seed} {name} {number}")))
        begin = time.perf_counter()
        if longest_s:
            signal.setitimer(signal.ITIMER_REAL, longest_s)
        try:
            read(str(path))
        except (Fault, ValueError):
            pass
        except BaseException as error:  # noqa: BLE001 whatever it is, it is a finding
            if isinstance(error, KeyboardInterrupt):
                raise
            if only is not None:
                traceback.print_exc()
            frames = [frame for frame in traceback.extract_tb(error.__traceback__) if "/kvtools/" in frame.filename]
            where = f"{frames[-1].filename.rpartition('/kvtools/')[2]}:{frames[-1].lineno}" if frames else "?"
            fault = f"{type(error).__name__}, {' '.join(str(error).split())[:60]} ({where})"
            found[fault] += 1
            first.setdefault(fault, number)
        finally:
            if longest_s:
                signal.setitimer(signal.ITIMER_REAL, 0)
        longest = max(longest, time.perf_counter() - begin)
    return {fault: (n, first[fault]) for fault, n in found.items()}, longest


def furnish(folder):
    """Good files of every format in a folder; returns the targets."""
    same_outputs.make_inputs(folder)
    before = os.getcwd()
    os.chdir(folder)
    try:
        same_outputs.run_all(MADE)
        made = sorted(Path().glob("*.tree"))
        if not made:
            from kvtools import cli

            cli.run(["kma-cluster", "-q", "-k", "4", "--method", "k-medoids", "fleet.devices", "-o", "fleet.tree"])
    finally:
        os.chdir(before)
    return targets(folder)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="TARGET")
    parser.add_argument("--cases", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", type=int)
    options = parser.parse_args()
    signal.signal(signal.SIGALRM, expired)
    is_clean = True
    with tempfile.TemporaryDirectory() as folder:
        known = furnish(Path(folder))
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
        print("| format | cases | longest case, s | found |\n|---|---|---|---|")
        for name in options.names or known:
            found, longest = run(name, known[name], options.cases, options.seed, folder, options.only)
            is_clean = is_clean and not found
            told = "; ".join(f"{fault}: {n} times, first in case {first}" for fault, (n, first) in found.items()) or "nothing"
            print(f"| {name} | {options.cases:,} | {longest:.2f} | {told} |", flush=True)
    return 0 if is_clean else 1


if __name__ == "__main__":
    sys.exit(main())
