"""KC-MMBench scored as a user asks for it: from predictions of any system, and by a model; what is refused, kept and told."""

import base64
import io
import json

import openpyxl
import pytest
from cinema import TRAIN, conversation, furnish, write
from PIL import Image
from shop import say

from kvtools.keye.bench import generate as generation
from kvtools.keye.bench.kcmm import SUFFIX

HEADER = "index\tquestion\tanswer\timage_path\tcategory\n"
TABLES = {
    "CPV": ['0\t属性？\t{"色": "红"}\t0.png\t家', '1\t属性？\t{"色": ["红", "蓝"]}\t0.png\t鞋'],
    "Video_Topic": ["0\t同一热点？\t是_否\t['0.png', '1.png']\t", '1\t"多行\n""热点""？"\t是_是\t["0.png","1.png"]\t'],
    "Video_Order": ["0\t排序？\t[Video 2, Video 1]\t['0.png','1.png']\t"],
    "PornComment": ["0\t低俗？\t否\t1.png\t", "1\t低俗？\t是\t1.png\t"],
    "High_like": ["0\t高赞？\t是\t0.png\t"],
    "SPU": [f"{n}\t同款{'！' * n}？\t{'是否'[n % 2]}\t['0.png', '1.png']\t" for n in range(6)],
}
NAMES = {"CPV": "CPV", "Video_Topic": "Hot_Videos_Aggregation", "Video_Order": "Collection_Order",
         "PornComment": "Pornographic_Comment", "High_like": "High_like", "SPU": "SPU"}  # fmt: skip
RIGHT = {"CPV": ['{"色":"红"}', '{"色":["蓝","红"]}'], "Video_Topic": ["[是，否]", "是_是"], "Video_Order": ["视频2，视频1"],
         "PornComment": ["否。", "是"], "High_like": ["是"], "SPU": ["是。", "不是", "是", "否", "是", "是"]}  # fmt: skip


def picture(colour):
    file = io.BytesIO()
    Image.new("RGB", (56, 56), colour).save(file, "png")
    return file.getvalue()


def make_data(folder, tables=TABLES, *, names=None, below="subsets"):
    """The published layout."""
    (folder / below).mkdir(parents=True, exist_ok=True)
    (folder / "images").mkdir(exist_ok=True)
    for number, colour in enumerate([(220, 30, 40), (40, 50, 210)]):
        (folder / "images" / f"{number}.png").write_bytes(picture(colour))
    for name, rows in tables.items():
        (folder / below / f"{(names or {}).get(name, name)}.tsv").write_text(HEADER + "".join(f"{row}\n" for row in rows))
    return folder


def lines_of(replies=RIGHT, names=NAMES):
    rows = [(names[name], n, text) for name, texts in replies.items() for n, text in enumerate(texts)]
    return "".join(json.dumps({"task": task, "index": n, "prediction": text}) + "\n" for task, n, text in rows)


@pytest.fixture
def top(tmp_path, monkeypatch):
    make_data(tmp_path / "data")
    (tmp_path / "answers.jsonl").write_text(lines_of())
    monkeypatch.chdir(tmp_path)
    return tmp_path


def report(line, capfd, code=0):
    """{task: its line} of the report."""
    done = say(f"kvtools eval-kcmm -q --json {line}", capfd)
    assert done.code == code, done.err
    return {row["task"]: row for row in map(json.loads, done.out.decode().splitlines())}


def test_predictions_become_a_line_a_task_and_the_macro_mean(top, capfd):
    rows = report("data --predictions answers.jsonl", capfd)
    assert [*rows] == [*NAMES.values(), "macro"]
    assert {name: rows[name]["accuracy"] for name in rows} == pytest.approx(
        dict.fromkeys(rows, 1) | {"SPU": 5 / 6, "macro": (5 + 5 / 6) / 6}
    )
    assert {**rows["SPU"], "ci95": 0} == {
        "task": "SPU", "n": 6, "accuracy": 5 / 6, "ci95": 0, "failures": 0, "mode": "rules", "unanswered": 0, "excluded": 0,
        "lost": 0, "thought": 0, "tokens": None, "seconds": None,
    }  # fmt: skip
    low, high = rows["SPU"]["ci95"]
    assert 0 < low < 5 / 6 < high < 1
    assert rows["CPV"]["categories"] == {"家": {"n": 1, "accuracy": 1}, "鞋": {"n": 1, "accuracy": 1}}


def test_the_table_stands_beside_the_published_figures_and_says_which_metric_it_is(top, capfd):
    out = say("kvtools eval-kcmm data --predictions answers.jsonl", capfd).out.decode()
    assert "published think / auto" in out
    assert "published by the authors" in out
    assert "not the published metric" in out
    (top / "data" / "THIS_IS_NOT_KC-MMBENCH.txt").touch()
    out = say("kvtools eval-kcmm data --predictions answers.jsonl", capfd).out.decode()
    assert "published by the authors" not in out
    assert "NOT KC-MMBench" in out


@pytest.mark.parametrize("below", ["", "subsets"])
def test_names_of_tables_and_layouts_are_those_in_use(top, capfd, below):
    make_data(top / "other", names={**NAMES, "High_like": "High_Like"}, below=below)
    assert report("other --predictions answers.jsonl", capfd)["macro"]["n"] == 14


def test_several_folders_make_one_set(top, capfd):
    make_data(top / "one", {"SPU": TABLES["SPU"][:2]})
    make_data(top / "two", {"SPU": TABLES["SPU"][2:], "High_like": TABLES["High_like"]})
    rows = report("one two --predictions answers.jsonl", capfd, 65)  # answers of the other tasks have no questions
    assert (rows["SPU"]["n"], rows["High_like"]["n"]) == (6, 1)


def test_a_task_alone_is_scored_alone(top, capfd):
    assert [*report("data --predictions answers.jsonl --task Video_Order --task spu", capfd)] == [
        "Collection_Order", "SPU", "macro",
    ]  # fmt: skip
    done = say("kvtools eval-kcmm data --predictions answers.jsonl --task SPUR", capfd)
    assert (done.code, done.err.count("\n")) == (2, 1)


@pytest.mark.parametrize("form", ["xlsx", "tsv", "folder", "no task"])
def test_predictions_of_other_systems_are_read(top, capfd, form):
    out = top / "out"
    out.mkdir()
    for name, texts in RIGHT.items():
        rows = [["index", "question", "prediction"], *([n, "多行\n？", text] for n, text in enumerate(texts))]
        if form == "xlsx":
            book = openpyxl.Workbook()
            for row in rows:
                book.active.append(row)
            book.save(out / f"Keye-VL-8B_{NAMES[name]}.xlsx")
        elif form == "tsv":
            cells = [[str(x).replace('"', '""') for x in row] for row in rows]
            (out / f"MODEL_{name}.tsv").write_text("".join("\t".join(f'"{x}"' for x in row) + "\n" for row in cells))
        else:
            (out / f"{name}.jsonl").write_text(lines_of({name: texts}))
    if form == "no task":  # an index that one task alone has
        make_data(top / "data", {name: [f"{name}-{row}" for row in rows] for name, rows in TABLES.items()})
        rows = [{"id": f"{name}-{n}", "response": text} for name, texts in RIGHT.items() for n, text in enumerate(texts)]
        (top / "all.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    rows = report(f"data --predictions {'all.jsonl' if form == 'no task' else 'out'}", capfd)
    assert (rows["macro"]["n"], round(rows["macro"]["accuracy"], 3)) == (14, 0.972)


def test_pictures_in_base64_and_cells_of_any_size_are_read(top, capfd):
    cell = base64.b64encode(picture((1, 2, 3)) + bytes(200_000)).decode()
    rows = f"index\tquestion\tanswer\timage\n0\t？\t是\t{cell}\n1\t？\t否\t0\n2\t？\t否\t{cell[:300]}!\n3\t？\t否\taGVsbG8=\n"
    (top / "spu.tsv").write_text(rows)
    (top / "spu.jsonl").write_text(lines_of({"SPU": ["是", "否"]}))
    done = say("kvtools eval-kcmm spu.tsv --predictions spu.jsonl --json", capfd)
    assert done.code == 65
    assert json.loads(done.out.splitlines()[0])["n"] == 2
    faults = [line for line in done.err.splitlines() if "spu.tsv" in line]
    assert [line.split(": ")[2] for line in faults] == ["line 4", "line 5"]


def test_missing_pictures_are_named_counted_and_left_out(top, capfd):
    (top / "data" / "images" / "0.png").unlink()
    done = say("kvtools eval-kcmm data --predictions answers.jsonl", capfd)
    assert done.code == 65
    assert "data/images/0.png" in done.err
    assert "SPU: 6 questions were left out" in done.out.decode()
    assert report("data --predictions answers.jsonl", capfd, 65)["macro"]["n"] == 2
    for file in (top / "data" / "images").iterdir():
        file.unlink()
    (top / "data" / "images").rmdir()  # predictions can be scored without any picture
    assert report("data --predictions answers.jsonl", capfd)["macro"]["n"] == 14


def test_what_is_wrong_is_told_a_line_each_and_the_rest_is_scored(top, capfd):
    (top / "data" / "subsets" / "SPU.tsv").write_text(
        HEADER + "1\t？\t是\t0.png\t\n1\t？\t是\t0.png\t\n2\t？\t也许\t0.png\t\n3\t？\t是\n"
        "4\t？\t是\t[__import__('os').system('touch gone')]\t\n5\t？\t是\t['0.png'\t\n"
    )
    (top / "data" / "subsets" / "CPV.tsv").write_text("id\tquestion\n1\t？\n")
    (top / "some.jsonl").write_text(
        '{"task": "SPU", "index": 1, "prediction": "是"}\n{"task": "SPU", "index": 1, "prediction": "否"}\n'
        '{"task": "SPU", "index": 77, "prediction": "是"}\n{"task": "What", "index": 1, "prediction": "是"}\n'
        '{"task": "SPU", "index": 1}\n{"task": "SPU"}\n[]\n{\n'
    )
    done = say("kvtools eval-kcmm data --predictions some.jsonl --json", capfd)
    assert (done.code, json.loads(done.out.splitlines()[0])["accuracy"]) == (65, 1)
    assert not (top / "gone").exists()
    told = [line.removeprefix("kvtools eval-kcmm: ") for line in done.err.splitlines()]
    where = [": ".join(line.split(": ")[:2]) for line in told if ".tsv" in line or "some.jsonl" in line]
    assert where == [
        "data/subsets/CPV.tsv: line 1", *(f"data/subsets/SPU.tsv: line {n}" for n in (3, 4, 5, 6, 7)),
        *(f"some.jsonl: line {n}" for n in range(2, 9)),
    ]  # fmt: skip


def test_questions_without_an_answer_count_as_wrong(top, capfd):
    (top / "some.jsonl").write_text(lines_of({"SPU": ["是"]}))
    rows = report("data --predictions some.jsonl", capfd)
    assert [*rows] == ["SPU", "macro"]
    assert [rows["SPU"][name] for name in ("n", "accuracy", "failures", "unanswered")] == [6, 1 / 6, 5, 5]


def test_a_requirement_that_is_not_met_is_exit_code_1(top, capfd):
    assert say("kvtools eval-kcmm -q data --predictions answers.jsonl --require 97", capfd).code == 0
    done = say("kvtools eval-kcmm -q data --predictions answers.jsonl --require 98", capfd)
    assert (done.code, "97.22" in done.err) == (1, True)


def test_reference_without_a_judge_has_figures_where_none_is_needed(top, capfd):
    rows = report("data --predictions answers.jsonl --score reference", capfd)
    assert [rows[name]["accuracy"] for name in ("CPV", "Collection_Order", "SPU", "macro")] == [None, None, 0.5, None]
    assert {row["mode"] for row in rows.values()} == {"reference"}
    assert say("kvtools eval-kcmm data --predictions answers.jsonl --score reference --task CPV", capfd).code == 2


def test_prompts_are_those_of_the_benchmark_and_their_answers_are_read_again(top, capfd):
    (top / "to").mkdir()
    assert say("kvtools eval-kcmm -q data --prompts to/prompts.jsonl --mode think", capfd).code == 0
    prompts = [json.loads(line) for line in (top / "to" / "prompts.jsonl").read_text().splitlines()]
    by_id = {prompt["id"]: prompt["messages"][0]["content"] for prompt in prompts}
    assert [part["type"] for part in by_id["SPU/0"]] == ["image", "image", "text"]
    assert [part["image"] for part in by_id["SPU/0"][:2]] == ["../data/images/0.png", "../data/images/1.png"]
    assert by_id["SPU/0"][2]["text"] == f"同款？{SUFFIX}/think"
    assert by_id["Hot_Videos_Aggregation/1"][2]["text"] == '多行\n"热点"？/think'
    assert SUFFIX == "\n请直接给出结论，回答是或者否，不需要做额外分析，并且不许回答不确定"
    replies = [{"key": prompt["id"], "text": "是"} for prompt in prompts]
    (top / "replies.jsonl").write_text("".join(json.dumps(reply) + "\n" for reply in replies))
    assert report("data --predictions replies.jsonl", capfd)["SPU"]["accuracy"] == 0.5


def test_two_systems_are_compared_question_by_question(top, capfd):
    (top / "no.jsonl").write_text(lines_of({"SPU": ["否"] * 6, "High_like": ["是"]}))
    rows = report("data --compare no.jsonl answers.jsonl", capfd)
    assert [rows["SPU"][name] for name in ("n", "a", "b")] == [6, 0.5, 5 / 6]
    assert rows["SPU"]["difference"] == pytest.approx(1 / 3)
    assert rows["macro"]["n"] == 7
    told = say("kvtools eval-kcmm -q data --compare no.jsonl answers.jsonl", capfd).err
    n_more = sum(map(len, RIGHT.values())) - 7
    assert told == f"kvtools eval-kcmm: {n_more} answers in one file only, left out of the comparison.\n"
    for name in ("no", "answers"):
        assert say(f"kvtools eval-kcmm -q data --predictions {name}.jsonl --details {name}-d.jsonl", capfd).code == 0
    assert report("--compare no-d.jsonl answers-d.jsonl", capfd) == rows


def test_an_asked_for_task_without_a_table_is_named_and_the_rest_is_scored(top, capfd):
    (top / "data" / "subsets" / "High_like.tsv").unlink()
    (top / "spu.jsonl").write_text(lines_of({"SPU": ["是"] * 6}))
    rows = report("data --task SPU --task High_Like --predictions spu.jsonl", capfd, 65)
    assert (rows["SPU"]["n"], [*rows]) == (6, ["SPU", "macro"])
    assert rows["macro"]["ci95"] == rows["SPU"]["ci95"]
    told = say("kvtools eval-kcmm data --task High_like --predictions spu.jsonl", capfd)
    assert (told.code, "High_like: the data have no question of this task." in told.err) == (65, True)


def test_a_report_becomes_a_picture(top, capfd):
    out = say("kvtools eval-kcmm -q data --predictions answers.jsonl --json", capfd).out
    (top / "report.jsonl").write_bytes(out)
    assert say("kvtools plot report.jsonl -o one.png", capfd).code == 0
    assert say("kvtools plot report.jsonl report.jsonl -o two.svg", capfd).code == 0
    assert (top / "one.png").read_bytes().startswith(b"\x89PNG")


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A model that has learnt to say 是."""
    folder = tmp_path_factory.mktemp("trained")
    furnish(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        write(folder / "yes.jsonl", [conversation(n, "同款？", "是") for n in range(12)])
        line = TRAIN.replace("asked.jsonl", "yes.jsonl")
        assert say(f"{line} --steps 60 --lr 0.01 -o yes.model").code == 0
    return folder / "yes.model"


class Interrupted(BaseException):
    """As when the power fails."""


def test_a_model_is_scored_and_an_interrupted_run_goes_on_without_asking_again(top, trained, capfd, monkeypatch):
    asked = []
    whole = generation.generate

    def counted(model, prompts, **more):
        asked.extend(prompt.key for prompt in prompts)
        if len(asked) > limit:
            raise Interrupted
        return whole(model, prompts, **more)

    monkeypatch.setattr(generation, "generate", counted)
    monkeypatch.setattr(generation, "_WINDOW", 4)
    limit = 1000
    line = f"data --model {trained} --max-new 8"
    rows = report(line, capfd)
    assert rows["SPU"]["accuracy"] == 0.5
    assert rows["SPU"]["tokens"] >= 6
    assert rows["SPU"]["seconds"] > 0
    assert len(asked) == 14
    asked.clear()
    limit = 7
    with pytest.raises(Interrupted):
        say(f"kvtools eval-kcmm -q {line} --details d.jsonl", capfd)
    with open("d.jsonl", "ab") as file:
        file.write(b'{"task": "SPU", "ind')  # a line that was cut
    limit = 1000
    again = report(f"{line} --details d.jsonl", capfd)
    assert len(asked) == 14 + 4, "the four in flight are asked again"

    def without_time(report):
        return {name: {**row, "seconds": 0} for name, row in report.items()}

    assert without_time(again) == without_time(rows)
    details = [json.loads(line) for line in (top / "d.jsonl").read_text().splitlines()]
    assert len(details) == len({(row["task"], row["index"]) for row in details}) == 14
    assert {"prediction", "extracted", "right", "failed", "thought", "tokens", "seconds"} <= details[0].keys()
    asked.clear()
    assert without_time(report(f"{line} --details d.jsonl", capfd)) == without_time(rows)
    assert asked == []
    assert say(f"kvtools eval-kcmm -q {line} --details d.jsonl --mode think", capfd).code == 73
    assert without_time(report("data --predictions d.jsonl", capfd)) == without_time(rows), "details are predictions"


def test_shards_together_give_the_whole_report(top, trained, capfd):
    (top / "parts").mkdir()
    for number in range(3):
        line = f"kvtools eval-kcmm -q data --model {trained} --max-new 8 --shard {number}/3 --details parts/{number}.jsonl"
        assert say(line, capfd).code == 0
    rows = report("data --predictions parts", capfd)
    assert (rows["macro"]["n"], rows["SPU"]["accuracy"], rows["macro"]["failures"]) == (14, 0.5, 2 + 1)


def test_data_without_a_question_is_an_error(top, capfd):
    for file in (top / "data" / "images").iterdir():
        file.unlink()
    done = say("kvtools eval-kcmm data --predictions answers.jsonl", capfd)
    assert (done.code, done.out) == (65, b"")
    assert "no question is left" in done.err


def test_an_index_that_a_table_holds_as_a_float_is_the_same(top, capfd):
    rows = [row.replace("\t", ".0\t", 1) for row in TABLES["SPU"]]
    make_data(top / "float", {"SPU": rows})
    (top / "spu.jsonl").write_text(lines_of({"SPU": RIGHT["SPU"]}))
    assert report("float --predictions spu.jsonl", capfd)["SPU"]["accuracy"] == pytest.approx(5 / 6)


def test_questions_with_options_have_pictures_of_any_size(top, capfd):
    cell = base64.b64encode(picture((1, 2, 3)) + bytes(200_000)).decode()
    (top / "choice.tsv").write_text(f"index\tquestion\tA\tB\tanswer\timage\n0\tWhich?\tred\tblue\tB\t{cell}\n")
    (top / "choice.jsonl").write_text(json.dumps({"index": 0, "prediction": "The answer is (B)."}) + "\n")
    assert report("choice.tsv --bench choice --predictions choice.jsonl", capfd)["macro"]["accuracy"] == 1
