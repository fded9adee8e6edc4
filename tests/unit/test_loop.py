"""The training loop, over a task of four weights: what was stopped, cut up or left off comes out as if it had not been."""

import itertools
import math

import numpy as np
import pytest
import torch
from torch import nn

from kvtools.artifact.bag import write_bag
from kvtools.artifact.files import Sink
from kvtools.errors import Corrupt, Fault, Stopped, Usage
from kvtools.train.loop import Loss, Plan, Trainer
from kvtools.train.lr_schedule import LrSchedule
from kvtools.train.resume import train_state
from kvtools.world import World

N_ROWS, N_BATCH = 48, 12
AN_EPOCH = N_ROWS // N_BATCH
CONFIG = {"steps": "10", "seed": 0}
CLOCKED = ("seconds", "tokens_per_s")


class Toy:
    """A regression in 48 rows, and a buffer that moves after each step, as the bias of experts does.

    scores: what validation says epoch by epoch; where None, the error on the rows. bad: a row whose target is NaN.
    """

    def __init__(self, *, dropout=0.0, scores=None, bad=None):
        chance = torch.Generator().manual_seed(3)
        torch.manual_seed(7)
        self.x_N3 = torch.randn(N_ROWS, 3, generator=chance)
        self.y_N1 = self.x_N3.sum(1, keepdim=True).tanh() + 0.1 * torch.randn(N_ROWS, 1, generator=chance)
        if bad is not None:
            self.y_N1[bad] = math.nan
        self.model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Dropout(dropout), nn.Linear(4, 1))
        self.model.register_buffer("n_updates", torch.zeros(1))
        self._scores, self.seen = scores, []

    def epoch(self, number):
        yield from np.random.default_rng(number).permutation(N_ROWS).reshape(-1, N_BATCH)

    def microbatches(self, rows, n, _own):
        return [rows[i::n] for i in range(min(n, len(rows)))]

    def loss(self, rows):
        error = (self.model(self.x_N3[rows]) - self.y_N1[rows]).square().sum()
        return Loss(error, len(rows), {"loss": error.detach()}, tokens=3 * len(rows))

    def after_step(self, world):
        self.model.n_updates += 1
        return {"updates": float(self.model.n_updates)}

    @torch.no_grad()
    def validate(self):
        self.seen.append(weights(self))
        if self._scores is not None:
            return {"score": self._scores[len(self.seen) - 1]}
        return {"score": -float((self.model(self.x_N3) - self.y_N1).square().nanmean())}

    def describe(self, rows):
        return f"rows {', '.join(map(str, rows[:2]))}"


class After:
    """A request to stop that comes in the n-th step: the loop asks once a step."""

    def __init__(self, n):
        self._left = n

    def __bool__(self):
        self._left -= 1
        return self._left <= 0


def plan(n_steps=10, **changed):
    return Plan(**{"epochs": n_steps, "n_steps": n_steps, "lr": 0.05, "warmup": 2, "seed": 5, **changed})


def train(task, folder=None, *, stop=False, start_over=False, config=CONFIG, **changed):
    """The run, and the lines it told until it ended or was stopped."""
    run = Trainer(task, plan(**changed), train_state(folder, config), World())
    run.resume(start_over=start_over)
    lines = []
    try:
        for step in run.run(stop):
            metrics = {name: x for name, x in step.metrics.items() if name not in CLOCKED}
            lines.append((step.step, step.epoch, metrics, step.validation))
        run.forget()
    except Stopped:
        assert stop is not False
    return run, lines


def weights(task):
    return {name: x.detach().clone() for name, x in task.model.state_dict().items()}


def assert_same(one, two, **tolerance):
    assert set(one) == set(two)
    for name in one:
        torch.testing.assert_close(one[name], two[name], **(tolerance or {"rtol": 0, "atol": 0}))


# ── stopping ─────────────────────────────────────────────────────────────────────────────────────────────────────────────
# 10 steps, 4 an epoch: 4 and 8 end an epoch, 10 ends the run
@pytest.mark.parametrize("dropout", [0.0, 0.5])
@pytest.mark.parametrize("at", range(1, 11))
def test_a_run_stopped_at_any_step_and_taken_up_equals_the_whole(tmp_path, at, dropout):
    folder = str(tmp_path / "state")
    whole = Toy(dropout=dropout)
    whole_run, told = train(whole)
    first = Toy(dropout=dropout)
    _, before = train(first, folder, stop=After(at))
    assert [line[0] for line in before if line[3] is None] == list(range(1, at + 1))
    second = Toy(dropout=dropout)
    run, after = train(second, folder)
    assert before + after == told
    assert_same(weights(second), weights(whole))
    assert_same(run.best, whole_run.best)
    assert vars(run.progress) == vars(whole_run.progress)
    assert not (tmp_path / "state").exists()


def test_a_run_stopped_at_every_step_equals_the_whole_too(tmp_path):
    whole, task = Toy(dropout=0.3), Toy(dropout=0.3)
    _, told = train(whole, n_steps=6)
    lines = []
    for _ in range(5):
        task = Toy(dropout=0.3)
        lines += train(task, str(tmp_path / "state"), stop=After(1), n_steps=6)[1]
    task = Toy(dropout=0.3)
    lines += train(task, str(tmp_path / "state"), n_steps=6)[1]
    assert lines == told
    assert_same(weights(task), weights(whole))


def test_a_stopped_run_with_nowhere_to_be_kept_does_not_promise_to_go_on():
    run = Trainer(Toy(), plan(), train_state(None, {}), World())
    with pytest.raises(
        Stopped, match="stopped after step 3, and nothing is saved. Name a folder to keep the state in."
    ) as found:
        list(run.run(After(3)))
    assert found.value.code == 143


@pytest.mark.parametrize("at", range(1, 11))
def test_a_run_killed_after_any_step_goes_on_from_its_last_state(tmp_path, at):
    folder, whole, second = str(tmp_path / "state"), Toy(dropout=0.3), Toy(dropout=0.3)
    _, told = train(whole, save_every=3)
    run = Trainer(Toy(dropout=0.3), plan(save_every=3), train_state(folder, CONFIG), World())
    steps = run.run(stop=False)
    for step in steps:
        if step.step == at:
            break
    steps.close()
    _, lines = train(second, folder, save_every=3)
    # 3, 6 and 9 are saved for their own sake, 4 and 8 as ends of epochs; what has been told is not saved yet
    begin = max(n for n in (0, 3, 4, 6, 8, 9) if n < at)
    assert lines == [line for line in told if line[0] > begin]
    assert_same(weights(second), weights(whole))


def test_states_within_an_epoch_change_nothing(tmp_path):
    without, with_some = Toy(dropout=0.3), Toy(dropout=0.3)
    assert train(without)[1] == train(with_some, str(tmp_path / "state"), save_every=1)[1]
    assert_same(weights(with_some), weights(without))


def test_chance_depends_on_the_seed_and_the_step_alone():
    one, two, other = (Toy(dropout=0.5) for _ in range(3))
    torch.manual_seed(1)
    train(one)
    torch.manual_seed(2)
    train(two)
    train(other, seed=6)
    assert_same(weights(one), weights(two))
    assert not torch.equal(one.model[0].weight, other.model[0].weight)


# ── pieces of a step ─────────────────────────────────────────────────────────────────────────────────────────────────────
@pytest.mark.parametrize("n", [2, 3, 12, 50])
def test_a_step_in_pieces_is_the_same_step(n):
    whole, cut = Toy(), Toy()
    _, told = train(whole)
    _, lines = train(cut, n_microbatches=n)
    # float32 sums of twelve terms in another order, ten steps of a rate of 0.05 at most
    assert_same(weights(cut), weights(whole), rtol=1e-5, atol=1e-5)
    assert [line[2]["tokens"] for line in lines if line[2]] == [line[2]["tokens"] for line in told if line[2]]
    assert [line[2]["loss"] for line in lines if line[2]] == pytest.approx([line[2]["loss"] for line in told if line[2]], 1e-5)


def test_an_update_is_that_of_adamw_on_the_mean_gradient():
    task, reference = Toy(), Toy()
    train(task, n_steps=1, warmup=0, n_microbatches=3, clip=0.25)
    rows = next(reference.epoch(0))
    (reference.loss(rows).total / len(rows)).backward()
    nn.utils.clip_grad_norm_(reference.model.parameters(), 0.25)
    matrices = [p for p in reference.model.parameters() if p.ndim == 2]
    vectors = [p for p in reference.model.parameters() if p.ndim == 1]
    groups = [{"params": matrices, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}]
    torch.optim.AdamW(groups, lr=0.05, betas=(0.9, 0.98)).step()
    assert_same(dict(task.model.named_parameters()), dict(reference.model.named_parameters()), rtol=1e-5, atol=1e-5)


# ── some learn slowly, some do not ───────────────────────────────────────────────────────────────────────────────────────
def test_what_wants_no_gradient_is_left_alone(tmp_path):
    task, folder = Toy(), str(tmp_path / "state")
    frozen = task.model[0].requires_grad_(False)
    frozen.weight.data[0, 0] = math.inf  # what nobody looks at need not be finite: tanh(inf) is
    before = weights(task)
    train(task, folder, stop=After(3))
    assert frozen.weight.grad is None
    assert frozen.bias.grad is None
    assert torch.equal(frozen.weight, before["0.weight"])
    assert not torch.equal(task.model[3].weight, before["3.weight"])
    taken_up = Toy()
    taken_up.model[0].requires_grad_(False).weight.data[0, 0] = math.inf  # the run builds it again: the state has none of it
    run, _ = train(taken_up, folder)
    assert run.progress.step == 10
    assert torch.equal(taken_up.model[0].weight, before["0.weight"])


def test_weights_kept_in_bfloat16_come_back_from_the_state(tmp_path):
    def task():
        made = Toy()
        made.model.register_buffer("tower", torch.tensor([[1.0, -2.5e-9], [math.inf, 3e30]]).bfloat16())
        return made

    first, second = task(), task()
    train(first, str(tmp_path / "state"), stop=After(3))
    second.model.tower.zero_()
    train(second, str(tmp_path / "state"))
    assert_same({"tower": second.model.tower}, {"tower": first.model.tower})


def test_a_part_may_learn_at_another_rate():
    task, reference = Toy(), Toy()
    train(task, n_steps=1, warmup=0, lr_factors={"0.": 0.1, "0.bias": 0.5, "3.weight": 0.0})
    rows = next(reference.epoch(0))
    (reference.loss(rows).total / len(rows)).backward()
    nn.utils.clip_grad_norm_(reference.model.parameters(), 1.0)
    first, last = reference.model[0], reference.model[3]
    groups = [
        {"params": [first.weight], "lr": 0.1 * 0.05, "weight_decay": 0.1},
        {"params": [first.bias], "lr": 0.5 * 0.05},
        {"params": [last.bias], "lr": 0.05},
    ]
    torch.optim.AdamW(groups, betas=(0.9, 0.98), weight_decay=0.0).step()
    assert_same(dict(task.model.named_parameters()), dict(reference.model.named_parameters()), rtol=1e-5, atol=1e-5)


def test_a_rate_for_what_is_not_there_is_refused():
    with pytest.raises(ValueError, match="no parameter's name begins with 'vision'"):
        train(Toy(), lr_factors={"vision": 0.1})


# ── losses that are not finite ───────────────────────────────────────────────────────────────────────────────────────────
def bad_row():
    """A row that comes in the last step of the second epoch, and the step that it comes in."""
    return int(list(Toy().epoch(1))[-1][0])


def poisoned():
    """Rows of which one is bad, from the second epoch on."""

    class Late(Toy):
        def epoch(self, number):
            for rows in super().epoch(number):
                yield rows if number else rows[rows != bad_row()]

    return Late(bad=bad_row())


def test_a_loss_that_is_not_finite_names_the_rows_and_leaves_the_last_epoch(tmp_path):
    folder = str(tmp_path / "state")
    with pytest.raises(
        Fault, match=rf"step 8: the loss of rows {bad_row()}, \d+ is not finite.*last saved state is kept"
    ) as found:
        train(poisoned(), folder)
    assert found.value.code == 1
    kept = poisoned()
    run = Trainer(kept, plan(), train_state(folder, CONFIG), World())
    assert run.resume(start_over=False)
    assert (run.progress.epoch, run.progress.batch, run.progress.step) == (1, 0, AN_EPOCH)
    whole = poisoned()
    for _ in Trainer(whole, plan(epochs=1), train_state(None, {}), World()).run(stop=False):
        pass
    assert_same(weights(kept), weights(whole))


@pytest.mark.parametrize("is_kept", [True, False])
def test_a_state_that_is_not_there_is_not_promised(tmp_path, is_kept):
    with pytest.raises(Fault, match="step 1: the loss of rows .* is not finite") as found:
        train(Toy(bad=int(next(Toy().epoch(0))[0])), str(tmp_path / "state") if is_kept else None)
    assert "kept" not in str(found.value)
    assert not (tmp_path / "state").exists()


def test_a_gradient_that_is_not_finite_is_told_before_it_does_harm(tmp_path):
    class Steep(Toy):
        def loss(self, rows):
            found = super().loss(rows)
            if self.model.n_updates < 2 * AN_EPOCH - 1:
                return found
            flat = (0 * self.model[0].weight).square().sum()  # 0, and its root has no derivative there
            return Loss(found.total + flat.sqrt(), found.count, found.logged, found.tokens)

    task = Steep()
    rows = task.describe(list(task.epoch(1))[-1])
    with pytest.raises(Fault, match=f"step 8: the gradient of {rows} is not finite"):
        train(task, str(tmp_path / "state"))
    assert all(x.isfinite().all() for x in weights(task).values())


# ── the end ──────────────────────────────────────────────────────────────────────────────────────────────────────────────
def test_patience_ends_a_run_and_the_best_weights_are_given_back():
    task = Toy(scores=[0.1, 0.3, 0.2, 0.3, 0.25, 0.9])
    run, lines = train(task, n_steps=100, patience=3)
    assert [line[3]["score"] for line in lines if line[3]] == [0.1, 0.3, 0.2, 0.3, 0.25]
    assert (run.progress.best_epoch, run.progress.best_score, run.progress.is_over) == (2, 0.3, True)
    assert_same(weights(task), task.seen[1])


@pytest.mark.parametrize("unknown", [{}, {"score": math.nan}])
def test_weights_without_a_score_are_no_candidates_and_stay_the_first(unknown):
    class Unsure(Toy):
        def validate(self):
            score = super().validate()
            return {"n": float(len(self.seen))} | (unknown if len(self.seen) == 1 else score)

    task = Unsure(scores=[9, 0.3, 0.2])
    run, _ = train(task, n_steps=2 * AN_EPOCH, validates_first=True)
    assert (run.progress.first["n"], run.progress.best_score) == (1, 0.3)
    assert_same(weights(task), task.seen[1])


def test_without_patience_all_epochs_run_and_the_best_weights_are_given_back():
    task = Toy(scores=[0.1, 0.9, *[0.2] * 23])
    run, _ = train(task, n_steps=100)
    assert run.progress.step == 100
    assert_same(weights(task), task.seen[1])


@pytest.mark.parametrize(("scores", "best"), [([0, 0, 0], 2), ([0, 0.1, 0], 1)])
def test_scores_that_tell_nothing_keep_no_weights(scores, best):
    task = Toy(scores=scores)
    run, _ = train(task, n_steps=3 * AN_EPOCH, worthless=0.0)
    assert run.progress.best_score == (max(scores) or None)
    assert_same(weights(task), task.seen[best])


def test_without_validation_the_last_weights_are_given_back():
    class Blind(Toy):
        def validate(self):
            self.seen.append(weights(self))

    task = Blind()
    run, lines = train(task)
    assert all(line[3] is None for line in lines)
    assert (run.best, run.progress.best_score) == ({}, None)
    assert_same(weights(task), task.seen[-1])


def test_steps_end_a_run_within_an_epoch_and_epochs_too():
    run, lines = train(Toy(), n_steps=6)
    assert (run.progress.step, run.progress.epoch) == (6, 2)
    assert [line[0] for line in lines] == [1, 2, 3, 4, 4, 5, 6, 6]
    assert train(Toy(), n_steps=100, epochs=2)[0].progress.step == 2 * AN_EPOCH


# ── rates ────────────────────────────────────────────────────────────────────────────────────────────────────────────────
def test_rates_rise_in_a_line_and_end_in_a_cosine():
    rate = LrSchedule(0.5, 110, 10)
    assert [rate.at(step) for step in range(10)] == pytest.approx([0.05 * (step + 1) for step in range(10)])
    assert rate.at(10) == pytest.approx(0.5)
    assert rate.at(60) == pytest.approx(0.5 * (1 + 0.05) / 2)
    assert rate.at(110) == pytest.approx(0.5 * 0.05) == rate.at(500)
    falling = [rate.at(step) for step in range(10, 111)]
    assert all(later < earlier for earlier, later in itertools.pairwise(falling))


def test_a_constant_rate_stays_and_no_first_step_is_without_effect():
    assert [LrSchedule(0.5, 100, 0, "constant").at(step) for step in (0, 50, 99)] == [0.5] * 3
    assert LrSchedule(0.5, 100, 4, "constant").at(0) == 0.125
    assert LrSchedule(0.5, 1, 0).at(0) == 0.5
    assert LrSchedule(0.5, 3, 3).at(0) > 0


def test_a_run_follows_its_rate():
    for shape in ("cosine", "constant"):
        lines = [line for line in train(Toy(), lr_schedule=shape)[1] if line[3] is None]
        assert [line[2]["rate"] for line in lines] == [LrSchedule(0.05, 10, 2, shape).at(step) for step in range(10)]


# ── state ────────────────────────────────────────────────────────────────────────────────────────────────────────────────
@pytest.fixture
def folder(tmp_path):
    """The state of a run that was stopped after three steps."""
    train(Toy(), str(tmp_path / "state"), stop=After(3))
    assert (tmp_path / "state" / "train.state").exists()
    return tmp_path / "state"


@pytest.mark.parametrize("config", [{"steps": "11", "seed": 0}, {"steps": "10"}, {"steps": "10", "seed": 0, "near": 4}])
def test_a_state_of_other_options_is_refused_by_name(folder, config):
    name = {1: "seed", 2: "steps", 3: "near"}[len(config)]
    with pytest.raises(Usage, match=rf"{folder}/train.state: the stopped run had {name} .*--force to start over"):
        train(Toy(), str(folder), config=config)
    assert (folder / "train.state").exists()


@pytest.mark.parametrize("what", ["words", "nothing", "another bag", "cut", "flipped"])
def test_a_state_that_is_none_is_refused(folder, what):
    path = folder / "train.state"
    whole = path.read_bytes()
    if what == "another bag":
        write_bag(Sink(str(path), force=True), "model", {"x": np.zeros(3)}, config={}, history=[])
    else:
        kept = {"words": b"loss 0.3\n", "nothing": b"", "cut": whole[:-7], "flipped": whole[:-7] + b"\xff" + whole[-6:]}
        path.write_bytes(kept[what])
    with pytest.raises(Corrupt, match="train.state"):
        train(Toy(), str(folder))


def test_starting_over_forgets_a_state_of_other_options_and_resumes_its_own(folder):
    task, whole = Toy(), Toy()
    state = (folder / "train.state").read_bytes()
    _, lines = train(task, str(folder), start_over=True)
    assert lines[0][0] == 4, "a job with --force in its script comes further when it is queued again"
    train(whole)
    assert_same(weights(task), weights(whole))
    assert not folder.exists()
    folder.mkdir()
    (folder / "train.state").write_bytes(state)
    _, lines = train(Toy(), str(folder), start_over=True, config={"steps": "11", "seed": 0})
    assert lines[0][0] == 1
    assert not folder.exists()
