"""Clips tokenized by all ranks, outcomes in the order of the clips on rank 0.

Rank r takes clips r, r + size, …; rank 0 receives one outcome at a time, in order, and never holds more than one. Ranks
agree on a stop between blocks: a rank that was asked to stop answers "not done" for the rest of its block, and no rank
starts another.
"""

import json
from collections.abc import Callable, Iterator, Sequence

from kvtools.artifact.files import Spool
from kvtools.train.device import own_cores
from kvtools.video.inputs import Clip
from kvtools.video.pool import Outcome, Pool
from kvtools.video.recipe import VideoRecipe
from kvtools.world import Stop, World

_BLOCK = 8  # clips a worker between two agreements; ranks wait at its end for the time of one clip at most

Clips = Sequence[Clip]
Finish = Callable[[Iterator[Outcome]], Iterator[Outcome]]


def spread(
    clips: Clips,
    recipe: VideoRecipe,
    world: World,
    stop: Stop,
    *,
    n_jobs: int | None,
    timeout_s: float,
    finish: Finish | None = None,
) -> Iterator[Outcome]:
    """On rank 0 the outcome of every clip, in order; other ranks yield nothing. Collective: all ranks must call it.

    n_jobs: workers on this rank, by default its cores; where clips are fewer than cores, decoders get more threads. finish:
    applied by each rank to the outcomes of its own clips, in order.
    """
    n_cores = own_cores(world)
    n_jobs = n_jobs or n_cores
    n_threads = max(1, n_cores // max(1, min(n_jobs, len(clips) // world.size)))
    block = len(clips) if world.size == 1 else _BLOCK * n_jobs * world.size
    with Pool(recipe, n_jobs=n_jobs, n_threads=n_threads, timeout_s=timeout_s) as pool:
        for begin in range(0, len(clips), max(1, block)):
            if world.any(stop):
                if world.is_root:
                    yield Outcome(clips[begin].key)
                return
            part = clips[begin : begin + block]
            outcomes = pool.run(world.shard(part), stop=stop.__bool__)
            outcomes = outcomes if finish is None else finish(outcomes)
            if world.is_root:
                for i in range(len(part)):
                    source = i % world.size
                    yield next(outcomes) if source == 0 else _receive(world, source)
            else:
                for outcome in outcomes:
                    _send(outcome, world)


def _send(outcome: Outcome, world: World) -> None:
    n_bytes = None if outcome.record is None else len(outcome.record)
    header = {"key": outcome.key, "fault": outcome.fault, "cause": outcome.cause, "bytes": n_bytes}
    world.send(json.dumps(header).encode())
    if outcome.record is not None:
        for piece in outcome.record:
            world.send(piece)
        outcome.record.close()


def _receive(world: World, source: int) -> Outcome:
    header = json.loads(world.receive(source))
    record = None
    if header["bytes"] is not None:
        record = Spool()
        while len(record) < header["bytes"]:
            record.append(world.receive(source))
    return Outcome(header["key"], record, header["fault"], header["cause"])
