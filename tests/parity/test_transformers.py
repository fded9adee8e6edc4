"""A model's directory in transformers: it loads offline by its own files, and answers as kvtools does, token for token."""

import json
import re

import cinema
import conftest
import numpy as np
import pytest
import torch
from PIL import Image
from shop import say

from kvtools.keye.data.chat_template import JINJA, ChatTemplate, visuals_of
from kvtools.keye.data.conversations import normalise
from kvtools.keye.data.media import Media
from kvtools.keye.data.packing import collate
from kvtools.keye.data.processor import Processor
from kvtools.keye.model.generate import generate
from kvtools.keye.run.limits import Limits
from kvtools.keye.run.session import open_checkpoint

transformers = pytest.importorskip("transformers")
transformers.logging.set_verbosity_error()
pytestmark = pytest.mark.usefixtures("modules_of_transformers")

LORA = f"{cinema.TRAIN} --init made.model --stage sft --steps 8 --lr 0.03 --lora r=4"
N_NEW, TOLERANCE = 8, 1e-4
CALL = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": '{"a":1}'}}
TOOLS = [{"type": "function", "function": {"name": "f", "description": "é", "parameters": {"type": "object"}}}]


@pytest.fixture(scope="module")
def top(tmp_path_factory):
    """made.model; made/, its directory; again/, a directory that came in and went out; pictures and a clip."""
    top = tmp_path_factory.mktemp("transformers")
    cinema.furnish(top)
    rng = np.random.default_rng(0)
    for name, size in (("wide.png", (60, 90, 3)), ("tall.png", (200, 130, 3)), ("thin.png", (20, 220, 3))):
        Image.fromarray(rng.integers(0, 255, size, dtype=np.uint8)).save(top / name)
    Image.fromarray(rng.integers(0, 255, (50, 50, 4), dtype=np.uint8), "RGBA").save(top / "glass.png")
    conftest.make_clip(top / "clip.mp4", n_frames=3, rate=1)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(top)
        for line in (
            f"{cinema.TRAIN} --steps 25 --lr 0.01 -o made.model", "kvtools convert made.model -o made/",
            "kvtools convert -q made -o back.model", "kvtools convert back.model -o again/",
            f"{LORA},on=all -o adapter", f"{LORA} -o thin/", "kvtools merge made.model --adapter adapter -o merged.model",
            "kvtools convert merged.model -o merged/",
        ):  # fmt: skip
            assert say(line).code == 0
    return top


def loaded(folder):
    """The processor and the model of a directory."""
    options = {"trust_remote_code": True}
    processor = transformers.AutoProcessor.from_pretrained(folder, **options)
    model = transformers.AutoModelForImageTextToText.from_pretrained(folder, **options).eval()
    assert type(model.config).__name__ == type(transformers.AutoConfig.from_pretrained(folder, **options)).__name__
    return processor, model


def asked(top, *names, text="Which colour?"):
    kinds = {name: "video" if name.endswith(".mp4") else "image" for name in names}
    shown = [{"type": kinds[name], kinds[name]: str(top / name)} for name in names]
    return [{"role": "user", "content": [*shown, {"type": "text", "text": text}]}]


PROMPTS = [
    (), ("wide.png",), ("clip.mp4",), ("wide.png", "clip.mp4", "tall.png"), ("thin.png",), ("glass.png", "wide.png"),
    ("clip.mp4", "clip.mp4"),
]  # fmt: skip
QUESTIONS = [(names, text) for text in ("Which colour?", "What is it like?", "Ünïcode  \n?") for names in PROMPTS][:20]


def inputs_of(processor, messages):
    return processor.apply_chat_template(
        messages, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
    )


def differences(top, folder, name, questions=QUESTIONS, *, model=None):
    """The largest difference of logits, after the same tokens in, and the number of answers that differ.

    folder: theirs, or its processor where the model is given; name: ours."""
    processor, theirs = loaded(folder) if model is None else (folder, model)
    ours, template, weights = open_checkpoint(str(top / name), None, device="cpu", dtype="float32")
    limits = Limits.of_model(weights)
    largest, n_other = 0.0, 0
    with Media([], budget=limits.budget, image_tokens=limits.picture) as media, torch.no_grad():
        ours_processor = Processor.for_model(ours.config, template, media, max_prompt=limits.row)
        for number, (names, text) in enumerate(questions):
            messages = asked(top, *names, text=text)
            given = inputs_of(processor, messages)
            prompt = ours_processor.prompt(normalise({"id": str(number), "messages": messages}))
            assert given["input_ids"][0].tolist() == prompt.tokens.tolist()
            difference = theirs(**given).logits[0] - ours.logits(ours.encode_row(collate([prompt])))
            largest = max(largest, float(difference.abs().max()))
            ((answer,),) = generate(
                ours, [prompt], max_new_tokens=N_NEW, temperature=0, stop_tokens=template.stop_tokens,
                suppress_tokens=range(template.size, ours.config.language.vocabulary),
            )  # fmt: skip
            found = theirs.generate(**given, do_sample=False, max_new_tokens=N_NEW)[0, len(prompt) :].tolist()
            n_other += found != answer.tokens.tolist()
    return largest, n_other


@pytest.mark.parametrize(("folder", "n"), [("made", 20), ("again", 20)])
def test_a_directory_answers_in_transformers_as_here(top, folder, n):
    largest, n_other = differences(top, top / folder, "made.model", QUESTIONS[:n])
    assert (largest < TOLERANCE, n_other) == (True, 0), largest


def test_chat_ends_where_transformers_ends(top, monkeypatch, capfd):
    monkeypatch.chdir(top)
    line = "kvtools chat -q --model made --greedy --max-new 12 wide.png clip.mp4 'Which colour?'"
    done = say(line, capfd)
    processor, model = loaded(top / "made")
    given = inputs_of(processor, asked(top, "wide.png", "clip.mp4"))
    found = model.generate(**given, do_sample=False, max_new_tokens=12)[0, given["input_ids"].shape[1] :]
    assert done.out.decode().rstrip("\n") == processor.decode(found, skip_special_tokens=True)


def test_padded_rows_beams_and_the_loss_work(top):
    processor, model = loaded(top / "made")
    chats = [asked(top, "wide.png", "clip.mp4"), asked(top), asked(top, "tall.png")]
    given = processor.apply_chat_template(
        chats,
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
        processor_kwargs={"padding": True},
    )
    n_prompt = given["input_ids"].shape[1]
    together = model.generate(**given, do_sample=False, max_new_tokens=6)[:, n_prompt:]
    for chat, found in zip(chats, together, strict=True):
        alone = inputs_of(processor, chat)
        expected = model.generate(**alone, do_sample=False, max_new_tokens=6)[0, alone["input_ids"].shape[1] :].tolist()
        assert found.tolist()[: len(expected)] == expected
    assert model.generate(**given, num_beams=2, do_sample=False, max_new_tokens=2).shape[0] == 3
    assert model(**given, labels=given["input_ids"]).loss.isfinite()


def test_pictures_and_frames_in_memory_are_read_as_files_are(top):
    processor, _ = loaded(top / "made")
    text = "<|vision_start|><|image_pad|><|vision_end|>?"
    from_file = processor(text=text, images=[str(top / "glass.png")], return_tensors="pt")
    from_memory = processor(text=[text], images=Image.open(top / "glass.png"), return_tensors="pt")
    assert torch.equal(from_file["pixel_values"], from_memory["pixel_values"])
    processor.image_processor.max_video_tokens, processor.image_processor.max_prompt_tokens = 4096, None
    frames = np.random.default_rng(1).integers(0, 255, (4, 80, 60, 3), dtype=np.uint8)
    read = processor(text="<|video_pad|>", videos=[frames], fps=4.0, return_tensors="pt")
    assert read["video_seconds"].tolist() == [0.0, 0.25, 0.5, 0.75]
    assert read["second_per_grid_ts"].tolist() == [0.25]
    assert int((read["input_ids"] == processor.video_token_id).sum()) == int(read["video_grid_thw"].prod()) // 4
    with pytest.raises(ValueError, match=r"text has 0 times <\|image_pad\|>, and 1 are given"):
        processor(text="?", images=[frames[0]])


def test_what_transformers_saves_comes_back(top, monkeypatch, capfd):
    monkeypatch.chdir(top)
    processor, model = loaded(top / "made")
    processor.save_pretrained(top / "saved")
    model.save_pretrained(top / "saved")
    assert say("kvtools convert -q saved -o saved.model", capfd).code == 0
    assert differences(top, top / "saved", "saved.model", QUESTIONS[3:5])[1] == 0


def test_an_adapter_answers_in_peft_as_here(top):
    peft = pytest.importorskip("peft")
    before = loaded(top / "made")
    adapted = peft.PeftModel.from_pretrained(before[1], top / "adapter").eval()
    assert {type(x).__name__ for x in adapted.modules() if "lora" in type(x).__module__} >= {"Linear"}
    plain, _ = differences(top, top / "made", "adapter", QUESTIONS[:3])
    assert plain > 100 * TOLERANCE, "the adapter changes nothing"
    largest, n_other = differences(top, before[0], "adapter", QUESTIONS[:10], model=adapted)
    assert (largest < TOLERANCE, n_other) == (True, 0), largest


@pytest.mark.parametrize("ours", ["merged.model", "adapter"])
def test_a_merged_adapter_answers_in_transformers_as_here(top, ours):
    largest, n_other = differences(top, top / "merged", ours, QUESTIONS[:4])
    assert (largest < TOLERANCE, n_other) == (True, 0), largest


def test_an_adapter_of_peft_is_read(top, monkeypatch, capfd):
    peft = pytest.importorskip("peft")
    monkeypatch.chdir(top)
    processor, model = loaded(top / "made")
    config = peft.LoraConfig(
        r=4, lora_alpha=6, target_modules=["q_proj", "down_proj", "fc2"], use_rslora=True, init_lora_weights=False,
        alpha_pattern={"mlp.down_proj": 3},
    )  # fmt: skip
    torch.manual_seed(0)
    adapted = peft.get_peft_model(model, config).eval()
    adapted.save_pretrained(top / "theirs")
    assert say("kvtools merge made --adapter theirs -o theirs.model", capfd).code == 0
    assert differences(top, processor, "theirs.model", QUESTIONS[:4], model=adapted)[0] < TOLERANCE
    whole = json.loads((top / "theirs" / "adapter_config.json").read_text())
    (top / "theirs" / "adapter_config.json").write_text(json.dumps(whole | {"use_dora": True}))
    done = say("kvtools merge made --adapter theirs -o other.model", capfd)
    assert (done.code, done.err.partition(": ")[2]) == (
        65, "theirs: use_dora is True, and only False is built here. Give an adapter of matrices alone.\n",
    )  # fmt: skip


CHATS = {
    "tools, calls and their answers": [
        {"role": "user", "content": "2?"}, {"role": "assistant", "content": None, "tool_calls": [CALL, CALL]},
        {"role": "tool", "content": "4", "tool_call_id": "c1"}, {"role": "tool", "content": "5"},
        {"role": "assistant", "content": "Nine.", "reasoning_content": "hm"},
    ],
    "a system message": [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "a.png"}}, {"type": "text", "text": "x"},
                                     {"type": "video", "video": "v.mp4"}, {"type": "input_image", "image": "b"}]},
        {"role": "assistant", "content": "y", "tool_calls": [{"function": {"name": "g", "arguments": {"b": [1, "ü"]}}}]},
    ],
    "a developer's": [
        {"role": "developer", "content": "D"}, {"role": "user", "content": "q"},
        {"role": "assistant", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}],
         "reasoning_content": "thought"},
    ],
    "a bare call": [
        {"role": "user", "content": "q"},
        {"role": "assistant", "content": "", "tool_calls": [{"name": "g", "arguments": {"x": 1}}]},
    ],
}  # fmt: skip


@pytest.mark.parametrize("tools", [None, TOOLS])
@pytest.mark.parametrize("name", CHATS)
def test_the_jinja_template_renders_what_the_reader_reads(top, name, tools):
    chat = ChatTemplate.open(None)
    tokenizer = transformers.AutoTokenizer.from_pretrained(top / "made", trust_remote_code=True)
    assert tokenizer.chat_template == JINJA
    messages = CHATS[name]
    for asked_now in (False, True):
        shown = messages[:-1] if asked_now else messages
        rendered = tokenizer.apply_chat_template(shown, tools=tools, tokenize=False, add_generation_prompt=asked_now)
        read = normalise(json.loads(json.dumps({"messages": messages, **({"tools": tools} if tools else {})})))
        n_visual = [1] * len(visuals_of(read))
        tokens = chat.prompt(read, n_visual) if asked_now else chat.encode(read, n_visual)[0]
        assert rendered == chat.decode(tokens)


# what vllm/model_executor/models/keye.py reads (0238b15): fields of config.json and of the preprocessor, names of weights
VLLM_CONFIG = (
    "architectures hidden_size image_token_id video_token_id vision_start_token_id max_position_embeddings vocab_size "
    "num_hidden_layers num_attention_heads num_key_value_heads head_dim intermediate_size rms_norm_eps tie_word_embeddings"
)
VLLM_VISION = (
    "hidden_size image_size patch_size num_channels num_attention_heads num_hidden_layers intermediate_size layer_norm_eps "
    "hidden_act spatial_merge_size tokens_per_second"
)
VLLM_WEIGHTS = r"""visual\.vision_model\.embeddings\.(patch_embedding\.(weight|bias)|position_embedding\.weight
|packing_position_embedding\.weight)|visual\.vision_model\.encoder\.layers\.\d+\.(layer_norm[12]\.(weight|bias)
|self_attn\.(q|k|v|out)_proj\.(weight|bias)|mlp\.fc[12]\.(weight|bias))|visual\.vision_model\.post_layernorm\.(weight|bias)
|mlp_AR\.(pre_norm|linear_1|linear_2)\.(weight|bias)|model\.(embed_tokens|norm)\.weight|model\.layers\.\d+\.((self_attn\.
(q_proj|k_proj|v_proj|o_proj|q_norm|k_norm)|mlp\.(gate|up|down)_proj|input_layernorm|post_attention_layernorm)\.weight)
|lm_head\.weight"""


def test_vllms_class_finds_its_fields_and_weights(top):
    config = json.loads((top / "made" / "config.json").read_text())
    assert set(VLLM_CONFIG.split()) <= set(config)
    assert set(VLLM_VISION.split()) <= set(config["vision_config"])
    assert config["architectures"] == ["KeyeForConditionalGeneration"]
    assert sum(config["rope_scaling"]["mrope_section"]) == config["head_dim"] // 2
    processor, _ = loaded(top / "made")
    assert (processor.image_token, processor.video_token) == ("<|image_pad|>", "<|video_pad|>")
    pictures = processor.image_processor
    assert (pictures.patch_size, pictures.merge_size, pictures.min_pixels, pictures.max_pixels) == (14, 2, 3136, 192 * 784)
    from kvtools.artifact.directory import read_directory

    names = read_directory(str(top / "made")).tensors
    pattern = re.compile(VLLM_WEIGHTS.replace("\n", ""))
    assert [name for name in names if not pattern.fullmatch(name)] == []
    assert names["visual.vision_model.embeddings.packing_position_embedding.weight"].shape == (32_768, 32)
    generation = json.loads((top / "made" / "generation_config.json").read_text())
    assert (generation["do_sample"], generation["temperature"], generation["top_k"], generation["top_p"]) == (
        True,
        0.6,
        20,
        0.95,
    )
    assert generation["eos_token_id"] == list(ChatTemplate.open(None).stop_tokens)
