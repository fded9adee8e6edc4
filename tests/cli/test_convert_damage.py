"""Models' directories that do not hold together: one line, 65, and nothing written."""

import json
import shutil

import pytest
import torch

pytest.importorskip("transformers")
from checkpoints import qwen, read_safetensors, write_safetensors  # noqa: E402

REMEDY = "Give the tensors and the config of one model"


def damaged(case, folder):
    """Do one thing wrong to a directory; returns what the command's line must say."""
    path, config = folder / "model.safetensors", folder / "config.json"
    tensors = read_safetensors(path)
    words = json.loads(config.read_text())
    if case == "truncated":
        path.write_bytes(path.read_bytes()[:-100])
        return "do not fit shape [32] or the"
    if case == "cut in the header":
        path.write_bytes(path.read_bytes()[:50])
        return "its header of 2496 bytes does not fit into its 50 bytes. Fetch it again.\n"
    if case == "empty":
        path.write_bytes(b"")
        return "in/model.safetensors: the file is empty. Fetch it again.\n"
    if case == "huge header":
        path.write_bytes((1 << 50).to_bytes(8, "little") + path.read_bytes()[8:])
        return "header of 1125899906842624 bytes"
    if case == "missing tensor":
        del tensors["model.norm.weight"]
        write_safetensors(path, tensors)
        return f"in: it lacks tensors: model.norm.weight. {REMEDY}.\n"
    if case == "unknown tensor":
        write_safetensors(path, tensors | {"model.extra.weight": torch.ones(2), "zeta": torch.ones(1)})
        return (
            "in: it holds tensors that no qwen3 has: model.extra.weight, zeta. Give the tensors and the config of one model.\n"
        )
    if case == "unknown and missing":
        tensors["model.nrom.weight"] = tensors.pop("model.norm.weight")
        write_safetensors(path, tensors)
        return f"in: it holds tensors that no qwen3 has: model.nrom.weight; it lacks tensors: model.norm.weight. {REMEDY}.\n"
    if case == "shape":
        write_safetensors(path, tensors | {"model.norm.weight": torch.ones(31)})
        return f"in: model.norm.weight is [31], and the config needs [32]. {REMEDY}.\n"
    if case == "integers":
        write_safetensors(path, tensors | {"model.norm.weight": torch.ones(32, dtype=torch.int8)})
        return f"in: model.norm.weight is I8, and one of F32, BF16, F16, F64 is needed. {REMEDY}.\n"
    if case == "too many layers":
        config.write_text(json.dumps(words | {"num_hidden_layers": 10**9}))
        return f"in: model.layers. has 2 layers, and the config says 1000000000. {REMEDY}.\n"
    if case == "huge width":
        config.write_text(json.dumps(words | {"hidden_size": 1 << 39}))
        return f"in: model.embed_tokens.weight is [97, 32], and the config needs [97, 549755813888]. {REMEDY}.\n"
    if case == "negative":
        config.write_text(json.dumps(words | {"vocab_size": -3}))
        return "in: vocab_size is -3, and a whole number of at least 1 is needed. Repair its config, or give another model.\n"
    if case == "model_type":
        config.write_text(json.dumps(words | {"model_type": "llama"}))
        what = "model_type is 'llama', and Keye, qwen3, siglip or siglip_vision_model is needed"
        return f"in: {what}. Repair its config, or give another model.\n"
    if case == "activation":
        config.write_text(json.dumps(words | {"hidden_act": "gelu"}))
        return "in: hidden_act is 'gelu', and only 'silu' is built here. Repair its config, or give another model.\n"
    if case == "scaled":
        config.write_text(json.dumps(words | {"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e6}}))
        return "in: rope_type is 'yarn', and only default is built here. Repair its config, or give another model.\n"
    if case == "config":
        config.write_text("{")
        return "config.json: this is not JSON ("
    if case == "tied and different":
        config.write_text(json.dumps(words | {"tie_word_embeddings": True}))
        return f"in: lm_head.weight differs from model.embed_tokens.weight, and the config ties them. {REMEDY}.\n"
    if case == "pickle":
        path.rename(folder / "pytorch_model.bin")
        return "pytorch_model.bin: this is a pickle, which runs code when read. Save it as safetensors.\n"
    if case == "no weights":
        path.unlink()
        return "in: it has no safetensors file. Fetch the weights of the model.\n"
    if case == "two files":
        shutil.copy(path, folder / "a.safetensors")
        path.rename(folder / "b.safetensors")
        return "in: it has 2 safetensors files and no model.safetensors.index.json. Fetch that file.\n"
    index = {"weight_map": dict.fromkeys(tensors, "model.safetensors")}
    if case == "index names a missing shard":
        index["weight_map"]["model.norm.weight"] = "model-00002.safetensors"
        said = "it names model-00002.safetensors, which is not there. Fetch that file.\n"
    elif case == "index names a path":
        index["weight_map"]["model.norm.weight"] = "../x.safetensors"
        said = "it names ../x.safetensors, which is not there. Fetch that file.\n"
    elif case == "index knows more":
        index["weight_map"]["model.more"] = "model.safetensors"
        said = "model.more is missing, and model.safetensors.index.json names it. Fetch both again.\n"
    elif case == "index knows less":
        del index["weight_map"]["model.norm.weight"]
        said = "model.safetensors.index.json does not name model.norm.weight. Fetch both again.\n"
    else:
        index, said = {"weight_map": 3}, "no weight_map"
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return said


CASES = [
    "truncated", "cut in the header", "empty", "huge header", "missing tensor", "unknown tensor", "unknown and missing",
    "shape",
    "integers", "too many layers", "huge width", "negative", "model_type", "activation", "scaled", "config",
    "tied and different", "pickle", "no weights", "two files", "index names a missing shard", "index names a path",
    "index knows more", "index knows less", "index is nonsense",
]  # fmt: skip


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole") / "in"
    qwen(folder)
    return folder


@pytest.mark.parametrize("case", CASES)
def test_a_directory_that_does_not_hold_together_is_refused(kv, tmp_path, whole, case):
    folder = tmp_path / "in"
    shutil.copytree(whole, folder)
    expected = damaged(case, folder)
    code, said = kv("convert in -o m.safetensors")
    assert code == 65, said
    assert expected in said
    assert said.count("\n") == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in"]
