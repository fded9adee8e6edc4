"""Semantic IDs fitted to vectors by all ranks: a method for the codebooks, a way out of collisions, a report.

A fit that is stopped leaves its state beside the output, and the same command resumes it.
Legend: N items, L levels, S tokens (L, or L + 1), K codes, D width.
"""

import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any, ClassVar, Literal, NoReturn, Protocol, cast

import numpy as np

from kvtools.artifact.state import RunState, SaveTimer, lock_folder, state_folder
from kvtools.errors import Corrupt, Died, Stopped, Usage
from kvtools.onerec.items.vectors import VectorSource
from kvtools.onerec.semantic_ids import collisions, quality
from kvtools.onerec.semantic_ids.balanced import Balanced
from kvtools.onerec.semantic_ids.ids import SemanticIds
from kvtools.onerec.semantic_ids.initial_centroids import Init
from kvtools.onerec.semantic_ids.nearest import Backend, fastest
from kvtools.onerec.semantic_ids.rqkmeans import FitStep, OtherVectors, RqKMeans
from kvtools.onerec.semantic_ids.rqvae import RqVae, RqVaeConfig
from kvtools.onerec.semantic_ids.vector_store import VectorStore, available_bytes, scatter
from kvtools.progress import Ticker, progress
from kvtools.world import Stop, World

_STATE = "semid-build-state"


class TooFewVectors(ValueError):
    """There are fewer vectors than codes of a level."""


class Fit(Protocol):
    """A method that fits codebooks: the fit under way, and afterwards its result."""

    is_parallel: ClassVar[bool]  # whether the ranks share the rows; else one rank holds all
    can_resume: ClassVar[bool]  # whether it is a ResumableFit
    codebooks: list[np.ndarray]
    reseeds: list[int]
    mse: float

    @property
    def codes_NL(self) -> np.ndarray:
        """See ResidualFit."""

    @property
    def weights(self) -> Mapping[str, np.ndarray]:
        """See ResidualFit."""

    def fit(self, vectors: VectorStore, backend: Backend, ranks: World) -> Iterator[FitStep]:
        """See ResidualFit."""

    def move_collisions(self, residuals: VectorStore, codes_NL: np.ndarray, ranks: World) -> tuple[np.ndarray, float, int]:
        """See ResidualFit."""


class ResumableFit(Fit, Protocol):
    """A fit of which another object goes on from a state."""

    def state(self) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """See RqKMeans."""

    def resume(self, tensors: Mapping[str, np.ndarray], fields: Mapping[str, Any]) -> None:
        """See RqKMeans."""


METHODS: dict[str, type[RqKMeans] | type[Balanced] | type[RqVae]] = {
    "rq-kmeans": RqKMeans,
    "balanced": Balanced,
    "rq-vae": RqVae,
}


@dataclass(frozen=True)
class SemidRecipe:
    """Everything that shapes semantic IDs: the options of `semid-build` with the same names."""

    levels: int = 3
    codes: int = 8192
    iterations: int = 25
    method: Literal["rq-kmeans", "balanced", "rq-vae"] = "rq-kmeans"
    init: Init = "k-means++"
    collisions: Literal["keep", "extend", "nearest"] = "keep"
    seed: int = 0
    epochs: int | None = None  # of rq-vae
    align_steps: int | None = None  # of alignment before quantising, where there are pairs

    def to_json(self) -> dict[str, Any]:
        """Option names to values; what does not apply is left out."""
        return {name: value for name, value in asdict(self).items() if value is not None}

    def new_fit(self, on_epoch: Callable[[int, float], None]) -> Fit:
        """The fit, not yet begun. on_epoch: called after each epoch of rq-vae with its number, from 0, and its loss."""
        if self.method == "rq-vae":
            return RqVae(self.levels, self.codes, self.epochs or RqVaeConfig().n_epochs, self.seed, on_epoch)
        method = Balanced if self.method == "balanced" else RqKMeans
        return method(self.levels, self.codes, self.iterations, self.seed, self.init)


@dataclass(frozen=True)
class Fitting:
    """A run of semid-build that fits: what, for which output, and with which resources."""

    recipe: SemidRecipe
    dst: str
    memory_bytes: int | None  # of vectors in memory on this machine; None is half of what there is
    device: str
    log: Callable[[str], None]
    quiet: bool
    verbose: bool

    def run(self, source: VectorSource | None, world: World, *, start_over: bool) -> SemanticIds | None:
        """The IDs of rank 0's source on rank 0, None elsewhere; a collective.

        Raises Stopped when asked to stop on the way into a file, Usage where a stopped run had other options, CannotCreate
        where another run has the state, and ValueErrors on rank 0: OtherVectors where a stopped run had other vectors,
        TooFewVectors for fewer than there are codes, and others where the fit fails.
        """
        folder = state_folder(self.dst)
        state = RunState(folder, _STATE, self.recipe.to_json())
        if world.is_root:
            _adopt_old_state(state)
        with lock_folder(folder, is_root=world.is_root):
            return self._run(source, state, world, start_over=start_over)

    def _run(self, source: VectorSource | None, state: RunState, world: World, *, start_over: bool) -> SemanticIds | None:
        memory_bytes = available_bytes() // 2 if self.memory_bytes is None else self.memory_bytes
        vectors = scatter(source or (), world, limit_bytes=memory_bytes // world.local_size)
        n_rows, n_codes = int(world.sum(len(vectors))), self.recipe.codes
        if n_rows < n_codes:
            _refuse(source, TooFewVectors(f"{n_rows} vectors are too few for {n_codes} codes"), Corrupt.code)
        quiet = self.quiet or not world.is_root
        tick = Ticker(total=self.recipe.epochs or 1, unit="epochs", label="semid-build", quiet=quiet)
        fit = self.recipe.new_fit(tick)
        if (bag := state.load(start_over=start_over)) is not None:
            cast(ResumableFit, fit).resume(bag.tensors, bag.fields)
        try:
            self._fit(fit, vectors, state, world, quiet=quiet)
        except OtherVectors as fault:
            if not start_over:
                _refuse(source, OtherVectors(f"{state.path}: {fault}"), Usage.code)
            fit = self.recipe.new_fit(tick)
            self._fit(fit, vectors, state, world, quiet=quiet)
        except ValueError as fault:
            _refuse(source, fault, Corrupt.code)
        codes_NS, report = _resolve(self.recipe, fit, vectors, n_rows, world)
        if source is None:
            return None
        state.forget()
        return SemanticIds(
            source.keys, codes_NS, np.stack(fit.codebooks), self.recipe.to_json(), report, {**source.weights, **fit.weights},
            source.encoder, fit=source.fit,
        )  # fmt: skip

    def _fit(self, fit: Fit, vectors: VectorStore, state: RunState, world: World, *, quiet: bool) -> None:
        n_passes = self.recipe.levels * (self.recipe.iterations + 1)
        backend = fastest(self.device, vectors.n_width, self.recipe.codes, len(vectors) * self.recipe.codes * n_passes)
        verbose = self.verbose and world.is_root
        if verbose:
            where = " on disk" if vectors.is_on_disk else ""
            self.log(f"{len(vectors)} vectors of {vectors.n_width} dimensions on this rank{where}; {backend}.")
        stop = Stop() if state.path is not None and fit.can_resume else None
        timer = SaveTimer(is_running=stop is not None and world.is_root)
        steps = fit.fit(vectors, backend, world)
        for step in progress(steps, total=n_passes, unit="passes", label="semid-build", quiet=quiet):
            if verbose:
                self.log(
                    f"level {step.level} pass {step.iteration + 1}: mse {step.objective:.6g}, {step.n_changed} changed, "
                    f"{step.n_reseeded} reseeded."
                )
            if stop is None:
                continue
            asked = world.max(max(2 * bool(stop), timer.is_due()))  # 1: to save, 2: to stop
            if asked and world.is_root:
                tensors, fields = cast(ResumableFit, fit).state()
                state.save(tensors, **fields)
            if asked == 2:
                raise Stopped(f"stopped in level {step.level} after pass {step.iteration + 1}. Run again to continue.")


def _resolve(
    recipe: SemidRecipe, fit: Fit, vectors: VectorStore, n_rows: int, world: World
) -> tuple[np.ndarray, dict[str, Any]]:
    """int32 (N, S), the IDs of all rows after the recipe's way out of collisions, and the report on them; a collective."""
    codes_NL = np.zeros((n_rows, recipe.levels), np.int32)
    codes_NL[vectors.row_numbers] = fit.codes_NL
    codes_NS = codes_NL = world.sum_array(codes_NL)
    mse = fit.mse
    counts: dict[str, int] = {}
    if recipe.collisions == "extend":
        codes_NS = collisions.extend(codes_NL)
    elif recipe.collisions == "nearest":
        codes_NS, mse, n_stuck = fit.move_collisions(vectors, codes_NL, world)
        counts = {"moved": int((codes_NS != codes_NL).any(axis=1).sum()), "stuck": n_stuck}
    report = {**recipe.to_json(), "dim": vectors.n_width, "mse": mse, "reseeds": fit.reseeds, **counts}
    return codes_NS, report | quality.describe(codes_NS, recipe.levels, recipe.codes)


def _refuse(source: VectorSource | None, fault: ValueError, code: int) -> NoReturn:
    """Raise the fault on the rank that reads the source; the others, which know of it too, end with the exit code alone."""
    if source is None:
        raise Died(code, is_agreed=True) from None
    raise fault from None


def _adopt_old_state(state: RunState) -> None:
    """Put the state that kvtools wrote before it had folders for them, `.NAME.state`, where it stands now."""
    if state.path is not None and os.path.isfile(folder := os.path.dirname(state.path)):
        os.rename(folder, f"{folder}.old")
        os.mkdir(folder)
        os.rename(f"{folder}.old", state.path)
