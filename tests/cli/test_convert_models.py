"""Models of other people's making in, and out again as they want them; every tensor accounted for, nothing half written."""

import json

import numpy as np
import pytest
import torch

from kvtools.artifact import open_artifact
from kvtools.artifact.bag import write_bag
from kvtools.artifact.casts import to_torch
from kvtools.artifact.directory import read_directory
from kvtools.artifact.files import Sink
from kvtools.keye.checkpoint.formats import CheckpointFormat
from kvtools.keye.checkpoint.huggingface import huggingface_config
from kvtools.keye.checkpoint.weights import copy_shared_weights, load, open_weights, save
from kvtools.keye.model.config import LanguageConfig, ModelConfig, VisionConfig
from kvtools.keye.model.keye import Keye

transformers = pytest.importorskip("transformers")
from checkpoints import qwen, read_safetensors, write_safetensors  # noqa: E402

VISION = {
    "hidden_size": 24,
    "intermediate_size": 40,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 56,
    "patch_size": 14,
}
TEXT = {
    "hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 1, "num_attention_heads": 2, "vocab_size": 50,
    "max_position_embeddings": 8, "bos_token_id": None, "eos_token_id": None,
}  # fmt: skip
KEYE = ModelConfig(
    VisionConfig(24, 40, 2, 2, table_side=4), LanguageConfig(32, 48, 2, 4, 2, 16, 97), image_token=95, video_token=96
)
UNUSED = {
    "visual.vision_model.embeddings.packing_position_embedding.weight": (64, 24),
    "visual.vision_model.head.probe": (1, 1, 24),
    "visual.vision_model.head.mlp.fc1.bias": (40,),
}


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()


def info(bag):
    from kvtools.artifact.summary import summarize

    return summarize(bag)


def logits(model):
    with torch.no_grad():
        return model(input_ids=torch.arange(40).view(2, 20)).logits


@pytest.fixture
def keye(tmp_path):
    """A directory as the published Keye-VL's, in bfloat16, with what its model does not use."""
    model = Keye(KEYE).bfloat16()
    folder = tmp_path / "keye"
    folder.mkdir()
    tensors = dict(model.state_dict()) | {name: torch.randn(shape).bfloat16() for name, shape in UNUSED.items()}
    write_safetensors(folder / "model.safetensors", tensors)
    checkpoint_format = CheckpointFormat.of_keye(KEYE)
    source = {"auto_map": {"AutoModel": "modeling_keye.KeyeForConditionalGeneration"}, "something_else": [1]}
    (folder / "config.json").write_text(json.dumps(huggingface_config(checkpoint_format, source, "bfloat16")))
    (folder / "tokenizer.json").write_text('{"model": {}}')
    (folder / "modeling_keye.py").write_text("raise SystemExit\n")
    return folder


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("shard", ["50GB", "20KB"])
def test_qwen3_in_and_out_gives_the_same_logits(kv, tmp_path, tied, shard):
    theirs = qwen(tmp_path / "in", shard=shard, tie_word_embeddings=tied)
    assert (tmp_path / "in" / "model.safetensors.index.json").exists() == (shard == "20KB")
    assert kv("convert in -o m.safetensors", "check m.safetensors", "convert m.safetensors -o out/") == (0, "")
    again = transformers.Qwen3ForCausalLM.from_pretrained(tmp_path / "out", dtype="auto").eval()
    assert torch.equal(logits(theirs), logits(again))
    line = info("m.safetensors")
    assert (line["system"], line["layout"], line["architecture"]["language"]["tied"]) == ("keye", "qwen3", tied)
    history = open_weights(str(tmp_path / "out")).history
    assert [(step["command"], step["argv"]) for step in history] == [("convert", ["in"]), ("convert", ["m.safetensors"])]


def test_a_directory_is_cut_into_files_as_asked(kv, tmp_path):
    theirs = qwen(tmp_path / "in")
    assert kv("convert in --file-size 20kB -o out/") == (0, "")
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
    files = set(index["weight_map"].values())
    assert len(files) > 3
    assert all((tmp_path / "out" / name).stat().st_size < 24_000 for name in files)
    assert index["metadata"]["total_size"] == sum(x.numel() * 4 for x in theirs.parameters())
    again = transformers.Qwen3ForCausalLM.from_pretrained(tmp_path / "out").eval()
    assert torch.equal(logits(theirs), logits(again))


def test_siglip_whole_in_and_out_gives_the_same_logits(sh, tmp_path):
    config = transformers.SiglipConfig(text_config=TEXT, vision_config=VISION)
    theirs = transformers.SiglipModel(config).eval()
    theirs.save_pretrained(tmp_path / "in")
    assert sh("kvtools convert in | kvtools convert - -o out/").code == 0
    again = transformers.SiglipModel.from_pretrained(tmp_path / "out").eval()
    given = {"input_ids": torch.arange(16).view(2, 8), "pixel_values": torch.randn(2, 3, 56, 56)}
    with torch.no_grad():
        assert torch.equal(theirs(**given).logits_per_text, again(**given).logits_per_text)


@pytest.mark.parametrize("has_head", [True, False])
@pytest.mark.parametrize("prefix", ["", "vision_model."])
def test_siglips_vision_model_in_and_out_gives_the_same_features(kv, tmp_path, has_head, prefix):
    theirs = transformers.SiglipVisionModel(transformers.SiglipVisionConfig(**VISION, vision_use_head=has_head)).eval()
    theirs.save_pretrained(tmp_path / "in")
    tensors = read_safetensors(tmp_path / "in" / "model.safetensors")
    write_safetensors(tmp_path / "in" / "model.safetensors", {prefix + name: x for name, x in tensors.items()})
    assert kv("convert in -o m.safetensors", "convert m.safetensors -o out/") == (0, "")
    again = transformers.SiglipVisionModel.from_pretrained(tmp_path / "out").eval()
    given = torch.randn(2, 3, 56, 56)
    with torch.no_grad():
        assert torch.equal(theirs(given).last_hidden_state, again(given).last_hidden_state)


def test_keye_in_and_out_keeps_every_tensor_and_the_config(kv, tmp_path, keye):
    code, said = kv("convert keye -o m.safetensors", "check m.safetensors", "convert -q m.safetensors -o out/")
    assert code == 0
    assert "3 tensors that the model does not use are kept: visual.vision_model.embeddings.packing_position" in said
    assert "kvtools convert: keye: these files are not converted: modeling_keye.py.\n" in said
    before, after = (read_safetensors(folder / "model.safetensors") for folder in (keye, tmp_path / "out"))
    assert set(before) == set(after)
    assert all(torch.equal(before[name], after[name]) and after[name].dtype == torch.bfloat16 for name in before)
    given, written = (json.loads((folder / "config.json").read_text()) for folder in (keye, tmp_path / "out"))
    assert written.pop("auto_map")["AutoConfig"] == "configuration_keye.KeyeConfig"
    assert {name: x for name, x in given.items() if name != "auto_map"} == written
    assert "class KeyeForConditionalGeneration" in (tmp_path / "out" / "modeling_keye.py").read_text()
    assert (tmp_path / "out" / "tokenizer.json").read_bytes() == (keye / "tokenizer.json").read_bytes()
    line = info("m.safetensors")
    assert line["unused"] == sorted(UNUSED)
    assert line["parameters"] == sum(p.numel() for p in Keye(KEYE).parameters())
    assert line["tensors"]["tokenizer.json"] == ["U8", [13]]


def test_a_model_is_loaded_as_it_was_saved_from_either_form(kv, tmp_path, keye):
    kv("convert -q keye -o m.safetensors")
    from_directory, weights = load(str(keye))
    from_bag, same = load(str(tmp_path / "m.safetensors"), dtype=torch.float32)
    assert weights.files == same.files == {"tokenizer.json": b'{"model": {}}'}
    assert from_bag.config == from_directory.config == KEYE
    for name, x in from_directory.state_dict().items():
        assert x.dtype == torch.bfloat16
        assert torch.equal(x.float(), from_bag.state_dict()[name])
    with torch.no_grad():  # weights are the model's own: a mapped file cannot be written to
        from_directory.model.norm.weight.add_(1)


def test_what_was_trained_is_saved_with_what_it_came_with(tmp_path, keye):
    from kvtools.artifact.directory import new_directory

    model, weights = load(str(keye))
    said = {"stage": "alignment", "step": 7, "recipe": {"lr": 0.1}}
    save(Sink(str(tmp_path / "m")), model, tokenizer_json=b"{}", fields=said, history=[{"id": "a"}], source=weights)
    again, kept = load(str(tmp_path / "m"))
    assert (kept.fields, kept.recipe) == ({"stage": "alignment", "step": 7}, {"lr": 0.1})
    assert (kept.files, kept.history) == ({"tokenizer.json": b"{}"}, [{"id": "a"}])
    assert set(kept.unused) == set(UNUSED)
    with new_directory(str(tmp_path / "d")) as folder:
        save(folder, again, tokenizer_json=None, fields=kept.fields, history=kept.history, source=kept)
    last = open_weights(str(tmp_path / "d"))
    assert (last.fields["stage"], last.history, last.files["tokenizer.json"]) == ("alignment", [{"id": "a"}], b"{}")
    assert open_artifact(str(tmp_path / "m")).fields["config"] == {"lr": 0.1}


def turn(role, *content):
    parts = [{"type": "text", "text": part} if isinstance(part, str) else part for part in content]
    return {"role": role, "content": parts}


CONVERSATIONS = [
    {"messages": [turn("user", {"type": "video", "video": "v"}, "What\n is it?"), turn("assistant", "A cat.")]},
    {"messages": [turn("system", "Be brief."), turn("user", "One ", {"type": "image", "image": "a"}, "two "),
                  turn("assistant", "<think>\nhm\n</think>\n\nYes."), turn("user", "Sure?"), turn("assistant", "Yes.")]},
    {"messages": [turn("user", "Call."), turn("assistant", '<tool_call>\n{"name": "f"}\n</tool_call>'), turn("tool", "4"),
                  turn("tool", "5"), turn("assistant", "Nine.")]},
    {"messages": [{"role": "user", "content": "As a string."}, {"role": "assistant", "content": "Ja."}]},
]  # fmt: skip


@pytest.mark.usefixtures("modules_of_transformers")
def test_others_find_the_tokenizer_and_how_pictures_become_patches(kv, tmp_path, keye):
    from kvtools.keye.data.chat_template import ChatTemplate, visuals_of

    chat = ChatTemplate.open(None)
    save(Sink(str(tmp_path / "m")), load(str(keye))[0], tokenizer_json=chat.to_bytes(), fields={}, history=[])
    kv("convert -q m -o made/")
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "made", trust_remote_code=True)
    assert (tokenizer.eos_token_id, tokenizer.pad_token_id) == chat.stop_tokens
    for conversation in CONVERSATIONS:
        n_visual = [1] * len(visuals_of(conversation))
        ids = tokenizer.apply_chat_template(conversation["messages"], return_dict=False)
        assert ids == chat.encode(conversation, n_visual)[0].tolist()
        asked = conversation["messages"][:-1]
        ids = tokenizer.apply_chat_template(asked, add_generation_prompt=True, return_dict=False)
        assert ids == chat.prompt(conversation, n_visual).tolist()
    pictures = json.loads((tmp_path / "made" / "preprocessor_config.json").read_text())
    assert (pictures["patch_size"], pictures["merge_size"], pictures["temporal_patch_size"]) == (14, 2, 1)
    assert (pictures["min_pixels"], pictures["max_pixels"]) == (3136, 12_845_056)
    kv("convert -q made -o again.safetensors")
    kv("convert -q again.safetensors -o last/")
    assert (tmp_path / "last" / "preprocessor_config.json").read_text() == json.dumps(pictures, sort_keys=True)


def test_a_keye_takes_weights_from_qwen3_and_siglip(tmp_path):
    theirs = qwen(tmp_path / "q")
    tower = transformers.SiglipVisionModel(transformers.SiglipVisionConfig(**VISION))
    tower.save_pretrained(tmp_path / "s")
    model = Keye(KEYE)
    filled = copy_shared_weights(model, open_weights(str(tmp_path / "q"))) + copy_shared_weights(
        model, open_weights(str(tmp_path / "s"))
    )
    rest = {name for name in model.state_dict() if name not in filled}
    assert all(name.startswith("mlp_AR.") for name in rest)
    assert torch.equal(model.lm_head.weight, theirs.lm_head.weight)
    wanted = tower.state_dict()
    prefix = next(name for name in wanted if name.endswith("post_layernorm.bias")).removesuffix("post_layernorm.bias")
    assert torch.equal(model.tower.post_layernorm.bias, wanted[prefix + "post_layernorm.bias"])
    qwen(tmp_path / "wide", hidden_size=64)
    with pytest.raises(ValueError, match=r"\[97, 64\], and \[97, 32\] is needed"):
        copy_shared_weights(model, open_weights(str(tmp_path / "wide")))


def test_precisions_and_values_are_kept_bit_for_bit(kv, tmp_path):
    theirs = qwen(tmp_path / "x").bfloat16()
    theirs.save_pretrained(tmp_path / "in")
    assert kv("convert in -o m.safetensors") == (0, "")
    bag = open_artifact(str(tmp_path / "m.safetensors"))
    for name, x in theirs.state_dict().items():
        assert torch.equal(to_torch(bag.tensors[name]), x)


def test_a_bag_whose_weights_were_changed_is_refused(kv, tmp_path):
    qwen(tmp_path / "in")
    kv("convert in -o m.safetensors", "convert m.safetensors -o first/")
    data = bytearray((tmp_path / "m.safetensors").read_bytes())
    data[-5] ^= 1
    (tmp_path / "m.safetensors").write_bytes(data)
    code, said = kv("convert m.safetensors -o out/")
    assert (code, "differs from its crc32" in said) == (65, True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["first", "in", "m.safetensors"]


def test_a_directory_is_overwritten_with_force_and_only_a_models(kv, tmp_path):
    qwen(tmp_path / "in")
    assert kv("convert in -o out/") == (0, "")
    assert kv("convert in -o out/") == (73, "kvtools convert: out/: exists already. Give --force to overwrite it.\n")
    (tmp_path / "out" / "stale.txt").write_text("x")
    assert kv("convert --force in -o out/") == (0, "")
    assert not (tmp_path / "out" / "stale.txt").exists()
    (tmp_path / "home" / "deep").mkdir(parents=True)
    (tmp_path / "home" / "config.json").write_text("{}")
    refusal = "kvtools convert: home/: this is not a model's directory, and it is not overwritten. Name another output.\n"
    assert kv("convert --force in -o home/") == (73, refusal)
    (tmp_path / "empty").mkdir()
    assert kv("convert in -o empty/") == (0, "")
    assert kv("convert in -o in/")[0] == 2
    assert kv("convert --column user=a in -o x")[0] == 2
    assert kv("convert in -o nowhere/x/")[0] == 73
    assert sorted(path.name for path in tmp_path.iterdir()) == ["empty", "home", "in", "out"]


def test_equal_models_give_equal_bytes(kv, tmp_path):
    qwen(tmp_path / "in")
    assert kv("convert in -o a", "convert in -o b", "convert a -o x/", "convert b -o y/") == (0, "")
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    x, y = (read_directory(str(tmp_path / name)) for name in "xy")
    assert all(np.array_equal(x.tensors[name], y.tensors[name]) for name in x.tensors)


def test_what_is_no_model_is_refused(kv, tmp_path):
    assert kv("convert nowhere -o out/")[0] == 66
    (tmp_path / "d").mkdir()
    assert "no config.json" in kv("convert d -o m")[1]
    write_safetensors(tmp_path / "x.safetensors", {"a": torch.ones(2)})
    code, said = kv("convert x.safetensors -o out/")
    assert said == (
        "kvtools convert: x.safetensors: this is a bag that kvtools did not write, and kind model is needed. Make one with "
        "kvtools pretrain keye or kvtools convert.\n"
    )
    assert code == 65


def test_a_merge_that_is_not_built_is_refused_by_name_in_both_forms(kv, tmp_path, keye):
    assert kv("convert -q keye -o m.safetensors") == (0, "")
    config = json.loads((keye / "config.json").read_text())
    config["vision_config"]["spatial_merge_size"] = 1
    (keye / "config.json").write_text(json.dumps(config))
    assert kv("convert keye -o n.safetensors") == (
        65,
        "kvtools convert: keye: spatial_merge_size is 1, and only 2 is built here. Repair its config, or give another model.\n",
    )
    bag = open_artifact(str(tmp_path / "m.safetensors"))
    fields = {name: value for name, value in bag.fields.items() if name not in ("kind", "config", "history", "crc32")}
    fields["architecture"]["merge"] = 3
    write_bag(Sink(str(tmp_path / "n.safetensors")), "model", bag.tensors, config={}, history=[], **fields)
    assert kv("convert n.safetensors -o out/") == (
        65,
        (
            "kvtools convert: n.safetensors: merge is 3, and only 2 is built: a visual token stands for 2 x 2 patches. "
            "Repair its config, or give another model.\n"
        ),
    )
