"""Sampling of a whole source of prompts: chunks of them shared by the ranks, records in order on rank 0."""

import json
from collections.abc import Callable, Sequence

import numpy as np

from kvtools.artifact.files import Sink
from kvtools.artifact.stream import Head, Writer
from kvtools.errors import NothingDone, Stopped
from kvtools.keye.rl.prompts import Prompt, Prompts
from kvtools.keye.rl.records import to_records
from kvtools.keye.rl.rollouts import Sampler, Tally
from kvtools.keye.rl.spread import Records, spread
from kvtools.progress import Ticker
from kvtools.world import World

CHUNK = 16  # prompts that grow together: the same for any number of ranks


def chunks_left(prompts: Sequence[Prompt], done: set[str], n_answers: int) -> list[int]:
    """The chunks of which any record is missing, by the number of their first prompt. done: keys that a stopped run left."""
    return [
        begin
        for begin in range(0, len(prompts), CHUNK)
        if any(f"{p.key}#{number}" not in done for p in prompts[begin : begin + CHUNK] for number in range(n_answers))
    ]


class SampleRun:
    """One run of `rl sample`: rank 0 calls `write`, the others `serve`, and all of them then `report` and `figures`."""

    def __init__(
        self, sampler: Sampler, prompts: Sequence[Prompt], world: World, stop: object, *, seed: int, quiet: bool
    ) -> None:  # fmt: skip
        self._sampler, self._prompts, self._world, self._stop = sampler, prompts, world, stop
        self._seed, self._quiet = seed, quiet
        self._tally = Tally()

    def write(self, dst: str, head: Head, *, level: int | None, force: bool) -> None:
        """Write the records that a stopped run has not written. Raises Stopped where a rank was asked to stop."""
        n_answers = self._sampler.plan.n_answers
        with Writer(Sink(dst, force=force, keep_partial=True), head, level=level) as writer:
            done = writer.resume(start_over=force)
            chunks = self._world.broadcast(chunks_left(self._prompts, done, n_answers))
            ticker = Ticker(total=len(chunks), unit=f"chunks of {CHUNK} prompts", label="rl sample", quiet=self._quiet)
            for records in spread(chunks, self._work, self._world, self._stop):
                if records is None and writer.n_records == len(done):
                    raise NothingDone("stopped before any prompt was answered. Give the job more time.")
                if records is None:
                    raise Stopped(f"stopped after {writer.n_records:,} answers. Run again to continue.")
                for key, data in records:
                    if key not in done:
                        writer.write_pieces(key, [memoryview(data)])
                ticker()
            if not writer.n_records:
                self._sampler.skipped.report(dst, lambda _: None, strict=True)

    def serve(self) -> None:
        """Sample this rank's chunks for rank 0."""
        for _ in spread(self._world.broadcast(None), self._work, self._world, self._stop):
            raise AssertionError("records go to rank 0")

    def report(self, source: Prompts, log: Callable[[str], None], *, strict: bool) -> int:
        """Log what was left out, each rank its own, and rank 0 what is wrong with the source; returns the code of all ranks."""
        code = self._sampler.skipped.report(source.name, log, strict=strict)
        if self._world.is_root:
            code = max(code, source.skipped.report(source.name, log, strict=strict))
        return int(self._world.max(code))

    def total(self) -> Tally:
        """What was sampled, over all ranks. Collective."""
        return total_of_ranks(self._tally, self._world)

    def figures(self, total: Tally) -> dict[str, float]:
        """Of a total: prompts, answers, and means as in the log of a training."""
        counts = {"prompts": total.sums["groups"], "answers": total.sums["answers"]}
        return counts | total.figures(self._sampler.rewards.names)

    def _work(self, begin: int) -> Records:
        part = self._prompts[begin : begin + CHUNK]
        number_of = {prompt.key: begin + offset for offset, prompt in enumerate(part)}
        records: Records = []
        for group in self._sampler.groups(part, seed=self._seed, chunk=CHUNK):
            self._tally.add(group)
            records += to_records(group, number_of[group.prompt.key])
        return records


def total_of_ranks(tally: Tally, world: World) -> Tally:
    """The sums of all ranks, on all of them. Collective."""
    if world.size == 1:
        return tally
    texts = json.dumps(sorted(tally.sums)).encode()
    parts = world.gather_array(np.frombuffer(texts + b"\n", np.uint8)).tobytes().split(b"\n")
    names = sorted({name for part in parts if part for name in json.loads(part)})
    sums = world.sum_array(np.array([tally.sums[name] for name in names], np.float64)).tolist()
    total = Tally()
    total.sums.update(dict(zip(names, sums, strict=True)))
    return total
