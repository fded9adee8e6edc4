"""What is taken of the messages that arrive: each sender's once, none of another step, and in the order of the senders.

Networks repeat messages and change their order. A sum that takes them as they come counts some twice, and depends on chance
in its last bits. Here a message is known by its sender and by the step it belongs to: `Inbox.take` lets through the first of
each sender, of this step alone, sorted, so that what is summed is the same to the bit however it came. `arrivals` is the
network that does such things: it depends on the seed, the step and the level, and on nothing else.

Not here: what messages hold. One that is not taken is never looked at. Legend: m messages.
"""

import numpy as np

from kvtools.chance import rng_for


class Inbox:
    """Of one level and step. `n_repeated` and `n_stale` count what was not taken."""

    def __init__(self, step: int, n_senders: int) -> None:
        self._step = step
        self._is_heard = np.zeros(n_senders, bool)
        self.n_repeated = self.n_stale = 0

    def take(self, sender_m: np.ndarray, step_m: np.ndarray) -> np.ndarray:
        """int64: the senders whose messages count now, rising."""
        is_now = step_m == self._step
        fresh: np.ndarray = np.unique(sender_m[is_now])
        fresh = fresh[~self._is_heard[fresh]]
        self._is_heard[fresh] = True
        self.n_stale += int((~is_now).sum())
        self.n_repeated += int(is_now.sum()) - len(fresh)
        return fresh


def arrivals(
    senders: np.ndarray, repeated: np.ndarray, stale: np.ndarray, *, is_shuffled: bool, step: int, level: int, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Messages as a bad network delivers them, int64 (m,) senders and (m,) the steps they belong to.

    Those of `senders` of this step; once more those that are `repeated`; and from the step before those of `stale`. In the
    order given, or, where it is_shuffled, in any.
    """
    again = senders[np.isin(senders, repeated)]
    sender_m = np.concatenate([stale, senders, again]).astype(np.int64)
    step_m = np.full(len(sender_m), step)
    step_m[: len(stale)] -= 1
    if is_shuffled:
        order = rng_for(seed, "etree", "arrivals", step, level).permutation(len(sender_m))
        sender_m, step_m = sender_m[order], step_m[order]
    return sender_m, step_m
