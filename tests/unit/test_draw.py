"""Figures hold the numbers they are given."""

import numpy as np
import pytest

from kvtools.draw.codes import draw_codes
from kvtools.draw.curves import draw_curves
from kvtools.draw.losses import draw_losses, split_stages
from kvtools.draw.rewards import draw_rewards


def data(axis):
    """The points of each curve of a panel."""
    return [line.get_xydata().tolist() for line in axis.lines]


def evaluation(algorithm, number, **more):
    line = {
        "algorithm": algorithm,
        "round": number,
        "local_epochs": 5 * number,
        "bytes": 2e6 * number,
        "wan_bytes": 1e6 * number,
    }
    return {**line, "simulated_s": 0.5 * number, "accuracy": 0.1 * number, **more}


def test_a_curve_has_the_accuracy_of_its_rounds_epochs_bytes_and_seconds():
    figure = draw_curves([evaluation("etree", 1), evaluation("etree", 2), evaluation("fedavg", 1), evaluation("etree", 1)])
    rounds, epochs, sent, seconds = figure.axes
    assert [line.get_label() for line in rounds.lines] == ["etree", "fedavg", "etree #2"]
    assert data(rounds) == [[[1, 0.1], [2, 0.2]], [[1, 0.1]], [[1, 0.1]]]
    assert data(epochs)[0] == [[5, 0.1], [10, 0.2]]
    assert data(sent)[0] == [[2, 0.1], [4, 0.2]]
    assert data(sent)[3] == [[1, 0.1], [2, 0.2]], "between groups only"
    assert data(seconds)[0] == [[0.5, 0.1], [1, 0.2]]
    with pytest.raises(ValueError, match="^some lines have no 'bytes'$"):
        draw_curves([{"algorithm": "etree", "accuracy": 1, "wan_bytes": 1, "round": 1, "local_epochs": 1}])


def test_stages_follow_one_another_and_a_step_done_twice_counts_once():
    def steps(stage, *numbers):
        return [{"stage": stage, "step": n, "rate": 1.0, "loss": 1 / n, "accuracy": 0.1 * n} for n in numbers]

    lines = [*steps("alignment", 1, 2, 3, 2, 4), {"stage": "alignment", "step": 4, "valid_loss": 0.5, "valid_accuracy": 0.25}]
    stages = split_stages([*lines, *steps("multitask", 1, 2)], "log")
    assert [(stage.name, sorted(stage.steps), sorted(stage.epochs)) for stage in stages] == [
        ("alignment", [1, 2, 3, 4], [4]), ("multitask", [1, 2], []),
    ]  # fmt: skip
    loss, accuracy = draw_losses(stages).axes
    assert data(loss)[0] == [[n, 1 / n] for n in (1, 2, 3, 4)]
    assert data(loss)[2] == [[4, 0.5]], "held-out data"
    assert data(loss)[4] == [[5, 1], [6, 0.5]]
    assert data(accuracy)[0] == [[n, 0.1 * n] for n in (1, 2, 3, 4)]
    assert data(accuracy)[2] == [[4, 0.25]]
    with pytest.raises(ValueError, match="^some lines have no 'step'$"):
        split_stages([{"loss": 1.0, "step": "two"}], "log")


def test_the_running_mean_of_a_long_stage_covers_a_twentieth_of_it():
    rng = np.random.default_rng(0)
    losses = rng.uniform(1, 2, 200).tolist()
    loss, _ = draw_losses(split_stages([{"step": n + 1, "loss": x} for n, x in enumerate(losses)], "log")).axes
    expected = [np.mean(losses[max(0, n - 10) : n]) for n in range(1, 201)]
    np.testing.assert_allclose(np.array(data(loss)[1])[:, 1], expected, rtol=1e-12)


@pytest.mark.parametrize("n_codes", [4, 301])
def test_codes_are_counted_from_the_most_used_and_ids_by_their_items(n_codes):
    codes = np.array([[0, 1], [0, 1], [0, 2], [3, 2], [0, 2]], np.int32)
    report = {"entropy_share": [0.5, 0.6], "utilisation": [0.5, 0.5], "distinct_share": 0.6, "mse": 0.25}
    figure = draw_codes(codes, 2, n_codes, report)
    first, _, buckets = figure.axes
    if n_codes == 4:
        assert [bar.get_height() for bar in first.patches] == [4, 1, 0, 0]
    else:
        assert first.collections[0].get_paths()[0].vertices[:, 1].max() == 4
    assert [bar.get_height() for bar in buckets.patches] == [1, 2], "one ID of one item, two of two"
    assert first.lines[0].get_ydata()[0] == 5 / n_codes


def test_rewards_have_a_panel_for_each_number_that_a_log_has():
    steps = [{"step": n, "loss": 1.0, "reward": 0.1 * n, "legal_share": 0.9} for n in (1, 2)]
    held_out = [{"step": 0, "valid_reward": 0.5}, {"step": 2, "valid_reward": 0.7}]
    kept = {"step": 2, "valid_reward": 0.6, "valid_reward_before": 0.5}
    figure = draw_rewards({"a.jsonl": [*steps, *held_out, kept], "b.jsonl": held_out})
    reward, legal = figure.axes
    assert (reward.get_ylabel(), legal.get_ylabel()) == ("reward", "share of legal answers")
    assert data(reward)[0] == [[1, 0.1], [2, 0.2]]
    assert data(reward)[-1] == [[0, 0.5], [2, 0.7]], "of the weights at that step, not of those that were kept"
    with pytest.raises(ValueError, match="^some lines have no 'step'$"):
        draw_rewards({"a": [{"reward": 1.0}]})
