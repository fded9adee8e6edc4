"""Low-rank adapters, as a user trains, merges and asks them. What peft makes of them: tests/parity/test_transformers.py."""

import json
import shutil

import cinema
import numpy as np
import pytest
from safetensors.numpy import load_file
from shop import say

from kvtools.artifact import open_artifact
from kvtools.keye.run.recipe import TrainingRecipe

LORA = f"{cinema.TRAIN} --init base.model --stage sft --lr 0.03 --lora"


@pytest.fixture(scope="module")
def top(tmp_path_factory):
    top = tmp_path_factory.mktemp("lora")
    cinema.furnish(top)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(top)
        assert say(f"{cinema.TRAIN} --steps 3 -o base.model").code == 0
    return top


@pytest.fixture
def here(top, monkeypatch):
    monkeypatch.chdir(top)
    return top


def tensors(folder):
    return load_file(str(folder / "adapter_model.safetensors"))


@pytest.mark.parametrize(
    ("said", "parts", "rank", "alpha"),
    [
        ("r=2", {"model"}, 2, 4.0), ("3", {"model"}, 3, 6.0), ("r=2,on=vision", {"visual", "mlp_AR"}, 2, 4.0),
        ("alpha=5,on=all,r=1", {"model", "visual", "mlp_AR"}, 1, 5.0),
    ],
)  # fmt: skip
def test_what_learns_is_what_is_asked_for(here, said, parts, rank, alpha):
    dst = f"a{said}"
    assert say(f"{LORA} {said} --steps 2 -o {dst}/").code == 0
    found = tensors(here / dst)
    assert {name.removeprefix("base_model.model.").partition(".")[0] for name in found} == parts
    assert all(min(array.shape) == rank for array in found.values())
    assert all(array.any() for name, array in found.items() if ".lora_B." in name)
    config = json.loads((here / dst / "adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"], config["base_model_name_or_path"]) == (rank, alpha, "base.model")


def test_a_stopped_adapter_is_resumed_to_the_same_bytes(here, monkeypatch, capfd):
    line = f"{LORA} r=2,on=all --steps 12 --valid held.jsonl --training patience=9ep"
    assert say(f"{line} -o whole").code == 0
    monkeypatch.setenv("SLURM_JOB_END_TIME", "1")  # long past: stops after one step
    assert say(f"{line} -o torn", capfd).code == 75
    kept = open_artifact(".torn.state/train.state").tensors
    weights = [name for name in kept if name.startswith("model.")]
    assert weights, "and no frozen weight among them"
    assert all(".lora_" in name for name in weights)
    assert sum(x.nbytes for name, x in kept.items() if "exp_avg" in name) == 2 * sum(kept[name].nbytes for name in weights)
    monkeypatch.delenv("SLURM_JOB_END_TIME")
    assert say(f"{line} -o torn", capfd).code == 0
    assert not (here / ".torn.state").exists()
    one, other = tensors(here / "whole"), tensors(here / "torn")
    assert all(np.array_equal(x, other[name]) for name, x in one.items())


def test_a_merged_adapter_and_its_folder_answer_alike_and_the_loss_falls(here, capfd):
    assert say(f"{LORA} r=4,on=all --steps 30 --log lora.log -o tuned").code == 0
    losses = [json.loads(line)["loss"] for line in (here / "lora.log").read_text().splitlines() if "loss" in line]
    assert losses[-1] < 0.6 * losses[0]
    assert say("kvtools merge base.model --adapter tuned -o tuned.model", capfd).code == 0
    assert say("kvtools merge base.model --adapter tuned -o tuned.directory/", capfd).code == 0
    assert say("kvtools convert -q tuned -o folder.model", capfd).code == 0
    asked = "kvtools chat -q --greedy --max-new 8 clips.kvs 'Which colour?' --model"
    said = [say(f"{asked} {model}", capfd).out for model in ("tuned.model", "tuned", "tuned.directory", "base.model")]
    assert said[0] == said[1] == said[2] != said[3]
    one, other = (open_artifact(name).tensors for name in ("tuned.model", "folder.model"))
    assert all(np.array_equal(x, other[name]) for name, x in one.items())
    steps = [step["command"] for step in json.loads(say("kvtools info --json tuned.model", capfd).out)["history"]]
    assert steps == ["pretrain keye", "pretrain keye", "merge"]


def test_an_adapter_of_another_base_is_told_or_refused(here, capfd):
    assert say(f"{LORA} r=1 --steps 1 -o moved").code == 0
    assert say(f"{cinema.TRAIN} --steps 1 --seed 9 -o other.model").code == 0
    done = say("kvtools merge -q other.model --adapter moved -o x.model", capfd)
    warning = "moved: it was trained on another model than other.model. It is added all the same."
    assert (done.code, done.err) == (0, f"kvtools merge: {warning}\n")
    shutil.copytree("moved", "elsewhere/moved")
    assert say("kvtools convert elsewhere/moved -o y.model", capfd).code == 0, "its base is found from the current folder too"
    shutil.copy("other.model", "elsewhere/base.model")
    done = say("kvtools chat Hm? --model elsewhere/moved", capfd)
    assert (done.code, "trained on another model than elsewhere/base.model is now" in done.err) == (65, True)


def test_the_rate_of_adapters_is_ten_times_the_stages():
    given = {
        "stage": "sft", "size": "tiny", "architecture": [], "steps": "1", "lr": None, "batch_tokens": 512, "length": 512,
        "ratio": None, "training": [], "seed": 0,
    }  # fmt: skip
    from kvtools.keye.model.config import SIZES

    plain, adapted = (TrainingRecipe(**given, lora=lora).lr_for(SIZES["8b"]) for lora in (None, "r=8"))
    assert adapted == pytest.approx(10 * plain)
