"""Rewards, prompts and pairs of Keye-VL: what is right, what is said of it, and what is left out."""

import math

import pytest

from kvtools.errors import Fault, Usage
from kvtools.keye.data.conversations import Conversations, normalise
from kvtools.keye.model.config import SIZES
from kvtools.keye.rl.correct import choice_letter, expected_answer, is_correct
from kvtools.keye.rl.pairs import best_and_worst, pairs_of
from kvtools.keye.rl.program import Program
from kvtools.keye.rl.prompts import deal_modes, parse_modes, prompts_of
from kvtools.keye.rl.recipe import GrpoRecipe, MpoRecipe
from kvtools.keye.rl.records import RolloutRecord
from kvtools.keye.rl.rewards import RULES, Reply, Rewards, RewardSpec, Rule, repetition
from kvtools.keye.rl.setup import parse_rewards
from kvtools.skipped import SkippedRows
from kvtools.train.objectives.preference import RunningMean

THOUGHT = "<think>Two and two make 4.</think><answer>It is \\boxed{{{}}}.</answer>"


def source(*documents):
    return Conversations("here", "", [{"id": str(n), **normalise(document)} for n, document in enumerate(documents)])


def reply(text, *, answer="4", mode="think", n_tokens=5, key="0#0"):
    document = {"prompt": "2+2?", "answer": answer, "mode": mode}
    prompt = prompts_of(source(document), needs_answers=False).prompts[0]
    return Reply(key, prompt, text, n_tokens, 10)


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (72, "The answer is 72."),
        ("so 6*3 = 18\n#### 18", "18"),
        ("1,234", "<think>…</think><answer>\\boxed{1234}</answer>"),
        ("1/2", "0.5"),
        ("-3", "\u22123"),
        ("50%", "0.5"),
        ("B", "(b)"),
        ("B", "B. a cat"),
        ("B", "The answer is B."),
        ("yes", "Yes, it is."),
        (True, "yes"),
        ("是", "是。"),
        ([2, 1, 3], "2, 1, 3"),
        ("2,1,3", "[2, 1, 3]"),
        (["cat", "dog"], "cat and dog"),
        ("\\frac{1}{2}", "\\boxed{\\frac{2}{4}}"),
        ("x^2+1", "\\boxed{1+x^2}"),
        ("Paris", "**Paris**"),
        ("New York", "The answer is new  york"),
        ("4", "<analysis>Easy. Therefore, /no_think mode is more appropriate.</analysis>4"),
    ],
)
def test_right_answers_are_found(answer, said):
    assert is_correct(expected_answer({}, answer), said)


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (72, "73"), (72, ""), ("7", "17"), ("1", "1.5"), ("5", "<think>It is 5"), ("7", "7 or 8"), ("B", "A or B"),
        ("B", "Bears"), ("yes", "yes and no"), ([1, 2], "[2, 1]"), ([1, 2], "[1, 2, 3]"), ("x^2", "x^3"), ("Paris", "London"),
        ("4", "<think>4</think><answer>5</answer>"), ("9", "9e999999999"),
    ],
)  # fmt: skip
def test_wrong_answers_are_wrong(answer, said):
    assert not is_correct(expected_answer({}, answer), said)


def test_a_choice_is_right_by_its_letter_or_its_words():
    for answer, said in (("cat", "B"), ("B", "cat"), ("B", "B: dog")):
        assert is_correct(expected_answer({"choices": ["dog", "cat"]}, answer), said) == (said != "dog")
    assert not is_correct(expected_answer({"choices": ["dog", "cat"]}, "B"), "dog")


@pytest.mark.parametrize(
    ("said", "letter"),
    [
        *(
            (said, "B")
            for said in ("Answer: (b)", "Answer: (B)", "the answer is b.", "b) four", "b. four", "Option b is right")
        ),
        *((said, None) for said in ("the answer is a triangle", "i.e. four", "answer: because")),
    ],
)
def test_letters_are_read_in_any_case_where_they_are_no_words(said, letter):
    assert choice_letter(said, ()) == letter


def test_terms_of_a_reply():
    good, other = reply(THOUGHT.format(4)), reply(THOUGHT.format(5), answer="5")
    values = {name: rule(good) for name, rule in RULES.items()}
    assert values == {"correct": 1, "format": 1, "consistency": 1, "repetition": 0, "length": 0.5}
    assert (RULES["correct"](other), RULES["consistency"](other)) == (1, -1)
    assert RULES["format"](reply("4")) == 0
    assert RULES["format"](reply("4", mode="no_think")) == 1
    assert RULES["consistency"](reply("4", mode="no_think")) == 0


def test_repetition_is_the_share_of_n_grams_that_were_there_before():
    assert repetition("a b c d e") == 0
    assert repetition("a b c a b c a b c") == pytest.approx(1 - 3 / 7)
    assert repetition("x" * 50) == 0  # one word
    assert repetition("好好好好好好") == 0.75


def test_a_score_that_nobody_gives_is_none_and_never_zero():
    class Judge:
        name, is_slow = "judged", True

        def score(self, replies):
            return [1.0, None]

    rewards = Rewards([(Rule("correct", RULES["correct"]), 1.0), (Judge(), 0.5)])
    scored = rewards.submit([reply("4"), reply("4", key="0#1")])()
    rewards.close()
    assert [score.reward for score in scored] == [1.5, None]


def test_the_words_of_rewards():
    assert RewardSpec.parse("repetition:-1") == RewardSpec("repetition", -1.0)
    assert RewardSpec.parse("cmd:python3 a:b.py:2") == RewardSpec("cmd:a:b.py", 2.0, "python3 a:b.py")
    assert RewardSpec.parse("cmd:./score --x 1:2") == RewardSpec("cmd:score", 1.0, "./score --x 1:2")
    assert RewardSpec.parse("cmd:./score --at=1:2") == RewardSpec("cmd:score", 1.0, "./score --at=1:2")
    names = [spec.name for spec in parse_rewards(["cmd:sh a.sh", "cmd:bash a.sh:2", "cmd:awk x"], [])]
    assert names == ["cmd:a.sh", "cmd:a.sh-2", "cmd:awk"]
    with pytest.raises(Usage, match="no reward joy"):
        RewardSpec.parse("joy")
    with pytest.raises(Usage, match="'' is no weight"):
        RewardSpec.parse("length:")


def test_a_program_scores_in_any_order_and_sets_aside(tmp_path):
    script = tmp_path / "score.py"
    script.write_text(
        "import json, sys\nrows = [json.loads(line) for line in sys.stdin]\n"
        "for row in reversed(rows):\n"
        "    score = None if row['text'] == 'skip' else float('nan') if row['text'] == 'nan' else len(row['text'])\n"
        "    print(json.dumps({'id': row['id'], 'score': score}))\n"
    )
    program = Program("cmd", f"python3 {script}", 60)
    scores = program.score([reply(text, key=text) for text in ("four", "skip", "nan")])
    assert scores[:2] == [4.0, None]
    assert math.isnan(scores[2])
    script.write_text(f"print({'9' * 400})")
    assert math.isnan(program.score([reply("4")])[0])
    script.write_text("print({'id': 'other', 'score': 1})".replace("'", '"').replace("{", "'{").replace("}", "}'"))
    with pytest.raises(Fault, match="there is no reply other"):
        program.score([reply("4")])
    script.write_text("raise SystemExit('no')")
    with pytest.raises(Fault, match="ended with code 1"):
        program.score([reply("4")])


def test_modes_are_dealt_in_exact_proportions_by_position():
    prompts = prompts_of(source(*[{"prompt": str(n)} for n in range(12)]), needs_answers=False).prompts
    dealt = [prompt.mode for prompt in deal_modes(prompts, parse_modes("think:2,no_think:1"))]
    assert dealt.count("think") == 8
    assert [prompt.mode for prompt in deal_modes(prompts[5:], parse_modes("think:2,no_think:1"), first=5)] == dealt[5:]


def test_a_switch_at_the_end_of_a_question_is_its_mode_and_no_text():
    (prompt,) = prompts_of(source({"prompt": "2+2? /no_think", "answer": 4}), needs_answers=True).prompts
    assert (prompt.mode, prompt.question) == ("no_think", "2+2?")


def test_one_prompt_is_told_in_the_singular():
    prompts = prompts_of(source({"prompt": "1+1=", "answer": 2}), needs_answers=True)
    assert ": 1 prompt, 1 with an answer" in prompts.summary({})


def test_prompts_without_an_answer_are_named():
    found = prompts_of(source({"prompt": "a", "answer": 1}, {"prompt": "b"}), needs_answers=True)
    assert [prompt.key for prompt in found.prompts] == ["0"]
    assert found.skipped.names == {"prompts without an answer to compare with left out": ["1"]}


@pytest.mark.parametrize(
    "document",
    [
        {"prompt": "q", "chosen": "a", "rejected": "b"},
        {"question": "q", "chosen": "a", "rejected": "b"},
        {"chosen": "\n\nHuman: q\n\nAssistant: a", "rejected": "\n\nHuman: q\n\nAssistant: b"},
        {"input": {"messages": [{"role": "user", "content": "q"}]},
         "preferred_output": [{"role": "assistant", "content": "a"}],
         "non_preferred_output": [{"role": "assistant", "content": "b"}]},
        {"conversations": [{"from": "human", "value": "q"}], "chosen": {"from": "gpt", "value": "a"},
         "rejected": {"from": "gpt", "value": "b"}},
        {"prompt": "q", "messages": [{"role": "user", "content": "q"}],
         "chosen": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}],
         "rejected": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "b"}]},
        {"instruction": "q", "chosen": "a", "rejected": "b"},
    ],
)  # fmt: skip
def test_pairs_of_other_trainers_are_read(document):
    (pair,) = pairs_of(source(document))
    texts = [[part["text"] for m in side["messages"] for part in m["content"]] for side in (pair.chosen, pair.rejected)]
    assert texts == [["q", "a"], ["q", "b"]]


def test_equal_pairs_are_left_out_by_name():
    found = source({"prompt": "q", "chosen": "a", "rejected": "a"})
    assert pairs_of(found) == []
    assert found.skipped.names == {"pairs of equal answers left out": ["0"]}


def test_the_best_and_the_worst_of_a_group_are_a_pair():
    def record(number, reward, text, ended="stop", group=0):
        return RolloutRecord(
            f"p#{number}", f"p{group}", group, "auto", text, [{"type": "text", "text": text}], ended, reward, {},
            {"id": "p", "messages": []}, 3,
        )  # fmt: skip

    rows = [
        record(0, 0.5, "b"), record(1, 2.0, "cut", "length"), record(2, 1.0, "a"), record(3, math.nan, "n"),
        record(4, 0.0, "c"),
        record(5, 1.0, "same", group=1), record(6, 1.0, "same too", group=1),
    ]  # fmt: skip
    skipped = SkippedRows()
    (pair,) = best_and_worst(rows, skipped, margin=0)
    assert pair["messages"][-1]["content"][0]["text"] == "a"
    assert pair["rejected"]["content"][0]["text"] == "c"
    assert sorted(skipped.counts.values()) == [1, 1]


def test_the_shift_is_the_mean_of_all_rewards_before():
    mean = RunningMean()
    assert mean.value == 0
    mean.add(3.0, 2)
    mean.add(1.0, 2)
    assert mean.value == 1.0


@pytest.mark.parametrize(("recipe", "tiny", "wide"), [(GrpoRecipe, 3e-4, 1e-6), (MpoRecipe, 1.6e-4, 5e-6)])
def test_rates_are_those_of_tiny_models_and_published_ones_of_wide_models(recipe, tiny, wide):
    def rate(size, lr=None):
        common = {"steps": "1ep", "batch": 1, "row_tokens": 64, "training": [], "lora": None, "seed": 0}
        return recipe(lr=lr, **common).lr_for(SIZES[size])

    assert rate("tiny") == tiny
    assert rate("8b") == pytest.approx(wide, rel=0.05)
    assert rate("8b", 0.5) == 0.5
