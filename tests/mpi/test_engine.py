"""A model in parts, one a rank, is trained, stopped, resumed on other numbers of ranks, and written as a whole one is."""

import json
import shutil
import time

import cinema
import numpy as np
import pytest
import shop
from conftest import BIN, on_ranks, shell, unsaid
from safetensors.numpy import load_file

from kvtools.artifact.open import open_bag
from kvtools.keye.checkpoint.weights import open_weights

transformers = pytest.importorskip("transformers")

pytestmark = [pytest.mark.mpi, pytest.mark.skipif(not (BIN / "mpiexec").exists(), reason="no mpiexec; install the mpich extra")]

# microbatches, experts, neighbours, features, layers computed twice; and rows of text alone beside those of clips
ONEREC = f"{shop.TRAIN} --near 3 --users users.csv --training dropout=0 --training accumulate=3 --training checkpoint=yes"
KEYE = f"{cinema.TRAIN} --batch-tokens 1536 --valid held.jsonl --training checkpoint=yes"


COMMANDS = {
    "onerec": f"{ONEREC} --steps 2ep",
    "keye": f"{KEYE} --steps 2ep",
    "lora": f"{KEYE} --steps 2 --init base --lora 2",
}


@pytest.fixture(scope="module")
def here(tmp_path_factory):
    """A folder with the data, and with what one rank made of them."""
    folder = tmp_path_factory.mktemp("engine")
    shop.furnish(folder, 60)
    cinema.furnish(folder)
    talks = [cinema.conversation(n, "Which colour?", cinema.colour(n)) for n in range(6)]
    words = [cinema.conversation(None, f"What comes after {n}?", f"{n + 1} does.") | {"id": f"w{n}"} for n in range(13)]
    cinema.write(folder / "asked.jsonl", talks + words)
    one = [f"{line} --shard-model --log {name}.log -o {name}" for name, line in COMMANDS.items()]
    done = shell(folder)(on_ranks(1, [f"{cinema.TRAIN} --steps 1 -o base", *one], folder))
    assert (done.code, unsaid(done.err)) == (0, "")
    return folder


def figures(path):
    """Losses, norms of gradients, and losses of validation."""
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    return np.array(
        [[line["loss"], line["grad_norm"]] for line in lines if "loss" in line]
        + [[line.get("valid_loss", 0), line.get("id_ndcg@10", 0)] for line in lines if "rate" not in line]
    )


def layout(path):
    """What a model's file holds, but for the values of its weights and what was measured."""
    bag = open_bag(str(path), "model", made_by="kvtools")
    shapes = {name: (str(x.dtype), x.shape) for name, x in bag.tensors.items()}
    return shapes, {name: bag.fields[name] for name in ("kind", "config", "history", "architecture")}


@pytest.mark.usefixtures("modules_of_transformers")
def test_a_model_in_parts_is_trained_and_written_as_a_whole_one(here):
    lines = [f"{line} --shard-model --log {name}.2.log -o {name}.2" for name, line in COMMANDS.items()]
    lines += [f"{COMMANDS['keye']} --shard-model -o parts/"]
    lines += [f"{COMMANDS['lora']} -o replicas", f"{COMMANDS['lora']} --shard-optimizer -o shared"]
    done = shell(here)(on_ranks(2, lines, here))
    assert (done.code, unsaid(done.err)) == (0, "")
    for name in COMMANDS:
        # gradients are sums in another order, which AdamW carries on, as it divides by their size
        np.testing.assert_allclose(figures(here / f"{name}.2.log"), figures(here / f"{name}.log"), rtol=1e-4)
    assert layout(here / "onerec.2") == layout(here / "onerec")
    assert layout(here / "keye.2") == layout(here / "keye")
    a_directory_is_the_same_model(here)
    for name in ("adapter_model.safetensors", "adapter_config.json"):
        assert (here / "shared" / name).read_bytes() == (here / "replicas" / name).read_bytes(), "the optimiser was in parts"


def a_directory_is_the_same_model(here):
    """Ranks wrote the files of `parts`, each some of them, and what opens such directories has the weights of `keye.2`."""
    written = open_weights(str(here / "keye.2")).tensors
    files = sorted(file.name for file in (here / "parts").glob("*.safetensors"))
    assert files[0] == f"model-00001-of-{len(files):05}.safetensors"
    assert len(files) >= 2
    assert list((here / "parts").parent.glob(".parts*")) == [], "nothing is left beside it"
    found = open_weights(str(here / "parts"))
    assert {name: x.tobytes() for name, x in found.tensors.items()} == {name: x.tobytes() for name, x in written.items()}
    model = transformers.AutoModelForImageTextToText.from_pretrained(here / "parts", trust_remote_code=True)
    read = {x.numpy().tobytes() for x in model.state_dict().values()}  # it names some otherwise, and has what it ties twice
    assert {x.tobytes() for x in written.values()} <= read


def test_what_was_stopped_in_parts_on_four_ranks_goes_on_on_two_and_on_one(here):
    line = f"{COMMANDS['onerec']} --log stopped.log -o stopped"
    run = shell(here)
    assert run(f"mpiexec -n 4 {line} --shard-model", SLURM_JOB_END_TIME=str(int(time.time()))).code == 75
    (parts,) = (here / ".stopped.state").glob("parts-*")
    held = [{name: x.nbytes for name, x in load_file(file).items()} for file in sorted(parts.iterdir())]
    assert len(held) == 4, "each rank wrote what it holds"
    assert max(sum(one.values()) for one in held) < 0.4 * sum(sum(one.values()) for one in held)
    for name in ("updated", "alone"):
        shutil.copytree(here / ".stopped.state", here / f".{name}.state")
        shutil.copy(here / "stopped.log", here / f"{name}.log")
    for resumed, name in (
        (f"mpiexec -n 2 {line} --shard-model", "stopped"),
        (f"mpiexec -n 2 {line.replace('stopped', 'updated')} --shard-optimizer", "updated"),
        (line.replace("stopped", "alone"), "alone"),
    ):
        done = run(resumed)
        assert (done.code, done.err.count("resumes after step 1.")) == (0, 1), done.err
        np.testing.assert_allclose(figures(here / f"{name}.log"), figures(here / "onerec.log"), rtol=1e-4)
