"""What a run tells of its validations."""

import pytest

from kvtools.train.loop import TrainStep
from kvtools.train.outlook import Outlook


@pytest.mark.parametrize(
    ("scores", "words"),
    [
        ([0.1, 0.2, 0.3], ""),
        ([0.0, 0.0, 0.0, 0.0], ""),
        ([0.4, 0.4, 0.4, 0.4, 0.4], ""),
        ([0.1, 0.2, 0.3, 0.4], "0.1000, 0.2000, 0.3000, 0.4000. It still rises by 25% an epoch: more --steps would help."),
        ([0.1, 0.4, 0.4, 0.39, 0.38], "0.4000, 0.4000, 0.3900, 0.3800. The best was 0.4000, after epoch 2: more --steps"),
        ([0.4, 0.4, 0.4, 0.401], "The best was 0.4010, after epoch 4: more --steps would help little."),
    ],
)
def test_the_last_scores_are_told_and_whether_they_rise(scores, words):
    outlook = Outlook("NDCG@10")
    steps = [TrainStep(n, n, {"loss": 1.0}, {"score": score}) for n, score in enumerate(scores, start=1)]
    steps.insert(1, TrainStep(1, 1, {"loss": 1.0}))
    assert list(outlook.watch(steps)) == steps
    assert words in outlook.told()
    assert bool(words) == bool(outlook.told())
