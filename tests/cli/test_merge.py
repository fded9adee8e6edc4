"""Averages of models, as a user makes them."""

import ml_dtypes
import numpy as np
import pytest

from kvtools.artifact import open_artifact
from kvtools.artifact.bag import write_bag
from kvtools.artifact.files import Sink


def a_model(path, seed, *, step=3, **changes):
    rng = np.random.default_rng(seed)
    tensors = {
        "w": rng.normal(size=(3, 4)).astype(np.float32),
        "half": rng.normal(size=5).astype(ml_dtypes.bfloat16),
        "same": np.array([1.0, -np.inf], np.float64),
        "tokenizer.json": np.frombuffer(b"{}", np.uint8),
        "counts": np.arange(4),
    } | changes.pop("tensors", {})
    words = {"system": "keye", "architecture": {"width": 3}, "step": step} | changes
    write_bag(
        Sink(str(path)),
        "model",
        tensors,
        config={"lr": 1},
        history=[{"id": str(seed), "command": "pretrain", "argv": []}],
        **words,
    )
    return tensors


@pytest.fixture
def models(tmp_path):
    return [a_model(tmp_path / name, seed) for seed, name in enumerate("abc")]


def test_the_average_is_that_of_the_numbers(kv, tmp_path, models):
    assert kv("merge a b c -o m", "check m") == (0, "")
    merged = open_artifact(str(tmp_path / "m"))
    for name in ("w", "half"):
        mean = np.mean([model[name].astype(np.float64) for model in models], axis=0)
        assert merged.tensors[name].dtype == models[0][name].dtype
        assert np.array_equal(merged.tensors[name], mean.astype(models[0][name].dtype))
    for name in ("same", "tokenizer.json", "counts"):
        assert np.array_equal(merged.tensors[name], models[0][name])
    assert merged.fields["architecture"] == {"width": 3}
    assert "step" not in merged.fields
    assert merged.fields["merged"]["weights"] == [1, 1, 1]


def test_weights_say_how_much_of_each(kv, tmp_path, models):
    assert kv("merge --weights 1,0,3 a b c -o m") == (0, "")
    mean = (models[0]["w"].astype(np.float64) + 3 * models[2]["w"].astype(np.float64)) / 4
    assert np.array_equal(open_artifact(str(tmp_path / "m")).tensors["w"], mean.astype(np.float32))
    kv("merge a a -o n")
    again = open_artifact(str(tmp_path / "n")).tensors
    assert all(np.array_equal(again[name], models[0][name]) for name in models[0])


def test_the_history_names_all_parents(kv, tmp_path, models):
    kv("merge a b -o m")
    history = open_artifact(str(tmp_path / "m")).history
    assert [step["id"] for step in history[:2]] == ["0", "1"]
    assert history[-1]["parents"] == ["0", "1"]
    assert len(set(history[-1]["inputs"])) == 2


def test_a_model_may_come_through_a_pipe(sh, models):
    assert sh("cat a | kvtools merge - b | kvtools sum -").code == 0
    assert sh("kvtools merge - - < a").code == 2


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"system": "onerec"}, "d: its system differs from that of a. Average models of one system."),
        ({"architecture": {"width": 4}}, "d: its architecture differs from that of a. Average models of one architecture."),
        ({"tensors": {"w": np.zeros((4, 3), np.float32)}}, "d: w is float32 [4, 3], and in a it is float32 [3, 4]."),
        ({"tensors": {"w": np.zeros((3, 4))}}, "d: w is float64 [3, 4], and in a it is float32 [3, 4]."),
        ({"tensors": {"more": np.zeros(1)}}, "a: there is no tensor more, which d has."),
        (
            {"tensors": {"tokenizer.json": np.frombuffer(b"[]", np.uint8)}},
            "d: tokenizer.json is uint8, which cannot be averaged, and differs from that of a.",
        ),
        ({"tensors": {"w": np.full((3, 4), np.nan, np.float32)}}, "w: the average has values that are not finite."),
    ],
)
def test_models_of_another_shape_are_refused_in_one_line(kv, tmp_path, models, changes, told):
    a_model(tmp_path / "d", 9, **changes)
    code, found = kv("merge a d -o m")
    assert (code, found.count("\n")) == (65, 1)
    assert told in found
    assert not (tmp_path / "m").exists()


WEIGHTS = "does not fit 2 models. Give one of 0 or more for each, not all 0, as 1,1,2."


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("a -o m", "fewer than two models are given. Give two or more."),
        ("a b - - -o m", "- is given more than once. Name each model once."),
        ("--weights 1 a b -o m", f"--weights 1 {WEIGHTS}"),
        ("--weights 1,-1 a b -o m", f"--weights 1,-1 {WEIGHTS}"),
        ("--weights 0,0 a b -o m", f"--weights 0,0 {WEIGHTS}"),
        ("--weights x,1 a b -o m", f"--weights x,1 {WEIGHTS}"),
        ("a b -o b", "b: this is both an input and the output. Name another output."),
    ],
)
def test_what_cannot_be_meant_is_usage(kv, models, words, said):
    assert kv(f"merge {words}") == (2, f"kvtools merge: {said}\n")


def test_the_output_is_not_overwritten_unasked(kv, models):
    assert kv("merge a b -o c")[0] == 73
    assert kv("merge --force a b -o c")[0] == 0
    assert kv("merge a missing -o m")[0] == 66


def test_a_full_disk_is_told(sh, models):
    assert sh("kvtools merge a b > /dev/full").code == 74


def test_a_directory_is_told_how_to_become_a_model(sh, tmp_path):
    (tmp_path / "hf").mkdir()
    done = sh("kvtools merge hf hf")
    assert done.code == 66
    assert done.err == ("kvtools merge: hf: this is a directory. Make one file of the model with kvtools convert.\n")
