"""Experts against one token at a time in float64; and the load, which a bias makes even."""

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small_onerec import EXPERTS, SMALL, batcher_of, catalogue, float64, histories_of, model_of

from kvtools.onerec.model import moe
from kvtools.onerec.model.moe import Experts

WIDTH, HIDDEN = 12, 9


def experts(n_experts, n_active, seed=0, spread=1.0):
    """Experts of random weights and bias; spread: of the router's logits, where a token's square has a mean of 1."""
    torch.manual_seed(seed)
    moe_layer = Experts(WIDTH, n_experts, n_active, HIDDEN)
    torch.nn.init.normal_(moe_layer.router.weight, std=spread * WIDTH**-0.5)
    return moe_layer.eval()


def tokens(n, seed=0, skew=0.0):
    """(n, D) with a mean square of 1; skew: how far all lie to one side, in units of how far they lie apart."""
    rng = torch.Generator().manual_seed(seed)
    side_D = torch.randn(WIDTH, generator=torch.Generator().manual_seed(7))
    x_MD = torch.randn(n, WIDTH, generator=rng) + skew * side_D
    return x_MD / x_MD.square().mean(1, keepdim=True).sqrt()


def slow(moe_layer, x_MD):
    """Outputs float64 (M, D), experts of each token, and their gates: loops over tokens, in numpy."""
    router, up, down, bias = (
        x.detach().double().numpy() for x in (moe_layer.router.weight, moe_layer.up, moe_layer.down, moe_layer.bias)
    )
    outs, chosen, gates = [], [], []
    for x_D in x_MD.double().numpy():
        score_E = 1 / (1 + np.exp(-router @ x_D))
        best = np.argsort(-(score_E + bias), kind="stable")[: moe_layer.n_active]
        gate = score_E[best] / score_E[best].sum()
        out = np.zeros(WIDTH)
        for expert, weight in zip(best, gate, strict=True):
            left, value = np.split(x_D @ up[expert], 2)
            out += weight * ((left / (1 + np.exp(-left)) * value) @ down[expert])
        outs.append(out)
        chosen.append(best)
        gates.append(gate)
    return np.array(outs).reshape(-1, WIDTH), np.array(chosen), np.array(gates)


@settings(deadline=None, max_examples=40)
@given(st.integers(1, 6), st.data(), st.integers(1, 30), st.integers(0, 10**6))
def test_the_output_is_that_of_one_token_at_a_time(n_experts, data, n_tokens, seed):
    moe_layer = experts(n_experts, data.draw(st.integers(1, n_experts)), seed)
    moe_layer.bias.copy_(0.3 * torch.randn(n_experts))
    x_MD = tokens(n_tokens, seed)
    # float32 sums of a dozen products of size about 1
    np.testing.assert_allclose(moe_layer(x_MD).detach().numpy(), slow(moe_layer, x_MD)[0], rtol=0, atol=2e-5)


def test_float64_weights_give_it_to_ten_digits():
    moe_layer, x_MD = experts(5, 2), tokens(40)
    expected, _, _ = slow(moe_layer, x_MD)
    with float64(), torch.no_grad():
        found = copy.deepcopy(moe_layer).double()(x_MD.double())
    np.testing.assert_allclose(found.numpy(), expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize("n_active", [1, 2, 4])
def test_gates_add_to_one(n_active):
    moe_layer, x_MD = experts(4, n_active), tokens(20)
    alone = experts(1, 1)
    with torch.no_grad():
        # four experts that are all the same are one, whoever is chosen, only if their gates add to 1
        moe_layer.up.copy_(alone.up.expand_as(moe_layer.up))
        moe_layer.down.copy_(alone.down.expand_as(moe_layer.down))
        torch.testing.assert_close(moe_layer(x_MD), alone(x_MD), rtol=0, atol=1e-5)


def test_the_order_of_tokens_does_not_matter():
    moe_layer, x_MD = experts(4, 2), tokens(50)
    order = torch.randperm(50, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(moe_layer(x_MD[order]), moe_layer(x_MD)[order], rtol=0, atol=1e-5)


def test_load_counts_tokens_an_expert_in_training_alone_until_it_is_cleared():
    moe_layer, x_MD = experts(6, 2), tokens(100)
    moe_layer(x_MD)
    assert moe_layer.load.tolist() == [0] * 6
    moe_layer.train()
    moe_layer(x_MD[:60])
    moe_layer(x_MD[60:])
    assert moe_layer.load.tolist() == np.bincount(slow(moe_layer, x_MD)[1].flatten(), minlength=6).tolist()
    assert moe_layer.load.sum() == 200
    assert "load" not in moe_layer.state_dict()


def test_the_bias_moves_choices_and_not_gates():
    moe_layer, x_MD = experts(4, 2), tokens(200)
    _, chosen, gates = slow(moe_layer, x_MD)
    moe_layer.bias[3] = -10.0
    _, others, gates_now = slow(moe_layer, x_MD)
    assert (chosen == 3).any()
    assert not (others == 3).any()
    same = (chosen == others).all(axis=1)
    assert same.any()
    np.testing.assert_array_equal(gates[same], gates_now[same])
    np.testing.assert_allclose(moe_layer(x_MD).detach().numpy(), slow(moe_layer, x_MD)[0], rtol=0, atol=2e-5)


def test_the_bias_has_no_gradient():
    moe_layer = experts(4, 2).train()
    moe_layer(tokens(50)).square().sum().backward()
    assert not moe_layer.bias.requires_grad
    assert "bias" not in dict(moe_layer.named_parameters())
    assert all(parameter.grad is not None for parameter in moe_layer.parameters())
    assert "bias" in moe_layer.state_dict(), "it is kept all the same"


def test_gradients_are_the_finite_differences():
    moe_layer, x_MD = experts(4, 2).double(), tokens(6).double().requires_grad_()
    with float64():
        names = [name for name, _ in moe_layer.named_parameters()]

        def run(x_MD, *weights):
            return torch.func.functional_call(moe_layer, dict(zip(names, weights, strict=True)), (x_MD,))

        assert torch.autograd.gradcheck(run, (x_MD, *moe_layer.parameters()))


@pytest.mark.parametrize(
    ("load", "moves"),
    [
        ([10, 5, 5, 0], [-1, 0, 0, 1]),
        ([6, 5, 5, 4], [-0.2, 0, 0, 0.2]),
        ([50, 0, 0, 0], [-1.5, 0.5, 0.5, 0.5]),  # one down by 1, three up by 1, and 0.5 off each: they are about 0
    ],
)
def test_rebalance_goes_down_where_there_was_too_much_and_up_where_too_little(load, moves):
    moe_layer = experts(4, 1)
    moe_layer.rebalance(torch.tensor(load).double())
    assert moe_layer.bias.tolist() == pytest.approx([moe._BIAS_LR * move for move in moves], abs=1e-8)


@settings(deadline=None, max_examples=50)
@given(st.lists(st.integers(0, 1000), min_size=2, max_size=8).filter(any))
def test_rebalance_tells_the_largest_load_over_the_mean_and_keeps_biases_about_0(load):
    moe_layer = experts(len(load), 1)
    assert moe_layer.rebalance(torch.tensor(load).double()) == pytest.approx(max(load) / np.mean(load), rel=1e-5)
    for _ in range(3):
        moe_layer.rebalance(torch.tensor(load).double())
    assert float(moe_layer.bias.mean()) == pytest.approx(0, abs=1e-6)
    assert (np.diff(moe_layer.bias[np.argsort(load)].numpy()) <= 1e-6).all(), "who had more is never ahead of who had less"


def test_the_load_that_is_logged_is_the_average_of_the_last_steps():
    moe_layer, loads = experts(3, 1), np.random.default_rng(0).integers(1, 100, (60, 3)).astype(float)
    logged = [moe_layer.rebalance(torch.from_numpy(load)) for load in loads]
    for step in (0, 1, 30, 59):
        weights = (1 - moe._RECENT) ** np.arange(step, -1, -1)
        load_fraction_E = weights @ (loads[: step + 1] / loads[: step + 1].sum(1, keepdims=True))
        assert logged[step] == pytest.approx(load_fraction_E.max() / load_fraction_E.mean(), rel=1e-5)


def test_rebalance_without_load_changes_nothing():
    moe_layer = experts(4, 2)
    moe_layer.rebalance(moe_layer.load)
    assert moe_layer.bias.tolist() == [0] * 4


@pytest.mark.parametrize("skew", [0.0, 3.0])
@pytest.mark.parametrize(("n_experts", "n_active", "n_tokens"), [(4, 1, 2000), (8, 2, 2000), (24, 2, 8000)])
def test_the_load_of_every_step_is_even_within_a_hundred_steps_and_stays_so(n_experts, n_active, n_tokens, skew):
    moe_layer = experts(n_experts, n_active).train()
    logged, worst = [], []
    with torch.no_grad():
        for step in range(160):
            moe_layer(tokens(n_tokens, seed=step, skew=skew))
            worst.append(float(moe_layer.load.max() / moe_layer.load.mean()))
            logged.append(moe_layer.rebalance(moe_layer.load))
            moe_layer.load.zero_()
    assert worst[0] > (3 if skew else 1.2), "it was skewed"
    # by the sign of the excess the worst of these steps has 1.2 to 1.9 times the mean
    assert max(worst[100:]) < 1.2
    assert max(logged[140:]) < 1.05


def test_padding_is_no_load():
    moe_layer, x_MD = experts(6, 2).train(), tokens(100)
    is_token_M = torch.arange(100) % 3 > 0
    whole = moe_layer(x_MD, is_token_M)
    assert moe_layer.load.tolist() == np.bincount(slow(moe_layer, x_MD[is_token_M])[1].flatten(), minlength=6).tolist()
    torch.testing.assert_close(whole, moe_layer(x_MD), rtol=0, atol=0)


@pytest.mark.parametrize("decoder", ["cross", "lazy"])
def test_a_generators_experts_count_what_there_is_and_no_padding(decoder):
    config = replace(SMALL, decoder=decoder, positive=0, lifelong=0, **EXPERTS)
    histories = histories_of([7, 2, 14, 4], 30)
    batcher, model = batcher_of(histories, config, 30), model_of(config, catalogue(30, (4, 3, 5)), (4, 3, 5)).train()
    batch = batcher.batch(batcher.training_rows(np.ones(len(histories.items), bool)))
    model.loss(batch)
    n_context = int((batch.short.items >= 0).sum()) + len(batch.static)  # and a token of each user
    assert (batch.short.items < 0).any(), "there is padding"
    assert (batch.targets < 0).any(), "here too"
    found = [float(layer.load.sum()) for layer in model.expert_layers()]
    expected = [config.active * n_context] * len(model.encoder) + [config.active * 3 * batch.n_targets] * config.decoder_layers
    assert found == expected
