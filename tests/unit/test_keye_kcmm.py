"""Answers to KC-MMBench: what the rules read in them, and what the published evaluator does."""

import itertools
import random
import re

import pytest
from kcmm_cases import LISTS, ORDERS, PROPERTIES, YES_NO

from kvtools.keye.bench import report, rules
from kvtools.keye.bench.benchmark import JudgeRequest, Question, Verdict
from kvtools.keye.bench.kcmm import PUBLISHED_OTHERS, KCMMBench

BENCH = KCMMBench()


def question(task, answer):
    return Question(task, "1", [{"type": "text", "text": "?"}], answer)


@pytest.mark.parametrize(
    ("read", "cases"),
    [
        (rules.yes_or_no, YES_NO),
        (lambda text: (found := rules.yes_no_list(text)) and "_".join(found), LISTS),
        (lambda text: (found := rules.order_of(text)) and [*found], ORDERS),
        (rules.properties_of, PROPERTIES),
    ],
    ids=["yes or no", "lists", "orders", "properties"],
)
def test_rules_read_what_a_person_reads(read, cases):
    wrong = [(text, said, read(rules.final_answer(text))) for text, said in cases if read(rules.final_answer(text)) != said]
    assert wrong == []


def test_there_are_cases_enough():
    assert sum(map(len, (YES_NO, LISTS, ORDERS, PROPERTIES))) >= 150


@pytest.mark.parametrize(
    ("task", "answer", "text", "is_right", "is_failure"),
    [
        ("SPU", "是", "是。", True, False),
        ("SPU", "否", "不是", True, False),
        ("High_like", "是", "否，不是", False, False),
        ("Pornographic_Comment", "是", "<think>是</think>", False, True),
        ("Hot_Videos_Aggregation", "是_否", "【是，否】", True, False),
        ("Hot_Videos_Aggregation", "是_否", "[是，否，是]", False, False),
        ("Collection_Order", "[视频2，视频1]", "[Video 2, Video 1]", True, False),
        ("Collection_Order", "[Video 2, Video 1]", "[Video 1, Video 2]", False, False),
        ("Collection_Order", "[春, 夏]", "[夏，春]", False, False),
        ("Collection_Order", "[春, 夏]", "[春，夏]", True, False),
        ("CPV", '{"色": ["红", "蓝"], "码": "L"}', '{"码": ["L"], "色": ["蓝", "红"]}', True, False),
        ("CPV", '{"色": ["红", "蓝"]}', '{"色": "红"}', False, False),
        ("CPV", '{"色": "红"}', "红", False, True),
    ],
)
def test_rules_compare_by_task(task, answer, text, is_right, is_failure):
    verdict = BENCH.rules(question(task, answer), text)
    assert (verdict.is_right, verdict.extracted is None) == (is_right, is_failure)


def second_post_process(text):
    """Section 6.4 of the specification once more, written from it alone."""
    for tag in ("</analysis>", "</think>"):
        if tag in text:
            text = text[text.rindex(tag) + len(tag) :]
            text = text.strip() if tag == "</think>" else text
    text = text.strip()
    spans = []
    at = 0
    while (begin := text.find("<answer>", at)) >= 0 and (end := text.find("</answer>", begin)) >= 0:
        spans.append(text[begin + 8 : end])
        at = end + 9
    if spans:
        text = spans[-1]
    begin = text.rfind("\\boxed{")
    if begin >= 0:
        for end in range(begin + 7, len(text)):
            inside = text[begin + 7 : end]
            if text[end] == "}" and inside.count("{") == inside.count("}"):
                text = inside
                break
    while (begin := text.find("<think>")) >= 0 and (end := text.find("</think>", begin)) >= 0:
        text = text[:begin] + text[end + 8 :]
    return text


def second_yes_or_no(text):
    words = "".join(letter for letter in text if letter not in "!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~").split()
    if words.count("是") and not words.count("否"):
        return "是"
    if words.count("否") and not words.count("是"):
        return "否"
    if words.count("yes") and not words.count("no"):
        return "是"
    if words.count("no") and not words.count("yes"):
        return "否"
    return None


def texts():
    """The cases, and texts put together from pieces at random."""
    yield from (text for text, _ in itertools.chain(YES_NO, LISTS, ORDERS, PROPERTIES))
    pieces = ["是", "否", "yes", "no", "Yes", "。", "，", ",", " ", "\n", "<think>", "</think>", "<answer>", "</answer>",
              "\\boxed{", "{", "}", "</analysis>", "<analysis>", "不是", "[是，否]"]  # fmt: skip
    rng = random.Random(4)
    for _ in range(3000):
        yield "".join(rng.choices(pieces, k=rng.randint(1, 12)))


def test_reference_equals_a_second_implementation_of_the_published_evaluator():
    for text in texts():
        for gold in ("是", "否"):
            found = BENCH.reference(question("SPU", gold), text)
            verdict = found.without if isinstance(found, JudgeRequest) else found
            word = second_yes_or_no(second_post_process(text))
            assert (verdict.is_right, verdict.extracted) == (word == gold, word), text
            assert isinstance(found, JudgeRequest) == (word is None)
        for task in ("CPV", "Collection_Order", "Hot_Videos_Aggregation"):
            request = BENCH.reference(question(task, "是"), text)
            assert request.prompt.endswith(f"回答：{second_post_process(text)}"), text


@pytest.mark.parametrize(
    ("task", "gold", "reply", "is_right"),
    [
        ("SPU", "是", "是", True),
        ("SPU", "否", "Unknown", False),
        ("Hot_Videos_Aggregation", "是_否", "列表：[是] 改为 [是，否]", True),
        ("Hot_Videos_Aggregation", "是_否", "[否，是]", False),
        ("Hot_Videos_Aggregation", "是_否", "[是，否，否]", False),
        ("Hot_Videos_Aggregation", "是_否", "是，否", False),
        ("CPV", "{}", "回答正确", True),
        ("CPV", "{}", "回答错误", False),
        ("Collection_Order", "[1]", "我想回答正确。", True),
        ("Collection_Order", "[1]", "对", False),
    ],
)
def test_a_judge_s_reply_is_read_as_published(task, gold, reply, is_right):
    verdict = BENCH.judged(question(task, gold), reply)
    assert (verdict.is_right, verdict.judge) == (is_right, reply)


def test_an_unknown_yes_or_no_is_asked_five_times_hotter_each_time():
    request = BENCH.reference(question("SPU", "是"), "也许")
    assert (request.tries, request.temperature_step) == (5, 0.5)
    assert request.without == Verdict(is_right=False, extracted=None)
    assert not request.accept("Unknown")
    assert request.accept("是")


def test_macro_means_of_the_published_table_are_those_of_the_report():
    means = {name: sum(figures) / 6 for name, figures in PUBLISHED_OTHERS.items()}
    assert (round(means["Keye think"], 2), round(means["MiMo-VL-7B"], 1)) == (68.02, 57.6)


def test_intervals_are_wilson_s():
    low, high = report.wilson(15, 24)  # by hand: 0.625, with z² / n = 0.160
    assert (round(low, 4), round(high, 4)) == (0.4271, 0.7884)
    assert report.wilson(0, 10)[0] == 0
    assert report.wilson(10, 10)[1] == pytest.approx(1)


def test_a_paired_comparison_finds_a_difference_and_no_difference():
    rng = random.Random(0)
    one = {"SPU": {str(n): rng.random() < 0.6 for n in range(300)}}
    better = {"SPU": {index: is_right or int(index) % 3 == 0 for index, is_right in one["SPU"].items()}}
    (row,) = report.compare(one, better)
    assert row["ci95"][0] > 0
    assert row["p"] < 0.01
    assert row["difference"] == pytest.approx(row["b"] - row["a"])
    (same,) = report.compare(one, one)
    assert (same["difference"], same["ci95"], same["p"]) == (0, [0, 0], 1)


def test_the_paired_bootstrap_has_the_interval_of_a_slow_one():
    rng = random.Random(1)
    one = {"SPU": {str(n): rng.random() < 0.5 for n in range(80)}}
    two = {"SPU": {str(n): rng.random() < 0.6 for n in range(80)}}
    differences = [two["SPU"][n] - one["SPU"][n] for n in one["SPU"]]
    means = sorted(sum(rng.choices(differences, k=80)) / 80 for _ in range(2000))
    (row,) = report.compare(one, two)
    assert row["ci95"] == pytest.approx([means[50], means[1950]], abs=0.03)


def test_texts_are_not_shown_the_answer():
    shown = question("SPU", "是").messages("think")
    assert shown == [{"role": "user", "content": [{"type": "text", "text": "?/think"}]}]
    assert re.search("think", question("SPU", "是").parts[0]["text"]) is None


@pytest.mark.parametrize(
    "piece",
    ["{", "}", "[", "(", "是否", " ", "\n", "<think>", "<answer>", "\\boxed{", '"', "1,", "视频1", "不", "yes ", '{"a"'],
)  # fmt: skip
def test_a_model_that_repeats_itself_does_not_stop_the_scorer(piece):
    text = piece * 20_000
    for task in ("SPU", "CPV", "Hot_Videos_Aggregation", "Collection_Order"):
        BENCH.rules(question(task, "是"), text)
        BENCH.reference(question(task, "是"), text)
