"""What more training would buy, told from the validations of a run."""

from collections.abc import Iterable, Iterator

from kvtools.train.loop import TrainStep

_LAST = 4  # epochs that are told
_GAIN = 0.01  # of the score an epoch, from which it counts as rising


class Outlook:
    """Watches the steps of a run for validations. name: of their score."""

    def __init__(self, name: str) -> None:
        self._name, self._scores = name, list[tuple[float, float]]()  # epoch, score

    def watch(self, steps: Iterable[TrainStep]) -> Iterator[TrainStep]:
        """The same steps."""
        for step in steps:
            if step.validation is not None and "score" in step.validation:
                self._scores.append((step.epoch, step.validation["score"]))
            yield step

    def told(self) -> str:
        """The last scores, and whether they still rise; empty where they are too few to tell, or all the same."""
        if len(self._scores) < _LAST or len({score for _, score in self._scores}) == 1:
            return ""
        last = self._scores[-_LAST:]
        best_epoch, best = max(self._scores, key=lambda pair: pair[1])
        gain = (last[-1][1] - last[0][1]) / (_LAST - 1)
        figures = ", ".join(f"{score:.4f}" for _, score in last)
        words = f"{self._name} of validation in the last {_LAST} epochs: {figures}."
        if last[-1][1] == best and gain > _GAIN * best:
            return f"{words} It still rises by {gain / best:.0%} an epoch: more --steps would help."
        return f"{words} The best was {best:.4f}, after epoch {best_epoch:g}: more --steps would help little."
