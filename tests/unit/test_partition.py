"""Partitions: every sample has one owner, and each form does what its name says."""

import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvtools.etree.data.partition import histogram, parse, partition

FORMS = ["iid", "shards:2", "classes:1", "classes:3", "dirichlet:0.05", "mixture:0.05", "quantity:2"]


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(FORMS), st.integers(10, 40), st.integers(120, 300), st.integers(0, 3))
def test_every_sample_has_one_owner_and_every_device_a_sample(form, n_devices, n_samples, seed):
    y = np.random.default_rng(seed).integers(0, 10, n_samples)
    index, offsets = partition(form, y, n_devices, seed)
    assert np.array_equal(np.sort(index), np.arange(n_samples))
    assert np.diff(offsets).min() >= 1
    assert len(offsets) == n_devices + 1


@pytest.fixture
def y():
    return np.random.default_rng(0).permutation(np.arange(10_000) % 10)


def histograms(form, y, n=100):
    index, offsets = partition(form, y, n, 0)
    return histogram(y, index, offsets, 10)


def test_iid_devices_look_like_the_whole(y):
    labels = histograms("iid", y)
    assert set(labels.sum(axis=1)) == {100}
    assert np.abs(labels / 100 - 0.1).sum(axis=1).mean() < 0.35


@pytest.mark.parametrize("n", [1, 2, 4])
def test_classes_are_as_many_as_asked_and_evenly_held(y, n):
    labels = histograms(f"classes:{n}", y)
    assert set((labels > 0).sum(axis=1)) == {n}
    assert set((labels > 0).sum(axis=0)) == {10 * n}


def test_shards_hold_few_classes(y):
    assert (histograms("shards:2", y) > 0).sum(axis=1).max() <= 4


def test_the_two_dirichlets_differ_in_sizes(y):
    by_class, by_device = histograms("dirichlet:0.1", y), histograms("mixture:0.1", y)
    assert by_class.sum(axis=1).std() > 30
    assert set(by_device.sum(axis=1)) == {100}
    # both are skewed: the commonest class of a device has most of its samples
    for labels in (by_class, by_device):
        assert np.median(labels.max(axis=1) / labels.sum(axis=1)) > 0.6


def test_a_large_alpha_is_nearly_iid(y):
    for form in ("dirichlet:1000", "mixture:1000"):
        labels = histograms(form, y)
        assert np.abs(labels / labels.sum(axis=1, keepdims=True) - 0.1).sum(axis=1).mean() < 0.4


def test_quantity_skews_sizes_and_not_labels(y):
    labels = histograms("quantity:1", y)
    sizes = labels.sum(axis=1)
    assert sizes.max() > 5 * np.median(sizes)
    large = labels[sizes > 200]
    assert np.abs(large / large.sum(axis=1, keepdims=True) - 0.1).sum(axis=1).max() < 0.35


@pytest.mark.parametrize("text", ["shards", "shards:0", "iid:3", "dirichlet:-1", "mixture:0", "classes:1.5", ""])
def test_other_text_is_no_partition(text):
    forms = "iid, shards:S, classes:C, dirichlet:A, mixture:A, quantity:SIGMA, natural or file:FILE"
    sentence = "the number of mixture is above 0 and up to 1e+06" if text == "mixture:0" else f"the forms are {forms}"
    with pytest.raises(ValueError, match=f"^{re.escape(sentence)}$"):
        parse(text)
