"""Positions and rotations: the golden rows of the published model, and a slow float64 rotation."""

import numpy as np
import pytest
import torch

from kvtools.keye.model.config import mrope_sections
from kvtools.keye.model.positions import mrope_positions
from kvtools.keye.model.rope import apply_rotary, grid_angles, mrope_angles

IMAGE, VIDEO = 8, 9


def of(text_before, grid, times, text_after, token=VIDEO):
    n = grid[0] * grid[1] * grid[2] // 4
    tokens = np.array([1] * text_before + [token] * n + [1] * text_after)
    return mrope_positions(tokens, IMAGE, VIDEO, [grid], [np.asarray(times, np.float64)])


def test_golden_a_a_video_at_two_frames_a_second():
    t, h, w = of(3, (3, 4, 6), np.arange(3) / 2, 2)
    assert t.tolist() == [0, 1, 2, *[3] * 6, *[4] * 6, *[5] * 6, 6, 7]
    assert h.tolist() == [0, 1, 2, *[3, 3, 3, 4, 4, 4] * 3, 6, 7]
    assert w.tolist() == [0, 1, 2, *[3, 4, 5, 3, 4, 5] * 3, 6, 7]


def test_golden_b_text_after_a_slow_video_starts_after_its_time():
    t, h, w = of(3, (3, 4, 6), np.arange(3) * 2.0, 2)
    assert t.tolist() == [0, 1, 2, *[3] * 6, *[7] * 6, *[11] * 6, 12, 13]
    assert h[-2:].tolist() == w[-2:].tolist() == [12, 13]


def test_golden_c_an_image():
    t, h, w = of(1, (1, 4, 4), [5.0], 2, token=IMAGE)
    assert t.tolist() == [0, 1, 1, 1, 1, 3, 4]
    assert h.tolist() == [0, 1, 1, 2, 2, 3, 4]
    assert w.tolist() == [0, 1, 2, 1, 2, 3, 4]


def test_golden_d_frames_closer_than_half_a_second_share_a_position():
    assert of(1, (4, 2, 2), np.arange(4) / 3, 1)[0].tolist() == [0, 1, 1, 2, 3, 4]


def test_golden_e_an_odd_rate():
    assert of(1, (5, 2, 2), np.arange(5) / 1.8905, 1)[0].tolist() == [0, 1, 2, 3, 4, 5, 6]


def test_only_distances_in_time_count():
    early, late = (of(2, (3, 2, 4), np.array([0, 0.7, 2.1]) + since, 3) for since in (0, 1000))
    assert (early == late).all()


def test_items_side_by_side_start_where_the_last_ends():
    tokens = np.array([IMAGE] * 4 + [VIDEO] * 2 + [1])
    t, h, _ = mrope_positions(tokens, IMAGE, VIDEO, [(1, 4, 4), (2, 2, 2)], [np.zeros(1), np.array([0, 0.5])])
    assert t.tolist() == [0, 0, 0, 0, 2, 3, 4]
    assert h.tolist() == [0, 0, 1, 1, 2, 2, 4]


@pytest.mark.parametrize(
    ("grids", "seconds", "match"),
    [
        ([], [], "6 visual tokens stand after the last of 0 visual items"),
        ([(1, 4, 8)], [np.zeros(1)], "visual item 0 needs 8 visual tokens one after another, and has fewer"),
        ([(1, 4, 6), (1, 2, 2)], [np.zeros(1)] * 2, "visual item 1 needs 1 visual tokens one after another, and has fewer"),
        (
            [(1, 3, 8)],
            [np.zeros(1)],
            "visual item 0 has a grid of 1, 3, 8 and 1 times; sides divisible by 2 and one time a frame are needed",
        ),
        (
            [(1, 4, 6)],
            [np.zeros(2)],
            "visual item 0 has a grid of 1, 4, 6 and 2 times; sides divisible by 2 and one time a frame are needed",
        ),
        ([(1, 4, 6)], [], "0 items have times, and 1 have grids"),
    ],
)
def test_tokens_that_are_not_those_of_the_grids_are_refused(grids, seconds, match):
    with pytest.raises(ValueError, match=f"^{match}$"):
        mrope_positions(np.array([1, *[VIDEO] * 6, 1]), IMAGE, VIDEO, grids, seconds)


def test_sections_are_the_published_ones_in_proportion():
    assert [mrope_sections(n) for n in (128, 64, 32, 16)] == [(16, 24, 24), (8, 12, 12), (4, 6, 6), (2, 3, 3)]


@pytest.mark.parametrize("head_dim", [128, 32])
def test_three_axes_turn_as_a_slow_version_in_float64(head_dim):
    """Published: cosines of each axis over the whole head, cut into t, h, w, t, h, w, of which each keeps its own axis'."""
    rng = np.random.default_rng(0)
    positions = rng.integers(0, 60, (3, 7))
    x = rng.normal(size=(7, 2, head_dim))
    frequency = 1 / 1e6 ** (np.arange(0, head_dim, 2) / head_dim)
    angle = positions[:, :, None] * np.concatenate([frequency, frequency])
    cuts = np.cumsum([*mrope_sections(head_dim)] * 2)[:-1]
    mixed = np.concatenate([part[i % 3] for i, part in enumerate(np.split(angle, cuts, axis=2))], axis=1)[:, None]
    half = head_dim // 2
    swapped = np.concatenate([-x[..., half:], x[..., :half]], axis=2)
    expected = x * np.cos(mixed) + swapped * np.sin(mixed)
    found = apply_rotary(torch.from_numpy(x), mrope_angles(torch.from_numpy(positions), head_dim, 1e6))
    assert np.abs(found.numpy() - expected).max() < 2e-5  # angles are float32: 60 * 6e-8, times x


def test_rotation_keeps_lengths_and_turns_by_the_distance_alone():
    rows, columns = torch.arange(6), torch.arange(6).flip(0)
    q, k = torch.randn(1, 1, 24).expand(6, 1, 24), torch.randn(1, 1, 24).expand(6, 1, 24)
    near, far = grid_angles(rows, columns, 24, 1e4), grid_angles(rows + 7, columns + 90, 24, 1e4)
    dots = [torch.einsum("shx,thx->st", apply_rotary(q, angles), apply_rotary(k, angles)) for angles in (near, far)]
    assert torch.allclose(dots[0], dots[1], atol=1e-4)
    assert torch.allclose(apply_rotary(q, near).norm(dim=2), q.norm(dim=2), atol=1e-5)


def test_rotation_has_the_gradient_of_a_rotation():
    angles = mrope_angles(torch.randint(0, 9, (3, 4)), 16, 100.0)
    x = torch.randn(4, 2, 16, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda y: apply_rotary(y, angles), x)
