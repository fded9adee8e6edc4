"""`kvtools coldstart-mix`: sources of five modes become one checked, cleaned, exactly mixed stream."""

import gzip
import hashlib
import json
import random
from collections import Counter

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from conftest import on_ranks
from PIL import Image

from kvtools.artifact import open_artifact

WORDS = [f"word{n}" for n in range(400)]
CODE = "from PIL import Image\nimg = Image.open(image_path)\nimg.crop((0, 0, 28, 28)).save('part.png')\nprint('part.png')\n"


def sentence(rng, n=12):
    return " ".join(rng.choices(WORDS, k=n))


def chat(question, answer, **fields):
    return {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}], **fields}


def think(rng):
    return chat(sentence(rng), f"<think>{sentence(rng)}</think><answer>\\boxed{{{rng.randrange(10**6)}}}</answer>")


def bare(rng):
    return chat(sentence(rng), sentence(rng))


def auto(rng):
    decided = "<analysis>Of few steps. Therefore, /{} mode is more appropriate.</analysis>"
    if rng.random() < 0.5:
        return chat(sentence(rng), decided.format("no_think") + sentence(rng))
    return chat(sentence(rng), decided.format("think") + think(rng)["messages"][1]["content"])


MAKERS = {"think": think, "no_think": bare, "auto": auto}


@pytest.fixture
def made(tmp_path):
    """Make NAME.jsonl of n samples of a mode; returns the documents."""

    def make(name, mode, n, seed=1):
        rng = random.Random(f"{name} {seed}")
        documents = [MAKERS[mode](rng) for _ in range(n)]
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(d) + "\n" for d in documents))
        return documents

    return make


def records(path):
    reader = open_artifact(str(path))
    return [(record.fields, json.loads(record.tensors["json"].tobytes())) for record in reader]


def modes(path):
    return dict(Counter(fields["mode"] for fields, _ in records(path)))


def test_counts_are_exactly_those_of_the_ratio(kv, made, tmp_path):
    for name in ("think", "no_think", "auto"):
        made(name, name, 60)
    sources = "--think think.jsonl --no-think no_think.jsonl --auto auto.jsonl"
    assert kv(f"coldstart-mix {sources} --ratio 3:5:2 -n 77 -o mix.kvs --report r.json")[0] == 0
    assert modes(tmp_path / "mix.kvs") == {"think": 23, "no_think": 39, "auto": 15}
    report = json.loads((tmp_path / "r.json").read_text())
    assert (report["n"], report["by_mode"]["think"]["samples"], report["fill"]) == (77, 23, None)


def test_without_a_number_the_ratio_is_kept_and_the_scarcest_source_decides(kv, made, tmp_path):
    made("a", "think", 10)
    made("b", "no_think", 100)
    assert kv("coldstart-mix --think a.jsonl --no-think b.jsonl --ratio 1:2 -o mix.kvs") == (
        0,
        "kvtools coldstart-mix: read 110 documents, 0 duplicates; wrote 31 records: think 10, no_think 21.\n",
    )


def test_a_ratio_that_cannot_be_met_is_told_and_the_rest_is_written(kv, made, tmp_path):
    made("a", "think", 10)
    made("b", "no_think", 100)
    code, err = kv("coldstart-mix -q --think a.jsonl --no-think b.jsonl --ratio 1:1 -n 40 -o mix.kvs")
    lacks = "think has 10 of 20. Give -n 20, the most that this ratio allows, or --repeat to use samples again."
    assert (code, err) == (65, f"kvtools coldstart-mix: {lacks}\n")
    assert modes(tmp_path / "mix.kvs") == {"think": 10, "no_think": 20}


def test_a_mode_without_a_sample_is_told_and_the_others_keep_their_ratio(kv, made, tmp_path):
    made("a", "think", 30)
    made("b", "no_think", 100)
    (tmp_path / "c.jsonl").write_text(json.dumps({"prompt": "What?", "response": "No analysis."}) + "\n")
    code, err = kv("coldstart-mix -q --think a.jsonl --no-think b.jsonl --auto c.jsonl --ratio 1:2:1 -o mix.kvs")
    assert (code, err) == (
        65,
        "kvtools coldstart-mix: auto has 0 of 30. Give more samples of it, or leave that mode out.\n",
    )
    assert modes(tmp_path / "mix.kvs") == {"think": 30, "no_think": 61}


def test_a_small_source_is_repeated_when_asked_and_every_sample_is_used_before_one_comes_again(kv, made, tmp_path):
    made("a", "think", 10)
    made("b", "no_think", 100)
    assert kv("coldstart-mix -q --think a.jsonl --no-think b.jsonl --ratio 1:1 -n 50 --repeat -o mix.kvs") == (0, "")
    copies = Counter(d["messages"][0]["content"][0]["text"] for f, d in records(tmp_path / "mix.kvs") if f["mode"] == "think")
    assert sorted(copies.values()) == [2] * 5 + [3] * 5


def test_order_and_grouping_of_sources_do_not_matter(kv, made, tmp_path):
    rows = [json.dumps(d) for d in made("all", "think", 50)]
    random.Random(7).shuffle(rows)
    (tmp_path / "x.jsonl").write_text("\n".join(rows[:20]) + "\n")
    (tmp_path / "y.json").write_text("[" + ",".join(rows[20:]) + "]")
    made("b", "no_think", 40)
    assert kv(
        "coldstart-mix -q --think all.jsonl --no-think b.jsonl --ratio 1:1 -n 30 -o one.kvs",
        "coldstart-mix -q --think y.json --think x.jsonl --no-think b.jsonl --ratio 1:1 -n 30 -o two.kvs",
        "coldstart-mix -q --think all.jsonl --no-think b.jsonl --ratio 1:1 -n 30 --seed 1 -o other.kvs",
    ) == (0, "")
    one, two, other = ([d["id"] for _, d in records(tmp_path / f"{name}.kvs")] for name in ("one", "two", "other"))
    assert one == two
    assert one != other


@pytest.mark.mpi
def test_any_number_of_ranks_and_jobs_gives_the_same(sh, kv, made, tmp_path):
    made("a", "think", 200)
    made("b", "no_think", 200)
    (tmp_path / "a.jsonl").open("a").write('{bad\n{"messages": []}\n')
    sources = "coldstart-mix -q --think a.jsonl --no-think b.jsonl --ratio 1:2 -n 90"
    line = sources + " --rejects {0}.rejects --report {0}.json -o {0}.kvs"
    assert kv(*(line.format(n) + f" --jobs {n}" for n in (1, 2, 3)))[0] == 65
    assert sh(f"mpiexec -n 2 kvtools {line.format('ranks')}", pipefail=False, SLURM_JOB_END_TIME="1").code == 75
    done = sh(on_ranks(4, ["kvtools " + line.format("ranks")], tmp_path), pipefail=False)
    assert done.code == 65, done.err
    names = [*map(str, (1, 2, 3)), "ranks"]
    assert len({(tmp_path / f"{name}.kvs").read_bytes() for name in names}) == 1
    for form in "rejects", "json":
        assert len({(tmp_path / f"{name}.{form}").read_text() for name in names}) == 1
    assert json.loads((tmp_path / "ranks.json").read_text())["rejects"] == {"the document cannot be understood": 2}


@pytest.mark.parametrize("options", ["--jobs 1", "--jobs 2", "--jobs 1 --length 300"])
def test_a_run_that_is_stopped_after_every_unit_of_its_work_gives_the_same(kv, made, tmp_path, monkeypatch, options):
    monkeypatch.setattr("kvtools.keye.mix.batches.BATCH", 5)
    monkeypatch.setattr("kvtools.keye.mix.journal._PIECE_BYTES", 1000)  # a batch is several records
    made("a", "think", 12)
    made("b", "no_think", 12)
    (tmp_path / "a.jsonl").open("a").write("{bad\n")
    line = f"coldstart-mix -q --think a.jsonl --no-think b.jsonl --ratio 1:1 -n 10 {options}"
    whole = kv(f"{line} -o whole.kvs --report whole.json --rejects whole.jsonl")
    assert whole[0] == 65
    monkeypatch.setattr("kvtools.world.Stop.__bool__", lambda _: True)
    stops = []
    while (run := kv(f"{line} -o parts.kvs --report parts.json --rejects parts.jsonl"))[0] == 75:
        stops.append(run[1])
        assert len(stops) < 40
    assert run == whole
    assert len({*stops}) > 2
    for form in ("kvs", "json", "jsonl"):
        assert (tmp_path / f"parts.{form}").read_bytes() == (tmp_path / f"whole.{form}").read_bytes()
    assert not list(tmp_path.glob(".*"))


def test_a_stopped_run_is_not_resumed_with_other_documents_or_options(kv, made, tmp_path, monkeypatch):
    made("a", "think", 12)
    line = "coldstart-mix -q --jobs 1 --think a.jsonl -o mix.kvs"
    with monkeypatch.context() as patch:
        patch.setattr("kvtools.world.Stop.__bool__", lambda _: True)
        assert kv(line)[0] == 75
    assert kv(f"{line} --seed 3")[0] == 2
    (tmp_path / "a.jsonl").write_text((tmp_path / "a.jsonl").read_text().replace("word1", "word2", 1))
    advice = "Give the same files to resume it, or --force to start over."
    assert kv(line) == (2, f"kvtools coldstart-mix: .mix.kvs.state: the stopped run had other documents. {advice}\n")
    assert kv(f"{line} --force") == (0, "")
    assert not list(tmp_path.glob(".*"))


def test_epochs_are_passes_over_each_mode(kv, made, tmp_path):
    made("a", "think", 10)
    made("b", "no_think", 20)
    assert kv("coldstart-mix -q --think a.jsonl --no-think b.jsonl --epochs 2.5:0.5 -o mix.kvs") == (0, "")
    assert modes(tmp_path / "mix.kvs") == {"think": 25, "no_think": 10}


def test_sources_of_every_form_are_read_and_named_in_the_history(kv, sh, made, tmp_path):
    rows = [json.dumps(row) for row in made("all", "no_think", 40)]
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress("\n".join(rows[:10]).encode()))
    (tmp_path / "b.jsonl.zst").write_bytes(zstandard.ZstdCompressor().compress("\n".join(rows[10:20]).encode()))
    (tmp_path / "c.json").write_text("[" + ",".join(rows[20:30]) + "]")
    pq.write_table(pa.Table.from_pylist([json.loads(row) for row in rows[30:40]]), tmp_path / "d.parquet")
    (tmp_path / "table.json").write_text(
        json.dumps({f"file {n}": {"problem": f"{n} + {n}?", "solution": f"It is \\boxed{{{2 * n}}}."} for n in range(5)})
    )
    names = ("a.jsonl.gz", "b.jsonl.zst", "c.json", "d.parquet", "table.json")
    sources = " ".join(f"--no-think {name}" for name in names)
    assert kv(
        f"coldstart-mix -q {sources} -o one.kvs", "coldstart-mix -q --no-think all.jsonl --no-think table.json -o two.kvs",
        "convert all.jsonl -o all.kvs", "coldstart-mix -q --no-think all.kvs --no-think table.json -o three.kvs",
    ) == (0, "")  # fmt: skip
    ids = [{fields["id"] for fields, _ in records(tmp_path / f"{name}.kvs")} for name in ("one", "two", "three")]
    assert ids[0] == ids[1] == ids[2]
    assert len(ids[0]) == 45
    (step,) = open_artifact(str(tmp_path / "one.kvs")).head.history
    assert len(step["inputs"]) == len(names)
    assert step["inputs"][2] == hashlib.blake2b((tmp_path / "c.json").read_bytes(), digest_size=16).hexdigest()
    assert [s["command"] for s in open_artifact(str(tmp_path / "three.kvs")).head.history] == ["convert", "coldstart-mix"]


def test_the_answer_of_a_prompt_that_most_paths_have_is_kept(kv, tmp_path):
    rows = [chat("How many?", f"<think>{steps}</think><answer>\\boxed{{{n}}}</answer>") for steps, n in (
        ("Add them. It is 5.", 5), ("Guess. It is 5.", 5), ("Add them. Hm. It is 5.", 5), ("Subtract them. It is 1.", 1),
    )]  # fmt: skip
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert kv("coldstart-mix -q --think a.jsonl -o mix.kvs --report r.json") == (0, "")
    ((_, document),) = records(tmp_path / "mix.kvs")
    assert document["messages"][1]["content"][0]["text"].startswith("<think>Add them. It is 5.")
    assert json.loads((tmp_path / "r.json").read_text())["rejects"] == {
        "another path of its prompt was kept": 2, "the answer is not the right one of its prompt": 1,
    }  # fmt: skip
    assert kv("coldstart-mix -q --think a.jsonl -o none.kvs --min-agreement 0.8")[0] == 65


def test_videos_think_in_the_proportion_of_the_report(kv, clip, tmp_path):
    rows = []
    for n in range(60):
        answer = f"<think>Look {n}.</think><answer>It is {n}.</answer>" if n < 20 else f"It moves {n}."
        rows.append({"video": "clip.mp4", "question": f"What moves in part {n}?", "answer": answer})
    (tmp_path / "v.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert kv("tokenize-video -q --fps 2 --frame-tokens 4:4 clip.mp4 -o clip.kvs") == (0, "")
    assert kv("coldstart-mix -q --video v.jsonl --media clip.kvs -n 52 -o mix.kvs --report r.json") == (0, "")
    found = Counter(
        (d["messages"][0]["content"][-1]["text"].partition("/")[2], d["messages"][0]["content"][0]["frames"])
        for _, d in records(tmp_path / "mix.kvs")
    )
    assert found == {("think", 16): 6, ("think", 32): 6, ("no_think", 16): 20, ("no_think", 32): 20}
    assert json.loads((tmp_path / "r.json").read_text())["by_mode"]["video"]["thinking"] == 12


def test_what_breaks_its_format_is_rejected_by_reason_and_kept(kv, made, tmp_path):
    rows = [
        *made("a", "think", 6),
        chat("q", "bare"),
        chat("q", "<think>x</think><answer>1"),
        chat("what /no_think", "<think>x</think><answer>1</answer>"),
    ]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert kv("coldstart-mix --think a.jsonl -o mix.kvs --rejects no.jsonl --report r.json")[0] == 0
    assert json.loads((tmp_path / "r.json").read_text())["rejects"] == {
        "<answer> is never closed": 1, "<think> is missing, and the text names no result": 1,
        "the question asks for another mode": 1,
    }  # fmt: skip
    kept = [json.loads(line) for line in (tmp_path / "no.jsonl").read_text().splitlines()]
    assert [(row["where"], row["document"]["messages"][0]["content"]) for row in kept] == [
        ("line 7", "q"),
        ("line 8", "q"),
        ("line 9", "what /no_think"),
    ]


def test_slips_are_repaired_when_asked_and_counted(kv, tmp_path):
    rows = [chat("q one", "<Think>x</Think>  \n<answer>\\boxed{1}</answer>"), chat("q two", "<think>x</think><answer>1</ans")]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert kv("coldstart-mix -q --think a.jsonl -o no.kvs")[0] == 65
    assert kv("coldstart-mix -q --repair --think a.jsonl -o mix.kvs --report r.json") == (0, "")
    assert json.loads((tmp_path / "r.json").read_text())["repairs"] == {
        "spelling of a tag": 1, "unclosed last tag": 1, "white space": 1,
    }  # fmt: skip


@pytest.mark.parametrize(
    "answer", ["3 + 4 = 7.\n#### 7", "3 + 4 = 7.\nAnswer: 7", "So it is $\\boxed{7}$.", "<think>3 + 4</think>7"]
)
def test_reasoning_of_other_layouts_is_brought_into_the_format(kv, tmp_path, answer):
    (tmp_path / "a.jsonl").write_text(json.dumps(chat("How many?", answer)))
    assert kv("coldstart-mix -q --think a.jsonl -o mix.kvs") == (0, "")
    ((_, document),) = records(tmp_path / "mix.kvs")
    text = document["messages"][1]["content"][0]["text"]
    assert text.startswith("<think>\n")
    assert text.endswith(("<answer>\\boxed{7}</answer>", "<answer>7</answer>"))


def test_duplicates_are_left_out(kv, made, tmp_path):
    rows = made("a", "no_think", 20)
    rng = random.Random(5)
    long = chat("Tell me about " + sentence(rng, 5), sentence(rng, 60))
    near = chat(long["messages"][0]["content"] + "!", long["messages"][1]["content"].upper() + " end")
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in [*rows, *rows[:4], long, near]))
    assert kv("coldstart-mix -q --no-think a.jsonl -o mix.kvs --report r.json") == (0, "")
    report = json.loads((tmp_path / "r.json").read_text())
    assert (report["n"], report["duplicates"], report["near_duplicates"]) == (21, 5, 1)


def test_leaks_of_an_evaluation_set_are_left_out_and_listed(kv, made, tmp_path):
    rows = made("a", "no_think", 30)
    questions = [{"question": sentence(random.Random(n), 16), "answer": "A"} for n in range(4)]
    (tmp_path / "bench.jsonl").write_text("".join(json.dumps(q) + "\n" for q in questions))
    planted = [
        chat(questions[0]["question"], "yes"),
        chat("  " + questions[1]["question"].upper().replace(" ", "\n "), "no"),
        chat("Look: " + questions[2]["question"] + ", please!", "so"),
    ]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in [*rows, *planted]))
    assert kv("coldstart-mix -q --no-think a.jsonl --against bench.jsonl -o mix.kvs --report r.json") == (0, "")
    report = json.loads((tmp_path / "r.json").read_text())
    assert (report["n"], report["leaks"], report["leaks_by_file"]) == (30, 3, {"bench.jsonl": 3})


def picture(path, seed, size=(112, 84)):
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 255, (6, 8, 3), dtype=np.uint8)
    image = Image.fromarray(coarse).resize(size, Image.BICUBIC)
    image.save(path)
    return image


def shown(name, question, answer):
    content = [{"type": "image", "image": name}, {"type": "text", "text": question}]
    return {"messages": [{"role": "user", "content": content}, {"role": "assistant", "content": answer}]}


def test_a_picture_of_an_evaluation_set_is_found_again(kv, tmp_path):
    (tmp_path / "bench").mkdir()
    rows = []
    for n in range(6):
        image = picture(tmp_path / f"{n}.png", n)
        rows.append(shown(f"{n}.png", f"What is shown in {n}?", "Colours."))
        if n == 0:
            image.save(tmp_path / "bench" / "exact.png")
        if n == 1:
            image.save(tmp_path / "bench" / "encoded.jpg", quality=60)
        if n == 2:
            image.resize((200, 150)).save(tmp_path / "bench" / "resized.png")
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert kv("coldstart-mix -q --no-think a.jsonl --against bench -o mix.kvs --report r.json") == (0, "")
    report = json.loads((tmp_path / "r.json").read_text())
    assert report["leaks_by_file"] == {"bench/encoded.jpg": 1, "bench/exact.png": 1, "bench/resized.png": 1}


def agentic(code=CODE, result="part.png"):
    steps = f"<think>Closer.<code>\n```python\n{code}```\n</code>\n<sandbox_output>"
    parts = [
        {"type": "text", "text": steps},
        {"type": "image", "image": result},
        {"type": "text", "text": "</sandbox_output> Red.</think><answer>\\boxed{red}</answer>"},
    ]
    content = [{"type": "image", "image": "photo.png"}, {"type": "text", "text": "Which colour?"}]
    return {"messages": [{"role": "user", "content": content}, {"role": "assistant", "content": parts}]}


def test_code_is_run_again_and_what_gives_another_picture_is_left_out(kv, tmp_path):
    image = picture(tmp_path / "photo.png", 3)
    image.crop((0, 0, 28, 28)).save(tmp_path / "part.png")
    image.crop((56, 28, 84, 56)).save(tmp_path / "else.png")
    rows = [agentic(), agentic(result="else.png"), agentic(code="import socket\n"), agentic(code="1 / 0\n")]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert kv("coldstart-mix -q --agentic a.jsonl -o mix.kvs --report r.json") == (0, "")
    report = json.loads((tmp_path / "r.json").read_text())
    assert (report["n"], report["rejects"]) == (
        1,
        {
            "the code makes another picture": 1,
            "the code raises an error": 1,
            "the code reaches for what the sandbox forbids": 1,
        },
    )


def test_each_video_is_used_at_16_and_32_frames(kv, clip, tmp_path):
    (tmp_path / "v.jsonl").write_text(json.dumps({"video": "clip.mp4", "question": "What moves?", "answer": "A square."}))
    assert kv("coldstart-mix -q --video v.jsonl -o mix.kvs") == (0, "")
    found = records(tmp_path / "mix.kvs")
    assert sorted(d["messages"][0]["content"][0]["frames"] for _, d in found) == [16, 32]
    assert {d["messages"][0]["content"][1]["text"] for _, d in found} == {"What moves?/no_think"}


def test_records_do_not_depend_on_how_a_path_is_spelt(kv, sh, made, tmp_path):
    made("n", "no_think", 5)
    (tmp_path / "sh").mkdir()
    (tmp_path / "n.jsonl").rename(tmp_path / "sh" / "n.jsonl")
    for number, src in enumerate(("sh/n.jsonl", "./sh/n.jsonl", f"{tmp_path}/sh/n.jsonl")):
        assert kv(f"coldstart-mix -q --no-think {src} -o {number}.kvs") == (0, "")
    assert len({repr(records(tmp_path / f"{number}.kvs")) for number in range(3)}) == 1
    assert {document["source"] for _, document in records(tmp_path / "0.kvs")} == {"n.jsonl"}


def test_sources_of_one_name_are_told_apart_by_their_folders(kv, made, tmp_path):
    for n, folder in enumerate(("a/x", "b/x")):
        made("n", "no_think", 3 + n, seed=n)
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / "n.jsonl").rename(tmp_path / folder / "n.jsonl")
    sources = f"--no-think {tmp_path}/a/x/n.jsonl --no-think b/../b/x/n.jsonl"
    assert kv(f"coldstart-mix -q {sources} -o mix.kvs --report r.json") == (0, "")
    read = {name: part["read"] for name, part in json.loads((tmp_path / "r.json").read_text())["by_source"].items()}
    assert read == {"no_think:a/x/n.jsonl": 3, "no_think:b/x/n.jsonl": 4}


def test_an_empty_source_is_told_and_counts_as_no_document(kv, made, tmp_path):
    made("a", "no_think", 1)
    (tmp_path / "empty.jsonl").write_text("")
    code, err = kv(
        "coldstart-mix --no-think a.jsonl --no-think empty.jsonl --no-think gone.jsonl -o mix.kvs --rejects no.jsonl"
    )
    assert code == 65
    assert "empty.jsonl: there is no document in it. Give a file with conversations." in err
    assert "gone.jsonl: no such file or directory" in err
    assert err.endswith("read 1 document, 0 duplicates; wrote 1 record: no_think 1.\n")
    assert not (tmp_path / "no.jsonl").read_text()


@pytest.mark.parametrize("jobs", [1, 2])
def test_a_line_that_is_not_json_is_kept_as_it_was(kv, made, tmp_path, jobs):
    made("a", "no_think", 1)
    (tmp_path / "a.jsonl").open("ab").write(b'{bad \xff\n{"messages": []}\n')
    assert kv(f"coldstart-mix -q --jobs {jobs} --no-think a.jsonl -o mix.kvs --rejects no.jsonl")[0] == 65
    kept = [json.loads(line)["document"] for line in (tmp_path / "no.jsonl").read_text().splitlines()]
    assert kept == ["{bad \ufffd", {"messages": []}]


@pytest.mark.parametrize("jobs", [1, 2])
def test_strict_stops_at_the_first_bad_document_and_writes_nothing(kv, made, tmp_path, jobs):
    made("a", "no_think", 3)
    (tmp_path / "a.jsonl").open("a").write("{bad\n")
    why = "line 4: not JSON (Expecting property name enclosed in double quotes at column 2)"
    assert kv(f"coldstart-mix -q --strict --jobs {jobs} --no-think a.jsonl -o mix.kvs --rejects no.jsonl") == (
        65,
        f"kvtools coldstart-mix: a.jsonl: {why}. Repair the input, or run without --strict.\n",
    )
    assert not (tmp_path / "mix.kvs").exists()
    assert not (tmp_path / "no.jsonl").exists()


def test_rows_are_packed_and_train(kv, made, tmp_path):
    made("a", "think", 30)
    made("b", "no_think", 30)
    sources = "--think a.jsonl --no-think b.jsonl --ratio 1:1 -n 40"
    line = f"coldstart-mix -q {sources} --tokenizer tokenizer.json --length 1024 -o rows.kvs --report r.json"
    from kvtools.keye.data.chat_template import ChatTemplate

    (tmp_path / "tokenizer.json").write_bytes(ChatTemplate.open(None).to_bytes())
    assert kv(line) == (0, "")
    report = json.loads((tmp_path / "r.json").read_text())
    reader = open_artifact(str(tmp_path / "rows.kvs"))
    assert reader.head.kind == "sequence"
    rows = list(reader)
    assert sum(len(row.tensors["tokens"]) for row in rows) == sum(mode["tokens"] for mode in report["by_mode"].values())
    assert report["fill"] == pytest.approx(sum(len(row.tensors["tokens"]) for row in rows) / (1024 * len(rows)))


def test_rows_by_reference_are_small_and_train_as_those_with_patches(kv, tmp_path):
    rows = []
    for n in range(4):
        picture(tmp_path / f"{n}.png", n)
        rows.append(shown(f"{n}.png", f"What is shown in {n}?", f"Colours {n}."))
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "elsewhere").mkdir()
    for patches in ("inline", "reference"):
        assert kv(f"coldstart-mix -q --no-think a.jsonl --length 512 --patches {patches} -o elsewhere/{patches}.kvs") == (0, "")
    assert (tmp_path / "elsewhere/reference.kvs").stat().st_size < (tmp_path / "elsewhere/inline.kvs").stat().st_size / 10
    train = "pretrain keye -q --media . --steps 2 --batch-tokens 512"
    for patches in ("inline", "reference"):
        assert kv(f"{train} elsewhere/{patches}.kvs -o {patches}.model --log {patches}.log") == (0, "")
    losses = [
        [json.loads(line)["loss"] for line in (tmp_path / f"{patches}.log").read_text().splitlines()]
        for patches in ("inline", "reference")
    ]
    assert losses[0] == losses[1]
    picture(tmp_path / "2.png", 7)
    code, err = kv(f"{train} elsewhere/reference.kvs -o other.model")
    assert code == 65
    assert "2.png: its content is not what it was when the rows were packed" in err


def test_each_bad_input_is_one_line_with_file_and_line(kv, made, tmp_path):
    rows = [json.dumps(row) for row in made("a", "no_think", 3)]
    rows += [
        "{bad",
        json.dumps({"messages": [{"role": "wizard", "content": "x"}]}),
        json.dumps(shown("gone.png", "What?", "Red.")),
    ]
    (tmp_path / "a.jsonl").write_text("\n".join(rows) + "\n")
    code, err = kv("coldstart-mix -q --no-think a.jsonl -o mix.kvs")
    assert code == 65
    assert len(err.splitlines()) == 2
    assert (
        "a.jsonl: documents that cannot be understood were left out, 2 in all (line 4: not JSON (Expecting"
        " property name enclosed in double quotes at column 2), line 5: role is 'wizard', and must be one of " in err
    )
    assert "a.jsonl: documents whose pictures or videos cannot be read were left out, 1 in all (line 6: gone.png: " in err
    assert modes(tmp_path / "mix.kvs") == {"no_think": 3}


@pytest.mark.parametrize(
    ("line", "code", "message"),
    [
        ("coldstart-mix", 2, "no source is given. Give files of conversations, as --think FILE --no-think FILE."),
        ("coldstart-mix --think a.jsonl --ratio 1:2", 2, "--ratio 1:2 has 2 numbers for 1 mode. Give one each for think."),
        (
            "coldstart-mix --think a.jsonl --ratio 0",
            2,
            "--ratio: 0 is not a list of numbers above 0 with colons between them. Give numbers such as 2:1.",
        ),
        (
            "coldstart-mix --think a.jsonl --frames 16,x",
            2,
            "--frames 16,x is not a list of numbers. Give them with commas, as 16,32.",
        ),
        (
            "coldstart-mix --think a.jsonl --epochs 1 -n 5",
            2,
            "--epochs stands in place of --ratio and -n. Give one or the other.",
        ),
        (
            "coldstart-mix --think - --auto -",
            2,
            "several inputs are -, and stdin can be read only once. Give files for the others.",
        ),
        (
            "coldstart-mix -q --think gone.jsonl -o x.kvs",
            66,
            "gone.jsonl: no such file or directory. Look at its name and its permissions.",
        ),
        (
            "coldstart-mix -q --think empty.jsonl -o x.kvs",
            65,
            "empty.jsonl: no sample is left. empty.jsonl: there is no document in it. Give a file with conversations.",
        ),
    ],
)
def test_what_cannot_be_meant_is_refused(kv, made, tmp_path, line, code, message):
    made("a", "think", 3)
    (tmp_path / "empty.jsonl").write_text("")
    found, err = kv(line)
    assert found == code
    assert err.count("\n") == 1
    assert message is None or err == f"kvtools coldstart-mix: {message}\n"
    assert not (tmp_path / "x.kvs").exists()
