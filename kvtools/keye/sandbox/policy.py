"""What code in the sandbox may say: statements, names and modules that are listed, and nothing else.

This is the outer of two walls, and the one that holds where the kernel has no filter (seccomp.py). A module is seen through a
facade of its own public functions and classes, so that no module leads to another.
"""

import ast
import builtins
import sys
from collections.abc import Callable, Mapping
from types import ModuleType, SimpleNamespace
from typing import Any

MODULES = (
    "PIL", "PIL.Image", "PIL.ImageChops", "PIL.ImageColor", "PIL.ImageDraw", "PIL.ImageEnhance", "PIL.ImageFilter",
    "PIL.ImageOps", "PIL.ImageStat", "cmath", "collections", "datetime", "decimal", "fractions", "functools", "itertools",
    "json", "math", "numpy", "numpy.fft", "numpy.linalg", "numpy.random", "random", "re", "statistics", "string",
)  # fmt: skip
_NODES = (
    ast.Module, ast.Expr, ast.Assign, ast.AugAssign, ast.AnnAssign, ast.For, ast.While, ast.If, ast.With, ast.withitem,
    ast.Try, ast.ExceptHandler, ast.Raise, ast.Assert, ast.Pass, ast.Break, ast.Continue, ast.Return, ast.Delete,
    ast.FunctionDef, ast.Lambda, ast.arguments, ast.arg, ast.keyword, ast.Import, ast.ImportFrom, ast.alias, ast.Global,
    ast.Nonlocal, ast.Name, ast.Constant, ast.Attribute, ast.Subscript, ast.Slice, ast.Starred, ast.Call, ast.BinOp,
    ast.UnaryOp, ast.BoolOp, ast.Compare, ast.IfExp, ast.NamedExpr, ast.List, ast.Tuple, ast.Set, ast.Dict, ast.ListComp,
    ast.SetComp, ast.DictComp, ast.GeneratorExp, ast.comprehension, ast.JoinedStr, ast.FormattedValue, ast.ClassDef,
    ast.operator, ast.unaryop, ast.boolop, ast.cmpop, ast.expr_context,
)  # fmt: skip
_BUILTINS = (
    "abs", "all", "any", "bin", "bool", "bytes", "bytearray", "chr", "complex", "dict", "divmod", "enumerate", "filter",
    "float", "format", "frozenset", "hash", "hex", "id", "int", "isinstance", "issubclass", "iter", "len", "list", "map",
    "max", "min", "next", "object", "oct", "ord", "pow", "property", "range", "repr", "reversed", "round", "set", "slice",
    "sorted", "staticmethod", "str", "sum", "super", "tuple", "zip", "None", "True", "False", "NotImplemented", "Ellipsis",
    "__build_class__", "__name__",
)  # fmt: skip
# functions that read or write files by themselves, or make programs of data
_WITHHELD = {
    "numpy": ("load", "save", "savez", "savez_compressed", "loadtxt", "savetxt", "genfromtxt", "fromfile", "memmap",
              "fromregex", "frombuffer", "show_config", "test", "info", "source", "lookfor"),
    "PIL.Image": ("open", "core", "register_open", "register_save", "register_decoder", "register_encoder", "init", "preinit"),
    "functools": (),
}  # fmt: skip
_ATTRIBUTES = (
    "tofile",
    "dump",
    "dumps",
    "show",
    "ctypes",
    "gi_frame",
    "cr_frame",
    "tb_frame",
    "f_globals",
    "f_back",
    "f_builtins",
    "mro",
)


def check(source: str) -> ast.Module:
    """The syntax tree of code that may run. Raises ValueError with the first thing in it that is not allowed."""
    try:
        tree = ast.parse(source, "code")
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise ValueError(f"the code is not Python: {getattr(error, 'msg', None) or type(error).__name__}") from None
    for node in ast.walk(tree):
        if not isinstance(node, _NODES):
            raise ValueError(f"a statement of type {type(node).__name__} is not allowed")
        _check_names(node)
    return tree


def _check_names(node: ast.AST) -> None:
    if isinstance(node, ast.Attribute) and (node.attr.startswith("_") or node.attr in _ATTRIBUTES):
        raise ValueError(f"the attribute {node.attr} is not allowed")
    if isinstance(node, ast.Name) and node.id.startswith("__") and node.id != "__name__":
        raise ValueError(f"the name {node.id} is not allowed")
    if isinstance(node, ast.arg | ast.FunctionDef | ast.ClassDef):
        name = node.arg if isinstance(node, ast.arg) else node.name
        if name.startswith("__") and name != "__init__":
            raise ValueError(f"the name {name} is not allowed")
    if isinstance(node, ast.Import):
        for alias in node.names:
            _check_module(alias.name)
    if isinstance(node, ast.ImportFrom):
        _check_module(node.module or ".")
        for alias in node.names:
            if alias.name.startswith("_") or alias.name == "*":
                raise ValueError(f"import of {alias.name} from {node.module} is not allowed")
    if isinstance(node, ast.Import | ast.ImportFrom) and any((a.asname or "").startswith("__") for a in node.names):
        raise ValueError("a name that begins with __ is not allowed")


def _check_module(name: str) -> None:
    if name not in (*MODULES, "os", "os.path"):
        raise ValueError(f"import of {name} is not allowed")


def facade(module: ModuleType) -> SimpleNamespace:
    """A module's own public functions, classes and values, without the modules that it knows."""
    withheld = _WITHHELD.get(module.__name__, ())
    names = [name for name in dir(module) if not name.startswith("_") and name not in withheld]
    return SimpleNamespace(**{name: value for name in names if not isinstance(value := getattr(module, name), ModuleType)})


def builtin_names(**given: Any) -> dict[str, Any]:
    """The built-in functions and errors of the sandbox, those that are given among them."""
    errors = {
        name: value for name, value in vars(builtins).items() if isinstance(value, type) and issubclass(value, BaseException)
    }
    plain = {name: getattr(builtins, name) for name in _BUILTINS if hasattr(builtins, name)}
    return {**errors, **plain, "__name__": "__main__", **given}


def importer(facades: Mapping[str, SimpleNamespace]) -> Callable[..., Any]:
    """A function in the place of __import__ that gives facades, and raises ImportError for what has none."""

    def guarded(name: str, _globals: Any = None, _locals: Any = None, fromlist: Any = (), level: int = 0) -> Any:
        if name.startswith("numpy._core.") and name in sys.modules:  # numpy's C code asks for its own parts; check() stops ours
            return sys.modules[name]
        if level or name not in facades:
            raise ImportError(f"import of {name} is not allowed")
        return facades[name] if fromlist else facades[name.partition(".")[0]]

    return guarded
