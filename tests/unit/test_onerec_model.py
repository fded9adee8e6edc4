"""The generator: sizes, what each target may see, which pathways speak, and gradients by finite differences."""

import copy
import itertools
from dataclasses import fields, replace

import numpy as np
import pytest
import torch
from small_onerec import (
    ALL_SCORED,
    EXPERTS,
    FEATURES,
    NEAR,
    SMALL,
    STATIC,
    batcher_of,
    catalogue,
    float64,
    histories_of,
    in_double,
    model_of,
)
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from kvtools.onerec.model.batching import HistoryRows, PathwayTokens
from kvtools.onerec.model.beam import rank_all
from kvtools.onerec.model.config import SIZES, ModelConfig, dense_twin
from kvtools.onerec.model.layers import ContextAttention, attention, few_token_attention, rms_norm
from kvtools.onerec.model.onerec import OneRec, VocabularySizes
from kvtools.onerec.model.trie import Trie
from kvtools.onerec.run.objectives import ForwardCost

N_ITEMS, CODES = 30, (4, 3, 5)
LENGTHS = [7, 2, 14, 4]
CLOSE = {"rtol": 0, "atol": 1e-5}  # float32 sums of some dozen products of size about 1, in another order


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e4])
def test_the_norm_in_bfloat16_is_torchs_rounded(scale):
    norm = rms_norm(48).bfloat16()
    torch.nn.init.uniform_(norm.weight, 0.5, 2)
    x = scale * torch.randn(7, 3, 48, generator=torch.Generator().manual_seed(0)).bfloat16()
    exact = torch.nn.functional.rms_norm(x.double(), (48,), norm.weight.double(), norm.eps)
    with torch.inference_mode():
        torch.testing.assert_close(norm(x).double(), exact, rtol=2**-8, atol=0)


every_kind = pytest.mark.parametrize(
    ("decoder", "attention", "is_sparse", "near"),
    [*itertools.product(["cross", "lazy"], ["causal", "full"], [False, True], NEAR)],
)


class Case:
    """A generator and histories with rows to learn from."""

    def __init__(self, decoder="cross", attention="causal", is_sparse=False, near="", seed=0, **changed):
        changed = (NEAR | ALL_SCORED)[near] | (EXPERTS if is_sparse else {}) | changed
        self.config = replace(SMALL, decoder=decoder, attention=attention, **changed)
        self.model = model_of(self.config, catalogue(N_ITEMS, CODES, seed), CODES, seed)
        self.histories = histories_of(LENGTHS, N_ITEMS, seed)
        self.batcher = batcher_of(self.histories, self.config, N_ITEMS, seed)
        self.rows = self.batcher.training_rows(np.ones(len(self.histories.items), bool))

    def batch(self, rows=None):
        return self.batcher.batch(self.rows if rows is None else rows)


def target_losses(model, batch):
    """What each target costs, (B, T, S), NaN where there is none: the terms of the sums that `loss` takes."""
    terms, whole = [], torch.nn.functional.cross_entropy

    def kept(logits, codes, **options):
        terms.append(whole(logits, codes, reduction="none"))
        return whole(logits, codes, **options)

    with pytest.MonkeyPatch.context() as patch, torch.no_grad():
        patch.setattr(torch.nn.functional, "cross_entropy", kept)
        model.loss(batch)
    found = torch.full((*batch.targets.shape, len(CODES)), torch.nan)
    found[batch.targets >= 0] = torch.stack(terms, dim=1)
    return found


# ── sizes ────────────────────────────────────────────────────────────────────────────────────────────────────────────────
@pytest.mark.parametrize(("name", "billions"), [("0.121b", 0.121), ("0.935b", 0.935), ("2.633b", 2.68)])
def test_sizes_are_those_of_table_1_by_the_stated_rule(name, billions):
    sizes = dict.fromkeys(("author", "tag", "time", "playtime", "duration", "label"), 41)
    with torch.device("meta"):
        codes_IS = torch.zeros(1, 3, dtype=torch.long)
        model = OneRec(SIZES[name], VocabularySizes((8192,) * 3, 1, sizes, (3, 3, 3)), codes_IS)
    left_out = {id(x) for x in model.summary.parameters()}
    left_out |= {id(pathway.features[0].weight) for pathway in model.pathways.values()}  # authors
    n = sum(x.numel() for x in model.parameters() if id(x) not in left_out)
    assert n == pytest.approx(billions * 1e9, rel=0.01 if name != "2.633b" else 0.001)


@pytest.mark.parametrize("name", ["tiny", "0.935b", "2.633b"])
def test_a_dense_twin_does_as_much_work_a_code(name):
    config = replace(SIZES[name], lifelong=0, positive=0, feature_width=1, author_width=1)
    cost, twin = (cost_of(one) for one in (config, dense_twin(config)))
    assert cost.code - config.decoder_layers * config.width * config.experts == twin.code, "but for the router"


@pytest.mark.parametrize("name", ["tiny", "0.935b", "2.633b"])
def test_a_dense_twin_does_as_much_work_a_context_token(name):
    config = replace(SIZES[name], lifelong=0, positive=0, feature_width=1, author_width=1)
    n_sparse = config.encoder_layers if config.moe == "both" else 0
    cost, twin = (cost_of(one) for one in (config, dense_twin(config)))
    assert cost.context - n_sparse * config.width * config.experts == twin.context, "but for the router"


def cost_of(config):
    with torch.device("meta"):
        return ForwardCost(OneRec(config, VocabularySizes((4, 4), 1, {}), torch.zeros(1, 2, dtype=torch.long)))


@every_kind
def test_what_a_pass_costs_is_what_torch_counts_but_for_padding(decoder, attention, is_sparse, near):
    case = Case(decoder, attention, is_sparse, near)
    longest = np.flatnonzero(case.rows.users == LENGTHS.index(max(LENGTHS)))
    batch = case.batch(case.rows.take(longest[[-1, -1, -1]]))  # one row thrice: no padding but in what is asked for
    assert batch.lifelong is not None
    if case.config.near:
        batch = replace(batch, neighbours=(batch.neighbours[0].clamp(min=0), batch.neighbours[1] + 0.1))
    # torch counts products of attention where they are plain ones
    with FlopCounterMode(display=False) as counted, sdpa_kernel(SDPBackend.MATH):
        total, _ = case.model.loss(batch)
        forward = counted.get_total_flops()
        total.backward()
    expected = ForwardCost(case.model).flops(batch)
    assert expected == pytest.approx(forward, rel=1e-9)
    assert 3 * expected == pytest.approx(counted.get_total_flops(), rel=0.02)


def test_padding_costs_nothing():
    case = Case(is_sparse=True, near="tokens")
    cost = ForwardCost(case.model)
    alone = sum(cost.flops(case.batch(case.rows.take(np.array([n])))) for n in range(len(case.rows)))
    assert cost.flops(case.batch()) == alone


def test_a_dense_architecture_is_its_own_twin():
    assert dense_twin(SIZES["0.121b"]) == SIZES["0.121b"]


def test_every_field_of_an_architecture_comes_back_from_json():
    changed = ModelConfig(**{f.name: 7 if f.type == "int" else f.default for f in fields(ModelConfig)})
    assert ModelConfig(**changed.to_json()) == changed


# ── what a target may see ────────────────────────────────────────────────────────────────────────────────────────────────
@pytest.mark.parametrize("near", NEAR)
@pytest.mark.parametrize("attention", ["causal", "full"])
def test_the_loss_is_the_sum_over_targets_and_the_mean_over_levels(attention, near):
    case = Case(attention=attention, near=near)
    batch = case.batch()
    apart = target_losses(case.model, batch)
    assert batch.n_targets == sum(LENGTHS) - len(LENGTHS) == int((~apart[..., 0].isnan()).sum())
    with torch.no_grad():
        total, levels_S = case.model.loss(batch)
        torch.testing.assert_close(levels_S, apart.nansum((0, 1)), rtol=1e-5, atol=0)
        torch.testing.assert_close(total, levels_S.mean(), rtol=1e-5, atol=0)
        for row, position in (batch.targets >= 0).nonzero().tolist():
            only = torch.full_like(batch.targets, -1)
            only[row, position] = batch.targets[row, position]
            torch.testing.assert_close(case.model.loss(replace(batch, targets=only))[1], apart[row, position], **CLOSE)


@every_kind
def test_a_target_costs_the_same_in_a_row_that_ends_with_it(decoder, attention, is_sparse, near):
    case = Case(decoder, attention, is_sparse, near)
    together = target_losses(case.model, case.batch())
    for number, (user, begin, end) in enumerate(zip(case.rows.users, case.rows.begins, case.rows.ends, strict=True)):
        for position in range(begin, end):
            alone = HistoryRows(*(np.array([x]) for x in (user, position, position + 1)))
            torch.testing.assert_close(
                target_losses(case.model, case.batch(alone))[0, 0], together[number, position - begin], **CLOSE
            )


@every_kind
def test_what_a_target_costs_is_what_inference_makes_of_it(decoder, attention, is_sparse, near):
    case = Case(decoder, attention, is_sparse, near)
    batch, trie = case.batch(), Trie(case.model.codes_IS.numpy())
    items = batch.targets[batch.targets >= 0].numpy()
    rows, numbers = np.nonzero((batch.targets >= 0).numpy())
    users, places = case.rows.users[rows], batch.target_positions[rows, numbers].numpy()
    beside = tuple(x[case.histories.offsets[users] + places] for x in case.batcher.neighbours) if case.config.near else None
    asked = case.batcher.batch(case.batcher.next_rows(users, places), beside)
    with torch.no_grad():
        log_p_BU = rank_all(case.model, case.model.context(asked), trie)
    found = log_p_BU[torch.arange(len(items)), torch.from_numpy(trie.id_of_item[items])]
    torch.testing.assert_close(found, -target_losses(case.model, batch)[batch.targets >= 0].sum(1), **CLOSE)


@every_kind
def test_no_target_sees_itself_or_what_comes_after(decoder, attention, is_sparse, near):
    case = Case(decoder, attention, is_sparse, near)
    batch, user = case.batch(), LENGTHS.index(max(LENGTHS))
    together, users = target_losses(case.model, batch), torch.from_numpy(case.rows.users)[:, None]
    base = case.histories.offsets[user]
    for position in range(LENGTHS[user]):
        other = copy.deepcopy(case.histories)
        after = slice(base + position, base + LENGTHS[user])
        other.items[after] = (other.items[after] + 7) % N_ITEMS
        other.features[after] = (other.features[after] + 1) % np.array(list(FEATURES.values()))
        other.gaps[after] += 3000
        other.is_positive[after] = ~other.is_positive[after]
        # what is asked stays; what is known of the last interactions does not
        changed = replace(batcher_of(other, case.config, N_ITEMS).batch(case.rows), targets=batch.targets)
        is_before = (batch.targets >= 0) & ((users != user) | (batch.target_positions <= position))
        torch.testing.assert_close(target_losses(case.model, changed)[is_before], together[is_before], **CLOSE)


@every_kind
def test_a_target_does_see_what_comes_before(decoder, attention, is_sparse, near):
    case = Case(decoder, attention, is_sparse, near)
    batch = case.batch()
    together = target_losses(case.model, batch)
    items = batch.short.items.clone()
    items[:, 0] = (items[:, 0] + 7) % N_ITEMS
    changed = target_losses(case.model, replace(batch, short=replace(batch.short, items=items)))
    assert ((changed - together).abs().amax(2) > 1e-3)[batch.targets >= 0].all()


@every_kind
def test_padding_does_not_matter(decoder, attention, is_sparse, near):
    case = Case(decoder, attention, is_sparse, near)
    batch = case.batch()
    rng = torch.Generator().manual_seed(0)

    def longer(tokens):
        """The same tokens with five more of padding, and features in the padding."""
        if tokens is None:
            return None
        pad = torch.nn.functional.pad
        items, positions, slots = (pad(x, (0, 5), value=-1) for x in (tokens.items, tokens.positions, tokens.slots))
        features = pad(tokens.features, (0, 0, 0, 5))
        strange = torch.stack([torch.randint(n, items.shape, generator=rng) for n in FEATURES.values()], dim=2)
        return PathwayTokens(items, positions, slots, torch.where(items.unsqueeze(2) < 0, strange, features))

    changed = replace(batch, short=longer(batch.short), positive=longer(batch.positive), lifelong=longer(batch.lifelong))
    if case.config.near:
        items, similarity = batch.neighbours
        changed = replace(changed, neighbours=(items, torch.where(items < 0, 0.5, similarity)))
    torch.testing.assert_close(target_losses(case.model, changed), target_losses(case.model, batch), equal_nan=True, **CLOSE)


# ── pathways ─────────────────────────────────────────────────────────────────────────────────────────────────────────────
def gone(tokens):
    empty = torch.full_like(tokens.items, -1)
    return replace(tokens, items=empty, positions=empty, slots=empty)


@pytest.mark.parametrize(
    ("decoder", "attention", "near", "pathway"),
    [
        *itertools.product(["cross", "lazy"], ["causal", "full"], NEAR, ["short", "positive", "lifelong"]),
        *itertools.product(["cross", "lazy"], ["causal", "full"], ["evidence", "tokens"], ["neighbours"]),
    ],
)
@pytest.mark.parametrize("is_sparse", [False, True])
def test_a_pathway_speaks_when_it_has_tokens_and_never_without(decoder, attention, is_sparse, near, pathway):
    case = Case(decoder, attention, is_sparse, near)
    batch = case.batch()
    before = target_losses(case.model, batch)
    part = getattr(batch, pathway)
    if pathway == "neighbours":
        items, similarity = part
        without = replace(batch, neighbours=(torch.full_like(items, -1), torch.zeros_like(similarity)))
        other = replace(batch, neighbours=(torch.full_like(items, -1), similarity + 1))
    else:
        without = replace(batch, **{pathway: gone(part)})
        other = replace(batch, **{pathway: replace(gone(part), features=part.features + (part.features < 2))})
    silent = target_losses(case.model, without)
    assert is_moved(silent, before)
    torch.testing.assert_close(target_losses(case.model, other), silent, equal_nan=True, **CLOSE)


def is_moved(a, b):
    """Whether some target costs otherwise."""
    return bool(((a - b).nan_to_num().abs() > 1e-3).any())


@every_kind
def test_what_is_known_of_a_user_speaks(decoder, attention, is_sparse, near):
    case = Case(decoder, attention, is_sparse, near)
    batch = case.batch()
    for column, n_codes in enumerate(STATIC):
        other = batch.static.clone()
        other[:, column] = (other[:, column] + 1) % n_codes
        assert is_moved(target_losses(case.model, replace(batch, static=other)), target_losses(case.model, batch))


@pytest.mark.parametrize("pathway", ["positive", "lifelong"])
def test_a_pathway_of_padding_is_a_pathway_left_out(pathway):
    case = Case()
    batch = case.batch()
    padded = replace(batch, **{pathway: gone(getattr(batch, pathway))})
    absent = replace(batch, **{pathway: None})
    torch.testing.assert_close(target_losses(case.model, padded), target_losses(case.model, absent), equal_nan=True, **CLOSE)


def test_users_without_a_table_share_one_static_token():
    codes_IS = torch.from_numpy(catalogue(N_ITEMS, CODES))
    model = OneRec(SMALL, VocabularySizes(CODES, N_ITEMS, FEATURES), codes_IS).eval()
    batch = replace(Case().batch(), static=torch.zeros(len(Case().rows), 0, dtype=torch.long))
    assert torch.isfinite(model.loss(batch)[0])


# ── numbers ──────────────────────────────────────────────────────────────────────────────────────────────────────────────
def test_attention_spans_a_rows_context_and_a_targets_own():
    rng = torch.Generator().manual_seed(0)

    def drawn(*shape):
        return torch.randn(shape, generator=rng, dtype=torch.float64)

    B, T, W, P, H, C, N, X = 2, 3, 2, 2, 2, 5, 4, 3  # rows, targets, beams, new tokens, heads, context, own, width of a head
    keys, values, own_keys, own_values = drawn(B, H, C, X), drawn(B, H, C, X), drawn(B, T, H, N, X), drawn(B, T, H, N, X)
    mask_BTC, own_mask_BTN = drawn(B, T, C) > -0.5, drawn(B, T, N) > 0
    mask_BTC[:, :, 0] = True
    q_MPD = drawn(B * T * W, P, H * X)
    found = ContextAttention(keys, values, mask_BTC, (own_keys, own_values, own_mask_BTN))(q_MPD)
    for b, t, w, p, h in itertools.product(*map(range, (B, T, W, P, H))):
        q = q_MPD[(b * T + t) * W + w, p].view(H, X)[h]
        k = torch.cat([keys[b, h][mask_BTC[b, t]], own_keys[b, t, h][own_mask_BTN[b, t]]])
        v = torch.cat([values[b, h][mask_BTC[b, t]], own_values[b, t, h][own_mask_BTN[b, t]]])
        expected = torch.softmax(k @ q / X**0.5, 0) @ v
        torch.testing.assert_close(found[(b * T + t) * W + w, p].view(H, X)[h], expected)


@pytest.mark.parametrize(("dtype", "digits"), [(torch.float64, 12), (torch.float32, 5), (torch.bfloat16, 2)])
def test_attention_with_gradients_has_the_precision_of_its_input(dtype, digits):
    rng = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(2, 3, 5, 4, generator=rng, dtype=torch.float64) for _ in range(3))
    expected = torch.softmax(q @ k.transpose(2, 3) / 2, 3) @ v
    found = attention(*(x.to(dtype).requires_grad_() for x in (q, k, v)), torch.ones(1, 1, 5, 5, dtype=torch.bool))
    assert found.dtype == dtype
    torch.testing.assert_close(found.double(), expected, rtol=0, atol=3 * 10.0**-digits)


@pytest.mark.parametrize(("n_new", "n_past"), [(1, 1), (1, 4), (3, 3), (2, 4)])
def test_a_few_tokens_attend_to_those_before_and_themselves(n_new, n_past):
    rng = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(5, n, 6, generator=rng, dtype=torch.float64) for n in (n_new, n_past, n_past))
    found = few_token_attention(q, k, v, 2)
    for m, p, h in itertools.product(range(5), range(n_new), range(2)):
        own, before = slice(3 * h, 3 * h + 3), n_past - n_new + p + 1
        weight = torch.softmax(k[m, :before, own] @ q[m, p, own] / 3**0.5, 0)
        torch.testing.assert_close(found[m, p, own], weight @ v[m, :before, own])


@pytest.mark.parametrize(
    ("decoder", "attention", "is_sparse", "near"),
    [
        ("cross", "causal", True, "tokens"),
        ("lazy", "full", True, "evidence"),
        ("cross", "full", False, ""),
        ("cross", "causal", False, "some scores"),
    ],
)
def test_gradients_are_the_finite_differences(decoder, attention, is_sparse, near):
    case = Case(decoder, attention, is_sparse, near, decoder_layers=1)
    latest = np.flatnonzero(case.rows.users == LENGTHS.index(max(LENGTHS)))[-1]  # with a lifelong part
    rows = case.rows.take(np.array([0, latest, len(case.rows) - 1]))
    eps = 1e-6  # small, so that no expert is chosen anew: in float64 what is left has ten digits all the same
    rng = torch.Generator().manual_seed(0)
    with float64():
        model, batch = case.model.double(), in_double(case.batch(rows))
        loss, _ = model.loss(batch)
        loss.backward()
        for name, parameter in model.named_parameters():
            if name == "static_empty":  # for users of whom nothing is known
                continue
            assert parameter.grad is not None, name
            # one direction a parameter: half by chance, half along the gradient, which a wrong one does not fit
            direction = torch.randn(parameter.shape, generator=rng, dtype=torch.float64) / parameter.numel() ** 0.5
            direction = direction + parameter.grad / parameter.grad.norm().clamp(min=1e-12)
            with torch.no_grad():
                sides = []
                for side in (eps, -2 * eps):
                    parameter.add_(side * direction)
                    sides.append(float(model.loss(batch)[0]))
                parameter.add_(eps * direction)
            expected = (sides[0] - sides[1]) / (2 * eps)
            assert float((parameter.grad * direction).sum()) == pytest.approx(expected, rel=1e-5, abs=1e-7), name


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("decoder", "near", "experts"),
    [("cross", "tokens", EXPERTS), ("lazy", "evidence", EXPERTS), ("cross", "some scores", {})],
)
def test_a_checkpointed_model_drops_counts_and_learns_the_same_bits(decoder, near, experts, dtype):
    case = Case(decoder, near=near, dropout=0.3, **experts)
    found = []
    for is_checkpointed in (False, True):
        model = copy.deepcopy(case.model).train()
        model.checkpointing = is_checkpointed
        torch.manual_seed(3)
        with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
            loss, per_level = model.loss(case.batch(), smoothing=0.1)
        loss.backward()
        gradients = [p.grad for p in model.parameters() if p.grad is not None]
        found.append([loss.detach(), per_level, *(layer.load for layer in model.expert_layers()), *gradients])
    assert len(found[0]) > 20
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


def test_a_checkpointed_layer_keeps_its_input_alone():
    case = Case(encoder_layers=3, decoder_layers=3, **EXPERTS)
    kept = []
    for is_checkpointed in (False, True):
        case.model.checkpointing = is_checkpointed
        stored = {}

        def pack(x, stored=stored):
            stored[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
            return x

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
            case.model.train().loss(case.batch())
        kept.append(sum(stored.values()))
    assert kept[1] < 0.6 * kept[0]


def test_the_same_seed_makes_the_same_model():
    vocabulary = VocabularySizes(CODES, N_ITEMS, FEATURES, STATIC)
    states = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        states.append(OneRec(SMALL, vocabulary, torch.from_numpy(catalogue(N_ITEMS, CODES))).state_dict())
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    assert any(not torch.equal(states[0][name], states[2][name]) for name in states[0])
