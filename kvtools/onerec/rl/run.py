"""One run of `rl ecpo`, `rl gbpo` or `rl grpo` on a OneRec model: open, train, measure before and after, write the model."""

import copy
import hashlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal, cast

import numpy as np
import torch

from kvtools.artifact import source_name
from kvtools.artifact.state import lock_folder, state_folder
from kvtools.artifact.training_log import TrainingLog
from kvtools.chance import seed_for
from kvtools.errors import Corrupt
from kvtools.onerec.interactions.log import TRAIN
from kvtools.onerec.interactions.pair_hashes import pair_hashes
from kvtools.onerec.interactions.stream import roles
from kvtools.onerec.recommend.recommend import ItemGivenId
from kvtools.onerec.rl import data
from kvtools.onerec.rl.held_out import HeldOut, Measured, gain
from kvtools.onerec.rl.policies import Objective
from kvtools.onerec.rl.prompts import PromptSet
from kvtools.onerec.rl.ranker_run import OpenRanker
from kvtools.onerec.rl.recipe import PolicyRecipe
from kvtools.onerec.rl.rewards import COLUMN, DURATION, PSCORE, Ranker, Rewards, Share
from kvtools.onerec.rl.rollout_stream import Proposals, RolloutStream
from kvtools.onerec.rl.task import PolicyTask
from kvtools.onerec.run.checkpoint import Checkpoint
from kvtools.option_values import refuse_if
from kvtools.skipped import SkippedRows, counted
from kvtools.train.device import add_in_one_order, keep_freed_memory, limit_threads, resolve_device
from kvtools.train.loop import Trainer, log_run, resume_run
from kvtools.train.resume import train_state

if TYPE_CHECKING:
    from kvtools.invocation import Invocation


@dataclass(frozen=True)
class PolicyOptions:
    """The options of a run, as they stand on the command line."""

    model: str | None = None
    interactions: str = "-"
    rewards: Sequence[str] = ()
    group: int = 40
    valid: str | None = None
    require_gain: bool = False
    rollouts: str | None = None
    users: str | None = None
    sampling: Literal["beam", "sample"] = "beam"
    listed: str | None = None
    keep_seen: bool = False
    steps: str = "1ep"
    lr: float = 5e-5
    batch: int = 64
    training: Sequence[str] = field(default_factory=list)
    columns: Sequence[str] = field(default_factory=list)
    state: str | None = None
    log_file: str | None = None
    peak: float | None = None
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    device: Literal["auto", "cpu", "cuda"] = "auto"
    seed: int = 0


def train_policy(run: "Invocation", objective: Objective, options: PolicyOptions, *, stop: object = False) -> int:
    """Train by an objective and write the model; returns the exit code. stop: as `Trainer.run` takes it."""
    recipe = PolicyRecipe(
        objective, tuple(options.rewards), options.group, options.sampling, options.steps, options.lr, options.batch,
        tuple(options.training), options.keep_seen, options.seed,
    )  # fmt: skip
    if run.print_config:
        return run.print_recipe(recipe.to_json())
    refuse_if((options.model is None, "--model is missing. Give a model from kvtools pretrain onerec."))
    run.refuse_shared_stdin(options.interactions, options.model, options.users, options.valid, options.listed)
    device, precision = resolve_device(options.device, options.dtype, rank=run.world.rank)
    run.refuse_existing(options.rollouts)
    limit_threads(run.world)
    keep_freed_memory()
    add_in_one_order(device)
    folder = options.state or state_folder(run.output)
    with lock_folder(folder, is_root=run.world.is_root):
        return _PolicyRun(run, recipe, options, device, precision, folder).train(stop)


class _PolicyRun:
    """The inputs of a run, opened."""

    def __init__(
        self, run: "Invocation", recipe: PolicyRecipe, options: PolicyOptions, device: str, precision: str, folder: str | None
    ) -> None:
        self._run, self._recipe, self._options = run, recipe, options
        self._device, self._precision, self._folder = device, precision, folder
        self._model_name = options.model or ""
        self._checkpoint = Checkpoint.open(self._model_name)
        self._source = self._open(options.interactions)
        self._valid = self._source if options.valid is None else self._open(options.valid)
        self._code = self._source.code or self._valid.code
        self._rewards = self._make_rewards()

    def _open(self, src: str) -> data.Source:
        settings, terms = self._recipe.settings, self._recipe.terms
        wanted = [term.of for term in terms if term.kind == COLUMN]
        if any(term.kind == DURATION for term in terms):
            wanted += ["playtime", "duration", *([settings["dislike"]] if settings["dislike"] else [])]
        return data.open_source_of(
            src, self._checkpoint, source_name(self._model_name), columns=roles(self._options.columns),
            wanted=list(dict.fromkeys(wanted)), users=self._options.users, report=self._report,
        )  # fmt: skip

    def _report(self, skipped: SkippedRows, name: str) -> int:
        return skipped.report(name, log=self._run.warn, strict=self._run.strict, verbose=self._run.verbose)

    def _make_rewards(self) -> Rewards:
        checkpoint, settings = self._checkpoint, self._recipe.settings
        trie = checkpoint.ids.trie
        columns = {
            term.of: data.column_values(self._source, term.of, checkpoint) for term in self._recipe.terms if term.kind == COLUMN
        }
        rankers = {term.of: self._ranker(term.of) for term in self._recipe.terms if term.kind == PSCORE}
        share = None
        if self._options.listed is not None:
            listed = data.listed_ids(self._options.listed, checkpoint)
            share = Share(listed, settings["listed_target"], settings["listed_factor"])
        most_popular = ItemGivenId(trie, checkpoint.counts, "popular", 0).items[trie.bucket[:-1]]
        return Rewards(self._recipe.terms, most_popular, columns, rankers, share)

    def _ranker(self, src: str) -> Ranker:
        return OpenRanker.open(src, self._checkpoint, self._source.learnt, self._valid.histories, self._device)

    def _held_out(self) -> HeldOut | None:
        """The held-out rows; None, with a note, where there are none and nothing asks for them."""
        settings, valid = self._recipe.settings, self._valid
        prompts = data.held_out_prompts(valid, settings["valid_users"], self._options.seed)
        if prompts is None:
            if self._options.valid is not None or self._options.require_gain:
                raise Corrupt(
                    f"{valid.name}: there is no valid interaction of a known item. Name the column by --column part=COL."
                )
            self._run.info(
                f"{valid.name}: no valid interaction of a known item, so that nothing is measured on held-out users."
            )
            return None
        near, counts = self._checkpoint.model.config.near, self._checkpoint.counts
        neighbours = None
        if near:
            rows = prompts.rows
            past = (np.concatenate([[0], np.cumsum(rows.begins)]), _past_items(valid, prompts.users, prompts.cuts))
            neighbours = counts.cooccurrence.nearest(*past, near, exclude_seen=True)
        return HeldOut(
            valid.batcher, prompts, self._checkpoint.ids.trie, neighbours, self._rewards, self._values(valid, train=False),
            self._recipe.n_best, self._options.group, not self._options.keep_seen, self._device,
        )  # fmt: skip

    def train(self, stop: object) -> int:
        """Train, measure before and after, write the model; returns the exit code."""
        run, options = self._run, self._options
        prompts = PromptSet(data.training_batcher(self._source, self._checkpoint), options.batch, options.seed)
        plan = self._recipe.plan(prompts.n_steps, self._precision)
        policy = self._checkpoint.model.to(self._device)
        reference = copy.deepcopy(policy).requires_grad_(False).eval()
        config = self._config(policy)
        held_out = self._held_out()
        torch.manual_seed(seed_for(options.seed, "policy"))
        with self._kept_rollouts(config) as keep:
            task = PolicyTask(
                policy, reference, prompts, self._checkpoint.ids.trie, self._rewards, self._values(self._source, train=True),
                self._recipe.policy(plan, prompts.n_steps), held_out=held_out, device=self._device, duration=self._duration(),
                keep=keep,
            )  # fmt: skip
            trainer = Trainer(task, plan, train_state(self._folder, config), run.world, device=self._device, peak=options.peak)
            summary = (
                f"{counted(plan.n_steps, 'step')} of {counted(options.batch, 'user')}, {options.group} items each."
                if run.verbose
                else ""
            )
            resume_run(trainer, self._folder, start_over=run.force, log=run.info, summary=summary)
            # validations lie at other steps than ends of epochs
            steps = (replace(step, epoch=round(step.step / prompts.n_steps, 4)) for step in trainer.run(stop))
            log_run(
                trainer, steps, label=run.command, log_file=options.log_file, log=run.info, quiet=run.quiet,
                verbose=run.verbose,
            )  # fmt: skip
        if not run.world.is_root:
            return 0
        figures = dict[str, Any]()
        if held_out is not None:
            figures = self._conclude(held_out, held_out.measure(reference), held_out.measure(policy.eval()), trainer)
        self._save(policy, trainer, figures)
        trainer.forget()
        if options.require_gain and figures["gain"] <= 0:
            run.warn("--require-gain: the held-out reward has not risen. Train longer, or with another rate.")
            return 1
        return self._code

    def _config(self, policy: torch.nn.Module) -> dict[str, Any]:
        """What a run is made of: its options and inputs, which must be the same to resume it."""
        digest = hashlib.blake2b(digest_size=12)
        rankers = [cast("OpenRanker", self._rewards.rankers[name]).model for name in sorted(self._rewards.rankers)]
        for module in (policy, *rankers):
            for weight in module.state_dict().values():
                digest.update(weight.detach().cpu().numpy().tobytes())
        share = self._rewards.share
        listed = {} if share is None else {"listed": hashlib.blake2b(share.is_listed_U.tobytes(), digest_size=8).hexdigest()}
        return {
            **listed, "objective": self._recipe.objective, **self._recipe.to_json(), "items": self._checkpoint.ids.digest,
            "model": digest.hexdigest(), "input": self._source.digest, "valid": self._valid.digest, "dtype": self._precision,
        }  # fmt: skip

    def _values(self, source: data.Source, *, train: bool) -> dict[str, np.ndarray]:
        return {term.of: source.values(term.of, train=train) for term in self._recipe.terms if term.kind == COLUMN}

    def _duration(self) -> tuple[np.ndarray, np.ndarray] | None:
        if not self._rewards.weight_of(DURATION):
            return None
        return data.duration_quantiles(self._source, self._recipe.settings["dislike"])

    @contextmanager
    def _kept_rollouts(self, config: dict[str, Any]) -> Iterator[Callable[[int, Proposals], None] | None]:
        """What takes the proposals of each step, where they are kept; on all ranks, and rank 0 writes them."""
        run, dst = self._run, self._options.rollouts
        if dst is None or not run.world.is_root:
            yield None if dst is None else lambda _step, _proposals: None
            return
        stream = RolloutStream(
            dst, run.history([self._checkpoint.history, self._source.history]), config,
            user_keys=self._source.histories.user_keys, item_keys=self._checkpoint.ids.keys,
            terms=[term.name for term in self._rewards.item_terms], group_size=self._options.batch, force=run.force,
        )  # fmt: skip
        with stream:
            yield stream.write

    def _conclude(self, held_out: HeldOut, before: Measured, after: Measured, trainer: Trainer) -> dict[str, Any]:
        """Log the figures before and after; returns them."""
        first, last = held_out.figures(before), held_out.figures(after)
        mean, interval = gain(before.reward_R, after.reward_R)
        hits, interval_of_hits = gain(before.hit_R, after.hit_R)
        figures: dict[str, Any] = {
            **last,
            **{f"{name}_before": value for name, value in first.items() if name != "valid_users"},
        }
        figures |= {"gain": mean, "gain_ci95": list(interval), "hr@10_gain": hits, "hr@10_gain_ci95": list(interval_of_hits)}
        with TrainingLog(self._options.log_file, at=trainer.progress.step) as curve:
            curve.write({"step": trainer.progress.step, **figures})
        named = ("valid_reward", "valid_hr@10", "valid_ndcg@10", "valid_legal_share")
        told = ", ".join(f"{name.removeprefix('valid_')} {first[name]:.4g} → {last[name]:.4g}" for name in named)
        if self._run.verbose:
            spread = f"{interval[0]:.3g} to {interval[1]:.3g}"
            self._run.info(
                f"{counted(len(held_out.prompts), 'held-out user')}: {told}; gain {mean:.3g}, 95 % interval {spread}."
            )
        return figures

    def _trained_on(self) -> np.ndarray | None:
        """The hashes of the pairs that the model and its policy were trained on."""
        before, histories = self._checkpoint.trained_on, self._source.histories
        here = pair_hashes(histories, self._checkpoint.ids.keys)[histories.parts == TRAIN]
        return None if before is None else np.union1d(before, here)

    def _save(self, policy: torch.nn.Module, trainer: Trainer, figures: dict[str, Any]) -> None:
        run, before = self._run, self._checkpoint
        policy.eval().cpu()
        checkpoint = Checkpoint(
            before.model, before.ids, before.encoder, before.user_vocabularies, before.counts, before.pathways,
            self._recipe.to_json(), seed=before.seed, trained_on=self._trained_on(),
        )  # fmt: skip
        checkpoint.save(
            run.sink(),
            history=run.history([before.history, self._source.history]),
            step=trainer.progress.step,
            objective=self._recipe.objective,
            **({"held_out": figures} if figures else {}),
        )


def _past_items(source: data.Source, users: np.ndarray, cuts: np.ndarray) -> np.ndarray:
    offsets = np.concatenate([[0], np.cumsum(cuts)])
    index = np.arange(offsets[-1]) - np.repeat(offsets[:-1] - source.histories.offsets[users], cuts)
    return np.asarray(source.histories.items[index])
