"""The rules of the house: who may import what, who owns a foreign library, how long files and functions may be.

Each rule is a function that yields its offences. EXCEPTIONS says what is allowed all the same.
"""

import ast
import re
import sys
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2] / "kvtools"
LAYERS = {
    "cli": 0, "commands": 1, "keye": 2, "onerec": 2, "etree": 2, "train": 3, "video": 3, "draw": 3, "artifact": 4, "world": 4,
}  # fmt: skip
SYSTEMS = {"keye", "onerec", "etree"}
OWNERS = {
    "zstandard": "artifact", "safetensors": "artifact", "pyarrow": "artifact", "mpi4py": "world", "decord": "video",
    "av": "video", "ijson": "artifact", "tokenizers": "keye", "datasketch": "keye", "imagehash": "keye", "openai": "keye",
    "openpyxl": "artifact", "tensorboard": "train", "numba": "onerec video machine_code",
    "torch.distributed": "train", "matplotlib": "draw", "typer": "cli options invocation commands",
}  # fmt: skip
# models and algorithms: arrays in, arrays out
PURE = re.compile(
    r"(keye|onerec)/model/\w+|train/(objectives/\w+|checkpointing)|etree/(tree|network|train)/(?!readers|graphs|run)\w+"
    r"|onerec/semantic_ids/(align|rqkmeans|equal_rows|exact_sums|initial_centroids|nearest|centred_codes|kernels|compiled"
    r"|balanced|rqvae|collisions|quality)"
)
IMPURE_MODULES = {"os", "pathlib", "io", "shutil", "subprocess", "tempfile", "socket", "signal"}
EXCEPTIONS = {
    "onerec/model may import the histories": ("onerec/model/", "kvtools.onerec.interactions.histories"),
}
LINES, FUNCTION_LINES, COMMAND_LINES = 350, 60, 200


def is_foreign(path):
    """Whether a file is never imported here: it is copied into models' directories, in the manner of transformers."""
    return path.parent.name == "transformers_code" and path.name != "__init__.py"


class Module:
    """One file: its path below kvtools without .py, its text and tree, and what it imports anywhere in it."""

    def __init__(self, path):
        self.name = path.relative_to(ROOT).with_suffix("").as_posix()
        self.text = path.read_text()
        self.tree = ast.parse(self.text)
        self.room = self.name.partition("/")[0]
        self.imports = set()
        for node in ast.walk(self.tree):
            if isinstance(node, ast.Import):
                self.imports |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                assert node.level == 0, f"{self.name}: relative import"
                self.imports |= {f"{node.module}.{alias.name}" for alias in node.names}

    @property
    def is_pure(self):
        return bool(PURE.fullmatch(self.name))

    def own_imports(self):
        """Names of the files of kvtools that it imports."""
        for name in self.imports:
            words = name.split(".")
            if words[0] == "kvtools":
                longest = ["/".join(words[1:n]) for n in range(len(words), 0, -1)]
                yield next(file for file in longest if file in modules() or f"{file}/__init__".lstrip("/") in modules())


@cache
def modules():
    own = (path for path in sorted(ROOT.rglob("*.py")) if not is_foreign(path))
    return {module.name: module for module in map(Module, own)}


def imports_that_go_up():
    for module in modules().values():
        for target in map(modules_room, module.own_imports()):
            if LAYERS.get(target, 9) < LAYERS.get(module.room, 0):
                yield f"{module.name} imports {target}"
            if target != module.room and {target, module.room} <= SYSTEMS:
                yield f"{module.name} imports {target}"


def modules_room(name):
    return name.partition("/")[0]


def libraries_that_belong_to_another():
    for module in modules().values():
        for name in module.imports:
            for library, owners in OWNERS.items():
                if f"{name}.".startswith(f"{library}.") and module.room not in owners.split():
                    yield f"{module.name} imports {library}"


def options_outside_of_commands():
    for module in modules().values():
        if "options" in module.own_imports() and module.room not in ("cli", "help_text", "commands"):
            yield f"{module.name} imports options"


def files_and_private_names_in_models_and_algorithms():
    for module in modules().values():
        for node in ast.walk(module.tree) if module.is_pure else ():
            if isinstance(node, ast.Call):
                called = ast.unparse(node.func)
                if called in ("open", "print", "input") or re.fullmatch(
                    r"(np|numpy|torch)\.(load|save|savez|fromfile|memmap)", called
                ):
                    yield f"{module.name} calls {called}"
                is_kernels = module.name == "keye/model/cpu_kernels"  # which asks whether torch has them
                if (
                    called == "getattr"
                    and not is_kernels
                    and re.match(r"(torch|nn|functional|F)\b.*, '_[a-z]", ast.unparse(node)[8:])
                ):
                    yield f"{module.name} gets {ast.unparse(node)}"


def impure_imports_of_models_and_algorithms():
    for module in modules().values():
        if not module.is_pure:
            continue
        allowed = [
            target.replace(".", "/").removeprefix("kvtools/")
            for room, target in EXCEPTIONS.values()
            if module.name.startswith(room)
        ]
        for file in module.own_imports():
            is_pure = file in modules() and modules()[file].is_pure
            if not is_pure and file not in ("chance", "machine_code", *allowed):
                yield f"{module.name} imports {file}"
        for name in module.imports:
            library = name.partition(".")[0]
            is_light = library in sys.stdlib_module_names and library not in IMPURE_MODULES
            if library not in ("kvtools", "numpy", "numba", "scipy", "torch") and not is_light:
                yield f"{module.name} imports {library}"


def options_named_in_models_and_algorithms():
    for module in modules().values():
        for node in ast.walk(module.tree) if module.is_pure else ():
            if isinstance(node, ast.Constant) and isinstance(node.value, str) and re.search(r"(^|\s)--[a-z]", node.value):
                yield f"{module.name} names an option"


def private_names_of_torch():
    for module in modules().values():
        if module.name != "keye/model/cpu_kernels":
            for node in ast.walk(module.tree):
                words = ast.unparse(node) if isinstance(node, ast.Attribute) else ""
                if re.fullmatch(r"(torch|nn|functional|F)(\.\w+)*\._[a-z]\w*", words):
                    yield f"{module.name} uses {words}"
            for name in module.imports:
                if re.match(r"torch(\.\w+)*\._[a-z]", name):
                    yield f"{module.name} imports {name}"


def import_circles():
    """Each circle by its files, imports inside functions included."""
    edges = {name: set(module.own_imports()) for name, module in modules().items()}
    edges = {
        name: {file if file in edges else f"{file}/__init__".lstrip("/") for file in files} for name, files in edges.items()
    }
    for name in edges:
        reached, todo = set(), [*edges[name]]
        while todo:
            if (file := todo.pop()) not in reached:
                reached.add(file)
                todo += edges[file]
        if name in reached:
            yield f"{name} is in an import circle"


def files_over_budget():
    for module in modules().values():
        budget = COMMAND_LINES if module.room == "commands" else LINES
        if module.text.count("\n") > budget:
            yield f"{module.name} has more than {budget} lines"


def functions_over_budget():
    for module in modules().values():
        for node in ast.walk(module.tree):
            is_main = module.room == "commands" and getattr(node, "name", "") == "main"
            if isinstance(node, ast.FunctionDef) and not is_main and node.end_lineno - node.lineno + 1 > FUNCTION_LINES:
                yield f"{module.name}: {node.name} has more than {FUNCTION_LINES} lines"


def names_that_say_nothing():
    for module in modules().values():
        if re.search(r"(^|/)_?(utils?|helpers?|common|misc|manager)$", module.name):
            yield module.name


def unpickled_or_evaluated():
    for module in modules().values():
        yield from (f"{module.name} imports {name}" for name in module.imports if name in ("pickle", "marshal", "dill"))
        for node in ast.walk(module.tree):
            if isinstance(node, ast.keyword) and node.arg == "shell":
                yield f"{module.name} starts a shell"
            is_call = isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
            if is_call and node.func.id in ("eval", "exec") and module.name != "keye/sandbox/child":  # that is its purpose
                yield f"{module.name} evaluates"


RULES = [
    imports_that_go_up, options_outside_of_commands, files_and_private_names_in_models_and_algorithms,
    libraries_that_belong_to_another, impure_imports_of_models_and_algorithms,
    options_named_in_models_and_algorithms, private_names_of_torch, import_circles, files_over_budget, functions_over_budget,
    names_that_say_nothing, unpickled_or_evaluated,
]  # fmt: skip


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_the_house_is_in_order(rule):
    assert sorted({*rule()}) == []


def test_the_map_in_contributing_names_what_is_there():
    text = (ROOT.parent / "CONTRIBUTING.md").read_text()
    named = {line.split()[0] for line in text.splitlines() if line.startswith("    kvtools/")}
    assert [name for name in sorted(named) if not (ROOT.parent / name).exists()] == []
    files = {f"kvtools/{path.name}" for path in ROOT.glob("*.py") if not path.name.startswith("__")}
    assert sorted(files - named) == []
    rooms = {path.parent for path in ROOT.rglob("*.py") if path.name != "__init__.py" and not is_foreign(path)} - {ROOT}
    assert [f"{room.relative_to(ROOT.parent)}/" for room in rooms if f"{room.relative_to(ROOT.parent)}/" not in named] == []
    assert len(text.partition("## Glossary")[2].splitlines()) <= 40
