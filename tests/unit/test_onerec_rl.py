"""Reinforcement learning of OneRec in parts: proposals and their probabilities, rewards, the ranker, and a step of the task."""

import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch
from small_onerec import EXPERTS, NEAR, SMALL, asked, batcher_of, catalogue, histories_of, model_of

from kvtools.onerec.model.beam import rank_all
from kvtools.onerec.model.trie import Trie
from kvtools.onerec.recommend import metrics
from kvtools.onerec.rl import rollouts
from kvtools.onerec.rl.data import duration_quantiles
from kvtools.onerec.rl.held_out import HeldOut, Measured, gain
from kvtools.onerec.rl.policies import PolicySettings
from kvtools.onerec.rl.prompts import Futures, Prompts, PromptSet, futures, seen_ids
from kvtools.onerec.rl.ranker import PScore, auc, threshold_of
from kvtools.onerec.rl.rewards import ColumnValues, Rewards, Share, Term, parse_rewards
from kvtools.onerec.rl.task import PolicyTask
from kvtools.world import World

SIZES, N_ITEMS = (6, 5, 4), 30
CODES = catalogue(N_ITEMS, SIZES)


class Case:
    """A small model, its trie, and the histories of some users."""

    def __init__(self, n_users=8, **config):
        self.config = replace(SMALL, **config)
        self.model = model_of(self.config, CODES, SIZES)
        self.trie = Trie(CODES)
        self.histories = histories_of(np.random.default_rng(0).integers(4, 12, n_users), N_ITEMS)
        self.batcher = batcher_of(self.histories, self.config, N_ITEMS)
        self.context = self.model.context(asked(self.batcher, N_ITEMS, np.arange(n_users)))


SHARED = NEAR["evidence"] | {"near_share": 0.3}
VARIANTS = [
    {}, {"decoder": "lazy"}, EXPERTS, NEAR["evidence"], SHARED, NEAR["tokens"], NEAR["some scores"],
    NEAR["some scores"] | {"near_share": 0.3}, {"attention": "full"},
]  # fmt: skip


@pytest.mark.parametrize("config", VARIANTS, ids=str)
def test_log_probabilities_of_proposals_equal_those_of_the_training_forward(config):
    case = Case(**config)
    uniform = torch.rand(8, 12, 3, generator=torch.Generator().manual_seed(0))
    groups = [
        rollouts.beams(case.model, case.context, case.trie, 12),
        rollouts.free_beams(case.model, case.context, case.trie, 12),
        rollouts.samples(case.model, case.context, case.trie, uniform),
        rollouts.samples(case.model, case.context, case.trie, uniform, is_free=True),
    ]
    for group in groups:
        logp_BGS, _ = rollouts.path_log_probs(case.model, case.context, group.codes_BGS)
        torch.testing.assert_close(logp_BGS.sum(2)[group.is_there_BG], group.logp_BG[group.is_there_BG], atol=1e-4, rtol=0)


def test_path_log_probabilities_are_those_of_the_exact_ranking():
    case = Case()
    exact_BU = rank_all(case.model, case.context, case.trie)
    codes = case.trie.ids_US.expand(8, -1, -1)
    logp_BUS, entropy_B = rollouts.path_log_probs(case.model, case.context, codes)
    torch.testing.assert_close(logp_BUS.sum(2), exact_BU.clone(), atol=1e-5, rtol=0)
    assert ((entropy_B > 0) & (entropy_B < np.log(6))).all()


def test_gradients_are_those_of_the_mixture_where_neighbours_have_a_share():
    case = Case(**SHARED)
    batch = asked(case.batcher, N_ITEMS, np.arange(8))
    weights = [p for p in case.model.parameters() if p.requires_grad]
    codes_BGS = rollouts.free_beams(case.model, case.context, case.trie, 12).codes_BGS  # many that no neighbour has

    def value():
        return rollouts.path_log_probs(case.model, case.model.context(batch), codes_BGS)[0].mean()

    gradients = torch.autograd.grad(value(), weights, allow_unused=True)
    moved = [(weight, gradient) for weight, gradient in zip(weights, gradients, strict=True) if gradient is not None]
    length = sum(float(gradient.square().sum()) for _, gradient in moved) ** 0.5
    assert length > 0

    def value_at(step):
        with torch.no_grad():
            for weight, gradient in moved:
                weight.add_(gradient, alpha=step / length)
            return float(value())

    above, below = value_at(0.01), value_at(-0.02)
    assert (above - below) / 0.02 == pytest.approx(length, rel=0.02)


def test_draws_within_the_catalogue_are_as_frequent_as_they_are_probable():
    case = Case(n_users=2)
    uniform = torch.rand(2, 20_000, 3, generator=torch.Generator().manual_seed(1))
    group = rollouts.samples(case.model, case.context, case.trie, uniform)
    assert (group.ids_BG >= 0).all()
    # the model's probabilities, renormed among the children at each level
    for user in range(2):
        frequency = np.bincount(group.ids_BG[user].numpy(), minlength=case.trie.n_ids) / 20_000
        expected = _tree_probabilities(case, user)
        assert frequency == pytest.approx(expected, abs=4 * np.sqrt(expected.max() / 20_000))


def _tree_probabilities(case, user):
    codes = case.trie.ids_US.expand(2, -1, -1)
    logp_US = rollouts.path_log_probs(case.model, case.context, codes)[0][user].detach().numpy().astype(np.float64)
    ids, chance = case.trie.ids_US.numpy(), np.ones(case.trie.n_ids)
    for level in range(3):
        for number, own in enumerate(ids):
            siblings = {tuple(other[: level + 1]): n for n, other in enumerate(ids) if (other[:level] == own[:level]).all()}
            total = sum(np.exp(logp_US[n, level]) for n in siblings.values())
            chance[number] *= np.exp(logp_US[number, level]) / total
    return chance


def test_a_users_draws_do_not_depend_on_who_else_is_asked():
    case = Case()
    uniform = torch.rand(8, 6, 3, generator=torch.Generator().manual_seed(2))
    together = rollouts.samples(case.model, case.context, case.trie, uniform)
    few = rollouts.first_users(case.context, 3)
    alone = rollouts.samples(case.model, few, case.trie, uniform[:3])
    assert torch.equal(together.codes_BGS[:3], alone.codes_BGS)


def test_items_that_a_user_has_are_not_proposed():
    case = Case()
    prompts = Prompts(0, np.arange(8), np.diff(case.histories.offsets))
    barred = seen_ids(case.histories, prompts, case.trie)
    for user in range(8):
        own = case.histories.items[case.histories.offsets[user] : case.histories.offsets[user + 1]]
        expected = [set(np.flatnonzero(case.trie.id_of_item == n)) <= set(own) for n in range(case.trie.n_ids)]
        assert barred[user].tolist() == expected
    uniform = torch.rand(8, 200, 3, generator=torch.Generator().manual_seed(3))
    barred_BU = torch.from_numpy(barred)
    for group in (
        rollouts.beams(case.model, case.context, case.trie, 30, barred_BU=barred_BU),
        rollouts.samples(case.model, case.context, case.trie, uniform, barred_BU=barred_BU),
    ):
        is_there = group.ids_BG >= 0
        assert is_there.any()
        assert not barred_BU.gather(1, group.ids_BG.clamp(min=0))[is_there].any()


def test_ids_are_numbered_on_the_device_as_by_find():
    trie = Trie(CODES)
    codes = torch.tensor(list(itertools.product(range(7), range(6), range(5))))  # with codes that no item has
    assert trie.numbers(codes).tolist() == trie.find(codes.numpy()).tolist()


# ── rewards ──────────────────────────────────────────────────────────────────────────────────────────────────────────────
def test_rewards_are_named_and_weighted():
    terms = parse_rewards(["hit", "column:rating:0.5", "pscore:a:b.safetensors", "pscore:r.safetensors:-2", "format:3"])
    assert [(t.kind, t.of, t.weight) for t in terms] == [
        ("hit", "", 1.0), ("column", "rating", 0.5), ("pscore", "a:b.safetensors", 1.0), ("pscore", "r.safetensors", -2.0),
        ("format", "", 3.0),
    ]  # fmt: skip


def test_a_column_is_the_users_own_value_or_the_mean_of_others():
    values = np.array([1.0, np.nan, 5.0, 3.0])
    column = ColumnValues.fit(values, np.array([0, 0, 1, 1]), 3)
    assert column.mean_U == pytest.approx([(1 + 5 * 3) / 6, (8 + 5 * 3) / 7, 3.0])
    rewards = Rewards([Term("column:rating", "column", "rating"), Term("hit", "hit")], np.arange(3), {"rating": column})
    future = Futures(np.array([[1, 0]]), np.array([[2, 1]]))
    ids = np.array([[1, 0, 2, -1]])
    scored = rewards.score(Prompts(0, np.array([0]), np.array([1])), future, ids, values={"rating": values})
    assert scored["column:rating"][0] == pytest.approx([5.0, 16 / 6, 3.0, np.nan], nan_ok=True)
    assert scored["hit"][0] == pytest.approx([1, 1, 0, np.nan], nan_ok=True)


def test_listed_items_earn_less_while_their_share_is_too_large():
    share = Share(np.array([True, False]), target=0.2, factor=0.5)
    rewards = Rewards([Term("hit", "hit")], np.arange(2), share=share)
    total = {
        exposure: rewards.total({"hit": np.array([[1.0, 1.0], [-1.0, 0.0]])}, np.array([[0, 1], [0, 0]]), exposure)
        for exposure in (0.1, 0.3)
    }
    assert total[0.1].tolist() == [[1, 1], [-1, 0]]
    assert total[0.3].tolist() == [[0.5, 1], [-2, 0]]


def test_quantiles_of_play_time_are_among_the_users_own_items_of_about_that_length():
    class Source:
        learnt = histories_of([5, 2], 9)

        def values(self, name, *, train):
            return {
                "playtime": np.array([10, 20, 30, 5, np.nan, 7, 7.0]), "duration": np.array([40, 50, 60, 9, 9, 100, 100.0]),
                "dislike": np.array([0, 1, 0, 0, 0, 0, np.nan]),
            }[name]  # fmt: skip

    quantile, disliked = duration_quantiles(Source(), "dislike")
    assert quantile == pytest.approx([1 / 3, 2 / 3, 1, 1, np.nan, 1, 1], nan_ok=True)
    assert disliked.tolist() == [False, True, False, False, False, False, False]


# ── a step ───────────────────────────────────────────────────────────────────────────────────────────────────────────────
class Constant:
    """A ranker with one answer."""

    def __init__(self, value):
        self.value = value

    def score(self, prompts, items_BG, *, held_out):
        return np.full(items_BG.shape, self.value)


def task_of(case, rewards, **settings):
    reference = model_of(case.config, CODES, SIZES)
    prompts = PromptSet(case.batcher, 6, 0)
    return PolicyTask(
        case.model, reference, prompts, case.trie, rewards, {}, PolicySettings(**{"group": 8, **settings}), held_out=None,
        device="cpu",
    )  # fmt: skip


def gradient(task, prompts):
    (part,) = task.microbatches(prompts, 1, slice(None))
    task.model.zero_grad()
    task.loss(part).total.backward()
    return {n: p.grad.clone() for n, p in task.model.policy.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("value", [0.7, np.nan, np.inf], ids=["constant", "nan", "inf"])
def test_groups_without_a_finite_difference_move_nothing_and_are_counted(value):
    case = Case()
    rewards = Rewards([Term("pscore:r", "pscore", "r")], np.arange(N_ITEMS), rankers={"r": Constant(value)})
    task = task_of(case, rewards, next_token=0.0)
    gradients = gradient(task, next(task.epoch(0)))
    assert all(not x.any() for x in gradients.values())
    figures = task.after_step(World())
    assert figures["groups_without_update"] == 1.0
    assert figures["reward_unknown"] == float(not np.isfinite(value))
    assert figures.get("reward", 0.7) == pytest.approx(0.7)


def test_the_format_reward_discards_what_is_illegal_and_never_punishes_it():
    case = Case()
    task = task_of(case, Rewards([Term("format", "format")], np.arange(N_ITEMS)), next_token=0.0, format_samples=8)
    prompts = next(task.epoch(0))
    got = gradient(task, prompts)
    case.model.zero_grad()
    context = case.model.context(case.batcher.batch(prompts.rows))
    free = rollouts.free_beams(case.model, context, case.trie, 8)
    logp_BG = rollouts.path_log_probs(case.model, context, free.codes_BGS)[0].sum(2)
    assert 0 < (free.ids_BG >= 0).sum() < free.ids_BG.numel(), "some of both"
    (-logp_BG[free.ids_BG >= 0].sum() / 8).backward()
    for name, parameter in case.model.named_parameters():
        if parameter.grad is not None:
            torch.testing.assert_close(got[name], parameter.grad, atol=1e-5, rtol=1e-4)


def test_a_proposing_copy_is_renewed_every_so_many_steps_and_leaves_the_ratio_to_clip():
    case = Case()
    ranker = PScore(np.random.default_rng(0).normal(size=(N_ITEMS, 4)).astype(np.float32), np.ones(N_ITEMS), 1)

    class Scored:
        def score(self, prompts, items_BG, *, held_out):
            return ranker.items.weight.detach().numpy()[items_BG, 0].astype(np.float64)

    rewards = Rewards([Term("pscore:r", "pscore", "r")], np.arange(N_ITEMS), rankers={"r": Scored()})
    task = task_of(case, rewards, sync=2, epsilon=0.01, delta=0.01)
    clipped = []
    for prompts in itertools.islice(task.epoch(0), 3):
        gradients = gradient(task, prompts)
        clipped.append(task.after_step(World())["clip_fraction"])
        with torch.no_grad():
            for name, parameter in task.model.policy.named_parameters():
                if name in gradients:
                    parameter.sub_(0.05 * gradients[name])
    assert [clipped[0], clipped[2]] == [0, 0], "the copy is new"
    assert clipped[1] > 0


def test_prompts_take_every_user_once_a_pass_and_do_not_depend_on_where_they_begin():
    prompts = PromptSet(batcher_of(histories_of([1, 5, 2, 9, 4], 9), SMALL, 9), 2, 3)
    first = list(itertools.islice(prompts.from_step(0), 6))
    assert sorted(np.concatenate([p.users for p in first[:2]]).tolist()) == [1, 2, 3, 4]
    lengths = np.diff(prompts.batcher.histories.offsets)
    assert all(((p.cuts >= 1) & (p.cuts < lengths[p.users])).all() for p in first)
    again = next(prompts.from_step(5))
    assert (again.step, again.users.tolist(), again.cuts.tolist()) == (5, first[5].users.tolist(), first[5].cuts.tolist())
    future = futures(prompts.batcher.histories, first[0], Trie(CODES), 3)
    for row, (user, cut) in enumerate(zip(first[0].users, first[0].cuts, strict=True)):
        begin, end = prompts.batcher.histories.offsets[user : user + 2]
        own = Trie(CODES).id_of_item[prompts.batcher.histories.items[begin + cut : min(end, begin + cut + 3)]]
        assert future.ids_BH[row].tolist() == [*own, *[-1] * (3 - len(own))]


# ── held out, and the ranker ─────────────────────────────────────────────────────────────────────────────────────────────
def test_the_gain_is_of_the_same_users_with_its_interval():
    mean, (low, high) = gain(np.array([1.0, 2, 3, np.nan]), np.array([2.0, 3, 5, 1]))
    assert mean == pytest.approx(4 / 3)
    assert (high - low) / 2 == pytest.approx(1.959964 * np.std([1, 1, 2], ddof=1) / np.sqrt(3))


def test_a_hit_is_among_the_ten_best():
    ranks = np.array([-1, 0, 9, 10])
    assert Measured(np.zeros(4), {}, ranks, np.ones(4)).hit_R.tolist() == [0, 1, 1, 0]


def test_held_out_users_are_measured_as_by_hand():
    case = Case()
    prompts = Prompts(0, np.arange(8), np.diff(case.histories.offsets) - 1)
    held = HeldOut(
        case.batcher, prompts, case.trie, None, Rewards([Term("hit", "hit")], np.arange(N_ITEMS)), {}, k=5, n_free=10,
        exclude_seen=False, device="cpu",
    )  # fmt: skip
    measured = held.measure(case.model)
    context = case.model.context(case.batcher.batch(prompts.rows))
    exact_BU = rank_all(case.model, context, case.trie)
    targets = case.trie.id_of_item[case.histories.items[case.histories.offsets[1:] - 1]]
    ranks = [(exact_BU[user] > exact_BU[user, targets[user]]).sum().item() for user in range(8)]
    assert measured.reward_R == pytest.approx([0.2 * (rank < 5) for rank in ranks])
    # the beam is exact for the first few
    assert [rank for rank in measured.rank_R if 0 <= rank < 10] == [rank for rank in ranks if rank < 10]
    assert held.figures(measured)["valid_hr@10"] == np.mean([rank < 10 for rank in ranks])
    free = rollouts.free_beams(case.model, context, case.trie, 10).codes_BGS
    legal = [len(set(case.trie.find(codes.numpy())) - {-1}) for codes in free]
    assert measured.legal_R == pytest.approx(np.array(legal) / 10)
    both = Rewards([Term("hit", "hit"), Term("format", "format", weight=0.5)], np.arange(N_ITEMS))
    assert replace(held, rewards=both).measure(case.model).reward_R == pytest.approx(measured.reward_R + 0.5 * measured.legal_R)
    none = replace(held, rewards=Rewards([Term("duration", "duration")], np.arange(N_ITEMS))).measure(case.model).reward_R
    assert none.mean() == pytest.approx(metrics.ndcg(measured.rank_R, 20))


def test_auc_counts_pairs_and_half_of_ties():
    rng = np.random.default_rng(0)
    scores, labels = rng.integers(0, 5, 60).astype(float), rng.random(60) < 0.3
    pairs = [(a > b) + 0.5 * (a == b) for a in scores[labels] for b in scores[~labels]]
    assert auc(scores, labels) == pytest.approx(np.mean(pairs))


@pytest.mark.parametrize(
    ("values", "threshold"), [([1, 2, 3, 4, 5], 3), ([0, 0, 0, 1], 1), ([1, 1, 0, 1], 1), ([4, 4, 4, 5, np.nan], 5)]
)
def test_a_columns_threshold_leaves_values_on_both_sides(values, threshold):
    assert threshold_of(np.array(values, float)) == threshold


def test_a_user_without_a_history_has_a_score_too():
    ranker = PScore(np.eye(5, 3, dtype=np.float32), np.arange(5), 2)
    logits, score = ranker(torch.tensor([[-1, -1], [2, -1]]), torch.tensor([[0, 1, 2], [0, 1, 2]]))
    assert (logits.shape, score.shape) == ((2, 3, 2), (2, 3))
    assert torch.isfinite(logits).all()
    assert torch.isfinite(score).all()
    labels = torch.tensor([[[1.0, torch.nan], [0, 1], [0, torch.nan]]] * 2)
    total, towers = ranker.loss(torch.tensor([[-1, -1], [2, -1]]), torch.tensor([[0, 1, 2], [0, 1, 2]]), labels, [1.0, 0.5])
    assert torch.isfinite(total)
    assert towers.shape == (2,)
