"""Examples, rows and epochs: nothing lost in packing, an epoch that is the same every time, what is left out named."""

import numpy as np
import pytest
from conftest import n_skipped
from hypothesis import given, settings
from hypothesis import strategies as st
from small_media import clip_of, write_stream

from kvtools.artifact.files import Sink, open_source
from kvtools.artifact.stream import Head, Reader, Writer
from kvtools.artifact.stream_index import Index
from kvtools.errors import Corrupt
from kvtools.keye.data.chat_template import ChatTemplate
from kvtools.keye.data.dataloader import BAD, NO_ANSWER, TOO_LONG, UNREADABLE, ConversationLoader, PackedRowLoader, steps
from kvtools.keye.data.media import Media, Unreadable
from kvtools.keye.data.packing import collate, from_record, to_record
from kvtools.keye.data.processor import Processor
from kvtools.keye.model.positions import mrope_positions

CHAT = ChatTemplate.open(None)
SYSTEM = {"role": "system", "content": ""}


def index_of(path):
    return Index(open_source(str(path)), str(path))


def talk(name, n_letters, *visuals):
    content = [*visuals, {"type": "text", "text": "q" * n_letters}]
    said = {"role": "assistant", "content": "yes"}
    return {"id": name, "messages": [SYSTEM, {"role": "user", "content": content}, said]}


IMAGE, VIDEO = {"type": "image", "image": "a", "second": 1}, {"type": "video", "video": "a", "frames": 3}


@pytest.fixture
def media(tmp_path):
    stream = write_stream(tmp_path / "clips.kvs", {"a": clip_of(range(0, 80, 10), 0.7)})
    with Media([stream]) as media:
        yield media


def test_a_row_is_its_conversations_one_after_another(media):
    talks = [talk("one", 3, VIDEO, IMAGE), talk("two", 5), talk("three", 1, IMAGE)]
    examples = [Processor(CHAT, media).example(each) for each in talks]
    row = collate(examples)
    assert row.keys == ("one", "two", "three")
    assert row.lengths == [len(e) for e in examples]
    assert row.segments.tolist() == np.cumsum([0, *row.lengths])[:-1].tolist()
    assert row.grid.tolist() == [[3, 4, 6], [1, 4, 6], [1, 4, 6]]
    assert len(row.seconds) == 5
    is_visual = np.isin(row.tokens, [CHAT.image_token, CHAT.video_token])
    assert is_visual.sum() * 4 == len(row.pixels)
    assert not row.targets[is_visual].any()
    for example, begin, n in zip(examples, row.segments, row.lengths, strict=True):
        alone = mrope_positions(
            example.tokens, CHAT.image_token, CHAT.video_token, [v.grid for v in example.visuals],
            [v.seconds for v in example.visuals],
        )  # fmt: skip
        assert (row.positions[:, begin : begin + n] == alone).all()


def test_positions_follow_the_true_times(media):
    example = Processor(CHAT, media).example(talk("x", 1, {"type": "video", "video": "a"}))
    shown = example.positions[0][example.tokens == CHAT.video_token].reshape(8, 6)
    assert (shown - shown[0, 0])[:, 0].tolist() == [int(np.float32(0.7 * k) * np.float32(2)) for k in range(8)]


def test_a_sequence_record_gives_the_row_back(tmp_path, media):
    as_is = {**talk("one", 3, VIDEO), "as_is": True}
    row = collate([Processor(CHAT, media).example(as_is), Processor(CHAT, media).example(talk("two", 5))])
    assert row.as_is == {"one"}
    bare = collate([Processor(CHAT, None).example(talk("three", 2))])
    with Writer(Sink(str(tmp_path / "s.kvs")), Head("sequence")) as writer:
        for name, each in (("r0", row), ("r1", bare)):
            tensors, fields = to_record(each)
            writer.write(name, tensors, **fields)
    for record, expected in zip(Reader(open_source(str(tmp_path / "s.kvs")), "s"), (row, bare), strict=True):
        found = from_record(record.tensors, record.fields)
        for name in ("tokens", "targets", "segments", "positions", "grid", "seconds"):
            assert (getattr(found, name) == getattr(expected, name)).all(), name
        assert (found.pixels is None) == (expected.pixels is None)
        assert found.keys == expected.keys
        assert found.as_is == expected.as_is
    loader = PackedRowLoader([index_of(tmp_path / "s.kvs")], seed=3)
    plans = list(loader.epoch(0))
    assert sorted(plan.keys for plan in plans) == [("one", "two"), ("three",)]
    assert {loader.build(plan).keys for plan in plans} == {("one", "two"), ("three",)}
    with pytest.raises(Corrupt, match=r"clips.kvs: record 0: its kind is 'video', "):
        list(PackedRowLoader([index_of(tmp_path / "clips.kvs")]).epoch(0))


@pytest.mark.parametrize(
    ("name", "change", "words"),
    [
        ("segments", lambda x: x + 1, "segments"),
        ("segments", lambda x: x[:0], "segments"),
        ("grid", lambda x: x * 2, "patches"),
        ("seconds", lambda x: x[:-1], "and 2 times, and grid needs 72 patches and 3 times"),
        ("targets", lambda x: x[:-1], "targets"),
        ("pixels", lambda x: x[:-4], "patches"),
    ],
)
def test_a_record_whose_parts_do_not_fit_is_refused(media, name, change, words):
    tensors, fields = to_record(collate([Processor(CHAT, media).example(talk("one", 3, VIDEO))]))
    fields = {"kind": "sequence", "key": "r", **fields}
    from_record(tensors, fields)
    with pytest.raises(ValueError, match=words):
        from_record({**tensors, name: change(tensors[name])}, fields)


def talks_of(lengths):
    return [talk(f"t{n}", letters) for n, letters in enumerate(lengths)]


@given(st.lists(st.integers(1, 60), min_size=1, max_size=30), st.integers(0, 5), st.integers(1, 12))
@settings(max_examples=30, deadline=None)
def test_an_epoch_holds_each_conversation_once_and_rows_keep_their_length(lengths, epoch, window):
    loader = ConversationLoader(talks_of(lengths), Processor(CHAT), length=100, window=window, seed=1)
    plans = list(loader.epoch(epoch))
    assert sorted(key for plan in plans for key in plan.keys) == sorted(f"t{n}" for n in range(len(lengths)))
    assert all(sum(plan.lengths) <= 100 for plan in plans)
    again = ConversationLoader(talks_of(lengths), Processor(CHAT), length=100, window=window, seed=1)
    assert [plan.indices for plan in again.epoch(epoch)] == [plan.indices for plan in plans]
    for plan in plans[:3]:
        row = loader.build(plan)
        assert (tuple(row.lengths), row.keys, int(row.targets.sum())) == (plan.lengths, plan.keys, plan.n_targets)


def test_epochs_and_seeds_differ():
    loader = ConversationLoader(talks_of([5] * 40), Processor(CHAT), length=100)
    other = ConversationLoader(talks_of([5] * 40), Processor(CHAT), length=100, seed=1)
    first = [plan.indices for plan in loader.epoch(0)]
    assert first != [plan.indices for plan in loader.epoch(1)]
    assert first != [plan.indices for plan in other.epoch(0)]


def test_an_epoch_does_not_depend_on_what_was_met_before(media):
    talks = [talk(f"t{n}", 3 + n % 7, *([IMAGE] if n % 3 else [])) for n in range(20)]
    fresh, used = (ConversationLoader(talks, Processor(CHAT, media), length=120, window=8) for _ in range(2))
    list(used.epoch(0))
    assert [plan.indices for plan in fresh.epoch(1)] == [plan.indices for plan in used.epoch(1)]


def test_what_cannot_be_learnt_is_left_out_counted_and_named(media):
    missing = talk("missing", 1, {"type": "video", "video": "nowhere"})
    asked = {"id": "asked", "messages": [{"role": "user", "content": "q"}]}
    bad = {"id": "bad", "messages": [{"role": "nobody", "content": "q"}]}
    half = {"id": "half", "messages": [{"role": "user", "content": "\ud800"}, {"role": "assistant", "content": "x"}]}
    loader = ConversationLoader(
        [talk("good", 3), talk("long", 500), missing, asked, bad, half], Processor(CHAT, media), length=120
    )
    for _ in range(2):
        assert [plan.keys for plan in loader.epoch(0)] == [("good",)]
    assert loader.skipped.counts == {TOO_LONG: 1, UNREADABLE: 1, NO_ANSWER: 1, BAD: 2}
    said = "\n".join(loader.skipped.lines())
    assert "missing: nowhere: no record of that key" in said
    assert "long: 5" in said
    assert "bad: role is 'nobody'" in said


def test_long_conversations_may_lose_their_last_turns():
    turns = [{"role": role, "content": letter * 30} for letter in "abc" for role in ("user", "assistant")]
    loader = ConversationLoader([{"id": "x", "messages": [SYSTEM, *turns]}], Processor(CHAT), length=200, truncates=True)
    (plan,) = loader.epoch(0)
    text = CHAT.decode(loader.build(plan).tokens)
    assert text.endswith("b" * 30 + "<|im_end|>\n")
    assert "c" not in text.split("system")[1]
    assert not list(
        ConversationLoader([{"id": "x", "messages": [SYSTEM, *turns]}], Processor(CHAT), length=60, truncates=True).epoch(0)
    )


def test_a_clip_that_goes_away_is_left_out_of_its_row(tmp_path, media):
    loader = ConversationLoader([talk("one", 1, IMAGE), talk("two", 1)], Processor(CHAT, media), length=200)
    (plan,) = loader.epoch(0)
    media._streams.clear()
    media._cache.clear()
    assert loader.build(plan).keys == ("two",)
    assert (loader.lost_later.counts, loader.skipped.counts) == ({UNREADABLE: 1}, {})
    with pytest.raises(Unreadable):
        Processor(CHAT, media).example(talk("one", 1, IMAGE))
    with pytest.raises(ValueError, match="and no media were given to find them in"):
        Processor(CHAT, None).example(talk("one", 1, IMAGE))


def test_steps_hold_as_many_tokens_as_they_may():
    loader = ConversationLoader(talks_of([20] * 30), Processor(CHAT), length=120)
    gathered = list(steps(loader.epoch(0), 300))
    sums = [sum(sum(plan.lengths) for plan in step) for step in gathered]
    assert all(180 < n <= 300 for n in sums[:-1])  # a row of at most 120 more would not have fitted
    assert [len(step) for step in steps(loader.epoch(0), 50)] == [1] * len(list(loader.epoch(0)))
    assert sum(len(step) for step in gathered) == len(list(loader.epoch(0)))


@pytest.mark.data
def test_real_conversations_fill_rows_and_balance(data):
    from kvtools.keye.data.conversations import open_conversations
    from kvtools.train.packing import balance, max_over_mean, round_robin

    folder = data / "reasoning" / "llamafactory"
    chat = ChatTemplate.open(str(data / "tokenizer" / "minimind"))
    source = open_conversations(str(folder / "alpaca_en_demo.json"))
    loader = ConversationLoader(source.conversations, Processor(chat), length=1024)
    plans = list(loader.epoch(0))
    assert n_skipped(loader.skipped) == 0
    assert sum(len(plan.indices) for plan in plans) == 999
    lengths = [sum(plan.lengths) for plan in plans]
    assert sum(lengths) > 0.95 * 1024 * len(lengths)
    alone = [n for plan in plans for n in plan.lengths]
    costs = [n * (1 + n / 512) for n in alone]
    assert max_over_mean(costs, balance(costs, 8)) < 1.01 < max_over_mean(costs, round_robin(len(costs), 8))
