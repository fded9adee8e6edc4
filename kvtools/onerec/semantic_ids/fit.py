"""A fit by all ranks, from vectors to IDs: dealt out, told, put aside when asked to stop, and taken up again."""

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from kvtools.artifact import Bag, open_artifact
from kvtools.artifact.bag import write_bag
from kvtools.artifact.files import Sink
from kvtools.errors import Corrupt, Died, Stopped, Usage
from kvtools.onerec.items.intake import Intake
from kvtools.onerec.semantic_ids.aligning import Aligned, settings_to_json
from kvtools.onerec.semantic_ids.method import Fit, Recipe, SemanticIds, finish, fit_of
from kvtools.onerec.semantic_ids.nearest import fastest
from kvtools.onerec.semantic_ids.rqkmeans import RqKMeans, Step
from kvtools.onerec.semantic_ids.vector_store import Rows, deal, room_bytes
from kvtools.progress import Ticker, progress
from kvtools.world import Stop, World


@dataclass(frozen=True)
class Fitting:
    """What to fit, where it goes, and how much memory it may have."""

    recipe: Recipe
    dst: str
    held_bytes: int | None  # of vectors in memory on this machine; None is half of what there is
    device: str
    tell: Callable[[str], None]

    def run(
        self, intake: Intake | Aligned | None, world: World, *, start_over: bool, is_quiet: bool, is_told: bool
    ) -> SemanticIds:
        """IDs of all that rank 0 takes in; a collective. Raises Stopped when asked to stop on the way into a file."""
        held_bytes = room_bytes() // 2 if self.held_bytes is None else self.held_bytes
        rows = deal(intake or (), world, limit_bytes=held_bytes // world.local_size)
        ticker = Ticker(total=self.recipe.epochs or 1, unit="epochs", label="semid-build", quiet=is_quiet)
        fit = fit_of(self.recipe, world, ticker)
        pause = Pause(self.dst, self.recipe)
        try:
            if isinstance(fit, RqKMeans):
                pause.take_up(fit, start_over=start_over)
            self._fit(fit, rows, pause, world, is_quiet=is_quiet or not world.is_root, is_told=is_told and world.is_root)
        except ValueError as fault:  # found on all ranks at once; one of them says it
            if intake is None:
                raise Died(Corrupt.code, is_agreed=True) from None
            raise Corrupt(f"{intake.name}: {fault}. Give fewer --codes, or more items.") from None
        pause.forget()
        ids = finish(rows, self.recipe, fit, world)
        if isinstance(intake, Aligned):
            return replace(ids, weights=intake.weights | ids.weights, encoder=settings_to_json(intake.settings))
        return ids

    def _fit(self, fit: Fit, rows: Rows, pause: "Pause", world: World, *, is_quiet: bool, is_told: bool) -> None:
        chosen = fastest(self.device, rows.n_width, self.recipe.codes)
        if is_told:
            self.tell(f"{len(rows)} vectors of {rows.n_width} on this rank{', on disk' * rows.is_on_disk}; {chosen}.")
        stop = Stop() if pause.is_possible and isinstance(fit, RqKMeans) else None
        n_passes = self.recipe.levels * (self.recipe.iterations + 1)
        for step in progress(fit.fit(rows, chosen), total=n_passes, unit="passes", label="semid-build", quiet=is_quiet):
            if is_told:
                self.tell(_words(step))
            if stop is not None and world.any(stop) and isinstance(fit, RqKMeans):
                if world.is_root:
                    pause.save(fit)
                raise Stopped(f"stopped in level {step.level} after pass {step.iteration + 1}. Run again to continue.")


class Pause:
    """The state of a fit on its way to `dst`: `.NAME.state` beside it; there is none for a pipe."""

    def __init__(self, dst: str, recipe: Recipe) -> None:
        path = Path(dst)
        self._path = None if dst == "-" else path.parent / f".{path.name}.state"
        self._recipe = recipe

    @property
    def is_possible(self) -> bool:
        return self._path is not None

    def take_up(self, fit: RqKMeans, *, start_over: bool) -> None:
        """Continue where an earlier run was stopped, if one was. Raises Usage where it had other options."""
        if self._path is None or not self._path.exists() or start_over:
            return
        bag = open_artifact(str(self._path))
        if not isinstance(bag, Bag) or bag.kind != "semid-build-state":
            raise Corrupt(f"{self._path}: the state of an unfinished run expected. Give --force to start over.")
        if bag.fields["config"] != self._recipe.to_json():
            raise Usage(
                f"{self._path}: an unfinished run with other options. "
                "Run again with the same options to resume it, or give --force to start over."
            )
        fit.codebooks = [np.array(codes_KD) for codes_KD in bag.tensors["done"]]
        fit.reseeds = list(bag.fields["reseeds"])
        fit.total_square = bag.fields["total_square"]
        if "begun" in bag.tensors:
            fit.begun = (bag.fields["iteration"], np.array(bag.tensors["begun"]))

    def save(self, fit: RqKMeans) -> None:
        """Put the fit aside, as it stands between two steps."""
        assert self._path is not None, "a fit on its way into a pipe cannot be put aside"
        n_width = (fit.begun[1] if fit.begun else fit.codebooks[0]).shape[1]
        tensors = {"done": np.array(fit.codebooks, np.float32).reshape(len(fit.codebooks), fit.n_codes, n_width)}
        if fit.begun:
            tensors["begun"] = fit.begun[1]
        write_bag(
            Sink(str(self._path), force=True),
            "semid-build-state",
            tensors,
            config=self._recipe.to_json(),
            history=[],
            reseeds=fit.reseeds,
            iteration=fit.begun[0] if fit.begun else 0,
            total_square=fit.total_square,
        )

    def forget(self) -> None:
        """The run is done, or starts over."""
        if self._path is not None:
            with suppress(FileNotFoundError):
                self._path.unlink()


def _words(step: Step) -> str:
    return (
        f"level {step.level} pass {step.iteration + 1}: mse {step.objective:.6g}, {step.n_changed} changed, "
        f"{step.n_reseeded} reseeded."
    )
