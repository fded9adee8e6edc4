"""One run of `rl pscore`, and its `model` bag: opened again, it scores items for users."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch

from kvtools.artifact import Bag
from kvtools.artifact.bag import write_bag
from kvtools.artifact.open import open_bag, source_name
from kvtools.artifact.state import lock_folder, state_folder
from kvtools.chance import seed_for
from kvtools.errors import Corrupt, Usage
from kvtools.onerec.interactions.histories import Histories
from kvtools.onerec.interactions.log import VALID
from kvtools.onerec.interactions.stream import roles
from kvtools.onerec.rl import data
from kvtools.onerec.rl.prompts import Prompts
from kvtools.onerec.rl.ranker import PScore, threshold_of
from kvtools.onerec.rl.ranker_task import Objective, RankerTask, latest
from kvtools.onerec.rl.rewards import COLUMN, HIT, Term, parse_rewards
from kvtools.onerec.run.checkpoint import Checkpoint
from kvtools.option_values import refuse_if
from kvtools.skipped import SkippedRows
from kvtools.train.device import add_in_one_order, keep_freed_memory, limit_threads, resolve_device
from kvtools.train.durations import EpochLength
from kvtools.train.loop import Plan, Trainer, log_run, resume_run
from kvtools.train.resume import train_state

if TYPE_CHECKING:
    from kvtools.invocation import Invocation

_SYSTEM = "onerec-pscore"
_MADE_BY = "kvtools rl pscore"


@dataclass(frozen=True)
class RankerOptions:
    """The options of a run, as they stand on the command line."""

    model: str | None = None
    interactions: str = "-"
    rewards: Sequence[str] = ()
    steps: str = "5ep"
    lr: float = 2e-3
    batch: int = 256
    columns: Sequence[str] = field(default_factory=list)
    state: str | None = None
    log_file: str | None = None
    peak: float | None = None
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    device: Literal["auto", "cpu", "cuda"] = "auto"
    seed: int = 0

    @cached_property
    def terms(self) -> list[Term]:
        """The objectives; the hit where none is given. Raises Usage for a reward that is none of a ranker's."""
        terms = parse_rewards(self.rewards or [HIT])
        for term in terms:
            if term.kind not in (HIT, COLUMN):
                raise Usage(f"--reward {term.name} is no objective of a ranker. Give hit or column:NAME.")
            if term.weight <= 0:
                raise Usage(f"--reward {term.name}:{term.weight:g}: the weight of an objective is not above 0. Raise it.")
        return terms

    def to_json(self) -> dict[str, Any]:
        """Option names to values, as --config reads them."""
        options = {"rewards": list(self.rewards), "steps": self.steps, "lr": self.lr, "batch": self.batch, "seed": self.seed}
        return {name: value for name, value in options.items() if value != []}


def train_ranker(run: "Invocation", options: RankerOptions, *, stop: object = False) -> int:
    """Train a ranker on the training part and write it; returns the exit code. stop: as `Trainer.run` takes it."""
    terms = options.terms
    EpochLength(1, 1).total(options.steps)
    if run.print_config:
        return run.print_recipe(options.to_json())
    refuse_if((options.model is None, "--model is missing. Give a model from kvtools pretrain onerec."))
    run.refuse_shared_stdin(options.interactions, options.model)
    device, precision = resolve_device(options.device, options.dtype, rank=run.world.rank)
    run.refuse_existing()
    limit_threads(run.world)
    keep_freed_memory()
    add_in_one_order(device)
    checkpoint, name = Checkpoint.open(options.model or ""), source_name(options.model or "")

    def report(skipped: SkippedRows, src: str) -> int:
        return skipped.report(src, log=run.warn, strict=run.strict, verbose=run.verbose)

    wanted = [term.of for term in terms if term.kind == COLUMN]
    source = data.open_source_of(
        options.interactions, checkpoint, name, columns=roles(options.columns), wanted=wanted, users=None, report=report
    )
    values = {column: source.values(column, train=True) for column in wanted}
    objectives = [_objective(term, values, source.name) for term in terms]
    torch.manual_seed(seed_for(options.seed, "ranker"))
    ranker = PScore(checkpoint.ids.vectors(), checkpoint.counts.popularity, len(objectives)).to(device)
    held_out = (source.histories, source.histories.parts == VALID, {c: source.values(c, train=False) for c in wanted})
    task = RankerTask(
        ranker, objectives, source.learnt, values, checkpoint.counts.popularity, held_out, batch=options.batch,
        seed=options.seed, device=device,
    )  # fmt: skip
    plan = _plan(options, task.n_steps(), precision)
    config = {**options.to_json(), "items": checkpoint.ids.digest, "input": source.digest, "dtype": precision}
    folder = options.state or state_folder(run.output)
    with lock_folder(folder, is_root=run.world.is_root):
        trainer = Trainer(task, plan, train_state(folder, config), run.world, device=device, peak=options.peak)
        resume_run(trainer, folder, start_over=run.force, log=run.info, summary="")
        log_run(
            trainer, trainer.run(stop), label=run.command, log_file=options.log_file, log=run.info, quiet=run.quiet,
            verbose=run.verbose,
        )  # fmt: skip
    if not run.world.is_root:
        return 0
    figures = {name: value for name, value in (task.validate() or {}).items() if name != "score"}
    if run.verbose:
        run.info(f"held out: {', '.join(f'{name} {value:.4f}' for name, value in figures.items()) or 'nothing'}.")
    write_bag(
        run.sink(), "model", {n: x.detach().cpu().numpy() for n, x in ranker.state_dict().items()}, config=options.to_json(),
        history=run.history([checkpoint.history, source.history]), system=_SYSTEM, semantic_ids=checkpoint.ids.digest,
        objectives=[asdict(objective) for objective in objectives], auc=figures, step=trainer.progress.step,
    )  # fmt: skip
    trainer.forget()
    return source.code


def _plan(options: RankerOptions, n_epoch: int, precision: Any) -> Plan:
    n_total = EpochLength(n_epoch, n_epoch * options.batch).total(options.steps)
    return Plan(
        epochs=-(-n_total // n_epoch) + 1, n_steps=n_total, lr=options.lr, warmup=min(50, n_total // 10), weight_decay=0.01,
        save_every=500, patience=2, dtype=precision, seed=options.seed,
    )  # fmt: skip


def _objective(term: Term, values: Mapping[str, np.ndarray], name: str) -> Objective:
    if term.kind == HIT:
        return Objective(term.name, weight=term.weight)
    try:
        return Objective(term.name, term.of, threshold_of(values[term.of]), term.weight)
    except ValueError as fault:
        raise Corrupt(f"{name}: column {term.of}: {fault}. Give another column.") from None


@dataclass(frozen=True)
class OpenRanker:
    """A ranker, and the histories that it reads: of the training part, and of what is held out."""

    model: PScore
    learnt: Histories
    held_out: Histories
    device: str

    @classmethod
    def open(cls, src: str, checkpoint: Checkpoint, learnt: Histories, held_out: Histories, device: str) -> "OpenRanker":
        """From the bag that `rl pscore` wrote. Raises Corrupt for another artifact, and where it ranks other items."""
        bag, name = open_bag(src, "model", made_by=_MADE_BY), source_name(src)
        if bag.fields.get("system") != _SYSTEM:
            raise Corrupt(f"{name}: this is no ranker. Make one with {_MADE_BY}.")
        if bag.fields.get("semantic_ids") != checkpoint.ids.digest:
            raise Corrupt(f"{name}: this ranker is of other items than the model. Train one for this model with {_MADE_BY}.")
        try:
            ranker = _read(bag, checkpoint)
        except (KeyError, TypeError, ValueError, RuntimeError) as fault:
            reason = f"{type(fault).__name__}: {fault}".splitlines()[0]
            raise Corrupt(f"{name}: this version of kvtools cannot read the ranker ({reason}). Train it again.") from None
        return cls(ranker.to(device).eval(), learnt, held_out, device)

    @torch.inference_mode()
    def score(self, prompts: Prompts, items_BG: np.ndarray, *, held_out: bool) -> np.ndarray:
        """The P-Score of each candidate, a probability, float64 (B, G)."""
        past_BL = latest(self.held_out if held_out else self.learnt, prompts.users, prompts.cuts)
        items = torch.from_numpy(items_BG.astype(np.int64)).to(self.device)
        logits = self.model(torch.from_numpy(past_BL).to(self.device), items)[1]
        return np.asarray(logits.double().sigmoid().cpu().numpy())


def _read(bag: Bag, checkpoint: Checkpoint) -> PScore:
    n_objectives = len(bag.fields["objectives"])
    ranker = PScore(checkpoint.ids.vectors(), checkpoint.counts.popularity, n_objectives)
    ranker.load_state_dict({name: torch.from_numpy(np.array(bag.tensors[name])) for name in ranker.state_dict()})
    return ranker
