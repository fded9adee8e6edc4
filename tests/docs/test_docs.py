"""What is said of the program, held against the program: man pages, help, completion."""

import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import unsaid

from kvtools import cli
from kvtools.artifact.kinds import KINDS
from kvtools.keye.model.config import SIZES as KEYE_SIZES
from kvtools.keye.run.stages import STAGES
from kvtools.onerec.model.config import SIZES as ONEREC_SIZES

ROOT = Path(__file__).resolve().parents[2]
MAN = ROOT / "man"
PAGES = sorted(MAN.glob("*.[1-9]"))
ENVIRONMENT = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}


def load_generate():
    spec = importlib.util.spec_from_file_location("generate", MAN / "generate.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


generate = load_generate()


def run(words, directory=ROOT):
    return subprocess.run(
        words, cwd=directory, env=ENVIRONMENT, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
    )


def bash(script, directory):
    return run(["bash", "-euo", "pipefail", "-c", script], directory)


def section(page, title):
    """The mdoc source of one section of a page."""
    match = re.search(rf"^\.Sh {title}\n(.*?)(?=^\.Sh |\Z)", page.read_text(), re.MULTILINE | re.DOTALL)
    return match[1] if match else ""


def plain(mdoc):
    return mdoc.replace(r"\-", "-").replace(r"\e", "\\")


def examples_of(page):
    return [plain(line.removeprefix(".Dl ")) for line in section(page, "EXAMPLES").splitlines() if line.startswith(".Dl ")]


def literals_of(page):
    """The texts shown as they are in the examples of a page."""
    return [
        plain(text)
        for text in re.findall(r"^\.Bd -literal.*?\n(.*?)^\.Ed", section(page, "EXAMPLES"), re.MULTILINE | re.DOTALL)
    ]


def make_video(path, n_frames):
    import av
    import numpy as np

    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=10)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for i in range(n_frames):
            picture = np.full((48, 64, 3), 10 * i, np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode(None))


def make_items(top):
    """keywords.json, films.item, clicks.csv and clicks.inter: made-up items with enough terms for the dimensions that the
    examples ask for, and users who share some; digits.csv, edges.txt and pings.csv: labelled samples and two networks."""
    terms = {f"item {n}": [f"term {m}.{n % m}" for m in (5, 7, 11)] for n in range(60)}
    (top / "keywords.json").write_text(json.dumps(terms))
    for name, prefix, n_items in (("shop", "", 80), ("later", "new ", 9)):
        terms = {f"{prefix}{n}": [f"term {m}.{n % m}" for m in (5, 7, 11)] for n in range(n_items)}
        (top / f"{name}.json").write_text(json.dumps(terms))
    rows = [f"{n}\tFilm {n % 13}\t{1950 + n}\tClass{n % 5} Class{n % 3}\n" for n in range(60)]
    title = "item_id:token\ttitle:token_seq\trelease_year:token\tclass:token_seq\n"
    (top / "films.item").write_text(title + "".join(rows))
    clicks = [(user, (user * step) % 11, step, 3 + step % 3) for user in range(20) for step in range(8)]
    samples = [f"{n % 4 + 0.1 * (n % 7):.1f},{n % 3},{n % 4}\n" for n in range(200)]
    (top / "digits.csv").write_text("a,b,label\n" + "".join(samples))
    (top / "edges.txt").write_text("".join(f"{n} {n % 10 + 1} {5 + n}\n{n} {(n + 3) % 10 + 1} {9}\n" for n in range(1, 11)))
    pings = [f"city {a},city {b},{10 + abs(a - b)}\n" for a in range(8) for b in range(8) if a != b]
    (top / "pings.csv").write_text("source,target,ms\n" + "".join(pings))
    for name, mark, title in (
        ("clicks.csv", ",", "user_id,item_id,timestamp,rating"),
        ("clicks.inter", "\t", "user_id:token\titem_id:token\ttimestamp:float\trating:float"),
    ):
        (top / name).write_text("\n".join([title, *(mark.join(map(str, click)) for click in clicks)]) + "\n")


def make_chats(top):
    """math.jsonl: word problems with their reasoning; chats.json: bare answers; bench.tsv: questions of an evaluation."""
    sums = [
        {
            "question": f"Box {n} has {n} pears and {n * 7 % 11} figs. How many fruits?",
            "answer": f"Add them.\n#### {n + n * 7 % 11}",
        }
        for n in range(12)
    ]
    (top / "math.jsonl").write_text("".join(json.dumps(row) + "\n" for row in sums))
    chats = [{"instruction": f"Name term {n} of the list.", "output": f"It is term {n * n}."} for n in range(30)]
    (top / "chats.json").write_text(json.dumps(chats))
    (top / "bench.tsv").write_text("index\tquestion\tanswer\n0\tName term 3 of the list.\tA\n")


def make_models(top):
    """Qwen3-0.6B, far smaller than its name, as a directory; a.safetensors and b.safetensors, two models of one shape;
    keye.safetensors, a whole one that has learnt nothing."""
    import torch

    from kvtools.artifact.casts import to_numpy
    from kvtools.artifact.files import Sink
    from kvtools.keye.checkpoint.formats import CheckpointFormat
    from kvtools.keye.checkpoint.weights import Weights, save, write
    from kvtools.keye.data.chat_template import ChatTemplate
    from kvtools.keye.model.config import LanguageConfig, ModelConfig, VisionConfig
    from kvtools.keye.model.keye import Keye

    checkpoint_format = CheckpointFormat("qwen3", language=LanguageConfig(16, 32, 2, 2, 1, 8, vocabulary=50))
    (top / "Qwen3-0.6B").mkdir()
    for seed, name in enumerate(("Qwen3-0.6B", "a.safetensors", "b.safetensors")):
        torch.manual_seed(seed)
        state = {
            name: to_numpy(x)
            for name, x in checkpoint_format.build().state_dict().items()
            if name.startswith(("model.", "lm_head"))
        }
        write(Weights(name, checkpoint_format, state), Sink(str(top / name)) if seed else top / name, history=[])
    chat = ChatTemplate.open(None)
    arch = ModelConfig(
        VisionConfig(16, 32, 1, 2, table_side=4), LanguageConfig(16, 32, 2, 2, 1, 8, vocabulary=chat.size),
        image_token=chat.image_token, video_token=chat.video_token,
    )  # fmt: skip
    save(Sink(str(top / "keye.safetensors")), Keye(arch), tokenizer_json=chat.to_bytes(), fields={}, history=[])


def make_sums(top):
    """sums.jsonl: questions with answers, for reinforcement learning."""
    sums = [{"id": f"sum {a}+{b}", "prompt": f"{a}+{b}=", "answer": a + b} for a in range(5) for b in range(4)]
    (top / "sums.jsonl").write_text("".join(json.dumps(line) + "\n" for line in sums))


def make_standin(top):
    """standin/, questions in KC-MMBench's layout, and answers.jsonl, answers to them."""
    from PIL import Image

    (top / "standin" / "images").mkdir(parents=True)
    (top / "standin" / "THIS_IS_NOT_KC-MMBENCH.txt").write_text("A stand-in.")
    Image.new("RGB", (56, 56), (200, 30, 40)).save(top / "standin" / "images" / "0.png")
    rows = {"SPU": ["是", "否"], "Video_Order": ["[Video 2, Video 1]"]}
    tables = {name: "".join(f"{n}\t有吗？\t{x}\t0.png\n" for n, x in enumerate(values)) for name, values in rows.items()}
    for name, text in tables.items():
        (top / "standin" / f"{name}.tsv").write_text(f"index\tquestion\tanswer\timage_path\n{text}")
    answers = [("SPU", 0, "是。"), ("SPU", 1, "是"), ("Collection_Order", 0, "[Video 2, Video 1]")]
    lines = [json.dumps({"task": task, "index": index, "prediction": text}) + "\n" for task, index, text in answers]
    (top / "answers.jsonl").write_text("".join(lines))


@pytest.fixture(scope="module")
def worktop(tmp_path_factory):
    """A folder with what the examples speak of."""
    top = tmp_path_factory.mktemp("worktop")
    (top / "videos").mkdir()
    make_items(top)
    make_chats(top)
    make_models(top)
    make_sums(top)
    make_standin(top)
    make_video(top / "clip.mp4", 20)
    make_video(top / "videos" / "yoga.mp4", 15)
    make_video(top / "videos" / "friday.mp4", 12)
    made = bash(
        "kvtools tokenize-video videos/ -o clips.kvs; "
        "for i in 0 1; do kvtools tokenize-video --shard $i/2 videos/ -o part-0$i.kvs; done; "
        "kvtools embed --dim 8 shop.json -o items.kvs; kvtools embed --like items.kvs later.json -o new.kvs; "
        "kvtools semid-build --codes 8 --collisions extend items.kvs -o items.ids; "
        "kvtools pretrain onerec clicks.csv --items items.ids --steps 2 --architecture width=16 -o shop.safetensors; "
        "kvtools devices --data digits.csv --partition shards:2 --graph edges.txt -o fleet.devices; "
        "kvtools kma-cluster -k 3 --method k-medoids fleet.devices -o fleet.tree; "
        "kvtools rl sample -q sums.jsonl --model keye.safetensors --max-new 8 --reward length:-1 -o rollouts.kvs; "
        "kvtools rl pairs -q rollouts.kvs -o preferences.kvs; "
        "kvtools pretrain keye -q chats.json --init keye.safetensors --lora r=2 --steps 1 --batch-tokens 512 -o adapter",
        top,
    )
    assert (made.returncode, unsaid(made.stderr)) == (0, "")
    return top


def test_every_command_has_a_page_with_its_generated_parts():
    assert generate.faults() == []


def test_generated_parts_and_completions_are_up_to_date():
    assert [str(path) for path in generate.stale()] == []


def test_a_command_without_a_page_is_named(tmp_path, monkeypatch):
    shutil.copytree(MAN, tmp_path / "man")
    (tmp_path / "man" / "kvtools-info.1").unlink()
    monkeypatch.setattr(generate, "ROOT", tmp_path)
    monkeypatch.setattr(generate, "MAN", tmp_path / "man")
    assert generate.faults() == ["man/kvtools-info.1: missing. Write it, after the pattern of man/kvtools-info.1."]


def test_a_command_of_two_words_wants_a_page_with_hyphens_between_them(monkeypatch):
    monkeypatch.setitem(sys.modules, "kvtools.commands.bake_rye_bread", cli.COMMANDS["info"].load("info"))
    monkeypatch.setitem(cli.COMMANDS, "bake rye-bread", cli.COMMANDS["info"])
    assert generate.faults() == ["man/kvtools-bake-rye-bread.1: missing. Write it, after the pattern of man/kvtools-info.1."]
    assert ".It Xr kvtools-bake-rye-bread 1\n" in generate.stale()[MAN / "kvtools.1"]


def test_mandoc_finds_no_fault():
    complaints = generate.lint()
    if complaints is None:
        pytest.skip("mandoc is not installed")
    assert complaints == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_pages_have_the_sections_of_the_house(page):
    expected = ["NAME", "DESCRIPTION", "EXAMPLES", "SEE ALSO"]
    if page.suffix == ".1":
        expected += ["SYNOPSIS", "EXIT STATUS", *(["OPTIONS"] if page.stem != "kvtools" else [])]
    titles = re.findall(r"^\.Sh (.*)$", page.read_text(), re.MULTILINE)
    assert set(expected) <= set(titles)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_pages_refer_to_pages_that_exist(page):
    named = re.findall(r"^(?:\.|\.It )Xr (kvtools\S*) (\d)", page.read_text(), re.MULTILINE)
    assert [f"{name}.{number}" for name, number in named if not (MAN / f"{name}.{number}").exists()] == []


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_help_tells_examples_exit_codes_and_see_also(name):
    module = cli.COMMANDS[name].load(name)
    shown = run([sys.executable, "-m", "kvtools", *name.split(), "--help"])
    assert (shown.returncode, shown.stderr) == (0, "")
    for title in ("Usage:", "Examples:", "Options:", "Exit codes:", "See also:"):
        assert f"\n{title}" in shown.stdout
    assert len(module.EXAMPLES) >= 2
    assert any(" | " in example for example in module.EXAMPLES)
    for example in module.EXAMPLES:
        assert f"  {example}\n" in shown.stdout


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_a_command_with_many_options_shows_a_dozen_first_and_the_others_under_titles(name):
    module, listed = cli.COMMANDS[name].load(name), cli.describe(name)["options"]
    titled = [option for option in listed if option["group"] is not None]
    assert len(listed) - len(titled) <= 14
    shown = run([sys.executable, "-m", "kvtools", *name.split(), "--help"]).stdout
    titles = [*dict.fromkeys(option["group"] for option in titled)]
    sections = re.findall(r"^([A-Z][^:\n]*):$", shown, re.MULTILINE)
    begin = sections.index("Options") + 1
    assert sections[begin : begin + len(titles)] == titles
    page = section(generate.page_of(name), "OPTIONS")
    assert re.findall(r"^\.Ss (.*)$", page, re.MULTILINE)[: len(titles)] == titles
    for option in listed:
        assert re.search(rf"^  .*{re.escape(option['names'][-1])}\b", shown, re.MULTILINE), option
    for title, names in getattr(module, "GROUPS", {}).items():
        assert [option["names"][0] for option in titled if option["group"] == title] == [
            option["names"][0] for option in listed if option["names"][0] in names
        ], title
        assert {*names} <= {option["names"][0] for option in listed}, title


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_help_refers_to_pages_that_exist(name):
    for reference in cli.COMMANDS[name].load(name).SEE_ALSO:
        page = re.sub(r"\((\d)\)$", r".\1", reference) if reference.endswith(")") else reference.replace(" ", "-") + ".1"
        assert (MAN / page).exists(), reference


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_examples_in_help_stand_in_the_page_too(name):
    examples = cli.COMMANDS[name].load(name).EXAMPLES
    assert [example for example in examples if example not in examples_of(generate.page_of(name))] == []


@pytest.mark.parametrize("page", [page for page in PAGES if examples_of(page)], ids=lambda page: page.name)
def test_examples_run_as_printed(page, worktop, tmp_path):
    shutil.copytree(worktop, tmp_path, dirs_exist_ok=True)
    for example in examples_of(page):
        done = bash(example, tmp_path)
        assert (done.returncode, unsaid(done.stderr)) == (0, ""), example


@pytest.mark.parametrize("words", [[], *(name.split() for name in cli.COMMANDS)], ids=" ".join)
def test_help_imports_nothing_heavy(words):
    script = (
        "import sys\nfrom kvtools import cli\ncode = cli.run([*sys.argv[1:], '--help'])\n"
        "heavy = sorted({'torch', 'numpy', 'av', 'decord', 'mpi4py', 'zstandard'} & set(sys.modules))\n"
        "sys.exit(f'imports {heavy}' if heavy else code)"
    )
    done = run([sys.executable, "-c", script, *words])
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("kvtools inf", ["info"]),
        ("kvtools ''", [*dict.fromkeys(name.split()[0] for name in cli.COMMANDS)]),
        ("kvtools cat --comp", ["--compress"]),
        ("kvtools tokenize-video --pick re", ["reference"]),
    ],
)
def test_bash_completes_commands_options_and_choices(words, expected, tmp_path):
    script = (
        f"source {ROOT}/completions/kvtools.bash; COMP_WORDS=({words}); "
        "COMP_CWORD=$((${#COMP_WORDS[@]} - 1)); _kvtools_completion kvtools; printf '%s\\n' \"${COMPREPLY[@]}\""
    )
    done = bash(script, tmp_path)
    assert (done.stdout.split(), done.stderr) == (expected, "")


def test_the_stream_page_explains_every_kind():
    text = section(MAN / "kvtools-stream.5", "KINDS")
    assert re.findall(r"^\.It Cm (\S+)$", text, re.MULTILINE) == list(KINDS)


def test_the_page_of_pretrain_onerec_tells_sizes_and_defaults_as_they_are():
    from kvtools.onerec.model.config import SIZES
    from kvtools.onerec.run.recipe import _TRAINING

    text = (MAN / "kvtools-pretrain-onerec.1").read_text()
    titles, *rows = [
        line.split() for line in re.search(r"^\.Bd -literal.*?\n(.*?)^\.Ed", text, re.MULTILINE | re.DOTALL)[1].splitlines()
    ]
    assert titles == list(SIZES)
    told = {name: values for name, *values in rows}
    has_options = {"decoder", "near", "dropout", "near_share"}
    expected = {
        name: [str(int(value) if isinstance(value, bool) else value) for value in values]
        for name in SIZES["tiny"].to_json()
        if name not in has_options and (values := [size.to_json()[name] for size in SIZES.values()])
    }
    assert told == expected
    assert dict(re.findall(r"^\.It Cm (\w+) No = ?(\S*)$", text, re.MULTILINE)) == {
        name: {"True": "yes", "False": "no"}.get(str(x), str(x)) for name, x in _TRAINING.items()
    }


def test_the_program_in_the_stream_page_writes_the_bytes_it_shows(tmp_path):
    program, *dumps = literals_of(MAN / "kvtools-stream.5")
    done = run([sys.executable, "-c", program], tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    shown = b""
    for line in "".join(dumps).splitlines():
        offset, hexadecimal = line[:4], line[6:54]
        assert int(offset, 16) == len(shown), line
        shown += bytes.fromhex(hexadecimal)
    assert (tmp_path / "tiny.kvs").read_bytes() == shown
    checked = bash("kvtools check tiny.kvs", tmp_path)
    assert (checked.returncode, checked.stdout, checked.stderr) == (0, "", "")


def told_sizes(page):
    """{size: {name: word}} of the table under SIZES."""
    section = (MAN / page).read_text().partition("\n.Sh SIZES\n")[2]
    table = section.partition("\n.Bd -literal -offset indent\n")[2].partition("\n.Ed\n")[0]
    head, *lines = (line.split() for line in table.splitlines())
    return {size: {name: words[i] for name, *words in lines} for i, size in enumerate(head)}


def as_told(value):
    return {True: "yes", False: "no"}[value] if isinstance(value, bool) else str(value)


def test_sizes_are_those_that_the_pages_tell():
    for page, sizes in (("kvtools-pretrain-onerec.1", ONEREC_SIZES), ("kvtools-pretrain-keye.1", KEYE_SIZES)):
        told = told_sizes(page)
        assert [*told] == [*sizes]
        for size, shape in sizes.items():
            for name, word in told[size].items():
                found = shape
                for part in name.split("."):
                    found = getattr(found, part)
                assert word == as_told(found) or float(word) == found, (page, size, name)


def test_rates_of_stages_are_those_that_the_page_tells():
    told = (MAN / "kvtools-pretrain-keye.1").read_text()
    words = re.search(r"Rates at their peak are (.*?)for the others", told, re.DOTALL)[1]
    named = dict(re.findall(r"(\de-\d) for\n\.Cm (\w+)", words))
    rest = words.split()[-1]
    for name, stage in STAGES.items():
        rate = next((rate for rate, each in named.items() if each == name), rest)
        assert float(rate) == stage.lr, name
