"""Models of shapes alone: those of the real ones, and made without loading what only real ones need."""

import subprocess
import sys

import numpy as np
import small_keye
import torch

from kvtools.keye.model.config import TextConfig
from kvtools.keye.model.keye import Keye
from kvtools.keye.model.siglip import Siglip
from kvtools.onerec.model.config import SIZES
from kvtools.onerec.model.onerec import OneRec, VocabularySizes
from kvtools.train.meta_init import meta_init

CODES = torch.from_numpy(np.array([[0, 1], [1, 0]], np.int32))
MADE = [
    lambda: Keye(small_keye.CONFIG),
    lambda: Siglip(small_keye.CONFIG.vision, TextConfig(24, 40, 1, 2, vocabulary=50)),
    lambda: OneRec(SIZES["tiny"], VocabularySizes((2, 2), 2, {"age": 3}, (4,)), CODES),
]


def test_names_and_shapes_are_those_of_the_real_model():
    for make in MADE:
        with meta_init():
            empty = {name: (x.shape, x.dtype) for name, x in make().state_dict().items()}
        assert empty == {name: (x.shape, x.dtype) for name, x in make().state_dict().items()}


def test_a_blank_model_takes_no_memory():
    with meta_init():
        assert {p.device.type for make in MADE for p in make().parameters()} == {"meta"}


def test_shapes_do_not_load_torchs_compiler():
    program = (
        "import sys; from kvtools.keye.model.keye import Keye; from kvtools.keye.model.config import SIZES; "
        "from kvtools.train.meta_init import meta_init\nbefore = len(sys.modules)\n"
        "with meta_init(): Keye(SIZES['tiny'])\n"
        "assert len(sys.modules) < before + 20"  # the compiler is eight hundred
    )
    subprocess.run([sys.executable, "-c", program], check=True)
