"""Every public function outside commands/ that takes or returns arrays says what shape they have.

Either its docstring shows a shape, such as `(N, D)`, or names carry shape suffixes, such as `x_ND`, whose letters are explained
in the docstring of the function, its class or its file, or in the comments at the file's top.
"""

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parents[2] / "kvtools"

_ARRAY = re.compile(r"\b(ndarray|Tensor|NDArray)\b")
_NAMED = re.compile(r"\b(dict|Mapping|MutableMapping)\[str, [\w.| ]*\]")  # tensors under names, of whatever shape
_AXIS = r"[\w.…'*+/-]{1,14}(?:\(\w+\))?(?: [*+/-] [\w']{1,10})?"
_SHAPE = re.compile(rf"\({_AXIS},(?: ?{_AXIS}(?:, ?{_AXIS})*)?\)|\bscalars?\b|\bany shape\b|\b(same|the) shape\b")
_REFERENCE = re.compile(r"^(See|As) [`A-Z]\w+")  # a protocol's method, or one that overrides: told at the other place
_SUFFIX = re.compile(r"\b[a-z]\w*?_([A-Z][A-Za-z0-9]*)\b")


def functions(body, of=""):
    """(class docstring, function) of each public function and method, none that stands inside a function."""
    for node in body:
        if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
            yield from functions(node.body, ast.get_docstring(node) or " ")
        elif isinstance(node, ast.FunctionDef) and not node.name.startswith("_"):
            yield of, node


def signature(function):
    arguments = function.args
    every = [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs]
    return [(a.arg, ast.unparse(a.annotation) if a.annotation else "") for a in every] + [
        ("", ast.unparse(function.returns) if function.returns else "")
    ]


def is_explained(names, *texts):
    """Whether one of the names has a shape suffix all of whose letters are told of in the texts."""
    for name in names:
        letters = set(re.findall(r"[A-Z]|[a-z]", name)) if name.isupper() else {name}
        if all(re.search(rf"\b{letter}\b", text) for letter in letters for text in ["\n".join(texts)]):
            return True
    return False


def without_legend():
    for path in sorted(ROOT.rglob("*.py")):
        if "commands" in path.parts or "transformers_code" in path.parts:
            continue
        text = path.read_text()
        tree = ast.parse(text)
        top = (ast.get_docstring(tree) or "") + "\n".join(line for line in text.splitlines()[:60] if line.startswith("#"))
        for of, function in functions(tree.body):
            parts = signature(function)
            if not any(_ARRAY.search(_NAMED.sub("", annotation)) or _SUFFIX.search(f" {name}") for name, annotation in parts):
                continue
            told = ast.get_docstring(function) or ""
            names = _SUFFIX.findall(" ".join([name for name, _ in parts] + [told]))
            if not _SHAPE.search(told) and not _REFERENCE.search(told) and not is_explained(names, top, of, told):
                yield f"{path.relative_to(ROOT.parent)}:{function.lineno} {function.name}"


def test_functions_of_arrays_tell_shapes():
    missing = [*without_legend()]
    assert missing == []
