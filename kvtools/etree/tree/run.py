"""A run of clustering that stops and goes on: accuracies of devices alone, then the sweeps of a search.

Both are saved every minute, and when any rank is asked to stop. At least one unit of work, a block of devices or a sweep, is
done before a run stops, so that a job that is queued again comes further each time.
"""

from collections.abc import Callable, Mapping

import numpy as np

from kvtools.artifact.state import RunState, SaveTimer
from kvtools.errors import Stopped
from kvtools.etree.train.local import LocalTrainer
from kvtools.etree.tree.kma import Search
from kvtools.world import Stop, World

_CHUNKS = 4  # of each thread in a block of devices: at its end all threads and ranks wait for one another
_ACCURACY = "accuracy"
_OF_SEARCH = "search."


class ClusterRun:
    """What the run has found so far, the same on all ranks. Every method is a collective.

    state: where it is kept; a state without a folder keeps nothing, and such a run does not stop.
    """

    def __init__(self, state: RunState, world: World, tick: Callable[[], object], *, start_over: bool) -> None:
        self._state, self._world, self._tick = state, world, tick
        self._stop = Stop() if state.path is not None else False
        self._timer = SaveTimer(is_running=state.path is not None and world.is_root)
        kept = state.load(start_over=start_over)
        self._tensors: dict[str, np.ndarray] = {} if kept is None else kept.tensors
        self.is_resumed = kept is not None

    def accuracies(self, trainer: LocalTrainer, n_epochs: int, x: np.ndarray, y: np.ndarray) -> np.ndarray:
        """Accuracy of every device on these test samples after n_epochs alone, float64 (devices,). The ranks share the devices.

        x: float32 (N, ...). y: int64 (N,). Raises Stopped.
        """
        sizes, size = np.diff(trainer.offsets), self._world.size
        accuracy = self._tensors.setdefault(_ACCURACY, np.full(len(sizes), np.nan)).copy()
        left = np.flatnonzero(np.isnan(accuracy))
        left = left[np.argsort(-sizes[left], kind="stable")]  # devices that train together are of like sizes
        assert trainer.chunk is not None, "it is set by then"
        n_block = _CHUNKS * trainer.chunk * trainer.n_threads * size
        for begin in range(0, len(left), n_block):
            block = left[begin : begin + n_block]
            mine = trainer.local_accuracies(block[self._world.rank :: size], n_epochs, x, y)
            in_rank_order = np.concatenate([block[rank::size] for rank in range(size)])
            accuracy[in_rank_order] = self._world.gather_array(mine)
            n_done = len(accuracy) - len(left) + begin + len(block)
            self._done({_ACCURACY: accuracy}, f"after {n_done:,} of {len(accuracy):,} devices")
        return accuracy

    @property
    def search(self) -> Search | None:
        """The search that a stopped run left; None where it left none."""
        found = {name.removeprefix(_OF_SEARCH): x for name, x in self._tensors.items() if name.startswith(_OF_SEARCH)}
        return found or None

    def on_sweep(self, search: Search) -> None:
        """Keep where a search stands. Raises Stopped."""
        self._tick()
        self._done({f"{_OF_SEARCH}{name}": x for name, x in search.items()}, "between two sweeps")

    def _done(self, tensors: Mapping[str, np.ndarray], where: str) -> None:
        self._tensors = {**self._tensors, **tensors}
        asked = self._world.max(max(2 * bool(self._stop), self._timer.is_due()))  # 1: to save, 2: to stop
        if asked and self._world.is_root:
            self._state.save(self._tensors)
        if asked == 2:
            raise Stopped(f"stopped {where}. Run again to continue.")
