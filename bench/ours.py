"""What the drivers for OneRec share: real histories, models of a given number of parameters, peers who take turns with us."""

import json
import os
import statistics
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from generate_peers import SEED

from kvtools.onerec.interactions.features import join_catalogue
from kvtools.onerec.interactions.stream import open_interactions
from kvtools.onerec.model.onerec import OneRec
from kvtools.onerec.semantic_ids.ids import SemanticIds

HERE = Path(__file__).resolve().parent
DATA = Path(os.environ.get("KVTOOLS_DATA") or HERE.parent.parent / "shared" / "data") / "rec"
CLICKS = {
    "beauty": DATA / "amazon_beauty_2014" / "sequential_data.txt",
    "ml-100k": DATA / "ml-100k" / "ml-100k.inter",
    "industrial": DATA / "amazon_industrial_and_scientific" / "derived_sequences.csv",
}
KVTOOLS = Path(sys.executable).with_name("kvtools")


def histories(path, ids):
    """Interactions of a file in the numbers of a catalogue, and their encoder."""
    log, _, _ = open_interactions(str(path))
    return join_catalogue(log, ids, str(path))[:2]


def random_ids(path, catalogue):
    """The items of a file with the codes that a function of their number gives: such IDs cost what others cost."""
    log, _, _ = open_interactions(str(path))
    codes_NS = catalogue(len(log.item_keys)).astype(np.int32)
    return SemanticIds(log.item_keys, codes_NS, np.zeros((codes_NS.shape[1], int(codes_NS.max()) + 1, 1), np.float32))


def n_parameters(model):
    return sum(p.numel() for p in model.parameters())


def of_size(config, vocabulary, codes_IS, wanted, step=16):
    """A model whose dense feed-forwards are as wide, in steps, as `wanted` parameters in all want them."""
    n_one, n_two = (n_parameters(OneRec(replace(config, hidden=h), vocabulary, codes_IS)) for h in (step, 2 * step))
    hidden = step * max(1, round((wanted - n_one) / (n_two - n_one)) + 1)
    torch.manual_seed(SEED)
    return OneRec(replace(config, hidden=hidden), vocabulary, codes_IS)


class Peer:
    """A peer's script in its own environment, which does a turn when asked. `told`: a line of JSON a contestant."""

    def __init__(self, python, script, contestants, words):
        command = [python, HERE / script, *contestants, *words, "serve=1"]
        # data are where we look for them, and threads as many as the words say
        environment = os.environ | {"KVTOOLS_DATA": str(DATA.parent)}
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment)
        lines = [json.loads(self._line()) for _ in contestants]
        self.told = {line["contestant"]: line for line in lines if "error" not in line}
        self.errors = {line["contestant"]: line["error"] for line in lines if "error" in line}

    def turn(self, name):
        """The seconds of one."""
        self._process.stdin.write(f"{name}\n")
        self._process.stdin.flush()
        return float(self._line())

    def close(self):
        self._process.stdin.close()
        self._process.wait()

    def _line(self):
        line = self._process.stdout.readline()
        if not line:
            sys.exit(f"{self._process.args[1]} ended with {self._process.wait()}.")
        return line


def resident(field):
    """Bytes of this process: VmRSS is what it holds, VmHWM the most it held since the last reset."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024
    raise KeyError(field)


def of_rounds(rates):
    """Median, least and most."""
    digits = 0 if statistics.median(rates) >= 100 else 1
    return f"{statistics.median(rates):,.{digits}f} ({min(rates):,.{digits}f} – {max(rates):,.{digits}f})"


def verdict(is_reached):
    return "reached" if is_reached else "**not reached**"
