"""Clips tokenized by all ranks, outcomes in the order of the clips on rank 0.

Rank r takes clips r, r + size, …; rank 0 receives one outcome at a time, in order, and never holds more than one of others.
Ranks agree on a stop between blocks: a rank that was asked to stop answers "not done" for the rest of its block, and no outcome
of a later block is taken. Workers may be a few clips ahead, also beyond a block; after a stop that work is dropped.
"""

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import astuple
from itertools import islice

from kvtools.artifact.files import Spool
from kvtools.artifact.stream import Raw
from kvtools.train.device import own_cores
from kvtools.video.inputs import Clip
from kvtools.video.pool import Compressed, Outcome, Pool
from kvtools.video.recipe import VideoRecipe
from kvtools.world import Stop, World

_BLOCK = 8  # clips a worker between two agreements
_AHEAD = 4  # results that a worker of several ranks may be ahead: each up to 16 MiB in memory, the rest of it in $TMPDIR

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
    level: int = 0,
) -> Iterator[Outcome]:
    """On rank 0 the outcome of every clip, in order; other ranks yield nothing. Collective: all ranks must call it.

    n_jobs: workers on this rank, by default its cores; where clips are fewer than cores, decoders get more threads. finish:
    applied by each rank to the outcomes of its own clips, in order. level: of zstd; above 0 each of several ranks compresses
    its own records, which would otherwise be the work of rank 0.
    """
    n_cores = own_cores(world)
    n_jobs = n_jobs or n_cores
    n_threads = max(1, n_cores // max(1, min(n_jobs, len(clips) // world.size)))
    # rank 0 takes clips in order: while it waits for a long one the others go on, also beyond the end of a block
    n_ahead, block = (2, len(clips)) if world.size == 1 else (_AHEAD, _BLOCK * world.max(n_jobs) * world.size)
    with Pool(recipe, n_jobs=n_jobs, n_threads=n_threads, timeout_s=timeout_s) as pool:
        own = pool.run(world.shard(clips), stop=stop.__bool__, n_ahead=n_ahead)
        own = own if finish is None else finish(own)
        if level > 0 and world.size > 1:
            own = (outcome.compress(level) for outcome in own)
        for begin in range(0, len(clips), max(1, block)):
            if world.any(stop):
                if world.is_root:
                    yield Outcome(clips[begin].key)
                return
            sources = [i % world.size for i in range(begin, min(begin + block, len(clips)))]
            if world.is_root:
                for source in sources:
                    yield next(own) if source == 0 else _receive(world, source)
            else:
                for outcome in islice(own, sources.count(world.rank)):
                    _send(outcome, world)


def _send(outcome: Outcome, world: World) -> None:
    n_bytes = None if outcome.record is None else len(outcome.record)
    compressed = outcome.compressed and astuple(outcome.compressed)
    header = {"key": outcome.key, "fault": outcome.fault, "cause": outcome.cause, "bytes": n_bytes, "compressed": compressed}
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
    compressed = None
    if header["compressed"] is not None:
        shapes, fields, raw = header["compressed"]
        compressed = Compressed(shapes, fields, Raw(*raw))
    return Outcome(header["key"], record, header["fault"], header["cause"], compressed)
