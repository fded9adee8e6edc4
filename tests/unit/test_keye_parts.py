"""Parts of Keye-VL on their own: attention in segments, norms, pairs of pictures and texts, shapes."""

import numpy as np
import pytest
import torch
from small_keye import CONFIG, model, pixels

from kvtools.keye.model.attention import Segments, attend
from kvtools.keye.model.config import SIZES, LanguageConfig, ModelConfig, TextConfig, VisionConfig
from kvtools.keye.model.keye import Keye
from kvtools.keye.model.layers import RMSNorm
from kvtools.keye.model.siglip import BIAS, LOG_SCALE, Siglip, sigmoid_loss

EXACT = 1e-5  # float32, products in another order


@pytest.mark.parametrize("starts", [[0, 3, 6, 9], [0, 5, 9, 14, 18, 23], [0, 1, 2, 700, 1400], [0]])
@pytest.mark.parametrize("is_causal", [True, False])
def test_attention_in_segments_is_a_mask_over_all(starts, is_causal):
    torch.manual_seed(0)
    n = max(starts) + 5
    q, k, v = torch.randn(n, 4, 8), torch.randn(n, 2, 8), torch.randn(n, 2, 8)
    found = attend(q, k, v, Segments.of(starts, n), is_causal=is_causal)
    number = torch.bucketize(torch.arange(n), torch.tensor(starts), right=True)
    mask = number[:, None] == number[None]
    if is_causal:
        mask = mask.tril()
    score = torch.einsum("shx,thx->hst", q, k.repeat_interleave(2, 1)).double() / 8**0.5
    softmax = score.masked_fill(~mask, -torch.inf).softmax(2)
    expected = torch.einsum("hst,thx->shx", softmax, v.repeat_interleave(2, 1).double())
    assert (found - expected).abs().max() <= EXACT


def test_rms_norm_is_its_formula_and_gradient():
    torch.manual_seed(0)
    norm = RMSNorm(6, 1e-3).double()
    torch.nn.init.normal_(norm.weight)
    x = torch.randn(5, 2, 6, dtype=torch.float64, requires_grad=True)
    expected = norm.weight * x / (x.square().mean(-1, keepdim=True) + 1e-3).sqrt()
    assert torch.allclose(norm(x), expected)
    assert torch.autograd.gradcheck(norm, x)
    assert torch.autograd.gradcheck(lambda w: torch.func.functional_call(norm, {"weight": w}, x), norm.weight)


def test_the_loss_of_pairs_is_its_double_sum():
    torch.manual_seed(0)
    x, y = (torch.nn.functional.normalize(torch.randn(4, 5), dim=1) for _ in range(2))
    total = 0.0
    for i in range(4):
        for j in range(4):
            z = 1 if i == j else -1
            total -= np.log(1 / (1 + np.exp(-z * (10 * float(x[i] @ y[j]) - 10)))) / 4
    assert abs(float(sigmoid_loss(x, y, torch.tensor([LOG_SCALE]), torch.tensor([BIAS]))) - total) < 1e-5


def test_texts_of_any_length_are_texts_alone_and_the_tower_goes_to_keye():
    torch.manual_seed(0)
    siglip = Siglip(CONFIG.vision, TextConfig(24, 40, 2, 2, 50, 16)).eval()
    tokens, starts = torch.randint(0, 50, (25,)), [0, 4, 14, 18]
    with torch.no_grad():
        together = siglip.encode_texts(tokens, starts)
        for i, (a, b) in enumerate(zip(starts, [*starts[1:], 25], strict=True)):
            assert (siglip.encode_texts(tokens[a:b], [0])[0] - together[i]).abs().max() <= EXACT
        grids = [(1, 4, 6), (2, 2, 2)]
        images = siglip.encode_images(pixels(grids), grids)
        assert torch.allclose(images.norm(dim=1), torch.ones(2))
        assert (siglip.encode_images(pixels(grids)[:24], grids[:1])[0] - images[0]).abs().max() <= EXACT
        keye = model()
        weights = {f"visual.vision_model.{name}": x for name, x in siglip.vision_model.state_dict().items()}
        weights = {name: x for name, x in weights.items() if ".head." not in name}
        loaded = keye.load_state_dict(weights, strict=False)
        assert not loaded.unexpected_keys
        assert not any(name.startswith("visual") for name in loaded.missing_keys)
        assert torch.equal(keye.tower(pixels(grids), grids), siglip.vision_model(pixels(grids), grids))
    siglip.loss(siglip.encode_images(pixels(grids), grids), siglip.encode_texts(tokens[:14], [0, 4])).backward()
    assert all(p.grad is not None for p in siglip.parameters())
    with pytest.raises(ValueError, match="a text has 17 tokens from 0 to 0, and at most 16 tokens below 50 are possible"):
        siglip.encode_texts(torch.zeros(17, dtype=torch.long), [0])


def test_sizes_round_trip_and_count_as_published():
    for arch in SIZES.values():
        assert ModelConfig.from_json(arch.to_json()) == arch
    with torch.device("meta"):
        keye = Keye(SIZES["8b"])
    parts = [sum(p.numel() for p in part.parameters()) for part in (keye.visual, keye.mlp_AR, keye.model, keye.lm_head)]
    assert [round(n / 1e6, 1) for n in (parts[0], parts[1])] == [413.0, 40.1]
    assert round((parts[2] + parts[3]) / 1e9, 3) == 8.191
    names = set(keye.state_dict())
    assert "visual.vision_model.encoder.layers.26.self_attn.out_proj.bias" in names
    assert {"mlp_AR.pre_norm.weight", "model.layers.35.mlp.gate_proj.weight", "model.norm.weight", "lm_head.weight"} <= names


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"language": {"heads": 3, "kv_heads": 2}}, "language: heads is 3, and a multiple of kv_heads, 2, is needed"),
        (
            {"language": {"widht": 3}},
            "language has no field widht; its fields are eps, head_dim, heads, hidden, kv_heads, .*width",
        ),
        ({"vision": {"width": "24"}}, "width is '24', and a whole number of at least 1 is needed"),
        ({"merge": 0}, "merge is 0, and a whole number of at least 1 is needed"),
        ({"merge": 3}, "merge is 3, and only 2 is built: a visual token stands for 2 x 2 patches"),
    ],
)
def test_configs_that_cannot_be_are_refused(change, match):
    words = CONFIG.to_json()
    for name, value in change.items():
        words[name] = {**words[name], **value} if isinstance(value, dict) else value
    with pytest.raises(ValueError, match=f"^{match}$"):
        ModelConfig.from_json(words)
    assert VisionConfig(24, 40, 2, 2).head_dim == 12
    with pytest.raises(ValueError, match="width is 20, and a multiple of 8 is needed for 2 heads"):
        VisionConfig(20, 40, 2, 2)
    with pytest.raises(ValueError, match="head_dim is 0, and a whole number"):
        LanguageConfig(8, 8, 1, 1, 1, 0)


@pytest.mark.parametrize("length", [1, 100, 128, 300, 1500])  # beyond 1,024 softmaxes are computed again
@pytest.mark.parametrize("is_causal", [True, False])
def test_attention_in_bfloat16_is_near_torchs_with_its_gradients(length, is_causal):
    torch.manual_seed(0)
    q, k, v = (torch.randn(2 * length, h, 16, requires_grad=True) for h in (4, 2, 2))
    segments = Segments.of([0, length], 2 * length)
    weight = torch.randn(2 * length, 4, 16)
    results = []
    for dtype in (torch.float32, torch.bfloat16):
        for x in (q, k, v):
            x.grad = None
        out = attend(q.to(dtype), k.to(dtype), v.to(dtype), segments, is_causal=is_causal)
        (out * weight).sum().backward()
        results.append([out.detach().float(), *(x.grad for x in (q, k, v))])
    for exact, found in zip(*results, strict=True):
        assert (found - exact).abs().max() <= 0.03 * exact.abs().max() + 0.01  # eight bits, through scores and softmaxes
