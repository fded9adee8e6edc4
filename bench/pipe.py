"""A stream through a real pipe, stored, against a bare copy of as many bytes through the same kind of pipe; Markdown."""

import fcntl
import os
import statistics
import subprocess
import sys
import time

import numpy as np

N_RECORDS, RECORD_BYTES, ROUNDS = 64, 16 << 20, 5
BARE_READER = """
import os, sys
buffer = memoryview(bytearray(1 << 20)); n = 0
while k := os.readv(0, [buffer]): n += k
sys.exit(n != {total})
"""
STREAM_READER = """
import sys
from kvtools.artifact import open_artifact
n = sum(len(record.tensors["pixels"]) for record in open_artifact("-"))
sys.exit(n != {total})
"""


def timed(reader, write, *, pipe_bytes=None):
    """GB/s of `write(fd)` into a pipe that another process drains."""
    ready, go = os.pipe()
    code = f"import os, numpy, kvtools.artifact; os.read({ready}, 1)\n" + reader.format(total=N_RECORDS * RECORD_BYTES)
    process = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, pass_fds=[ready])
    fd = process.stdin.fileno()
    if pipe_bytes:
        fcntl.fcntl(fd, fcntl.F_SETPIPE_SZ, pipe_bytes)
    time.sleep(0.7)  # the reader's imports are not the pipe's speed
    begun = time.perf_counter()
    os.write(go, b"x")
    write(fd)
    process.stdin.close()
    if process.wait():
        raise SystemExit("the reader saw other bytes than were written")
    seconds = time.perf_counter() - begun
    os.close(ready)
    os.close(go)
    return N_RECORDS * RECORD_BYTES / seconds / 1e9


def bare(fd):
    data = memoryview(np.random.default_rng(0).integers(0, 255, RECORD_BYTES, dtype=np.uint8))
    for _ in range(N_RECORDS):
        at = 0
        while at < len(data):
            at += os.write(fd, data[at : at + (1 << 20)])


def stream(fd):
    from kvtools.artifact.files import Sink
    from kvtools.artifact.stream import Head, Writer

    pixels = np.random.default_rng(0).integers(0, 255, RECORD_BYTES, dtype=np.uint8)
    with Writer(Sink(f"/dev/fd/{fd}"), Head("video"), level=0) as writer:
        for i in range(N_RECORDS):
            writer.write(f"k{i}", {"pixels": pixels})


figures = {"bare": [], "bare, pipe of 1 MiB": [], "kvtools stream": []}
for _ in range(ROUNDS):
    figures["bare"].append(timed(BARE_READER, bare))
    figures["bare, pipe of 1 MiB"].append(timed(BARE_READER, bare, pipe_bytes=1 << 20))
    figures["kvtools stream"].append(timed(STREAM_READER, stream))
medians = {name: statistics.median(values) for name, values in figures.items()}
print(f"### Through a pipe: {N_RECORDS} records of 16 MiB, stored, written by one process and read and verified by another\n")
print("| | GB/s, median (least – most of 5) | kvtools reaches |\n|---|---|---|")
for name, values in figures.items():
    ratio = medians["kvtools stream"] / medians[name]
    print(f"| {name} | {medians[name]:.2f} ({min(values):.2f} – {max(values):.2f}) | {ratio:.2f} |")
print()
