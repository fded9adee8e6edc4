"""Replies of the five modes: what the report's figures show is taken, and each near miss is refused by its own reason."""

import random

import pytest
from near_misses import AGENTIC, EASY, HARD, NEAR_MISSES, SANDBOX, THINK

from kvtools.keye.data.modes import MODES, FormatError, boxes, parse, switch_of

# figures 6 to 13 of the report, in other words
GOOD = [
    ("no_think", "There are seven apples."),
    ("no_think", "\\boxed{\\frac{1}{2}}"),
    ("no_think", "Write it as <code>x = 1</code> in HTML."),
    ("no_think", "For a < b and b > c, [code] is 5."),
    ("think", THINK),
    ("think", "<think>a</think><answer>b</answer>"),
    ("think", "  <think>a</think>\n\n<answer>\\boxed{\\{1, 2\\}}</answer>\n"),
    ("think", "<think>first \\boxed{1}, no, \\boxed{2}</think><answer>\\boxed{2}</answer>"),
    ("auto", EASY + "Seven."),
    ("auto", HARD + THINK),
    ("auto", EASY + "\n\n\\boxed{7}"),
    ("agentic", AGENTIC),
    ("agentic", f"<think>{SANDBOX}\nAgain: {SANDBOX}\nDone.</think>\n<answer>20</answer>"),
    ("agentic", AGENTIC.replace("a.png</sand", "\ufffc</sand")),
    ("video", THINK),
    ("video", "A man flips a pancake."),
]


@pytest.mark.parametrize(("mode", "text"), GOOD)
def test_a_reply_of_its_mode_is_taken_apart(mode, text):
    reply = parse(text, mode)
    assert reply.answer
    assert reply.answer in text
    assert (reply.thinking is None) == (reply.mode == "no_think")


@pytest.mark.parametrize(("mode", "text", "reason"), NEAR_MISSES)
def test_a_near_miss_is_refused_with_its_reason(mode, text, reason):
    with pytest.raises(FormatError) as refused:
        parse(text, mode)
    assert refused.value.reason == reason


def test_near_misses_have_many_reasons():
    assert len({reason for _, _, reason in NEAR_MISSES}) >= 40


def test_the_parts_of_an_agentic_reply():
    reply = parse(AGENTIC, "agentic")
    assert reply.code == ("img.crop((0, 0, 9, 9)).save('a.png')\nprint('a.png')\n",)
    assert (reply.outputs, reply.boxed) == (("a.png",), "20")


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("\\boxed{a} and \\boxed {b}", ["a", "b"]),
        ("\\boxed{\\text{x } {y}}", ["\\text{x } {y}"]),
        ("\\boxed{\\{1\\}}", ["\\{1\\}"]),
        ("boxed{a}", []),
    ],
)
def test_boxes_hold_nested_braces(text, found):
    assert boxes(text) == found


@pytest.mark.parametrize(
    ("question", "found"),
    [
        ("What? /think", ("What?", "think")),
        ("What?\n/no_think\n", ("What?", "no_think")),
        ("What? /auto_think", ("What?", "auto")),
        ("What? /agentic_think", ("What?", "agentic")),
        ("/think", ("", "think")),
        ("Why is /thinking hard, and a/think b", ("Why is /thinking hard, and a/think b", None)),
    ],
)
def test_a_switch_ends_the_question(question, found):
    assert switch_of(question) == found


@pytest.mark.parametrize("question", ["/think What?", "What? /think /no_think"])
def test_a_switch_elsewhere_is_refused(question):
    with pytest.raises(FormatError):
        switch_of(question)


def test_whatever_a_model_writes_is_a_reply_or_a_format_error():
    words = [f"<{slash}{tag}>" for tag in ("think", "answer", "analysis", "code", "sandbox_output") for slash in ("", "/")]
    words += ["7", " ", "\\boxed{", "}", "```python\n1\n```", "Therefore, /think mode is more appropriate."]
    rng, n_good = random.Random(0), 0
    for _ in range(20_000):
        text = "".join(rng.choices(words, k=rng.randint(1, 8)))
        try:
            parse(text, rng.choice(MODES))
        except FormatError:
            continue
        n_good += 1
    assert n_good > 50


def test_an_unknown_mode_is_named():
    with pytest.raises(ValueError, match="mode 'fast' is unknown; the modes are " + ", ".join(MODES)):
        parse("x", "fast")
