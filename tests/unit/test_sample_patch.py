import random
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvtools.video import patch, sample
from kvtools.video.patch import Budget

# (height, width): what the Keye image processor makes of it, what keye-vl-utils 1.0.0 does; None where not recorded
SIZES = {
    (28, 28): ((56, 56), (56, 56)),
    (70, 70): ((56, 56), (56, 56)),  # 2.5 rounds to 2: halves go to even
    (42, 42): ((56, 56), (56, 56)),
    (10, 100): ((28, 280), (28, 112)),
    (98, 30): ((112, 28), (112, 28)),
    (1080, 1920): ((728, 1316), (1092, 1932)),
    (720, 1280): ((728, 1288), (728, 1288)),
    (480, 854): ((476, 840), (476, 840)),
    (3192, 4004): ((868, 1120), (3192, 4004)),
    (4000, 6000): ((812, 1204), (2912, 4368)),
    (1, 150): ((28, 4200), (28, 140)),
    (13, 2600): ((28, 5600), (28, 2604)),
    (5600, 28): ((5600, 28), (5600, 28)),
}


@pytest.mark.parametrize(("shape", "expected"), SIZES.items())
def test_smart_resize_goldens(shape, expected):
    assert (patch.smart_resize_processor(*shape), patch.smart_resize(*shape)) == expected


def test_sides_more_than_200_fold_apart_are_refused():
    with pytest.raises(ValueError, match="^it is (5601x28|28x5601), and one side may be at most 200 times the other$"):
        patch.smart_resize(28, 5601)
    with pytest.raises(ValueError, match="^it is (5601x28|28x5601), and one side may be at most 200 times the other$"):
        patch.smart_resize_processor(5601, 28)


@pytest.mark.parametrize(
    ("n_total", "rate", "expected"), [(300, 30, 20), (540, 30, 36), (18000, 30, 768), (50, 25, 4), (2, 30, 2), (3, 30, 2)]
)
def test_smart_nframes_goldens(n_total, rate, expected):
    assert sample.smart_nframes(n_total, rate) == expected


def test_smart_nframes_refuses_one_frame_and_the_tool_takes_it():
    with pytest.raises(ValueError, match="^0 frames are to be taken, which is not between 2 and 1$"):
        sample.smart_nframes(1, 30)
    assert sample.count(1, 0.04, sample.FrameSampling()) == 1


def test_indices_are_spread_evenly_and_halves_go_to_even():
    assert sample.linspace_indices(0, 539, 36)[:6] == [0, 15, 31, 46, 62, 77]
    assert sample.linspace_indices(0, 539, 36)[-1] == 539
    assert sample.linspace_indices(0, 5, 3) == [0, 2, 5]
    assert sample.linspace_indices(0, 7, 3) == [0, 4, 7]


@given(st.integers(2, 800), st.integers(2, 60))
def test_at_a_constant_rate_choosing_by_time_is_choosing_by_index(n_total, n_frames):
    n_frames = min(n_frames, n_total)
    times = [1001 * i for i in range(n_total)]
    assert sample.choose(times, range(n_total), n_frames) == sample.linspace_indices(0, n_total - 1, n_frames)


@given(st.lists(st.integers(1, 50), min_size=1, max_size=200), st.integers(1, 64))
def test_chosen_frames_are_nearest_to_moments_spread_evenly(gaps, n_frames):
    times = list(np.cumsum(gaps).tolist())
    chosen = sample.choose(times, range(len(times)), n_frames)
    assert chosen == sorted(set(chosen))
    moments = [Fraction(times[0] * (n_frames - 1 - i) + times[-1] * i, max(1, n_frames - 1)) for i in range(n_frames)]
    for moment in moments:
        assert min(abs(times[c] - moment) for c in chosen) == min(abs(t - moment) for t in times)


def test_figure_2_token_counts():
    # arXiv 2507.01949, Figure 2: pictures that need no scaling cost a token for every 28 x 28 pixels
    def tokens(height, width):
        h, w = patch.smart_resize(height, width, patch.PIXELS_A_TOKEN)
        return h * w // patch.PIXELS_A_TOKEN

    assert [tokens(28, 28), tokens(28, 140), tokens(3192, 4004), tokens(168, 252)] == [1, 5, 16302, 54]
    for n_frames, expected in ((36, 1944), (18, 972), (9, 486)):
        n, h, w = Budget(min_frame_tokens=1).fit(n_frames, 168, 252)
        assert n * h * w // patch.PIXELS_A_TOKEN == expected


def test_no_clip_exceeds_its_budget():
    chosen = random.Random(0)
    n_fitted = 0
    for _ in range(30_000):
        shape = chosen.choice(
            [(chosen.randint(1, 4500), chosen.randint(1, 4500)), (chosen.randint(1, 200), chosen.randint(1, 5000))]
        )
        lowest = chosen.randint(1, 300)
        budget = Budget(
            chosen.choice([chosen.randint(1, 400), chosen.randint(1, 57_000)]), lowest, chosen.randint(lowest, 2000)
        )
        try:
            n, h, w = budget.fit(chosen.randint(1, 2000), *shape)
        except ValueError:
            continue
        assert n >= 1
        assert n * h * w // patch.PIXELS_A_TOKEN <= budget.max_tokens
        assert h % patch.FACTOR == w % patch.FACTOR == 0
        n_fitted += 1
    assert n_fitted > 20_000


def test_resolution_gives_way_before_frames_do():
    sizes = [Budget().fit(n, 1080, 1920) for n in (16, 64, 128, 192, 400)]
    assert [n for n, _, _ in sizes] == [16, 64, 128, 192, 192]
    areas = [h * w for _, h, w in sizes]
    assert areas == sorted(areas, reverse=True)


def test_patches_are_in_raster_order():
    picture = np.arange(28 * 42 * 3, dtype=np.uint32).reshape(28, 42, 3).astype(np.uint8)
    patches = patch.cut(picture)
    assert patches.shape == (6, 3, 14, 14)
    assert np.array_equal(patches[1 * 3 + 2], picture[14:28, 28:42].transpose(2, 0, 1))


def test_the_span_is_cut_in_seconds_after_the_first_frame():
    times = list(range(1000, 1100))
    base = Fraction(1, 10)
    assert sample.within(times, base, 10.0, sample.FrameSampling(start_s=1, end_s=2)) == range(10, 21)
    assert sample.within(times, base, 10.0, sample.FrameSampling(start_s=0.3)) == range(3, 100)  # not the binary fraction below
    assert sample.within(times, base, 10.0, sample.FrameSampling(start_s=1.05, end_s=1.07)) == range(10, 11)
    with pytest.raises(ValueError, match="because it is 10.000 s long"):
        sample.within(times, base, 10.0, sample.FrameSampling(start_s=50))


def test_a_frame_is_on_screen_until_the_next():
    times, base = [0, 30_000, 30_200], Fraction(1, 1000)
    for start, end, expected in (
        (10, 20, range(1)),
        (29.9, 30.1, range(2)),
        (30.1, None, range(1, 3)),
        (30.22, 99, range(2, 3)),
    ):
        assert sample.within(times, base, 30.23, sample.FrameSampling(start_s=start, end_s=end)) == expected
    with pytest.raises(ValueError, match="no frame from 31 s on"):
        sample.within(times, base, 30.23, sample.FrameSampling(start_s=31))
