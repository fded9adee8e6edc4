"""Each script of examples/slurm to its end on a real Slurm of two nodes, with small models; skipped where none runs.

A script is given what the test cluster lacks as options of sbatch (`batch.SMALLER`), and nothing else.
"""

import json
import shutil
import subprocess

import pytest
import same_outputs
from batch import EXAMPLES, OUTPUT, SMALLER, environment, has_two_nodes, log, submit, wait
from conftest import shell

pytestmark = [pytest.mark.slurm, pytest.mark.skipif(not has_two_nodes(), reason="no Slurm with two nodes is running")]
MADE = ["tokenize", "quiz", "convert-csv", "embed", "semid", "onerec", "keye"]
TINY = same_outputs.KEYE.replace("--media clips.kvs", "").split()


def questions(n, answer="{}"):
    return [
        {
            "messages": [
                {"role": "user", "content": f"What is {i} and {i}?"},
                {"role": "assistant", "content": answer.format(2 * i)},
            ]
        }
        for i in range(n)
    ]


@pytest.fixture(scope="module")
def furnished(tmp_path_factory):
    """Clips, questions, clicks, items, and models of a few steps, under the names that the scripts read."""
    folder = tmp_path_factory.mktemp("examples")
    same_outputs.furnish(folder, MADE)
    (folder / "videos.txt").write_text("".join(f"videos/{name}.mp4\n" for name in "abcdef"))
    for name in ("describe", "time", "match"):
        shutil.copy(folder / "questions.kvs", folder / f"{name}.kvs")
    shutil.copy(folder / "shop.model", folder / "shop.safetensors")
    for name in ("aligned", "start"):
        shutil.copy(folder / "keye.safetensors", folder / f"{name}.safetensors")
    thought = "<think>Twice.</think><answer>\\boxed{{{}}}</answer>"
    for name, rows in {
        "think": questions(8, thought),
        "bare": questions(8),
        "prompts": questions(6),
        "held-out": questions(3),
    }.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "kc-mmbench" / "images").mkdir(parents=True)
    shutil.copy(folder / "pictures" / "0.png", folder / "kc-mmbench" / "images" / "a.png")
    rows = "".join(f"{i}\t?\t{'是否'[i % 2]}\ta.png\n" for i in range(4))
    (folder / "kc-mmbench" / "SPU.tsv").write_text(f"index\tquestion\tanswer\timage_path\n{rows}")
    return folder


@pytest.fixture
def here(furnished, tmp_path):
    shutil.copytree(furnished, tmp_path, dirs_exist_ok=True)
    return tmp_path


def complete(folder, script, *words, options=(), timeout_s=300, **more):
    number = submit(folder, EXAMPLES / script, *words, options=(*SMALLER, *options), **more)
    states = wait(number, timeout_s)
    assert set(states) == {"COMPLETED 0"}, log(folder, number)


def same_records(folder, made, line):
    """The stream holds the records that one process on one machine writes."""
    sh = shell(folder)
    assert sh(f"kvtools {line} -o alone.kvs").code == 0
    assert sh(f"kvtools sum {made}").out.split()[0] == sh("kvtools sum alone.kvs").out.split()[0]


def test_shards_of_an_array_join_to_the_whole(here):
    complete(here, "shards.sbatch", options=["--array=0-1"])
    assert shell(here)("kvtools cat clips-0*.kvs -o joined.kvs").code == 0
    same_records(here, "joined.kvs", "tokenize-video --list videos.txt")


def test_ranks_write_one_stream(here):
    (here / "clips.kvs").unlink()
    complete(here, "ranks.sbatch")
    same_records(here, "clips.kvs", "tokenize-video --list videos.txt")


def test_four_stages(here):
    (here / "keye.safetensors").unlink()
    complete(here, "four-stages.sbatch", 2, *TINY)
    assert shell(here)("kvtools check keye.safetensors").code == 0


@pytest.mark.parametrize(
    ("script", "made"),
    [
        ("pretrain-keye.sbatch", "multitask.safetensors"),
        ("pretrain.sbatch", "shop.safetensors"),
        ("rl-grpo.sbatch", "better.safetensors"),
        ("rl-onerec.sbatch", "better.safetensors"),
    ],
)
def test_trainings(here, script, made):
    if script == "pretrain.sbatch":
        (here / made).unlink()
    if script == "rl-onerec.sbatch":
        ranker = "kvtools rl pscore --model shop.safetensors clicks.csv --reward hit --steps 1 -o ranker.safetensors"
        assert shell(here)(ranker).code == 0
    complete(here, script, timeout_s=600)
    assert shell(here)(f"kvtools check {made}").code == 0


def test_a_night(here):
    sizes = same_outputs.ONEREC.partition("--items items.ids ")[2].split()
    complete(here, "nightly.sbatch", "clicks.csv", "items.kvs", "night", *sizes, "--steps", 3, CODES="8")
    assert len((here / "night" / "quality.jsonl").read_text().splitlines()) == 2
    alone = "recgen --model night/shop.safetensors clicks.csv"
    same_records(here, "night/today.kvs", alone)


def test_a_benchmark_in_parts(here):
    complete(here, "eval-kcmm.sbatch", options=["--array=0-1"])
    table = shell(here)("kvtools eval-kcmm kc-mmbench --predictions details/ --json")
    assert table.code == 0, table.err
    assert json.loads(table.out.splitlines()[0])["n"] == 4


def test_jobs_that_wait_for_one_another(here):
    (here / "start.safetensors").unlink()
    chosen = {
        "STEPS": "1",
        "START": "--batch-tokens 1024 --length 512",
        "GRPO": "--group 2 --batch 2 --max-new 4 --overlong keep",
        "SBATCH": " ".join([*OUTPUT, *SMALLER]),
    }
    line = ["bash", str(EXAMPLES / "align.sh"), "keye.safetensors", "think.jsonl", "bare.jsonl", "prompts.jsonl", "kc-mmbench"]
    told = subprocess.run(line, cwd=here, env=environment(**chosen), capture_output=True, text=True, check=True).stdout
    numbers = [word for word in told.replace(",", " ").split() if word.isdigit()]
    for number in numbers:
        assert wait(number) == ["COMPLETED 0"], log(here, number)
    assert (here / "details.jsonl").exists()


def test_a_tree_on_two_nodes(here, data):
    complete(here, "etree.sbatch", data, 1, timeout_s=600)
    assert shell(here)("kvtools check fleet.model fleet.tree").code == 0
