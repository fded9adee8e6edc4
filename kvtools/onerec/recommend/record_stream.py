"""Recommendations of all ranks into a stream, which a stopped run leaves for the next to continue."""

from collections.abc import Iterator

from kvtools.artifact.files import Sink
from kvtools.artifact.state import state_folder
from kvtools.artifact.stream import Head, Writer
from kvtools.onerec.recommend.recgen import RecgenRun, UserRecommendations
from kvtools.world import Stop, World


def write_stream(
    dst: str, head: Head, run: RecgenRun, recommendations: Iterator[UserRecommendations], world: World, *, level: int | None,
    force: bool,
) -> None:  # fmt: skip
    """Write a record a user on rank 0, after those that a stopped run has written. A collective.

    Raises Stopped where a rank was asked to stop and dst is a file.
    """
    run.stop = Stop() if state_folder(dst) is not None else False
    if not world.is_root:
        run.n_done = world.broadcast(None)
        for _ in recommendations:
            raise AssertionError("recommendations go to rank 0")
        return
    with Writer(Sink(dst, force=force, keep_partial=True), head, level=level) as writer:
        run.n_done = world.broadcast(len(writer.resume(start_over=force)))
        for recommendation in recommendations:
            tensors, fields = recommendation.to_record()
            writer.write(recommendation.user, tensors, **fields)
