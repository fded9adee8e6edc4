"""Answers to questions with options, and the questions of TempCompass and of the layouts of VLMEvalKit and lmms-eval."""

import base64
import csv
import io
import json

import numpy as np
import pytest
from PIL import Image

from kvtools.errors import Corrupt
from kvtools.keye.bench import tempcompass
from kvtools.keye.bench.benchmark import JudgeRequest, Question, Verdict
from kvtools.keye.bench.choice import ChoiceBench
from kvtools.keye.bench.options import letter_of, listed_options, strict_letter_of, yes_or_no
from kvtools.keye.bench.tempcompass import TempCompassBench

OPTIONS = {"A": "a dog", "B": "a cat", "C": "A big cat", "D": "None of the above"}
LABELLED = """
B | B
b | B
(B) | B
B. | B
B. a cat | B
B) a cat | B
[B] | B
**B** | B
Ｂ | B
（C） | C
B、 | B
A: a dog | A
C - A big cat | C
B\\nBecause the other one is big. | B
A cat | B
a big cat | C
it is a big cat | C
none of the above | D
The answer is B. | B
The answer is a cat. | B
The answer is A cat | B
The answer is a | A
Answer: C | C
answer: c | C
Best Option:B | B
The best answer is: (A) | A
Answer is option B | B
Option C | C
I choose A | A
I think it is A | A
A is right | A
A dog is running so the answer is B | B
Both A and B are wrong, the answer is D | D
First A, then B; so the answer: **C** | C
The correct option is (D) None of the above | D
\\boxed{B} | B
$\\boxed{\\text{B}}$ | B
答案是B | B
答案：C | C
选B | B
选 C。 | C
There is a dog and a cat. | -
A or B | -
A man | -
It's not A, it's B | -
E | -
I do not know | -
 | -
"""


@pytest.mark.parametrize("line", [line for line in LABELLED.split("\n") if line])
def test_the_rules_read_an_answer_as_a_person_does(line):
    text, _, label = line.rpartition("|")
    assert letter_of(text.strip().replace("\\n", "\n"), OPTIONS) == (None if label.strip() == "-" else label.strip())


def test_the_strict_reading_is_that_of_the_letters_among_words():
    read = [strict_letter_of(text, OPTIONS) for text in ("B", "b", "(B).", "Option B or C", "it is a cat", "the dog, a dog")]
    assert read == ["B", None, "B", None, "B", "A"]
    assert strict_letter_of("a dog " + "x" * 80, OPTIONS) is None


def test_yes_and_no():
    texts = ["Yes.", "no", "No, it is yes", "The answer is yes", "yes and no", "maybe", "Nobody", "**Yes**"]
    assert [*map(yes_or_no, texts)] == ["yes", "no", "no", "yes", "yes", None, None, "yes"]


FORMS = ("multi-choice", "yes_no")


@pytest.fixture(scope="module")
def published(data_folder):
    """{form: [(question, answer, prediction, official rating)]} of Video-LLaVA's answers."""
    folder = data_folder / "video_qa_text" / "tempcompass"
    rows = {}
    for form in FORMS:
        verdicts = json.loads((folder / f"auto_eval_video-llava_{form}.json").read_text())
        rows[form] = [
            (entry["question"], entry["gt-answer"], entry["video-llm-prediction"], bool(entry["rating"]))
            for aspects in verdicts.values()
            for entries in aspects.values()
            for entry in entries
            if entry["match_success"]
        ]
    return rows


@pytest.fixture(scope="module")
def data_folder():
    from conftest import DATA

    if not DATA.is_dir():
        pytest.skip("no data folder")
    return DATA


@pytest.mark.data
@pytest.mark.parametrize(("form", "n"), [("multi-choice", 1580), ("yes_no", 2453)])
def test_both_scorers_agree_with_all_published_verdicts_of_tempcompass(published, form, n):
    rows = published[form]
    assert len(rows) == n
    official = [tempcompass.official_verdict(form, *row[:3]) for row in rows]
    rules = [tempcompass.rules_verdict(form, *row[:3]) for row in rows]
    assert all(verdict.extracted is not None for verdict in rules)
    disagreements = [row for row, a, b in zip(rows, official, rules, strict=True) if {a, b.is_right} != {row[3]}]
    assert disagreements == []  # none to explain; so the aggregates are equal, too


@pytest.mark.data
def test_every_question_of_tempcompass_is_read_and_its_own_answer_is_right(data_folder):
    bench, folder = TempCompassBench(), str(data_folder / "video_qa_text" / "tempcompass")
    questions = bench.read([folder], needs_media=False).questions
    forms = [question.task for question in questions]
    assert {form: forms.count(form) for form in dict.fromkeys(forms)} == {
        "multi-choice": 1580, "yes_no": 2453, "caption_matching": 1503,
    }  # fmt: skip
    for question in questions:
        assert bench.reference(question, question.answer).is_right, question
        assert bench.rules(question, question.answer).is_right, question
    assert bench.read([folder], needs_media=True).n_missing == 1580 + 2453 + 1503  # the videos are not there


CAPTIONS = "Which is better?\nCaption A: A dog runs.\nCaption B: A dog sits."


def test_answers_to_caption_matching():
    answers = [
        "Caption B",
        "Caption B.",
        "A dog sits.",
        "caption b: a dog sits.",
        "B",
        "I think Caption B is better",
        "Caption A",
        "x",
    ]
    rules = [tempcompass.rules_verdict("caption_matching", CAPTIONS, "Caption B: A dog sits.", a) for a in answers]
    assert rules == [Verdict(True, "Caption B")] * 6 + [Verdict(False, "Caption A"), Verdict(False, None)]
    official = [tempcompass.official_verdict("caption_matching", CAPTIONS, "Caption B: A dog sits.", a) for a in answers]
    assert official == [True, True, True, None, None, None, False, None]


def test_where_the_rules_of_the_evaluator_find_nothing_a_judge_is_asked():
    bench = TempCompassBench()
    question = Question("yes_no", "v/action/0", [], "yes", "action", "Is it red?")
    request = bench.reference(question, "<think>no</think> It is red.")
    assert isinstance(request, JudgeRequest)
    assert request.prompt.endswith("Question:\nIs it red?\nGround-Truth Answer: yes\nModel Prediction: It is red.")
    assert request.without == Verdict(False, None)
    said = ["Correct", "Incorrect.", "It is **incorrect**", "I would say correct", "hm"]
    assert [bench.judged(question, reply).is_right for reply in said] == [True, False, False, True, False]
    assert [*map(request.accept, said)] == [True, True, True, True, False]


def picture():
    buffer = io.BytesIO()
    Image.fromarray(np.zeros((4, 4, 3), np.uint8)).save(buffer, "png")
    return base64.b64encode(buffer.getvalue()).decode()


IMAGE = {"type": "image", "image": f"data:image/png;base64,{picture()}"}
VIDEO = {"type": "video", "video": "v.mp4"}
TEXTS = {"A": "cat", "B": "dog", "C": "7"}
PLAIN, LETTERED = ["cat", "dog", "7"], ["A. cat", "B. dog", "C. 7"]
Q, V = {"question": "Q"}, {"video": "v.mp4"}
LAYOUTS = {
    "VLMEvalKit, pictures": (Q | TEXTS | {"index": 5, "answer": "B", "image": picture()}, IMAGE),
    "VLMEvalKit, MVBench": (Q | V | {"index": 5, "candidates": str(PLAIN), "answer": "dog"}, VIDEO),
    "VLMEvalKit, Video-MME": (
        Q | {"index": 5, "video": "v", "video_path": "v.mp4", "candidates": json.dumps(LETTERED), "answer": "B"}, VIDEO,
    ),
    "lmms-eval, Video-MME": (Q | {"question_id": "5", "videoID": "v.mp4", "options": LETTERED, "answer": "B"}, VIDEO),
    "lmms-eval, MVBench": (Q | V | {"id": "5", "candidates": PLAIN, "answer": "dog"}, VIDEO),
    "lmms-eval, NExT-QA": (Q | V | {"qid": "5", "a0": "cat", "a1": "dog", "a2": 7, "answer": 1}, VIDEO),
    "lmms-eval, LongVideoBench": (Q | {"id": "5", "video_path": "v.mp4", "candidates": PLAIN, "correct_choice": 1}, VIDEO),
    "EgoSchema": (
        Q | V | {"q_uid": "5", "option_0": "cat", "option_1": "dog", "option_2": "7", "answer": "1"}, VIDEO,
    ),
    "a dictionary": (
        Q | {"index": 5, "image_path": "a.jpg", "options": TEXTS, "answer": "(B)"}, {"type": "image", "image": "a.jpg"},
    ),
}  # fmt: skip


def questions_of(path):
    found = ChoiceBench().read([str(path)], needs_media=False)
    assert found.faults == []
    return found.questions


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("form", ["jsonl", "json", "tsv"])
def test_layouts(tmp_path, layout, form):
    row, item = LAYOUTS[layout]
    path = tmp_path / f"q.{form}"
    if form == "tsv":
        with open(path, "w", newline="") as file:
            writer = csv.writer(file, delimiter="\t")
            writer.writerows([[*row], [value if isinstance(value, str | int) else json.dumps(value) for value in row.values()]])
    else:
        path.write_text(json.dumps([row] if form == "json" else row))
    asked = "Question: Q\nOptions:\nA. cat\nB. dog\nC. 7\nPlease select the correct answer from the options above."
    assert questions_of(path) == [Question("q", "5", [item, {"type": "text", "text": asked}], "B", "", TEXTS)]


def test_ten_options_on_the_lines_of_the_question(tmp_path):
    lines = "\n".join(f"{letter}. option {letter}" for letter in "ABCDEFGHIJ")
    (tmp_path / "q.jsonl").write_text(json.dumps({"question": f"Q\n{lines}", "answer": "J", "category": "c"}))
    (question,) = questions_of(tmp_path / "q.jsonl")
    assert (question.asked_with, question.answer, question.category) == (listed_options(lines), "J", "c")
    assert question.parts[-1]["text"].count("option J") == 1


def test_a_row_may_have_the_picture_of_another(tmp_path):
    rows = [
        {"index": i, "question": f"Q{i}", "A": "x", "B": "y", "answer": "A", "image": p} for i, p in ((1, picture()), (2, "1"))
    ]
    (tmp_path / "q.jsonl").write_text("\n".join(map(json.dumps, rows)))
    assert [question.media for question in questions_of(tmp_path / "q.jsonl")] == [[IMAGE], [IMAGE]]


GOOD = {"index": 1, "question": "Q", "A": "x", "B": "y", "answer": "A"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"answer": "C"}, "line 1: the answer is 'C', and the options are A, B"),
        ({"answer": None}, "line 1: it has no answer"),
        ({"question": ""}, "line 1: it has no question"),
        ({"B": None}, "line 1: it has 1 options, and 2 to 10 are needed"),
        ({"image": "x" * 101 + "!"}, "line 1: its picture is no base64"),
        ({"options": [*map(str, range(11))], "A": None, "B": None}, "line 1: the options are not a list of at most 10"),
        ({}, "line 2: index 1 is there twice"),
    ],
)
def test_a_row_without_what_is_needed_is_named_with_its_place(tmp_path, change, message):
    (tmp_path / "q.jsonl").write_text(f"{json.dumps(GOOD | change)}\n{json.dumps(GOOD)}")
    found = ChoiceBench().read([str(tmp_path)], needs_media=False)
    (fault,) = found.faults
    assert fault.startswith(f"{tmp_path}/q.jsonl: {message}")
    assert len(found.questions) == 1


def test_media_are_found_beside_the_questions_and_counted_where_they_are_not(tmp_path):
    (tmp_path / "videos").mkdir()
    (tmp_path / "videos" / "v.mp4").touch()
    rows = [GOOD | {"index": n, "video": name} for n, name in enumerate(["v", "v.mp4", "none"])]
    (tmp_path / "q.jsonl").write_text("\n".join(map(json.dumps, rows)))
    found = ChoiceBench().read([str(tmp_path / "q.jsonl")], needs_media=True)
    assert [question.media[0]["video"] for question in found.questions] == [str(tmp_path / "videos" / "v.mp4")] * 2
    assert (found.n_missing, [*found.missing]) == (1, ["q"])
    assert len(questions_of(tmp_path / "q.jsonl")) == 3


def test_what_nothing_is_found_in_is_refused(tmp_path):
    for text, message in (("", "it has no question"), ("[1", "Give JSON with an object a question")):
        (tmp_path / "q.json").write_text(text)
        with pytest.raises(Corrupt, match=message):
            ChoiceBench().read([str(tmp_path / "q.json")], needs_media=False)


def test_the_strict_scorer_asks_a_judge_where_vlmevalkit_does():
    bench, question = ChoiceBench(), Question("q", "1", [{"type": "text", "text": "Q"}], "B", "", OPTIONS)
    assert bench.reference(question, "<think>A</think><answer>B.</answer>") == Verdict(True, "B")
    request = bench.reference(question, "The feline one")
    assert isinstance(request, JudgeRequest)
    assert [*map(request.accept, ("B", "Z", "It chooses (B).", "", "what?"))] == [True, True, True, False, False]
    assert [bench.judged(question, reply).extracted for reply in ("B", "Z")] == ["B", None]
    assert bench.rules(question, "<think>A</think> The second one") == Verdict(False, None)


def test_tasks_are_the_files_and_can_be_chosen(tmp_path):
    for name in ("MVBench", "Video-MME"):
        (tmp_path / f"{name}.jsonl").write_text(json.dumps(GOOD))
    bench = ChoiceBench()
    assert bench.task_of("mvbench") == "mvbench"
    assert [q.task for q in bench.read([str(tmp_path)], ["mvbench"], needs_media=False).questions] == ["MVBench"]
    assert [q.task for q in bench.read([str(tmp_path)], needs_media=False).questions] == ["MVBench", "Video-MME"]
    assert [*map(bench.task_of, ("video-mme", "other"))] == ["Video-MME", None]
    assert TempCompassBench().task_of("multi_choice") == "multi-choice"
