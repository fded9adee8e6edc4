"""Replies of the five modes: what the report's figures show is taken, and each near miss is refused by its own reason."""

import pytest

from kvtools.keye.data.modes import MODES, FormatError, boxes, parse, switch_of

THINK = "<think>\nThree apples and four make 3+4.\n</think>\n<answer>There are \\boxed{7}.</answer>"
CODE = "<code>\n```python\nimg.crop((0, 0, 9, 9)).save('a.png')\nprint('a.png')\n```\n</code>"
SANDBOX = f"{CODE}\n<sandbox_output>a.png</sandbox_output>"
AGENTIC = f"<think>Look closer. {SANDBOX} It says 20.</think><answer>\\boxed{{20}}</answer>"
EASY = "<analysis>A count of few things. Therefore, /no_think mode is more appropriate.</analysis>"
HARD = "<analysis>This needs steps. Therefore, /think mode is more appropriate.</analysis>"

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

# one slip each, and the reason that names it
NEAR_MISSES = [
    ("no_think", "", "the reply is empty"),
    ("no_think", " \n", "the reply is empty"),
    ("no_think", THINK, "a /no_think reply has <think>"),
    ("no_think", "<answer>7</answer>", "a /no_think reply has <answer>"),
    ("no_think", EASY + "Seven.", "a /no_think reply has <analysis>"),
    ("no_think", SANDBOX, "a /no_think reply has <code>"),
    ("no_think", "<sandbox_output>7</sandbox_output>", "a /no_think reply has <sandbox_output>"),
    ("no_think", "Seven.</think>", "</think> has no <think> before it"),
    ("no_think", "<think>Seven.", "<think> is never closed"),
    ("no_think", "\\boxed{7", "a \\boxed{ is never closed"),
    ("no_think", "\\boxed{ }", "a \\boxed{} is empty"),
    ("think", "There are seven apples.", "<think> is missing"),
    ("think", "<answer>\\boxed{7}</answer>", "<think> is missing"),
    ("think", "Well. " + THINK, "text stands before <think>"),
    ("think", "<think>a <answer>7</answer>", "<think> is never closed"),
    ("think", "a</think><answer>7</answer>", "</think> has no <think> before it"),
    ("think", "<think>a<think>b</think></think><answer>7</answer>", "<think> stands inside <think>"),
    ("think", "<think>a</think><think>b</think><answer>7</answer>", "<think> stands more than once"),
    ("think", "<think>\n\n</think><answer>7</answer>", "the thinking is empty"),
    ("think", "<think>a</think>7", "<answer> is missing"),
    ("think", "<answer>7</answer><think>a</think>", "<answer> stands before <think>"),
    ("think", "<think>a</think><answer>7", "<answer> is never closed"),
    ("think", "<think>a</think>7</answer>", "</answer> has no <answer> before it"),
    ("think", "<think>a</think><answer>7</answer><answer>8</answer>", "<answer> stands more than once"),
    ("think", "<think>a</think>So <answer>7</answer>", "text stands between </think> and <answer>"),
    ("think", "<think>a</think><answer>7</answer> That is all.", "text stands after </answer>"),
    ("think", "<think>a</think><answer> </answer>", "the answer is empty"),
    ("think", "<think>a <answer>7</answer></think>", "<answer> stands inside <think>"),
    ("think", "<think>a</think><answer><answer>7</answer></answer>", "<answer> stands inside <answer>"),
    ("think", "<think>a</think><answer>7 <code>x</code></answer>", "<code> stands inside <answer>"),
    ("think", "<think>a</think><answer>\\boxed{\\frac{1}{2}</answer>", "a \\boxed{ is never closed"),
    ("think", "<think>a</think><answer>\\boxed{}</answer>", "a \\boxed{} is empty"),
    ("think", "<think>\\boxed{7}</think><answer>seven</answer>", "the box stands in the thinking alone"),
    ("think", "<Think>a</Think><answer>7</answer>", "a tag is misspelt"),
    ("think", "<think>a< /think><answer>7</answer>", "a tag is misspelt"),
    ("think", "<think>a</think><answer>7<answer/>", "a tag is misspelt"),
    ("think", "<thinking>a</thinking><answer>7</answer>", "a tag is misspelt"),
    ("think", "\uff1cthink\uff1ea\uff1c/think\uff1e<answer>7</answer>", "a tag is misspelt"),
    ("think", "&lt;think&gt;a&lt;/think&gt;<answer>7</answer>", "a tag is misspelt"),
    ("think", HARD + THINK, "<analysis> stands outside of <think>"),
    ("think", AGENTIC, "a /think reply has <code>"),
    ("think", "<think>a <sandbox_output>7</sandbox_output></think><answer>7</answer>", "a /think reply has <sandbox_output>"),
    ("auto", "Seven.", "<analysis> is missing"),
    ("auto", THINK, "<analysis> is missing"),
    ("auto", "Hm. " + EASY + "Seven.", "text stands before <analysis>"),
    ("auto", "<analysis>Easy. Therefore, /no_think mode is more appropriate. Seven.", "<analysis> is never closed"),
    ("auto", EASY + EASY + "Seven.", "<analysis> stands more than once"),
    ("auto", EASY + "Seven.</analysis>", "</analysis> has no <analysis> before it"),
    ("auto", "<analysis>Easy.</analysis>Seven.", "the analysis has no verdict"),
    (
        "auto",
        "<analysis>Easy. So /no_think mode is more appropriate.</analysis>Seven.",
        "the verdict of the analysis is worded differently",
    ),
    (
        "auto",
        "<analysis>Easy. Therefore, no_think mode is more appropriate.</analysis>Seven.",
        "the verdict of the analysis is worded differently",
    ),
    (
        "auto",
        HARD.replace("</analysis>", " Therefore, /no_think mode is more appropriate.</analysis>") + "7",
        "the analysis has more than one verdict",
    ),
    ("auto", HARD.replace("/think", "/fast", 1) + THINK, "the analysis decides for an unknown mode"),
    ("auto", EASY.replace("</analysis>", " Go.</analysis>") + "Seven.", "text follows the verdict of the analysis"),
    (
        "auto",
        "<analysis>Therefore, /no_think mode is more appropriate.</analysis>7",
        "the analysis holds nothing but its verdict",
    ),
    ("auto", EASY.replace("A count", "<think>A count</think>") + "7", "<think> stands inside <analysis>"),
    ("auto", EASY, "nothing follows </analysis>"),
    ("auto", HARD + "Seven.", "the analysis decides for /think, and no <think> follows"),
    ("auto", EASY + THINK, "the analysis decides for /no_think, and <think> follows"),
    ("auto", HARD + "<think>a</think>7", "<answer> is missing"),
    ("agentic", THINK, "an agentic reply has no <code>"),
    ("agentic", f"<think>a</think>{SANDBOX}<answer>20</answer>", "<code> stands outside of <think>"),
    ("agentic", AGENTIC.replace("```python\n", "").replace("```\n", ""), "<code> is not fenced by ```python"),
    ("agentic", AGENTIC.replace("\n```\n</code>", "\n</code>"), "the ```python fence is never closed"),
    ("agentic", "<think><code></code><sandbox_output>1</sandbox_output></think><answer>20</answer>", "<code> is empty"),
    ("agentic", AGENTIC.replace("print('a.png')", "```\n```python"), "<code> holds more than one fence"),
    ("agentic", AGENTIC.replace("</code>", ""), "<code> is never closed"),
    ("agentic", AGENTIC.replace("<sandbox_output>a.png</sandbox_output>", ""), "<code> is not followed by <sandbox_output>"),
    ("agentic", AGENTIC.replace("</code>\n", "</code> It shows "), "<code> is not followed by <sandbox_output>"),
    ("agentic", AGENTIC.replace("a.png</sand", "</sand"), "<sandbox_output> is empty"),
    ("agentic", AGENTIC.replace("</sandbox_output>", ""), "<sandbox_output> is never closed"),
    (
        "agentic",
        f"<think><sandbox_output>1</sandbox_output> {SANDBOX}</think><answer>20</answer>",
        "<sandbox_output> follows no <code>",
    ),
    ("video", "<think>a</think>A man.", "<answer> is missing"),
    ("video", "A man.</think>", "</think> has no <think> before it"),
]  # fmt: skip


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


def test_an_unknown_mode_is_named():
    with pytest.raises(ValueError, match="mode 'fast' is unknown; the modes are " + ", ".join(MODES)):
        parse("x", "fast")
