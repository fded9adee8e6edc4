"""Masked sums: equal to plain ones to the last bit, with members missing too, and nothing is seen of a single update."""

import numpy as np
import pytest
from test_training import fleet, go, simulation_of, tree_of

from kvtools.etree.train.secure_aggregation import masked, to_units, unmasked


@pytest.mark.parametrize("missing", [[], [3], [3, 9, 4]])
def test_masked_sums_are_the_plain_sums_exactly(missing):
    rng = np.random.default_rng(0)
    members = [2, 3, 4, 7, 9]
    rows = {device: rng.normal(size=50) for device in members}
    plain = {device: to_units(rows[device], 10.0 + device, 5) for device in members}
    present = [device for device in members if device not in missing]
    total = sum(masked(plain[device], device, members, 1, 2) for device in present)
    found, weight = unmasked(total, present, missing, 1, 2)
    exact = sum(plain[device] for device in present)
    assert np.array_equal(found, exact.view(np.int64)[:-1].astype(float) * 2.0**-24)
    assert weight == sum(10 + device for device in present)


def test_what_is_sent_says_nothing_of_the_update():
    members = list(range(6))
    sent = [masked(to_units(np.full(4000, value), 1, 6), 2, members, 0, 5) for value in (0.0, 1e-3, 0.25)]
    for some in sent:  # evenly spread over 64 bits
        assert np.histogram(some, bins=8, range=(0, 2.0**64))[0] == pytest.approx([501] * 8, abs=120)


def test_a_sum_that_could_overflow_is_refused():
    with pytest.raises(ValueError, match="too large for sums in 64 bits"):
        to_units(np.array([1e9]), 1e4, 100)


@pytest.mark.parametrize("script", ["", "leaf:3@1,aggregator:1@2,late:2@3"])
def test_a_masked_run_is_the_plain_run_but_for_rounding(script):
    parts = fleet()
    tree = tree_of(parts[4], 4, (1,), (1, 2, 1))
    plain, secret = simulation_of(parts, tree), simulation_of(parts, tree)
    secret.is_secure = True
    go(plain, 4, script)
    go(secret, 4, script)
    assert secret.root_P == pytest.approx(plain.root_P, abs=1e-6)
    assert secret.costs.n_bytes > plain.costs.n_bytes
