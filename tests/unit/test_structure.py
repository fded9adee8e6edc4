"""The house: imports go one way, one owner a foreign library, files within their budgets."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2] / "kvtools"
LAYERS = {
    "cli": 0,
    "commands": 1,
    "keye": 2,
    "onerec": 2,
    "etree": 2,
    "train": 3,
    "video": 3,
    "draw": 3,
    "artifact": 4,
    "world": 4,
}
GROUND = {"", "errors", "options", "progress", "help_text", "__main__", "chance", "skipped"}
OWNERS = {
    "zstandard": "artifact",
    "safetensors": "artifact",
    "mpi4py": "world",
    "decord": "video",
    "av": "video",
    "pyarrow": "artifact onerec",
    "tokenizers": "keye",
}
BUDGETS = {"cli.py": 200, "options.py": 350, "world.py": 250}
SYSTEMS = {"keye", "onerec", "etree"}


def modules():
    for path in sorted(ROOT.rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        imports = set()
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                imports |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                imports |= {f"{node.module}.{alias.name}" for alias in node.names}
        yield path, parts, imports


def test_imports_go_one_way():
    for path, parts, imports in modules():
        layer = LAYERS.get(parts[0])
        for name in imports:
            target = name.split(".")[1] if name.startswith("kvtools.") else ""
            if layer is None or target in GROUND or target not in LAYERS or target == parts[0]:
                continue
            assert LAYERS[target] >= layer, f"{path}: {name} lies above it"
            assert not {parts[0], target} <= SYSTEMS, f"{path}: one system imports another"


def test_a_foreign_library_has_one_owner():
    for path, parts, imports in modules():
        for name in imports:
            owner = OWNERS.get(name.split(".")[0])
            assert owner is None or parts[0] in owner.split(), f"{path}: {name} belongs to {owner}"


@pytest.mark.parametrize("path", sorted((ROOT / "commands").glob("*.py")), ids=lambda p: p.name)
def test_a_command_is_a_paragraph(path):
    assert len(path.read_text().splitlines()) <= 200


@pytest.mark.parametrize(("name", "budget"), BUDGETS.items())
def test_files_keep_their_budgets(name, budget):
    assert len((ROOT / name).read_text().splitlines()) <= budget


def test_nothing_is_unpickled_or_evaluated():
    for path, _, imports in modules():
        text = path.read_text()
        assert not {"pickle", "marshal", "dill"} & {name.split(".")[0] for name in imports}, path
        assert "shell=True" not in text, path
