"""Leaks of an evaluation set: what is found again, and what is left alone."""

import io

import imagehash
import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFilter

from kvtools.keye.mix.contamination import EvaluationSet
from kvtools.keye.mix.fingerprint import fingerprint, perceptual_hash

QUESTION = "A train leaves at noon and travels 60 miles an hour; how far has it come when the clock strikes three?"


def scene(seed, moved=0):
    """A picture with large and small things in it, at 320x240; moved: pixels by which one of them lies elsewhere."""
    rng = np.random.default_rng(seed)
    sky = np.linspace(rng.integers(80, 255, 3), rng.integers(0, 160, 3), 240)[:, None].repeat(320, axis=1)
    picture = Image.fromarray(sky.astype(np.uint8))
    draw = ImageDraw.Draw(picture)
    for number in range(30):
        x, y, size = rng.integers(0, 300), rng.integers(0, 220), rng.integers(8, 80)
        x += moved if number == 29 else 0
        size = 60 if number == 29 else size
        shape = draw.ellipse if number % 2 else draw.rectangle
        shape([x, y, x + size, y + size * 0.8], fill=tuple(rng.integers(0, 255, 3).tolist()))
    return picture.filter(ImageFilter.GaussianBlur(1))


def jpeg(picture, quality=50):
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=quality)
    return Image.open(buffer)


def cropped(picture, left, top, right, bottom):
    width, height = picture.size
    return picture.crop((round(left * width), round(top * height), round((1 - right) * width), round((1 - bottom) * height)))


CHANGES = {
    "the same": lambda p: p,
    "stored again": jpeg,
    "half the size": lambda p: p.resize((160, 120)),
    "twice the size": lambda p: p.resize((640, 480)),
    "5 % of each side": lambda p: cropped(p, 0.05, 0.05, 0.05, 0.05),
    "5 % in all": lambda p: cropped(p, 0.025, 0.025, 0.025, 0.025),
    "5 % at the left": lambda p: cropped(p, 0.05, 0, 0, 0),
    "5 % of a corner": lambda p: cropped(p, 0, 0, 0.05, 0.05),
    "cropped, resized and stored again": lambda p: jpeg(cropped(p, 0.03, 0.02, 0.02, 0.04).resize((300, 230)), 60),
}


@pytest.fixture(scope="module")
def known():
    return EvaluationSet.of([], [(f"{n}.png", fingerprint(scene(n), is_known=True)) for n in range(40)])


@pytest.mark.parametrize("change", CHANGES)
def test_changed_pictures_are_found_again(known, change):
    found = [known.picture_leak([fingerprint(CHANGES[change](scene(n)))]) for n in range(40)]
    share = np.mean([name == f"{n}.png" for n, name in enumerate(found)])
    assert share >= (1.0 if change in ("the same", "stored again", "half the size", "twice the size") else 0.95)


def test_other_pictures_are_left_alone(known):
    assert [known.picture_leak([fingerprint(scene(n))]) for n in range(100, 300)] == [None] * 200


def test_a_frame_in_which_something_moved_is_another_picture(known):
    found = [known.picture_leak([fingerprint(scene(n, moved=60))]) for n in range(40)]
    assert sum(name is not None for name in found) <= 8  # most of them by the report's rule, whose 64 bits do not see the thing


def test_the_hash_is_imagehashs():
    for n in range(5):
        bits = imagehash.phash(scene(n)).hash.reshape(-1)
        assert perceptual_hash(scene(n).convert("L")) == int(np.packbits(bits).view(">u8")[0])


@pytest.mark.parametrize(
    "text",
    [
        QUESTION,
        QUESTION.upper(),
        "  " + QUESTION.replace(" ", " \n\t ") + "\n",
        QUESTION.replace(";", " -"),
        f"Solve this. {QUESTION} Answer with a number.",
        QUESTION.translate({ord(c): ord(c) + 0xFEE0 for c in "abcdefgh0123456789"}),  # full-width letters
    ],
)
def test_a_question_is_found_in_another_writing(text):
    assert EvaluationSet.of([("test.json", QUESTION)], []).text_leak([text]) == "test.json"


def test_short_questions_are_found_as_a_whole_and_answers_are_no_questions():
    evaluation = EvaluationSet.of([("t", "What is 2+2?"), ("t", "The answer is \\boxed{4}"), ("t", "A"), ("t", "yes")], [])
    assert evaluation.text_leak(["what is 2 + 2"]) == "t"
    assert evaluation.text_leak(["What is 2+2, and what is 3+3?"]) is None
    assert evaluation.text_leak(["How much is it?"], ["The answer is \\boxed{4}"]) is None
    assert evaluation.text_leak(["A"], ["yes", "A"]) is None
    assert evaluation.text_leak(["Then he said: the answer is boxed 4, is it?"]) == "t"


def test_the_wording_of_tasks_is_no_leak():
    wording = "Select the best of the options below and answer with its letter alone, without any words"
    evaluation = EvaluationSet.of([("t", f"{wording}: question {n} of the cat") for n in range(50)], [])
    assert evaluation.text_leak([f"{wording}: which river flows through Paris?"]) is None
    assert evaluation.text_leak([f"{wording}: question 7 of the cat"]) == "t"
    assert evaluation.text_leak(["x"], [f"as I read, {QUESTION}"]) is None
    assert EvaluationSet.of([("t", QUESTION)], []).text_leak(["x"], [f"as I read, {QUESTION}"]) == "t"
