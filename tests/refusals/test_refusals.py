"""Every refusal, provoked and held against a golden file that a person reads whole; `make golden` rewrites it.

A line is `case => exit code, message`; a case is a command line or a call of a library function. The golden file shows each
message that kvtools can refuse with; unprovoked.txt lists those that no test can provoke, each with the reason, and
without_advice.txt those that need not say what to do.
"""

import importlib
import re
import shutil
from pathlib import Path

import provoke
import pytest
import same_outputs
from conftest import IS_REWRITING

HERE = Path(__file__).parent
GOLDEN = HERE / "refusals.txt"
SECTIONS = {
    "options": "The command line, recipes, ranks and states",
    "plumbing": "Artifacts, tables, directories, and the commands that take any of them",
    "video": "Videos and pictures",
    "keye": "Conversations, media, questions, checkpoints, the vision-language model",
    "adapters": "Low-rank adapters; answers by the file",
    "coldstart": "The cold-start mixture",
    "endpoint": "Servers that answer questions; benchmarks",
    "alignment": "Rewards, rollouts, pairs of answers, and training by them",
    "kcmm": "KC-MMBench",
    "rec_files": "Interactions and semantic IDs in files of other programs",
    "onerec": "Items, interactions, semantic IDs, recommendations",
    "rl_onerec": "Reinforcement learning of recommenders",
    "etree": "Devices, networks, trees, training over them",
}
MADE = [
    "tokenize", "quiz", "convert-csv", "embed", "pairs", "semid", "semid-rqvae", "onerec", "onerec-near", "keye-matching",
    "keye", "model-directory", "devices", "tree", "train",
]  # fmt: skip


@pytest.fixture(scope="session")
def furnished(tmp_path_factory):
    """A folder of good inputs and artifacts, which sections copy."""
    folder = tmp_path_factory.mktemp("refusals")
    same_outputs.furnish(folder, MADE)
    return folder


def golden_sections():
    """{section: its lines}."""
    text = GOLDEN.read_text() if GOLDEN.exists() else ""
    parts = re.split(r"^# (.*)\n", text, flags=re.MULTILINE)[1:]
    return {title: lines.strip().splitlines() for title, lines in zip(parts[::2], parts[1::2], strict=True)}


@pytest.mark.parametrize("section", SECTIONS)
def test_refusals_are_those_of_the_golden_file(section, furnished, tmp_path, monkeypatch):
    folder = tmp_path / "work"
    shutil.copytree(furnished, folder)
    monkeypatch.chdir(folder)
    module = importlib.import_module(section)
    module.furnish()
    cases = [line for line in module.CASES.splitlines() if line and not line.startswith("#")]
    lines = [*provoke.lines_of(cases)]
    if IS_REWRITING:
        sections = golden_sections() | {SECTIONS[section]: lines}
        GOLDEN.write_text("\n".join(f"# {t}\n" + "".join(x + "\n" for x in sections.get(t, [])) for t in SECTIONS.values()))
    assert [line for line in lines if " => 0, " in line] == [], "these are not refused"
    assert lines == golden_sections()[SECTIONS[section]]


def golden_lines():
    return [line for lines in golden_sections().values() for line in lines]


def test_every_refusal_is_provoked():
    listed = (HERE / "unprovoked.txt").read_text().splitlines()
    reasons = dict(line.split(" => ") for line in listed)
    left = {f"{name}: {message}" for name, message in provoke.unprovoked("\n".join(golden_lines()))}
    assert sorted(left - reasons.keys()) == [], "provoke them, or list them in unprovoked.txt with the reason"
    assert sorted(reasons.keys() - left) == [], "they are provoked or gone: take them out of unprovoked.txt"


def test_refusals_are_sentences():
    faults = [fault for line in golden_lines() for fault in provoke.style_faults(line)]
    assert faults == []


def test_refusals_say_what_is_wrong_and_what_to_do():
    listed = (HERE / "without_advice.txt").read_text().splitlines()
    excused = dict(line.split(" => ") for line in listed)
    short = {line.partition(" => ")[0] for line in golden_lines() if provoke.lacks_advice(line)}
    assert sorted(short - excused.keys()) == [], "add a sentence that says what to do"
    assert sorted(excused.keys() - short) == [], "they say what to do, or are gone: take them out of without_advice.txt"
    assert len(excused) <= 3, "this list may only shrink"
