"""Answers: what is drawn, what it depends on, and that the cache, the batch and the budget change nothing."""

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy import stats
from small_keye import IMAGE, VIDEO, model
from test_keye_sampling import slow_candidates

from kvtools.keye.data.packing import collate
from kvtools.keye.model.generate import Insertion, generate, with_answer
from kvtools.keye.model.inputs import Example, Visual
from kvtools.keye.model.keye import Keye
from kvtools.keye.model.log_probs import log_probabilities
from kvtools.keye.model.positions import mrope_positions
from kvtools.keye.model.visual_cache import VisualCache
from kvtools.keye.rl.rows import AnswerRow, Prompted, ScoredAnswer


def prompt(*parts, key="p", seed=0, seconds=None):
    """Text by its length, visual items by their grids."""
    rng = np.random.default_rng(seed)
    words, shown = [], []
    for part in parts:
        if isinstance(part, int):
            words.append(rng.integers(0, 48, part))
        else:
            n_frames, rows, cols = part
            words.append(np.full(n_frames * rows * cols // 4, VIDEO if n_frames > 1 else IMAGE))
            pixels = rng.integers(0, 256, (n_frames * rows * cols, 3, 14, 14), dtype=np.uint8)
            times = np.arange(n_frames) / 2 if seconds is None else np.array(seconds, float)
            shown.append(Visual(pixels, np.array(part, np.int32), times, n_frames > 1))
    tokens = np.concatenate(words).astype(np.int32)
    position = mrope_positions(tokens, IMAGE, VIDEO, [v.grid for v in shown], [v.seconds for v in shown])
    return Example(key, tokens, np.zeros(len(tokens), np.uint8), position, tuple(shown))


PROMPTS = [
    prompt(5, key="a", seed=1),
    prompt(2, (1, 4, 6), 3, key="b", seed=2),
    prompt(1, (3, 2, 4), 2, key="c", seed=3),
    prompt(11, key="d", seed=4),
    prompt(1, (6, 2, 2), 1, key="e", seed=5, seconds=[0, 4, 8, 12, 16, 20]),
]


def answers(keye, prompts=PROMPTS, **options):
    return list(generate(keye, prompts, **{"max_new_tokens": 12, "temperature": 0.0, **options}))


def full_logits(keye, example):
    """Logits of a conversation by one forward without a cache."""
    row = collate([example])
    with torch.no_grad():
        visual = None if row.pixels is None else keye.encode_images(torch.tensor(row.pixels), row.grid.tolist())
        hidden = keye.hidden(torch.tensor(row.tokens).long(), torch.tensor(row.positions), [0], visual)
        return keye.logits(hidden)


def constant(logits):
    """A model that gives the same logits, whatever it reads."""
    keye = model()
    with torch.no_grad():
        for parameter in keye.model.layers.parameters():
            parameter.zero_()
        keye.model.embed_tokens.weight.zero_()[:, 0] = 1000
        keye.model.norm.weight.copy_(torch.eye(32)[0] / 32**0.5)
        keye.lm_head.weight.zero_()[:, 0] = torch.tensor(logits)
    return keye


def same(one, other):
    assert [a.tokens.tolist() for answers_of_prompt in one for a in answers_of_prompt] == [
        a.tokens.tolist() for answers_of_prompt in other for a in answers_of_prompt
    ]
    assert [a.ended for answers_of_prompt in one for a in answers_of_prompt] == [
        a.ended for answers_of_prompt in other for a in answers_of_prompt
    ]


def test_greedy_with_a_cache_is_the_argmax_of_full_forwards():
    keye = model()
    for asked, (answer,) in zip(PROMPTS, answers(keye), strict=True):
        assert (answer.key, answer.ended, len(answer.tokens)) == (asked.key, "length", 12)
        logits = full_logits(keye, with_answer(asked, answer))
        logits[:, [IMAGE, VIDEO]] = -torch.inf
        assert answer.tokens.tolist() == logits[len(asked) - 1 : -1].argmax(1).tolist()


def test_an_answer_stands_after_a_video_that_is_longer_than_it_is_wide():
    asked = PROMPTS[4]  # 20 s are 40 positions for 6 tokens
    example = with_answer(asked, answers(model(), [asked])[0][0])
    assert example.positions[:, len(asked)].tolist() == [1 + 40 + 2] * 3
    # as if the answer had been there from the beginning
    known = mrope_positions(example.tokens, IMAGE, VIDEO, [asked.visuals[0].grid], [asked.visuals[0].seconds])
    assert (example.positions == known).all()


@pytest.mark.parametrize(
    "options", [{}, {"temperature": 1.0, "seed": 3}, {"temperature": 0.7, "top_k": 9, "top_p": 0.8, "n_answers": 3}]
)
def test_batch_order_and_budget_change_nothing(options):
    keye = model(1)
    together = answers(keye, stop_tokens=[7, 9], **options)
    same(together, [answers(keye, [p], stop_tokens=[7, 9], **options)[0] for p in PROMPTS])
    same(together, answers(keye, PROMPTS[::-1], stop_tokens=[7, 9], **options)[::-1])
    for budget in (1, 40, 130):
        same(together, answers(keye, stop_tokens=[7, 9], budget=budget, **options))


def test_more_answers_begin_with_the_fewer_and_longer_ones_with_the_shorter():
    keye = model(2)
    few, many = (answers(keye, temperature=1.0, n_answers=n) for n in (2, 5))
    same(few, [answers_of_prompt[:2] for answers_of_prompt in many])
    assert len({tuple(a.tokens.tolist()) for a in many[0]}) == 5
    longer = answers(keye, temperature=1.0, n_answers=2, max_new_tokens=20)
    assert [a.tokens[:12].tolist() for s in longer for a in s] == [a.tokens.tolist() for s in few for a in s]


def test_answers_do_not_depend_on_how_their_memory_grows(monkeypatch):
    keye = model(2)
    expected = answers(keye, temperature=1.0, n_answers=2, max_new_tokens=40)
    monkeypatch.setattr("kvtools.keye.model.decode._ROOM", 2)  # it grows many times, by more each time
    same(expected, answers(keye, temperature=1.0, n_answers=2, max_new_tokens=40))


def test_seed_and_key_decide_the_draw():
    keye = model(2)
    twin = [replace(PROMPTS[0], key="x"), replace(PROMPTS[0], key="x"), replace(PROMPTS[0], key="y")]
    (x,), (again,), (y,) = answers(keye, twin, temperature=1.0)
    assert x.tokens.tolist() == again.tokens.tolist() != y.tokens.tolist()
    assert answers(keye, twin, temperature=1.0, seed=1)[0][0].tokens.tolist() != x.tokens.tolist()


def test_stop_tokens_end_an_answer_and_are_its_last():
    keye = model(1)
    free = answers(keye, max_new_tokens=30, temperature=1.0)
    stops = [int(free[0][0].tokens[4]), 13]
    for (stopped,), (whole,) in zip(answers(keye, max_new_tokens=30, temperature=1.0, stop_tokens=stops), free, strict=True):
        tokens = whole.tokens.tolist()
        ends = [i for i, token in enumerate(tokens) if token in stops]
        assert stopped.tokens.tolist() == (tokens[: ends[0] + 1] if ends else tokens)
        assert stopped.ended == ("stop" if ends else "length")
        assert stopped.text_tokens.tolist() == (tokens[: ends[0]] if ends else tokens)
        np.testing.assert_allclose(stopped.logprobs, whole.logprobs[: len(stopped.tokens)], atol=1e-5)


def test_pictures_are_never_drawn_nor_what_is_forbidden():
    logits = np.zeros(50, np.float32)
    logits[[IMAGE, VIDEO, 3]] = 9
    keye = constant(logits)
    drawn = answers(keye, [PROMPTS[0]], temperature=1.0, n_answers=40, suppress_tokens=[3])[0]
    assert not {IMAGE, VIDEO, 3} & {int(t) for a in drawn for t in a.tokens}
    assert answers(keye, [PROMPTS[0]], suppress_tokens=[3])[0][0].tokens.tolist() == [0] * 12
    expected = -np.log(3 * np.exp(9) + 47)  # they keep the probability
    np.testing.assert_allclose(drawn[0].logprobs, expected, rtol=1e-5)
    np.testing.assert_allclose(drawn[0].sampling_logprobs, -np.log(47), rtol=1e-5)


def test_frequencies_follow_the_distribution():
    logits = np.random.default_rng(0).normal(0, 1.5, 50).astype(np.float32)
    keye = constant(logits)
    probs = np.exp((logits - logits.max()) / 0.8)
    probs[[IMAGE, VIDEO]] = 0
    probs /= probs.sum()
    answers_of_prompt = answers(keye, [PROMPTS[0]], temperature=0.8, n_answers=400, max_new_tokens=25)[0]
    counts = np.bincount(np.concatenate([a.tokens for a in answers_of_prompt]), minlength=50)
    is_likely = probs * counts.sum() >= 5
    found = [*counts[is_likely], counts[~is_likely].sum()]
    expected = np.array([*probs[is_likely], probs[~is_likely].sum()]) * counts.sum()
    assert stats.chisquare(found, expected).pvalue > 1e-3
    pairs = Counter(
        (int(a), int(b)) for each in answers_of_prompt for a, b in zip(each.tokens[:-1], each.tokens[1:], strict=True)
    )
    top = np.argsort(-probs)[:4]  # a token says nothing of the next
    assert all(
        abs(pairs[a, b] - probs[a] * probs[b] * 9600) < 5 * (probs[a] * probs[b] * 9600) ** 0.5 for a in top for b in top
    )


def test_a_temperature_near_0_is_greedy():
    keye = model(3)
    greedy = answers(keye)
    for temperature in (1e-3, 1e-30):
        same(greedy, answers(keye, temperature=temperature))
    assert all((a.sampling_logprobs == 0).all() for answers_of_prompt in greedy for a in answers_of_prompt)
    same(greedy, answers(keye, temperature=1.0, top_k=1))


def test_log_probabilities_are_those_of_a_full_forward():
    keye = model(4)
    drawn = [
        a
        for answers_of_prompt in answers(keye, temperature=1.3, top_k=20, top_p=0.9, stop_tokens=[5])
        for a in answers_of_prompt
    ]
    for asked, answer in zip(PROMPTS, drawn, strict=True):
        logits = full_logits(keye, with_answer(asked, answer))[len(asked) - 1 : -1].double()
        tokens = torch.tensor(answer.tokens).long()
        whole = logits.log_softmax(1).gather(1, tokens[:, None])[:, 0]
        np.testing.assert_allclose(answer.logprobs, whole, atol=1e-5)
        logits[:, [IMAGE, VIDEO]] = -torch.inf
        for step, (token, drawn_as) in enumerate(zip(tokens.tolist(), answer.sampling_logprobs, strict=True)):
            assert drawn_as == pytest.approx(np.log(slow_candidates(logits[step].numpy(), 1.3, 20, 0.9)[token]), abs=1e-4)


def test_scores_of_a_packed_row_are_those_of_the_answers():
    keye = model(4)
    example = [
        (p, a)
        for p, answers_of_prompt in zip(PROMPTS, answers(keye, temperature=1.0, n_answers=2), strict=True)
        for a in answers_of_prompt
    ]
    row = collate([with_answer(*pair) for pair in example])
    scores = log_probabilities(keye, row)
    assert (scores.shape, scores.dtype) == ((len(row),), torch.float32)
    assert (scores[row.targets == 0] == 0).all()
    expected = np.concatenate([answer.logprobs for _, answer in example])
    np.testing.assert_allclose(scores[row.targets == 1].detach(), expected, atol=1e-5)
    everywhere = log_probabilities(keye, row, everywhere=True).detach()
    assert np.flatnonzero(everywhere == 0).tolist() == row.segments.tolist()


@pytest.mark.parametrize("number", [0, 1, 4])
def test_answers_beside_one_copy_of_their_prompt_score_as_each_after_its_own(number):
    keye, asked = model(5), PROMPTS[number]
    (found,) = answers(keye, [asked], n_answers=3, temperature=1.0, stop_tokens=[7, 9, 11])
    scored = [ScoredAnswer.of(asked, answer, 1.0) for answer in found]
    other = Prompted(PROMPTS[3], [ScoredAnswer.of(PROMPTS[3], answers(keye, [PROMPTS[3]])[0][0], 1.0)])
    shared = AnswerRow([Prompted(asked, scored), other]).packed()
    assert len(shared) == len(asked) + sum(len(answer.tokens) for answer in found) + len(other)
    whole = [with_answer(asked, answer) for answer in found]
    apart = collate([*whole, with_answer(PROMPTS[3], answers(keye, [PROMPTS[3]])[0][0])])
    gradients = []
    for row in (shared, apart):
        scores = log_probabilities(keye, row)[torch.from_numpy(row.targets == 1)]
        keye.zero_grad()
        (scores * torch.linspace(-1, 1, len(scores))).sum().backward()
        gradients.append([scores.detach(), *(p.grad.clone() for p in keye.parameters() if p.grad is not None)])
    for one, another in zip(*gradients, strict=True):
        torch.testing.assert_close(one, another, rtol=1e-4, atol=1e-5)


def test_scores_have_gradients_whatever_the_chunk(monkeypatch):
    keye = model(5).double()
    row = collate([with_answer(p, a) for p, (a,) in zip(PROMPTS, answers(model(5), temperature=1.0), strict=True)])
    weights = torch.linspace(-1, 1, len(row), dtype=torch.float64)

    def gradients():
        keye.zero_grad()
        (log_probabilities(keye, row) * weights).sum().backward()
        return [p.grad.clone() for p in keye.parameters() if p.grad is not None]

    whole = gradients()
    monkeypatch.setattr("kvtools.keye.model.log_probs._CHUNK_LOGITS", 7 * 50)
    for one, other in zip(whole, gradients(), strict=True):
        torch.testing.assert_close(one, other)
    parameter, step = keye.lm_head.weight, 1e-6
    with torch.no_grad():
        ends = []
        for sign in (1, -1):
            parameter[3, 4] += sign * step
            ends.append(float((log_probabilities(keye, row) * weights).sum()))
            parameter[3, 4] -= sign * step
    index = [p is parameter for p in keye.parameters() if p.grad is not None].index(True)
    assert (ends[0] - ends[1]) / (2 * step) == pytest.approx(float(whole[index][3, 4]), rel=1e-4)


def test_a_picture_is_encoded_once_and_a_prompt_read_once(monkeypatch):
    keye, encoded, read = model(6), [], []
    encode, hidden = Keye.encode_images, Keye.hidden
    monkeypatch.setattr(
        Keye, "encode_images", lambda self, pixels, grids: encoded.append(len(pixels)) or encode(self, pixels, grids)
    )
    monkeypatch.setattr(Keye, "hidden", lambda self, t, *rest: read.append(len(t)) or hidden(self, t, *rest))
    asked = PROMPTS[1]
    other = replace(prompt(2, (1, 4, 6), 4, key="o", seed=9), visuals=asked.visuals)
    answers_of_prompt = answers(keye, [asked, other], n_answers=3, max_new_tokens=4)
    assert encoded == [24]
    assert read == [len(asked) + len(other)]
    encoded.clear()
    cache = VisualCache(keye)
    for _ in range(2):
        same(answers_of_prompt, answers(keye, [asked, other], n_answers=3, max_new_tokens=4, visual_cache=cache, budget=1))
    assert encoded == [24]
    monkeypatch.undo()
    same(answers_of_prompt, [answers(keye, [p], n_answers=3, max_new_tokens=4)[0] for p in (asked, other)])


def test_each_token_is_reported_as_it_is_chosen_and_prompts_are_taken_as_needed():
    chosen, taken = [], []

    def prompts():
        for each in PROMPTS:
            taken.append(each.key)
            yield each

    run = generate(model(), prompts(), max_new_tokens=3, temperature=0, budget=1, on_token=lambda *what: chosen.append(what))
    (first,) = next(run)
    assert taken == ["a", "b"]  # one ahead, to see that it does not fit
    assert chosen == [("a", 0, token) for token in first.tokens]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"temperature": -1.0}, "temperature is -1.0, and a number of at least 0 is needed"),
        ({"top_p": 0.0}, "top_p is 0.0, and a number above 0 and at most 1 is needed"),
        ({"top_k": -1}, "top_k is -1, and 0 for all tokens or a number of tokens is needed"),
        ({"max_new_tokens": 0}, "max_new_tokens is 0, and a whole number of at least 1 is needed"),
        ({"n_answers": 0}, "n_answers is 0, and a whole number of at least 1 is needed"),
    ],
)
def test_settings_that_cannot_be_meant_are_refused_at_once(options, words):
    with pytest.raises(ValueError, match=words):
        generate(model(), [], **{"max_new_tokens": 1, **options})


def test_logits_that_are_not_finite_are_refused():
    keye = model()
    with torch.no_grad():
        keye.lm_head.weight[3] = torch.nan
    with pytest.raises(ValueError, match="not finite"):
        answers(keye, [PROMPTS[0]])


def test_bfloat16_weights_answer_too():
    keye = model().bfloat16()
    for asked, (answer,) in zip(PROMPTS, answers(keye), strict=True):
        scores = log_probabilities(keye, collate([with_answer(asked, answer)]))
        np.testing.assert_allclose(answer.logprobs, scores[len(asked) :].detach(), atol=0.1)


def insertion_at(n):
    """Text and two pictures after the n-th token of an answer, others for each prompt."""

    def insert(key, _number, tokens):
        if len(tokens) != n + ord(key) % 3:
            return None
        read = prompt(2, (1, 4, 6), 1, (1, 2, 2), 1, seed=ord(key))
        return Insertion(read.tokens, read.positions, read.visuals)

    return insert


@pytest.mark.parametrize("options", [{}, {"temperature": 1.0, "n_answers": 3}, {"temperature": 1.0, "budget": 40}])
def test_tokens_after_an_insertion_are_those_of_a_full_forward(options):
    keye = model()
    for asked, group in zip(PROMPTS, answers(keye, insert=insertion_at(3), **options), strict=True):
        for answer in group:
            example = with_answer(asked, answer)
            shown = example.visuals
            positions = mrope_positions(example.tokens, IMAGE, VIDEO, [v.grid for v in shown], [v.seconds for v in shown])
            assert np.array_equal(positions, example.positions)
            assert (int(example.targets.sum()), len(answer.logprobs)) == (12, 12)
            logprobs = log_probabilities(keye, collate([example])).detach().numpy()[example.targets == 1]
            np.testing.assert_allclose(logprobs, answer.logprobs, atol=1e-5)  # as full forwards differ among themselves
            if not options:
                logits = full_logits(keye, example)[:, :48]  # the tokens of pictures are never drawn
                drawn = np.flatnonzero(example.targets)
                assert logits[drawn - 1].argmax(1).tolist() == example.tokens[drawn].tolist()


def test_an_insertion_can_end_an_answer():
    empty = Insertion(np.empty(0, np.int32), np.empty((3, 0), np.int32), is_end=True)
    ((answer,),) = answers(model(), [PROMPTS[0]], insert=lambda _key, _number, tokens: empty if len(tokens) == 4 else None)
    assert (len(answer.tokens), answer.ended) == (4, "insertion")
