"""Alignment before quantising, as a user has it: embeddings and pairs in, IDs out that newcomers can be given too."""

import json
import shutil

import numpy as np
import pytest
from conftest import shell
from safetensors.numpy import load_file

WORDS = {
    f"item {i}": [f"colour {i % 7}", f"shape {i % 5}", f"brand {i % 11}", f"size {i % 4}", f"maker {i % 9}"] for i in range(120)
}


@pytest.fixture(scope="module")
def furnished(tmp_path_factory):
    """items.kvs, items.json and pairs.kvs of 120 items that people take by colour."""
    folder = tmp_path_factory.mktemp("shop")
    rng = np.random.default_rng(5)
    lines = []
    for user in range(200):
        own = [i for i in range(120) if i % 7 == user % 7]
        lines.append(" ".join([f"u{user}", *(f"item_{i}" for i in rng.choice(own, 8, replace=False))]))
    (folder / "clicks.txt").write_text("\n".join(lines) + "\n")
    text = json.dumps({name.replace(" ", "_"): words for name, words in WORDS.items()})
    (folder / "items.json").write_text(text)
    done = shell(folder)("kvtools embed --dim 16 items.json -o items.kvs && kvtools pairs clicks.txt -o pairs.kvs")
    assert done.code == 0, done.err
    return folder


@pytest.fixture
def shop(furnished, tmp_path):
    shutil.copytree(furnished, tmp_path, dirs_exist_ok=True)


def test_pairs_move_items_and_newcomers_are_moved_alike(sh, shop, tmp_path):
    done = sh(
        "kvtools semid-build items.kvs --pairs pairs.kvs --align-steps 60 --codes 8 --levels 2 -o a.ids && kvtools check a.ids"
    )
    assert (done.code, done.err) == (0, "")
    tensors = load_file(tmp_path / "a.ids")
    assert tensors["codebooks"].shape == (2, 8, 64), "four queries of sixteen"
    assert any(name.startswith("encoder.align.") for name in tensors)
    sh("kvtools semid-build items.kvs --codebook a.ids -o b.ids")
    assert np.array_equal(load_file(tmp_path / "b.ids")["codes"], tensors["codes"])
    sh("kvtools semid-build items.kvs --codebook b.ids -o c.ids")
    assert sh("kvtools sum b.ids").out.split()[0] == sh("kvtools sum c.ids").out.split()[0], "what encodes is handed on"
    sh("kvtools semid-build items.kvs --codes 8 --levels 2 -o plain.ids")
    plain = load_file(tmp_path / "plain.ids")["codes"]
    colour = np.arange(120) % 7
    pairs = [(i, j) for i in range(120) for j in range(i) if colour[i] == colour[j]]
    shared = {name: np.mean([c[i, 0] == c[j, 0] for i, j in pairs]) for name, c in (("plain", plain), ("a", tensors["codes"]))}
    assert shared["a"] > shared["plain"] + 0.1, shared


def test_the_same_alignment_gives_the_same_bytes(sh, shop):
    line = "kvtools semid-build items.kvs --pairs pairs.kvs --align-steps 5 --codes 8"
    assert sh(f"{line} -o a.ids && {line} -o b.ids && cmp a.ids b.ids").code == 0
    assert "align_steps = 5" in sh("kvtools info --config a.ids").out.decode()


def test_ranks_share_what_comes_after_the_alignment(sh, shop):
    line = "kvtools semid-build items.kvs --pairs pairs.kvs --align-steps 5 --codes 8 -o"
    assert sh(f"OMP_NUM_THREADS=1 {line} a.ids && OMP_NUM_THREADS=1 mpiexec -n 2 {line} b.ids && cmp a.ids b.ids").code == 0


def test_captions_are_read_and_change_the_outcome(sh, shop):
    line = "kvtools semid-build items.kvs --pairs pairs.kvs --align-steps 8 --codes 8"
    assert sh(f"{line} -o a.ids && {line} --captions items.json -o b.ids").code == 0
    assert sh("cmp a.ids b.ids").code == 1


def test_pairs_of_unknown_items_are_reported_and_left_out(sh, shop):
    fewer = {name.replace(" ", "_"): words for name, words in WORDS.items() if name != "item 3"}
    sh("kvtools embed --dim 8 - -o fewer.kvs", stdin=json.dumps(fewer).encode())
    done = sh("kvtools semid-build fewer.kvs --pairs pairs.kvs --align-steps 2 --codes 4 -o a.ids")
    assert done.code == 0
    sentence = "fewer.kvs: pairs in pairs.kvs of items without a vector were left out, 30 in all."
    assert done.err == f"kvtools semid-build: {sentence}\n"


@pytest.mark.parametrize(
    ("options", "code", "sentence"),
    [
        (
            "--pairs items.kvs",
            65,
            "items.kvs: this is a stream of kind embedding, and kind pair is needed. Make one with kvtools pairs.",
        ),
        ("--pairs nosuch", 66, "nosuch: no such file or directory. Look at its name and its permissions."),
        (
            "--pairs pairs.kvs --captions clicks.txt",
            65,
            "clicks.txt: this is neither JSON nor a table with a header. Give the items as one of the two.",
        ),
        (
            "--pairs pairs.kvs --captions others.json",
            65,
            "others.json: it describes no item that has a vector. Look at the keys.",
        ),
        (
            "--pairs others.kvs",
            65,
            "others.kvs: 0 pairs have vectors for both items, and 2 are needed. Look at the keys.",
        ),
        ("--captions items.json", 2, "--captions is of use only with --pairs. Give --pairs PAIRS, or leave it out."),
        ("--align-steps 3", 2, "--align-steps is of use only with --pairs. Give --pairs PAIRS, or leave it out."),
        (
            "--pairs pairs.kvs --codebook nosuch",
            2,
            "--pairs cannot be combined with --codebook, whose items are aligned already. Leave it out.",
        ),
    ],
)
def test_what_cannot_be_meant_is_refused_on_one_line(sh, kv, shop, tmp_path, options, code, sentence):
    (tmp_path / "others.json").write_text('{"a": ["x"]}')
    if "others.kvs" in options:
        sh("sed s/item_/other_/g clicks.txt | kvtools pairs - -o others.kvs")
    assert kv(f"semid-build items.kvs --codes 8 {options} -o a.ids") == (code, f"kvtools semid-build: {sentence}\n")
    assert not (tmp_path / "a.ids").exists()
