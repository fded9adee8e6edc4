"""kvtools plot: every form, the same bytes for the same input, refusals. What is drawn: tests/unit/test_draw.py."""

import json
import shutil

import pytest
from conftest import shell

MAGIC = {"png": b"\x89PNG\r\n", "svg": b"<?xml", "pdf": b"%PDF"}


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """x.npy, keys, and x.ids of two hundred items."""
    import numpy as np

    folder = tmp_path_factory.mktemp("ids")
    np.save(folder / "x.npy", np.random.default_rng(0).normal(size=(200, 6)).astype("float32"))
    (folder / "keys").write_text("".join(f"{i}\n" for i in range(200)))
    assert shell(folder)("kvtools semid-build x.npy --keys keys --codes 8 -o x.ids").code == 0
    return folder


@pytest.fixture
def ids(built, tmp_path):
    shutil.copytree(built, tmp_path, dirs_exist_ok=True)


@pytest.mark.parametrize("form", MAGIC)
def test_ids_are_drawn_in_the_form_that_the_name_tells(sh, ids, tmp_path, form):
    done = sh(f"kvtools plot x.ids -o a.{form} && kvtools plot - -o b.{form} < x.ids && cmp a.{form} b.{form}")
    assert (done.code, done.err) == (0, "")
    assert (tmp_path / f"a.{form}").read_bytes().startswith(MAGIC[form])


def test_a_pipe_gets_png(sh, ids):
    assert sh("kvtools plot x.ids | head -c 6").out == MAGIC["png"]


def test_logs_of_training_over_trees_are_drawn(sh, tmp_path):
    line = {"bytes": 10, "wan_bytes": 1, "simulated_s": 0.5, "wall_s": 1, "accuracy": 0.5, "loss": 1.0}
    lines = [{**line, "algorithm": a, "round": n, "local_epochs": n} for a in ("etree", "fedavg", "etree") for n in (1, 2, 3)]
    (tmp_path / "run.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    done = sh("kvtools plot run.jsonl -o a.svg && kvtools plot - < run.jsonl | head -c 6")
    assert (done.code, done.out, done.err) == (0, MAGIC["png"], "")
    drawn = (tmp_path / "a.svg").read_text()
    names = ("etree", "fedavg", "etree #2", "etree #3")
    assert [name for name in names if f"<!-- {name} -->" in drawn] == ["etree", "fedavg", "etree #2"]
    (tmp_path / "run.jsonl").write_text('{"step": 1}\n')
    done = sh("kvtools plot run.jsonl -o b.png", pipefail=False)
    remedy = "Give logs of kvtools pretrain, rl or etree-train."
    assert (done.code, done.err) == (65, f"kvtools plot: run.jsonl: some lines have no 'algorithm'. {remedy}\n")


def test_logs_of_pretraining_are_drawn_one_after_the_other(sh, tmp_path):
    def log(name, stage, *steps):
        lines = [{"stage": stage, "step": n, "rate": 1.0, "loss": 1 / n, "accuracy": 0.1 * n} for n in steps]
        held = {"stage": stage, "step": steps[-1], "valid_loss": 0.5, "valid_accuracy": 0.5}
        (tmp_path / name).write_text("".join(json.dumps(line) + "\n" for line in [*lines, held]))

    log("a.jsonl", "alignment", 1, 2, 3, 2, 3, 4)  # killed after its third step, and taken up from its first
    log("b.jsonl", "multitask", 1, 2)
    done = sh("kvtools plot a.jsonl b.jsonl -o a.svg && cat a.jsonl b.jsonl | kvtools plot - -o b.svg && cmp a.svg b.svg")
    assert (done.code, done.err) == (0, "")
    (tmp_path / "b.jsonl").write_text('{"loss": 1, "step": "two"}\n')
    done = sh("kvtools plot a.jsonl b.jsonl -o c.svg", pipefail=False)
    remedy = "Give logs of kvtools pretrain, rl or etree-train."
    assert (done.code, done.err) == (65, f"kvtools plot: a.jsonl, b.jsonl: some lines have no 'step'. {remedy}\n")


def test_other_artifacts_and_other_forms_are_refused(sh, ids, clip):
    sh("kvtools tokenize-video clip.mp4 -o clip.kvs")
    done = sh("kvtools plot clip.kvs -o a.png", pipefail=False)
    said = "clip.kvs: this is a stream of kind video, and kind semantic-id is needed. Make one with kvtools semid-build."
    assert (done.code, done.err) == (65, f"kvtools plot: {said}\n")
    done = sh("kvtools plot x.ids -o a.gif", pipefail=False)
    assert (done.code, done.err) == (2, "kvtools plot: -o a.gif does not end in .png, .svg or .pdf. Give such a name.\n")
    done = sh("kvtools plot x.ids x.ids -o a.png", pipefail=False)
    said = "2 inputs are given, and only logs are plotted together. Give one bag."
    assert (done.code, done.err) == (2, f"kvtools plot: {said}\n")
