"""Keye-VL's parts against transformers' classes of the same design, float32, random weights of small sizes."""

import pytest
import torch

from kvtools.keye.model.config import LanguageConfig, ModelConfig, TextConfig, VisionConfig
from kvtools.keye.model.keye import Keye
from kvtools.keye.model.language import KVCache
from kvtools.keye.model.rope import mrope_angles
from kvtools.keye.model.siglip import Siglip
from kvtools.keye.model.vision import VisionTower, interpolate_positions

pytest.importorskip("transformers")
import transformers  # noqa: E402

TOLERANCE = 1e-4
GRIDS = [(1, 4, 6), (1, 10, 2), (1, 4, 6), (1, 2, 2), (1, 8, 14)]


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)
    transformers.logging.set_verbosity_error()


def noisy(model):
    """All weights away from what they begin with, so that no zero bias and no gain of one hides a fault."""
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, mean=1.0 if parameter.ndim == 1 else 0.0, std=0.2)
    return model.eval()


def taken_over(ours, theirs, prefix=""):
    ours.load_state_dict({prefix + name: x for name, x in theirs.state_dict().items()})
    return ours.eval()


def pixels(grids, patch=14):
    n = sum(t * h * w for t, h, w in grids)
    return torch.randint(0, 256, (n, 3, patch, patch), dtype=torch.uint8)


def scaled(pixels_P3HW):
    return (pixels_P3HW.float() / 255 - 0.5) / 0.5


@pytest.mark.parametrize("kv_heads", [1, 2, 4])
@pytest.mark.parametrize("tied", [False, True])
def test_the_decoder_gives_the_logits_of_qwen3(kv_heads, tied):
    config = transformers.Qwen3Config(
        vocab_size=97, hidden_size=48, intermediate_size=80, num_hidden_layers=3, num_attention_heads=4, head_dim=16,
        num_key_value_heads=kv_heads, rope_parameters={"rope_type": "default", "rope_theta": 1e6}, tie_word_embeddings=tied,
    )  # fmt: skip
    theirs = noisy(transformers.Qwen3ForCausalLM(config))
    language = LanguageConfig(48, 80, 3, 4, kv_heads, 16, 97, tied=tied)
    config = ModelConfig(VisionConfig(16, 16, 1, 2), language, image_token=95, video_token=96)
    ours = Keye(config).eval()
    weights = {name: x for name, x in theirs.state_dict().items() if not tied or name != "lm_head.weight"}
    loaded = ours.load_state_dict(weights, strict=False)
    assert not loaded.unexpected_keys
    assert all(name.startswith(("visual", "mlp_AR")) for name in loaded.missing_keys)
    tokens = torch.randint(0, 95, (2, 33))
    with torch.no_grad():
        expected = theirs(input_ids=tokens).logits
        positions = torch.arange(33).expand(3, -1).repeat(1, 2)
        found = ours.logits(ours.hidden(tokens.flatten(), positions, [0, 33]))
    assert (found - expected.flatten(0, 1)).abs().max() <= TOLERANCE


def test_the_rotation_is_qwen3s_far_into_a_row():
    config = transformers.Qwen3Config(head_dim=128, rope_parameters={"rope_type": "default", "rope_theta": 1e6})
    rotary = transformers.models.qwen3.modeling_qwen3.Qwen3RotaryEmbedding(config)
    positions = torch.tensor([0, 1, 1000, 40959])
    cos, sin = rotary(torch.zeros(1), positions[None])
    angles = mrope_angles(positions.expand(3, -1), 128, 1e6)
    assert torch.equal(angles.cos[:, 0], cos[0, :, :64])
    assert torch.equal(angles.sin[:, 0], sin[0, :, :64])


@pytest.fixture
def paddle():
    """PaddleOCR-VL's tower and projector, random, with the shapes that ours must have."""
    from transformers.models.paddleocr_vl import configuration_paddleocr_vl as c
    from transformers.models.paddleocr_vl import modeling_paddleocr_vl as m

    vision = {
        "hidden_size": 48, "intermediate_size": 72, "num_hidden_layers": 3, "num_attention_heads": 4, "image_size": 112,
        "patch_size": 14,
        "spatial_merge_size": 2,
    }  # fmt: skip
    text = {
        "hidden_size": 40,
        "intermediate_size": 64,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
    }
    config = c.PaddleOCRVLConfig(vision_config=vision, text_config=text)
    tower = noisy(m.PaddleOCRVisionModel(config.vision_config))
    projector = noisy(m.PaddleOCRProjector(config))
    config = ModelConfig(VisionConfig(48, 72, 3, 4, table_side=8), LanguageConfig(40, 64, 1, 2, 1, 20, 50))
    return tower, projector, config


def test_the_tower_is_paddleocrs_on_packed_images_of_any_size(paddle):
    tower, _, config = paddle
    ours = taken_over(VisionTower(config.vision), tower.vision_model if hasattr(tower, "vision_model") else tower)
    x = pixels(GRIDS)
    with torch.no_grad():
        expected = tower(pixel_values=scaled(x)[None], grid_thw=torch.tensor(GRIDS)).last_hidden_state
        found = ours(x, GRIDS)
    assert (found - expected.view_as(found)).abs().max() <= TOLERANCE


def test_tower_and_projector_are_paddleocrs(paddle):
    tower, projector, config = paddle
    ours = Keye(config).eval()
    taken_over(ours.tower, tower.vision_model if hasattr(tower, "vision_model") else tower)
    taken_over(ours.mlp_AR, projector)
    x = pixels(GRIDS)
    with torch.no_grad():
        features = tower(pixel_values=scaled(x)[None], grid_thw=torch.tensor(GRIDS)).last_hidden_state
        expected = projector(features.view(len(x), -1), torch.tensor(GRIDS))
        found = ours.encode_images(x, GRIDS)
    assert (found - expected).abs().max() <= TOLERANCE


def test_a_square_image_of_the_tables_size_is_siglips():
    config = transformers.SiglipVisionConfig(
        hidden_size=48, intermediate_size=72, num_hidden_layers=3, num_attention_heads=4, image_size=112, patch_size=14
    )
    theirs = noisy(transformers.SiglipVisionModel(config))
    ours = VisionTower(VisionConfig(48, 72, 3, 4, table_side=8, rope=False))
    named = {name.removeprefix("vision_model."): x for name, x in theirs.state_dict().items()}
    ours.load_state_dict({name: x for name, x in named.items() if not name.startswith("head.")})
    image = torch.randint(0, 256, (3, 112, 112), dtype=torch.uint8)
    patches = image.view(3, 8, 14, 8, 14).permute(1, 3, 0, 2, 4).reshape(64, 3, 14, 14)
    with torch.no_grad():
        expected = theirs(pixel_values=scaled(image)[None]).last_hidden_state[0]
        assert (ours.eval()(patches, [(1, 8, 8)]) - expected).abs().max() <= TOLERANCE


@pytest.mark.parametrize("output", [0, 48])
def test_matching_is_siglip_embeddings_and_loss(output):
    text = {
        "hidden_size": 32 if output else 48, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
        "vocab_size": 60,
        "max_position_embeddings": 16, "projection_size": 48,
    }  # fmt: skip
    vision = {
        "hidden_size": 48,
        "intermediate_size": 72,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "image_size": 56,
        "patch_size": 14,
    }
    theirs = transformers.SiglipModel(transformers.SiglipConfig(text_config=text, vision_config=vision)).eval()
    tower = VisionConfig(48, 72, 2, 4, table_side=4, rope=False)
    ours = taken_over(Siglip(tower, TextConfig(text["hidden_size"], 64, 2, 4, 60, 16, output=output)), theirs)
    images = torch.randint(0, 256, (3, 3, 56, 56), dtype=torch.uint8)
    patches = images.view(3, 3, 4, 14, 4, 14).permute(0, 2, 4, 1, 3, 5).reshape(48, 3, 14, 14)
    tokens = torch.randint(0, 60, (3, 16))
    with torch.no_grad():
        expected = theirs(input_ids=tokens, pixel_values=scaled(images), return_loss=True)
        images_BE, texts_BE = ours.encode_images(patches, [(1, 4, 4)] * 3), ours.encode_texts(tokens.flatten(), [0, 16, 32])
        assert (images_BE - expected.image_embeds).abs().max() <= TOLERANCE
        assert (texts_BE - expected.text_embeds).abs().max() <= TOLERANCE
        assert abs(ours.loss(images_BE, texts_BE) - expected.loss) <= TOLERANCE


def test_interpolated_positions_are_torchs():
    table = torch.randn(27, 27, 16)
    for rows, columns in ((27, 27), (1, 1), (2, 60), (40, 8), (13, 54)):
        expected = torch.nn.functional.interpolate(
            table.permute(2, 0, 1)[None], size=(rows, columns), mode="bilinear", align_corners=False
        )
        found = interpolate_positions(table, rows, columns).permute(2, 0, 1)
        assert torch.allclose(found, expected[0], atol=1e-5)


def test_greedy_text_is_what_transformers_generates():
    config = transformers.Qwen3Config(
        vocab_size=97, hidden_size=48, intermediate_size=80, num_hidden_layers=2, num_attention_heads=4, head_dim=16,
        num_key_value_heads=2, rope_parameters={"rope_type": "default", "rope_theta": 1e6}, eos_token_id=None,
        bos_token_id=None, pad_token_id=None,
    )  # fmt: skip
    theirs = noisy(transformers.Qwen3ForCausalLM(config))
    config = ModelConfig(VisionConfig(16, 16, 1, 2), LanguageConfig(48, 80, 2, 4, 2, 16, 97), image_token=95, video_token=96)
    ours = Keye(config).eval()
    ours.load_state_dict(theirs.state_dict(), strict=False)
    prompt = torch.randint(0, 95, (9,))
    expected = theirs.generate(prompt[None], max_new_tokens=12, do_sample=False)[0, 9:]
    cache, tokens, found, position = KVCache(), prompt, [], 0
    with torch.no_grad():
        for _ in range(12):
            positions = torch.arange(position, position + len(tokens)).expand(3, -1)
            logits = ours.logits(ours.hidden(tokens, positions, [0], cache=cache)[-1])
            position, tokens = position + len(tokens), logits.argmax()[None]
            found.append(int(tokens))
    assert found == expected.tolist()
