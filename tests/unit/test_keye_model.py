"""Keye-VL as a whole: what is packed, cached or computed again gives what the plain way gives."""

import numpy as np
import pytest
import torch
from small_keye import conversation, model, pixels, row

from kvtools.keye.model.language import KVCache

EXACT = 1e-5  # float32, products in another order


def states(keye, tokens, positions, starts, grids, **more):
    visual = keye.encode_images(pixels(grids), grids) if grids else None
    return keye.hidden(tokens, positions, starts, visual, **more)


@pytest.fixture
def packed():
    return row(
        conversation(3, (1, 4, 6), 5, seed=1), conversation(7, seed=2), conversation(2, (3, 4, 2), 2, (1, 2, 2), 1, seed=3),
        conversation(7, seed=4), conversation(14, seed=5), conversation(7, seed=6),
    )  # fmt: skip


def test_packed_rows_are_rows_alone(packed):
    keye = model()
    tokens, positions, starts, grids = packed
    with torch.no_grad():
        visual = keye.encode_images(pixels(grids), grids)
        together = keye.hidden(tokens, positions, starts, visual)
        n_visual = 0
        for start, end in zip(starts, [*starts[1:], len(tokens)], strict=True):
            mine = slice(start, end)
            n_mine = int((tokens[mine] >= 48).sum())
            alone = keye.hidden(tokens[mine], positions[:, mine], [0], visual[n_visual : n_visual + n_mine])
            n_visual += n_mine
            assert (alone - together[mine]).abs().max() <= EXACT


def test_a_changed_segment_changes_no_other(packed):
    keye = model()
    tokens, positions, starts, grids = packed
    with torch.no_grad():
        before = states(keye, tokens, positions, starts, grids)
        changed = tokens.clone()
        changed[starts[3] : starts[4]] = (changed[starts[3] : starts[4]] + 1) % 40
        after = states(keye, changed, positions, starts, grids)
    is_same = (before == after).all(1)
    assert is_same[: starts[3]].all()
    assert is_same[starts[4] :].all()
    assert not is_same[starts[3] : starts[4]].any()


def test_no_token_sees_a_later_one():
    keye = model()
    tokens, positions, _ = conversation(9)
    with torch.no_grad():
        before = keye.hidden(tokens, positions, [0])
        tokens[6] += 1
        after = keye.hidden(tokens, positions, [0])
    assert (before[:6] - after[:6]).abs().max() <= EXACT
    assert (before[6:] - after[6:]).abs().max() > EXACT


@pytest.mark.parametrize("joint", [True, False])
def test_items_packed_are_items_alone_and_frames_attend_as_configured(joint):
    keye = model(vision={"joint": joint})
    grids = [(2, 4, 6), (1, 4, 6), (1, 6, 2), (3, 2, 2), (1, 4, 6)]
    x = pixels(grids)
    with torch.no_grad():
        together = keye.tower(x, grids)
        first = 0
        for t, h, w in grids:
            mine = slice(first, first + t * h * w)
            assert (keye.tower(x[mine], [(t, h, w)]) - together[mine]).abs().max() <= EXACT
            first += t * h * w
        frames = keye.tower(x[:48], [(1, 4, 6), (1, 4, 6)])
    is_equal = (frames - together[:48]).abs().max() <= EXACT
    assert bool(is_equal) == (not joint)


def test_visual_tokens_are_blocks_of_two_by_two_in_raster_order():
    keye = model()
    grids = [(2, 4, 6), (1, 2, 4)]
    x = pixels(grids)
    with torch.no_grad():
        visual = keye.encode_images(x, grids)
        features = keye.tower(x, grids)
        blocks = []
        for (t, h, w), part in zip(grids, features.split([48, 8]), strict=True):
            grid = part.view(t, h // 2, 2, w // 2, 2, -1).permute(0, 1, 3, 2, 4, 5)
            blocks.append(grid.reshape(-1, 24))
        expected = keye.mlp_AR(torch.cat(blocks))
    assert visual.shape == (12 + 2, 32)
    assert (visual - expected).abs().max() <= EXACT


def test_the_fixed_table_is_read_in_raster_order_up_to_its_end():
    keye = model(vision={"interpolate": False, "rope": False})
    x = pixels([(1, 4, 8)])
    x[:] = x[:1]  # patches differ by their position alone
    with torch.no_grad():
        tall, wide = keye.tower(x, [(1, 8, 4)]), keye.tower(x, [(1, 4, 8)])
        assert (tall - wide).abs().max() <= EXACT  # one-dimensional positions cannot tell shapes
        assert (tall[24:] - tall[31]).abs().max() <= EXACT  # the table holds 25
        assert (tall[0] - tall[1]).abs().max() > EXACT
    for vision in ({"interpolate": False}, {"rope": False}):
        other = model(vision=vision)
        with torch.no_grad():
            assert (other.tower(x, [(1, 8, 4)]) - other.tower(x, [(1, 4, 8)])).abs().max() > EXACT


def test_pixels_are_scaled_as_published():
    keye = model()
    x = pixels([(1, 2, 2)])
    patch = keye.tower.embeddings.patch_embedding
    with torch.no_grad():
        expected = patch((x.double() / 255 - 0.5).float() / 0.5).flatten(1)
        where = keye.tower.embeddings
        zero = torch.zeros_like(where.position_embedding.weight)
        where.position_embedding.weight.copy_(zero)
        from kvtools.keye.model.vision import patch_layout

        assert (where(x, patch_layout([(1, 2, 2)], joint=True)) - expected).abs().max() <= EXACT


def cached(keye, tokens, positions, starts, grids, cuts):
    """The same states with a cache: cuts say after how many tokens of each conversation a call ends."""
    ends = [*starts[1:], len(tokens)]
    visual = keye.encode_images(pixels(grids), grids) if grids else None
    cache, parts = KVCache(), [[] for _ in starts]
    for number, cut in enumerate(cuts):
        before = [0] * len(starts) if not number else cuts[number - 1]
        spans = [(start + a, start + b) for start, a, b in zip(starts, before, cut, strict=True)]
        where = torch.cat([torch.arange(*span) for span in spans])
        begins = np.cumsum([0, *(b - a for a, b in spans)])[:-1].tolist()
        out = keye.hidden(tokens[where], positions[:, where], begins, None if number else visual, cache)
        for part, found in zip(parts, out.split([b - a for a, b in spans]), strict=True):
            part.append(found)
    assert [start + n for start, n in zip(starts, cache.lengths_G.tolist(), strict=True)] == ends
    return torch.cat([torch.cat(part) for part in parts])


@pytest.mark.parametrize("kv_heads", [1, 2, 4])
def test_cached_decoding_is_the_full_forward(kv_heads):
    keye = model(language={"kv_heads": kv_heads})
    tokens, positions, starts, grids = row(
        conversation(3, (2, 4, 2), 100, seed=1), conversation(102, seed=2), conversation(1, (1, 4, 4), 99, seed=3)
    )
    with torch.no_grad():
        full = states(keye, tokens, positions, starts, grids)
        # prompts at once, then a token each, then several at once, then one by one again; all grow past the cache's room
        cuts = [(8, 2, 6), (9, 3, 7), (10, 4, 8), (30, 5, 60), *((30 + n, 5 + n, 60 + n) for n in range(1, 44))]
        cuts.append((107, 102, 104))
        found = cached(keye, tokens, positions, starts, grids, cuts)
    assert (found - full).abs().max() <= EXACT


def test_a_cache_goes_on_with_the_conversations_selected():
    keye = model()
    one, two = conversation(6, seed=1), conversation(9, seed=2)
    tokens, positions, starts, _ = row(one, two)
    cache = KVCache()
    with torch.no_grad():
        keye.hidden(tokens, positions, starts, cache=cache)
        cache.select(torch.tensor([1, 1, 0]))
        assert cache.lengths_G.tolist() == [9, 9, 6]
        new = torch.tensor([3, 4, 5])
        at = torch.tensor([9, 9, 6]).expand(3, -1)
        found = keye.hidden(new, at, [0, 1, 2], cache=cache)
        for i, base in enumerate((two, two, one)):
            whole = torch.cat([base[0], new[i : i + 1]])
            assert (keye.hidden(whole, torch.arange(len(whole)).expand(3, -1), [0])[-1] - found[i]).abs().max() <= EXACT
    with pytest.raises(ValueError, match="the row has 2 segments, and the cache has 3"):
        keye.hidden(new[:2], at[:, :2], [0, 1], cache=cache)


def test_visual_tokens_must_be_as_many_as_were_encoded():
    keye = model()
    tokens, positions, grids = conversation(3, (1, 4, 4), 2)
    visual = keye.encode_images(pixels(grids), grids)
    with pytest.raises(ValueError, match="the row has 4 visual tokens, and 3 were encoded"):
        keye.hidden(tokens, positions, [0], visual[:3])
    with pytest.raises(ValueError, match="the row has 4 visual tokens, and 0 were encoded"):
        keye.hidden(tokens, positions, [0])
    with pytest.raises(ValueError, match="tokens from 0 to 49 are needed"):
        keye.hidden(tokens + 10, positions, [0], visual)
    with pytest.raises(ValueError, match="sides divisible by 2 are needed"):
        keye.encode_images(pixels([(1, 3, 4)]), [(1, 3, 4)])
    with pytest.raises(ValueError, match="and the grids need"):
        keye.encode_images(pixels(grids), [(1, 4, 6)])
    with pytest.raises(ValueError, match=r"segments start at \[0, 20\], and starts that rise from 0 to below 9 are needed"):
        keye.hidden(tokens, positions, [0, 20], visual)


def test_gradients_are_those_of_finite_differences():
    keye = model(vision={"joint": False}, language={"tied": True}).double()
    tokens, positions, starts, grids = row(conversation(2, (1, 2, 4), 3, seed=1), conversation(4, seed=2))
    x = pixels(grids).double()

    def loss():
        hidden = keye.hidden(tokens, positions, starts, keye.encode_images(x, grids))
        logits = keye.logits(hidden)
        return torch.nn.functional.cross_entropy(logits[:-1], tokens[1:])

    loss().backward()
    rng = np.random.default_rng(0)
    for name, parameter in keye.named_parameters():
        assert parameter.grad is not None, name
        for _ in range(2):
            index = tuple(int(rng.integers(n)) for n in parameter.shape)
            with torch.no_grad():
                was = parameter[index].item()
                values = []
                for step in (1e-5, -1e-5):
                    parameter[index] = was + step
                    values.append(loss().item())
                parameter[index] = was
            slope = (values[0] - values[1]) / 2e-5
            assert abs(slope - parameter.grad[index].item()) <= 1e-7 + 1e-4 * abs(slope), (name, index)


def test_checkpointed_layers_give_the_same_gradients(packed):
    tokens, positions, starts, grids = packed
    grads = []
    for is_checkpointed in (False, True):
        keye = model()
        keye.checkpointing = is_checkpointed
        assert keye.checkpointing == is_checkpointed
        states(keye, tokens, positions, starts, grids).square().mean().backward()
        grads.append([p.grad for p in keye.parameters() if p.grad is not None])
    assert all(torch.equal(a, b) for a, b in zip(*grads, strict=True))


def test_autocast_stays_near_float32_and_gives_gradients(packed):
    keye = model()
    tokens, positions, starts, grids = packed
    exact = states(keye, tokens, positions, starts, grids).detach()
    with torch.autocast("cpu", torch.bfloat16):
        found = states(keye, tokens, positions, starts, grids)
        assert found.dtype == torch.bfloat16
        keye.logits(found).float().logsumexp(1).sum().backward()
    assert (found - exact).abs().max() < 0.1  # values near 1, eight bits each, four sublayers deep
    assert all(p.grad is not None and p.grad.isfinite().all() for p in keye.parameters())


def test_weights_in_bfloat16_run_without_autocast(packed):
    tokens, positions, starts, grids = packed
    exact = states(model(), tokens, positions, starts, grids)
    rounded = states(model().bfloat16(), tokens, positions, starts, grids)
    assert rounded.dtype == torch.bfloat16
    assert (rounded - exact).abs().max() < 0.2  # values near 1; weights, sums and products of eight bits
