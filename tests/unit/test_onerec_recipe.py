"""What a recipe of `pretrain onerec` makes of options that are not given."""

from dataclasses import replace

import pytest

from kvtools.onerec.run.recipe import OneRecRecipe


def recipe(near=50, without=(), steps=None, batch=None, training=()):
    return OneRecRecipe("tiny", "cross", near, list(without), [], steps, 3e-3, batch=batch, training=list(training), seed=0)


@pytest.mark.parametrize("steps", [None, "3ep"])
def test_a_recipe_that_is_printed_says_how_long_it_trains(steps):
    assert recipe(steps=steps).to_json()["steps"] == recipe(steps=steps).length == (steps or "4ep")


def test_a_model_that_is_told_less_trains_longer():
    assert recipe(training=["warm_start=no"]).length == "8ep"
    assert recipe(training=["warm_start=no"], near=0).length == "20ep"
    assert replace(recipe(), size="0.015b").length == "8ep"
    assert replace(recipe(near=0), size="0.015b").length == "20ep"
    assert recipe(near=0).length == "4ep"


@pytest.mark.parametrize(
    ("training", "rate"), [([], 3.0), (["warm_start=no"], 15.0), (["embedding_rate=2"], 2.0), (["embedding_rate=1"], 1.0)]
)
def test_embeddings_that_know_nothing_yet_learn_faster(training, rate):
    assert recipe(training=training).plan(10, 100, "float32").lr_factors == {"codes.": rate, "items.": rate}


@pytest.mark.parametrize(("n_targets", "size"), [(100, 32), (127_598, 510), (10_000_000, 1024)])
def test_steps_follow_the_data_within_bounds(n_targets, size):
    assert recipe().for_data(n_targets).batch == size
    assert recipe(batch=77).for_data(n_targets).batch == 77


@pytest.mark.parametrize(("training", "share"), [([], None), (["near_share=0"], 0.0), (["near_share=0.25"], 0.25)])
def test_the_share_of_neighbours_is_chosen_unless_it_is_given(training, share):
    assert recipe(training=training).near_share == share
