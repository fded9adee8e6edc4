import ast
import csv
import json
import re

import numpy as np
import pytest
from PIL import Image
from standin import make_clips, make_standin

FILES = ["CPV", "High_like", "PornComment", "SPU", "Video_Order", "Video_Topic"]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A stand-in set of 12 questions a task from three clips, and what was printed."""
    folder = tmp_path_factory.mktemp("standin")
    make_clips(folder, 3)
    return folder


def rows_of(folder):
    tables = {}
    for path in sorted((folder / "subsets").glob("*.tsv")):
        with open(path, newline="") as file:
            tables[path.stem] = list(csv.DictReader(file, delimiter="\t"))
    return tables


def test_a_stand_in_has_the_layout_of_the_benchmark_and_says_that_it_is_none(made, capsys):
    make_standin(made, "one", "-n", "12")
    tables = rows_of(made / "one")
    assert sorted(tables) == FILES
    rows = [row for table in tables.values() for row in table]
    assert len({row["index"] for row in rows}) == len(rows) == 72
    assert all("stand-in, not KC-MMBench" in row["question"] and int(row["index"]) >= 9_000_000 for row in rows)
    assert "It is NOT KC-MMBench" in (made / "one" / "THIS_IS_NOT_KC-MMBENCH.txt").read_text()
    for row in rows:
        source = row["image_path"]
        for name in ast.literal_eval(source) if source.startswith("[") else [source]:
            assert np.asarray(Image.open(made / "one" / "images" / name)).ndim == 3
    printed = capsys.readouterr().out
    assert [line.split()[0] for line in printed.splitlines()[1:]] == [
        "CPV", "Hot_Videos_Aggregation", "Collection_Order", "Pornographic_Comment", "High_like", "SPU",
    ]  # fmt: skip
    assert re.search(r"^SPU +12 +50\.0% +50\.0%$", printed, re.MULTILINE)
    forms = {
        "CPV": lambda a: set(json.loads(a)) <= {"方向", "亮度", "主色"},
        "Video_Topic": lambda a: a.startswith("是_") and set(a.split("_")) <= {"是", "否"},
        "Video_Order": lambda a: re.fullmatch(r"\[Video \d(, Video \d)+\]", a),
    }
    for name, table in tables.items():
        assert all(forms.get(name, lambda a: a in ("是", "否"))(row["answer"]) for row in table), name


def test_equal_seeds_make_equal_sets_and_others_make_others(made):
    make_standin(made, "same-1", "-n", "12")
    make_standin(made, "same-2", "-n", "12")
    make_standin(made, "other", "-n", "12", "--seed", "1")
    assert rows_of(made / "same-1") == rows_of(made / "same-2") != rows_of(made / "other")


def test_one_clip_is_too_few(tmp_path):
    make_clips(tmp_path, 1)
    with pytest.raises(SystemExit, match="1 of the clips can be read, and at least two are needed"):
        make_standin(tmp_path, "set")
