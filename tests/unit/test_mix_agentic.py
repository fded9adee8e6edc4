"""Agentic samples whose code is run again: what they state is made, or the sample is dropped for a reason of its own."""

import io

import numpy as np
import pytest
from PIL import Image

from kvtools.keye.mix.agentic import REASONS, CodeError, check_code, with_paths_of
from kvtools.keye.sandbox.session import Limits, Sandbox

NAME = "pictures/photo.png"
CROP = "from PIL import Image\nImage.open(image_path).crop((0, 0, 40, 30)).save('/mnt/data/a.jpg')\nprint('/mnt/data/a.jpg')"


def photo():
    y, x = np.mgrid[:60, :80]
    return Image.fromarray(np.stack([x * 3, y * 4, (x + y) * 2 % 256], axis=2).astype(np.uint8))


def file_of(picture, kind="PNG", **options):
    buffer = io.BytesIO()
    picture.save(buffer, kind, **options)
    return buffer.getvalue()


@pytest.fixture(scope="module")
def sandbox():
    with Sandbox(Limits(timeout_s=2.0, memory_bytes=256 << 20)) as made:
        yield made


def reason(sandbox, code, stated):
    try:
        check_code(sandbox, [code] if isinstance(code, str) else code, stated, {NAME: file_of(photo())})
    except CodeError as error:
        return error.reason
    return None


def test_the_stated_picture_is_made_again_though_it_was_stored_as_jpeg(sandbox):
    assert reason(sandbox, CROP, [file_of(photo().crop((0, 0, 40, 30)), "JPEG", quality=80)]) is None


def test_steps_see_the_variables_and_pictures_of_the_steps_before(sandbox):
    second = "a = Image.open('/mnt/data/a.jpg')\nprint(a.size[0] + a.size[1])"
    assert reason(sandbox, [CROP, second], [file_of(photo().crop((0, 0, 40, 30))), "70"]) is None


def test_each_fault_has_its_own_reason(sandbox):
    part = file_of(photo().crop((0, 0, 40, 30)))
    seen = {
        reason(sandbox, "import socket", ["x"]),
        reason(sandbox, "print(", ["x"]),
        reason(sandbox, "import cv2\ncv2.imread(image_path)", ["x"]),
        reason(sandbox, "1 / 0", ["x"]),
        reason(sandbox, "while True:\n    pass", ["x"]),
        reason(sandbox, "x = bytearray(1 << 34)", ["x"]),
        reason(sandbox, "print('a' * 10**6)", ["x"]),
    }
    assert seen == set(REASONS.values()) - {"the code ends its process"}
    assert reason(sandbox, "print(2)", ["3"]) == "the code prints another text"
    assert reason(sandbox, "print(2)", [part]) == "the code saves no picture"
    assert reason(sandbox, CROP, [file_of(photo())]) == "the code makes a picture of another size"
    assert reason(sandbox, CROP, [file_of(photo().crop((40, 30, 80, 60)))]) == "the code makes another picture"
    assert reason(sandbox, CROP, [b"no picture"]) == "the stated picture cannot be read"


def test_code_finds_a_picture_by_the_path_that_the_question_names(sandbox):
    question = 'What is there? User Image Path: "/mnt/user/7_0.jpg", size 80x60.'
    pictures = with_paths_of(question, {NAME: file_of(photo())})
    code = CROP.replace("image_path", "'/mnt/user/7_0.jpg'")
    check_code(sandbox, [code], [file_of(photo().crop((0, 0, 40, 30)))], pictures)
    assert set(with_paths_of("a.png and b.png", {NAME: b""})) == {NAME}
