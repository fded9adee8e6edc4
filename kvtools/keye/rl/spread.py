"""Chunks of work shared by the ranks, their records in order on rank 0.

Chunks are the same for any number of ranks, so that records are too: numbers differ in their last bits where other rows stand
in one product. Rank r takes chunks r, r + size, …; ranks agree on a stop before each round.
"""

import json
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

from kvtools.world import World

_T = TypeVar("_T")
Records = list[tuple[str, bytes]]


def spread(chunks: Sequence[_T], work: Callable[[_T], Records], world: World, stop: object) -> Iterator[Records | None]:
    """On rank 0 the records of each chunk, in order, and None once a rank was asked to stop; other ranks yield nothing.

    Collective: all ranks must call it with the same chunks.
    """
    for begin in range(0, len(chunks), world.size):
        if world.any(stop):
            if world.is_root:
                yield None
            return
        part = chunks[begin : begin + world.size]
        mine = work(part[world.rank]) if world.rank < len(part) else []
        if world.is_root:
            yield mine
            for source in range(1, len(part)):
                yield _receive(world, source)
        elif world.rank < len(part):
            _send(mine, world)


def gather_records(mine: Records, world: World) -> Records:
    """On rank 0 the records of all ranks, in rank order; nothing on the others. Collective."""
    if not world.is_root:
        _send(mine, world)
        return []
    return [*mine, *(record for source in range(1, world.size) for record in _receive(world, source))]


def _send(records: Records, world: World) -> None:
    world.send(json.dumps([key for key, _ in records]).encode())
    for _, data in records:
        world.send(data)


def _receive(world: World, source: int) -> Records:
    keys = json.loads(world.receive(source))
    return [(key, bytes(world.receive(source))) for key in keys]
