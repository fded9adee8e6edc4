"""What a recipe of `pretrain onerec` makes of options that are not given."""

import pytest

from kvtools.onerec.run.recipe import OneRecRecipe


def recipe(near=50, without=(), steps=None, batch=None, training=()):
    return OneRecRecipe("tiny", "cross", near, list(without), [], steps, 3e-3, batch=batch, training=list(training), seed=0)


@pytest.mark.parametrize(
    ("options", "length"),
    [({}, "8ep"), ({"near": 0}, "20ep"), ({"without": ["near"]}, "20ep"), ({"near": 0, "steps": "3ep"}, "3ep")],
)
def test_a_training_is_longer_without_neighbours_unless_steps_are_given(options, length):
    assert recipe(**options).length == length
    assert recipe(**options).to_json()["steps"] == length, "a recipe that is printed says it"


def test_items_are_scored_where_there_are_no_neighbours():
    assert [bool(recipe(near=n).config.item_scores) for n in (0, 50)] == [True, False]


@pytest.mark.parametrize(("n_targets", "size"), [(100, 32), (127_598, 510), (10_000_000, 1024)])
def test_steps_follow_the_data_within_bounds(n_targets, size):
    assert recipe().for_data(n_targets).batch == size
    assert recipe(batch=77).for_data(n_targets).batch == 77


@pytest.mark.parametrize(("training", "share"), [([], None), (["near_share=0"], 0.0), (["near_share=0.25"], 0.25)])
def test_the_share_of_neighbours_is_chosen_unless_it_is_given(training, share):
    assert recipe(training=training).near_share == share
