"""The parts of the cold-start mixture: counts, packing, paths, documents of all forms, templates and masks of all modes."""

import gzip
import io
import json
import random
import re

import numpy as np
import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from kvtools.artifact.documents import read_documents
from kvtools.keye.data.chat_template import JINJA, MODES, SYSTEM, ChatTemplate
from kvtools.keye.data.modes import FormatError, parse
from kvtools.keye.mix.examine import Examiner, Rejected, Rules
from kvtools.keye.mix.paths import best_path
from kvtools.keye.mix.ratio import counts, largest_n, split_video
from kvtools.keye.mix.repair import enclose, repair
from kvtools.keye.mix.workers import packed, unpacked
from kvtools.train.packing import pack_stream

WEIGHTS = st.lists(st.integers(1, 400), min_size=1, max_size=5)


@given(WEIGHTS, st.integers(0, 5000))
def test_counts_sum_to_n_and_each_is_its_quota_rounded(weights, n):
    made = counts(weights, n)
    assert sum(made) == n
    assert all(abs(count - weight * n / sum(weights)) < 1 for count, weight in zip(made, weights, strict=True))


@given(st.data())
def test_the_largest_n_fits_and_no_larger_one_does(data):
    weights = data.draw(st.lists(st.integers(1, 20), min_size=1, max_size=4))
    available = data.draw(st.lists(st.integers(0, 30), min_size=len(weights), max_size=len(weights)))
    fits = [n for n in range(300) if all(c <= have for c, have in zip(counts(weights, n), available, strict=True))]
    most = largest_n(weights, available)
    assert most in fits
    assert not [n for n in fits if n > most] or most == 0 or max(fits) == most


@pytest.mark.parametrize(
    ("n", "available", "split"),
    [
        (104, (500, 500), (24, 80)),
        (104, (10, 500), (10, 94)),
        (104, (500, 50), (54, 50)),
        (13, (0, 50), (0, 13)),
        (1, (9, 9), (0, 1)),
    ],
)
def test_videos_are_split_as_in_the_report_where_there_are_enough(n, available, split):
    assert split_video(n, available) == split


@given(st.lists(st.integers(1, 50), max_size=200), st.integers(1, 5))
def test_rows_of_a_stream_hold_everything_once_and_never_too_much(sizes, n_open):
    rows = [*pack_stream(enumerate(sizes), lambda thing: thing[1], 50, n_open=n_open)]
    assert sorted(thing for row in rows for thing in row) == [*enumerate(sizes)]
    assert all(sum(size for _, size in row) <= 50 for row in rows)


def test_the_path_of_frequent_steps_is_kept():
    paths = [
        ("a", "Add them. It is 5."),
        ("b", "Guess. It is 5."),
        ("c", "Add them. So it is five. It is 5."),
        ("d", "Add them. It is 5. "),
    ]
    assert best_path(paths) == "a"


TEXT = "".join(json.dumps({"n": n}) + "\n" for n in range(3)).encode()


def zstd(data):
    return zstandard.ZstdCompressor().compress(data)


@pytest.mark.parametrize(
    ("data", "places"),
    [
        (TEXT, ["line 1", "line 2", "line 3"]),
        (gzip.compress(TEXT, mtime=0), ["line 1", "line 2", "line 3"]),
        (gzip.compress(TEXT[:9], mtime=0) + gzip.compress(TEXT[9:], mtime=0), ["line 1", "line 2", "line 3"]),
        (zstd(TEXT[:9]) + zstd(TEXT[9:]), ["line 1", "line 2", "line 3"]),
        (TEXT.decode().encode("utf-16"), ["line 1", "line 2", "line 3"]),
        (b"\xef\xbb\xbf" + TEXT, ["line 1", "line 2", "line 3"]),
        (b"\n\n" + TEXT, ["line 3", "line 4", "line 5"]),
        (json.dumps([{"n": n} for n in range(3)]).encode(), ["entry 0", "entry 1", "entry 2"]),
        (b"".join(json.dumps({"n": n}, indent=1).encode() + b"\n" for n in range(3)), ["entry 0", "entry 1", "entry 2"]),
    ],
    ids=["lines", "gzip", "two gzip", "two zstd", "utf-16", "byte-order mark", "blank lines", "list", "objects"],
)
def test_documents_of_every_form_are_the_same(data, places):
    read = [*read_documents(io.BufferedReader(io.BytesIO(data)))]
    assert read == [(place, {"n": n}) for n, place in enumerate(places)]


def test_parquet_is_read_row_by_row(tmp_path):
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    pq.write_table(pa.table({"n": [0, 1, 2], "x": [None, "a", None]}), tmp_path / "t.parquet")
    with open(tmp_path / "t.parquet", "rb") as file:
        assert [*read_documents(file)] == [("row 0", {"n": 0}), ("row 1", {"n": 1, "x": "a"}), ("row 2", {"n": 2})]


THOUGHT = "<think>\n{}\n</think>\n\n<answer>\\boxed{{{}}}</answer>"
DECIDED = "<analysis>{} Therefore, /{} mode is more appropriate.</analysis>"
OUTPUT = "\n<sandbox_output>1</sandbox_output>"
CODED = f"<think>\n{{}}\n<code>\n```python\nprint(1)\n```\n</code>{OUTPUT}\n</think>\n\n<answer>{{}}</answer>"


def conversations(n=50):
    """Conversations of all modes, some of several turns, some with a system message."""
    rng = random.Random(11)
    words = [
        "a",
        "box",
        "of",
        "7",
        "pears,",
        "\u89c6\u9891",
        "x^2",
        "<",
        "3\n\n",
        "",
        "\ttab",
        "/think",
        "<|im_end|>",
        "<images>",
    ]
    said = lambda: " ".join(rng.choices(words, k=rng.randint(1, 12))).strip() or "x"
    for number in range(n):
        mode = [*MODES][1:][number % (len(MODES) - 1)]
        reply = {
            "think": THOUGHT.format(said(), number), "agentic": CODED.format(said(), number), "auto_think": said(),
            "auto": DECIDED.format(said(), "no_think") + said(),
        }.get(mode, said())  # fmt: skip
        if mode == "auto" and number % 2:
            reply = DECIDED.format(said(), "think") + THOUGHT.format(said(), number)
        messages = [("user", said()), ("assistant", reply)]
        if number % 3 == 0:
            messages = [("user", said()), ("assistant", said()), *messages]
        if number % 4 == 0:
            messages = [("system", said()), *messages]
        yield {"mode": mode, "messages": [{"role": role, "content": text} for role, text in messages]}


def as_public(talk):
    """The messages with the switch where the model card has it: at the end of the last question."""
    *before, question, answer = talk["messages"]
    return [*before, {**question, "content": question["content"] + MODES[talk["mode"]]}, answer]


def test_tokens_are_those_of_the_template_and_masks_are_the_answers():
    jinja2 = pytest.importorskip("jinja2")
    chat, template = ChatTemplate.open(None), jinja2.Template(JINJA)
    for talk in conversations():
        messages = as_public(talk)
        tokens, targets = chat.encode(talk)
        assert chat.decode(tokens) == template.render(messages=messages)
        begin, learnt = 0, []  # what the mask holds, run by run
        for end in [*(np.flatnonzero(np.diff(targets)) + 1), len(targets)]:
            learnt += [chat.decode(tokens[begin:end])] if targets[begin] else []
            begin = end
        said = [message["content"] + "<|im_end|>" for message in messages if message["role"] == "assistant"]
        assert learnt == [part for text in said for part in text.split(OUTPUT)]  # what the sandbox says is read, not learnt


@pytest.mark.data
def test_tokens_are_those_of_keyes_published_template(data):
    jinja2 = pytest.importorskip("jinja2")
    public = json.loads((data / "tokenizer" / "keye" / "tokenizer_config.json").read_text())["chat_template"]
    chat, template = ChatTemplate.open(None), jinja2.Template(public)
    talks = [talk for talk in conversations(70) if "</analysis><think>" not in talk["messages"][-1]["content"]]
    assert len(talks) > 50
    for talk in talks:  # it drops what stands before <think>, an analysis included, adds empty thoughts, and implies no system
        messages = as_public(talk)
        if messages[0]["role"] != "system":
            messages = [{"role": "system", "content": SYSTEM}, *messages]
        rendered = template.render(messages=messages, add_generation_prompt=False)
        assert chat.decode(chat.encode(talk)[0]) == rendered.replace("<think>\n\n</think>\n\n", "")


@pytest.mark.parametrize(
    ("reply", "answer"),
    [
        ("3 + 4 = 7\n#### 7", "\\boxed{7}"), ("So.\nThe answer is 12 pears.", "\\boxed{12 pears}"),
        ("It is \\boxed{\\frac{1}{2}}.", "\\boxed{\\frac{1}{2}}"),
        ("<think>x</think>\n\nSeven.", "Seven."), ("Add.\n**Answer:** 3", "\\boxed{3}"),
        ("Add. So the answer is 5.", "\\boxed{5}"), ("Hm.\n- **Final Answer**: B. Pears", "\\boxed{B. Pears}"),
        ("\\boxed{7}\n#### 7", "\\boxed{7}"), ("<Think>x", None), ("<think>x</think>", None),
    ],
)  # fmt: skip
def test_other_layouts_are_enclosed_where_there_is_no_doubt(reply, answer):
    made = enclose(reply)
    assert (None if made is None else parse(made, "think").answer) == answer


@pytest.mark.parametrize(
    ("reply", "reason"),
    [
        ("one\n#### 1\ntwo\n#### 2", "the reasoning has different results"),
        ("\\boxed{1} or \\boxed{2}", "the reasoning has different results"),
        ("**Answer:** 7 of", "<think> is missing, and the text names no result"),
        ("Answers vary.\nThe answer is hard. Who knows?", "<think> is missing, and the text names no result"),
    ],
)
def test_reasoning_without_one_result_says_why(reply, reason):
    with pytest.raises(FormatError, match=f"^{re.escape(reason)}$"):
        enclose(reply)


@given(st.text(alphabet="<>/think anwser\\boxed{}\n", max_size=60))
def test_a_repair_is_never_repaired_again_and_adds_no_letters(text):
    once, _ = repair(text)
    assert repair(once) == (once, [])
    letters = lambda s: "".join(s.split())
    assert len(letters(once)) <= len(letters(text)) + len("</answer>") + 6 * text.count("<")


def test_results_travel_between_processes_unchanged():
    class NoMedia:
        fetch = None

    from kvtools.keye.data.processor import Processor

    examiner = Examiner(Rules(is_packed=True), Processor(ChatTemplate.open(None), NoMedia()))
    talks = [{"messages": talk["messages"], "mode": talk["mode"]} for talk in conversations(20)]
    results = [examiner.examine(talk, "think", "a.jsonl", f"line {n}") for n, talk in enumerate(talks)]
    assert {Rejected} < {type(result) for result in results}
    assert unpacked(packed(results)) == results
