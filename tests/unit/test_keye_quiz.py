"""Self-made questions: the answer is right, is seen by looking, and by nothing else."""

from collections import Counter
from itertools import combinations, pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvtools.errors import Corrupt
from kvtools.keye.quiz.build import ask, ask_labels
from kvtools.keye.quiz.clips import Clip, ClipTable, Side, in_groups, on_side
from kvtools.keye.quiz.orders import orders
from kvtools.keye.quiz.tasks import LETTERS
from kvtools.skipped import SkippedRows

FORMS = ("choice", "open", "check")


def clip(name, n_frames=24, step=0.25, group=None, size=(56, 84)):
    """A clip with a look of its own that changes steadily, and a little by chance."""
    rng = np.random.default_rng(sum(name.encode()))
    first, way = rng.uniform(40, 200, (1, 8, 8, 3)), rng.normal(0, 4, (1, 8, 8, 3))
    looks = first + way * np.arange(n_frames)[:, None, None, None] + rng.normal(0, 0.2, (n_frames, 8, 8, 3))
    return Clip(name, step * np.arange(n_frames), size, looks.clip(0, 255).astype(np.float32), group or name)


CLIPS = [clip(f"clip {n}", 20 + n, size=(56, 56 + 28 * (n % 3))) for n in range(12)]


def questions(task, form, n=240, clips=CLIPS, **more):
    options = {"n_frames": 6, "n_choices": 4, "seed": 0} | more
    return list(ask(clips, task.split(","), form, n, SkippedRows(), **options))


def items(question, kind):
    return [part for part in question["messages"][0]["content"] if part["type"] == kind]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("task", ["order", "match", "time"])
def test_answers_are_spread_evenly_and_the_same_every_time(task, form):
    asked = questions(task, form)
    assert asked == questions(task, form)
    assert len(asked) == 240
    assert len({str(question["messages"]) for question in asked}) == 240
    assert all(question["messages"][-1]["content"][0]["text"] == question["answer"] for question in asked)
    if form == "check":
        assert Counter(question["answer"] for question in asked) == {"yes": 120, "no": 120}
    elif form == "choice" or task == "match":
        assert Counter(question["answer"] for question in asked) == dict.fromkeys("ABCD", 60)
        assert {question["chance"] for question in asked} == {0.25}
    used = Counter(question["clips"][0] for question in asked)
    assert set(used) == {each.key for each in CLIPS}
    assert max(used.values()) <= 2 * 240 / len(CLIPS)


def test_an_order_is_that_of_the_seconds():
    for question in questions("order", "open"):
        seconds = [part["second"] for part in items(question, "image")]
        order = [int(number) - 1 for number in question["answer"].split()]
        assert [seconds[number] for number in order] == sorted(seconds)
        assert question["reversed"] == question["answer"][::-1]
        assert question["chance"] == pytest.approx(1 / 720)
    for question in questions("order", "choice"):
        seconds = [part["second"] for part in items(question, "image")]
        order = [int(number) - 1 for number in question["choices"][LETTERS.index(question["answer"])].split()]
        assert [seconds[number] for number in order] == sorted(seconds)
    for question in questions("order", "check"):
        (video,) = items(question, "video")
        assert (video["seconds"] == sorted(video["seconds"])) == (question["answer"] == "yes")
        assert video["shown"] == pytest.approx(np.array(sorted(video["seconds"])) - min(video["seconds"]))


def test_the_clip_that_goes_on_is_the_one_of_the_same_key():
    for question in questions("match", "choice"):
        before, *options = items(question, "video")
        right = options[LETTERS.index(question["answer"])]
        assert right["video"] == before["video"]
        assert min(right["seconds"]) > max(before["seconds"])
        assert len({option["video"] for option in options}) == 4
    for question in questions("match", "check"):
        first, second = items(question, "video")
        assert (first["video"] == second["video"]) == (question["answer"] == "yes")


def test_the_cut_is_at_the_second_asked_for():
    for form in FORMS:
        for question in questions("time", form):
            (video,) = items(question, "video")
            first, second = video["video"]
            assert first["video"] != second["video"]
            cut = video["shown"][len(first["seconds"])]
            assert question["second"] == cut
            text = items(question, "text")[0]["text"]
            if form == "choice":
                assert float(question["choices"][LETTERS.index(question["answer"])]) == pytest.approx(cut, abs=0.051)
            elif form == "open":
                assert float(question["answer"]) == pytest.approx(cut, abs=0.051)
            else:
                assert (f"at {cut:.1f} s" in text) == (question["answer"] == "yes")


def test_videos_of_a_question_tell_nothing_by_their_shape_and_times():
    for question in questions("match", "choice"):
        videos = items(question, "video")
        assert len({(tuple(v["shown"]), tuple(v["size"]), len(v["seconds"])) for v in videos}) == 1
    for question in questions("time", "choice"):
        gaps = np.diff(items(question, "video")[0]["shown"])
        assert gaps == pytest.approx(np.full(len(gaps), gaps[0]))
    sizes = [
        (tuple(items(question, "video")[0]["size"]), next(c.size for c in CLIPS if c.key == question["clips"][0]))
        for question in questions("match", "choice")
    ]
    # were it always the right clip's own, the one that is not stretched would be right
    assert 0.3 < np.mean([size == own for size, own in sizes]) < 0.6


def test_who_looks_at_no_picture_is_at_chance():
    """Blind answerers of the choice of orders: the option most like, or least like, the others; 800 questions, 4 options."""
    asked = questions("order", "choice", 800)

    def likeness(question, compare):
        options = [question["choices"][i].split() for i in range(4)]
        return [sum(compare(a, b) for b in options if b is not a) for a in options]

    def neighbours(a, b):
        return len({frozenset(p) for p in pairwise(a)} & {frozenset(p) for p in pairwise(b)})

    def slots(a, b):
        return sum(x == y for x, y in zip(a, b, strict=True))

    for compare in (neighbours, slots):
        for pick in (np.argmax, np.argmin):
            right = [LETTERS[int(pick(likeness(question, compare)))] == question["answer"] for question in asked]
            assert abs(np.mean(right) - 0.25) < 4 * np.sqrt(0.25 * 0.75 / 800), (compare.__name__, pick.__name__)
    times = questions("time", "choice", 800)
    for index in range(4):  # the options rise: is the first, or the last, right more often?
        assert np.mean([question["answer"] == LETTERS[index] for question in times]) == pytest.approx(0.25)


@given(st.integers(4, 9), st.integers(2, 6), st.integers(0, 99))
@settings(max_examples=80, deadline=None)
def test_orders_on_offer_differ_and_none_is_anothers_reverse(n, n_options, seed):
    found = orders(n, n_options, np.random.default_rng(seed))
    for a, b in combinations(found, 2):
        shared = {frozenset(p) for p in pairwise(a)} & {frozenset(p) for p in pairwise(b)}
        assert len(shared) <= max(2 if n == 4 else 0, (n - 1) // 2)
        assert a not in (b, b[::-1])


def test_more_orders_than_there_are_is_refused():
    with pytest.raises(ValueError, match="^there are no 4 orders of 3 frames that differ enough$"):
        orders(3, 4, np.random.default_rng(0))


def test_a_still_clip_a_short_one_and_twins_are_not_asked_about():
    still = Clip("still", np.arange(20) / 4, (56, 56), np.full((20, 8, 8, 3), 9, np.float32), "still")
    skipped = SkippedRows()
    asked = list(
        ask([still, clip("short", 3), clip("good")], ["order"], "choice", 40, skipped, n_frames=6, n_choices=4, seed=0)
    )
    assert {question["clips"][0] for question in asked} == {"good"}
    assert skipped.counts == {
        "clips with too few frames for order left out": 1,
        "clips of which no fair question could be asked (order)": 1,
    }
    twins = [
        Clip(name, each.seconds, each.size, each.thumbnails, name) for name, each in zip("ab", [clip("x")] * 2, strict=True)
    ]
    assert not list(ask(twins, ["match", "time"], "check", 9, SkippedRows(), n_frames=6, n_choices=2, seed=0))
    scene = [clip("p", group="g"), clip("q", group="g")]
    assert not list(ask(scene, ["match", "time"], "check", 9, SkippedRows(), n_frames=6, n_choices=2, seed=0))


def test_a_clip_with_a_cut_of_its_own_is_not_asked_when_it_changes():
    whole = clip("w")
    looks = whole.thumbnails.copy()
    is_dark = np.random.default_rng(0).permutation(len(looks)) % 2 == 0
    looks[is_dark] = 255 - looks[is_dark]
    flicker = [Clip(name, whole.seconds, whole.size, looks, name) for name in "ab"]
    assert not list(ask(flicker, ["time"], "open", 9, SkippedRows(), n_frames=6, n_choices=4, seed=0))


def test_tasks_take_turns_and_end_apart():
    asked = questions("order,match,time", "choice", 30)
    assert Counter(question["task"] for question in asked) == {"order": 10, "match": 10, "time": 10}
    alone = list(ask(CLIPS[:1], ["order", "match"], "choice", 10, SkippedRows(), n_frames=6, n_choices=4, seed=0))
    assert {question["task"] for question in alone} == {"order"}
    assert len(alone) == 10


def test_labels_are_asked_once_a_clip_and_chance_is_the_majority():
    words = ["fight"] * 7 + ["calm"] * 5
    options = {"n_frames": 6, "n_choices": 4, "seed": 0, "positive": None, "question": ""}
    check = ask_labels(CLIPS, words, "check", None, **{**options, "positive": "fight", "question": "A fight?"})
    assert sorted(question["clips"][0] for question in check) == sorted(each.key for each in CLIPS)
    assert Counter(question["answer"] for question in check) == {"yes": 7, "no": 5}
    assert {question["chance"] for question in check} == {7 / 12}
    assert items(check[0], "text")[0]["text"] == "A fight?"
    choice = ask_labels(CLIPS, words, "choice", 48, **options)
    assert Counter(question["answer"] for question in choice) == {"A": 24, "B": 24}
    label_of = dict(zip((each.key for each in CLIPS), words, strict=True))
    assert all(q["choices"][LETTERS.index(q["answer"])] == label_of[q["clips"][0]] == q["label"] for q in choice)
    free = ask_labels(CLIPS, words, "open", None, **options)
    assert all(question["answer"] == question["label"] for question in free)


def test_a_clip_keeps_its_side_whatever_else_there_is():
    everything = [clip(f"c{n}", 2) for n in range(400)]
    train, test = Side("train", 0.7), Side("test", 0.3)
    sides = {each.key: train.holds(each.group) for each in everything}
    assert all(test.holds(each.group) != sides[each.key] for each in everything)
    assert 0.62 < np.mean(list(sides.values())) < 0.78
    assert [each.key for each in on_side(everything[::7], train, None)] == [e.key for e in everything[::7] if sides[e.key]]


def test_groups_stay_together_and_tables_are_read_by_the_end_of_a_path(tmp_path):
    (tmp_path / "g.csv").write_text(
        "file,label,split,scene_group\nd/x/a.mp4,1,train,g1\nd/x/b.mp4,2,test,g1\nc.mp4,1,test,g2\n"
    )
    table = ClipTable.open(str(tmp_path / "g.csv"))
    grouped = in_groups([clip("x/a.mp4"), clip("b.mp4"), clip("long/c.mp4"), clip("none")], table)
    assert [each.group for each in grouped] == ["g1", "g1", "g2", "none"]
    assert [each.key for each in on_side(grouped, Side("test", None), table)] == ["b.mp4", "long/c.mp4"]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "there is no column file among none. Add it."),
        ("a,b\n1,2\n", "there is no column file among a, b. Add it."),
        ("file,x\na\n", "line 2 has 1 fields, and the first row has 2. Correct the line."),
        ("file\na\na\n", "line 3: a comes a second time. Remove one of the two rows."),
        ("\xff", "line 1 is not UTF-8 text. Convert the file, for example with iconv."),
    ],
)
def test_a_table_that_cannot_be_meant_is_corrupt(tmp_path, text, words):
    (tmp_path / "t.csv").write_bytes(text.encode("latin-1"))
    with pytest.raises(Corrupt, match=words):
        ClipTable.open(str(tmp_path / "t.csv"))
    (tmp_path / "t.csv").write_text("file\nx/a\ny/a\n")
    with pytest.raises(Corrupt, match="may both be a"):
        ClipTable.open(str(tmp_path / "t.csv")).of("a")
