"""What code in the sandbox may contain: statements, names, attributes and modules that are listed, and nothing else.

This is the wall that stands where the kernel has no filter (isolation.py), and the one that names what it refuses.
Everything is denied by default: a module is a facade of listed functions (modules.py), an attribute is one of the public
names of plain values, arrays and pictures, and there are no classes, no assignments to attributes and no names with two
underscores. Where one attribute name is harmless on one value and not on another, `attribute` decides while the code runs.
"""

import ast
import builtins
import string
import sys
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from PIL import Image

from kvtools.keye.sandbox.modules import ABSENT, MODULES, NAMES, Facade, Kind

_NODES = (
    ast.Module, ast.Expr, ast.Assign, ast.AugAssign, ast.AnnAssign, ast.For, ast.While, ast.If, ast.With, ast.withitem, ast.Try,
    ast.ExceptHandler, ast.Raise, ast.Assert, ast.Pass, ast.Break, ast.Continue, ast.Return, ast.Delete, ast.FunctionDef,
    ast.Lambda, ast.arguments, ast.arg, ast.keyword, ast.Import, ast.ImportFrom, ast.alias, ast.Global, ast.Nonlocal,
    ast.Name, ast.Constant, ast.Attribute, ast.Subscript, ast.Slice, ast.Starred, ast.Call, ast.BinOp, ast.UnaryOp,
    ast.BoolOp, ast.Compare, ast.IfExp, ast.NamedExpr, ast.List, ast.Tuple, ast.Set, ast.Dict, ast.ListComp, ast.SetComp,
    ast.DictComp, ast.GeneratorExp, ast.comprehension, ast.JoinedStr, ast.FormattedValue, ast.operator, ast.unaryop,
    ast.boolop, ast.cmpop, ast.expr_context,
)  # fmt: skip
_BUILTINS = (
    "abs", "all", "any", "bin", "bool", "bytes", "bytearray", "chr", "complex", "dict", "divmod", "enumerate", "filter",
    "float", "format", "frozenset", "hash", "hex", "int", "iter", "len", "list", "map", "max", "min", "next", "oct", "ord",
    "pow", "range", "repr", "reversed", "round", "set", "slice", "sorted", "str", "sum", "tuple", "zip", "None", "True",
    "False", "Ellipsis", "NotImplemented", "isinstance", "callable",
)  # fmt: skip
_PLAIN = (
    bool, int, float, complex, str, bytes, bytearray, list, tuple, dict, set, frozenset, range, slice,
)  # fmt: skip
# `setting` of these is common in code for pictures, and does nothing here
_SETTINGS = ("LOAD_TRUNCATED_IMAGES", "MAX_IMAGE_PIXELS")
_GUARDED = ("format", "getdata", "resize")
_ATTRIBUTE = "__attribute"  # the guard's name in a program; code cannot write it
_INTERNAL = ("numpy._core.", "_strptime")  # what C code imports at its first use, and `compiled` refuses to the code


class Refused(ValueError):
    """Code that may not run, or that reached for what it may not have while it ran."""


class NotPython(ValueError):
    """Text that is no program."""


def compiled(source: str) -> Any:
    """Code that may run, with its guards in it. Raises NotPython, or Refused with the first thing that is not allowed."""
    try:
        tree = ast.parse(source, "code")
        absent = _absent_names(tree)
        for node in ast.walk(tree):
            if not isinstance(node, _NODES):
                raise Refused(f"a statement of type {type(node).__name__} is not allowed")
            _check_names(node)
            _check_attribute(node, absent)
        return compile(ast.fix_missing_locations(_Guards().visit(tree)), "code", "exec")
    except (SyntaxError, RecursionError, MemoryError) as error:
        raise NotPython(f"the code is not Python: {getattr(error, 'msg', None) or type(error).__name__}") from None
    except ValueError as error:
        if isinstance(error, Refused):
            raise
        raise NotPython(f"the code is not Python: {error}") from None


def _absent_names(tree: ast.Module) -> set[str]:
    """The names under which code imports libraries that are not here."""
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            module = getattr(node, "module", None)
            for alias in node.names:
                if (module or alias.name).partition(".")[0] in ABSENT:
                    names.add(alias.asname or alias.name.partition(".")[0])
    return names


def _check_attribute(node: ast.AST, absent: set[str]) -> None:
    if not isinstance(node, ast.Attribute):
        return
    if not isinstance(node.ctx, ast.Load):
        if node.attr not in _SETTINGS or isinstance(node.ctx, ast.Del):
            raise Refused(f"assignment to the attribute {node.attr} is not allowed")
    elif node.attr not in NAMES:
        base = node.value
        while isinstance(base, ast.Attribute):
            base = base.value
        # of a library that is not here: the import fails first, and `attribute` refuses what the name may mean instead
        if node.attr.startswith("_") or not (isinstance(base, ast.Name) and base.id in absent):
            raise Refused(f"the attribute {node.attr} is not allowed")


def _check_names(node: ast.AST) -> None:
    names = [getattr(node, field, None) for field in ("id", "arg", "name", "asname")]
    names += getattr(node, "names", []) if isinstance(node, ast.Global | ast.Nonlocal) else []
    for name in names:
        if isinstance(name, str) and name.startswith("__") and name != "__name__":
            raise Refused(f"the name {name} is not allowed")
    if isinstance(node, ast.Import):
        for alias in node.names:
            _check_module(alias.name)
    if isinstance(node, ast.ImportFrom):
        _check_module("." if node.level else node.module or ".")
        if any(alias.name.startswith(("_", "*")) for alias in node.names):
            raise Refused("import of * and of private names is not allowed")


def _check_module(name: str) -> None:
    if name not in MODULES and name.partition(".")[0] not in ABSENT:
        raise Refused(f"import of {name} is not allowed")


class _Guards(ast.NodeTransformer):
    """Puts the guard of `attribute` where an attribute is not harmless on every value."""

    def visit_Attribute(self, node: ast.Attribute) -> ast.AST:
        self.generic_visit(node)
        if isinstance(node.ctx, ast.Store) or (node.attr in NAMES and node.attr not in _GUARDED):
            return node
        return ast.Call(ast.Name(_ATTRIBUTE, ast.Load()), [node.value, ast.Constant(node.attr)], [])


class _Formatter(string.Formatter):
    """str.format without attributes: a format string is data, and its attributes are not seen by the check."""

    def get_field(self, field_name: str, args: Any, kwargs: Any) -> Any:
        if "." in field_name:
            raise Refused("attributes in a format string are not allowed")
        return super().get_field(field_name, args, kwargs)


def attribute(value: Any, name: Any, *default: Any) -> Any:
    """Getattr for code in the sandbox. Raises Refused for an attribute that is not allowed on this value."""
    if type(name) is not str or name not in NAMES:
        raise Refused(f"the attribute {name!s:.80} is not allowed")
    kind = value if isinstance(value, type) else type(value)
    if name == "format" and issubclass(kind, str):
        # the text is the value itself, or, of str.format, the first argument
        text = () if isinstance(value, type) else (value,)
        return lambda *args, **kwargs: _Formatter().format(*text, *args, **kwargs)
    if name == "getdata" and issubclass(kind, Image.Image):
        return lambda band=None: list(value.getdata(band))  # in place of an object of Pillow's C library
    if name == "resize" and issubclass(kind, np.ndarray):
        raise Refused("the attribute resize of an array is not allowed; numpy.resize makes another")  # it frees shared memory
    return getattr(value, name, *default)


def _has_attribute(value: Any, name: Any) -> bool:
    return type(name) is str and name in NAMES and hasattr(value, name)


def _type_of(*values: Any) -> Any:
    """type(x): the class of a plain value or an exception, else something that can only be told and compared."""
    if len(values) != 1:
        raise Refused("type makes no classes here")
    kind = type(values[0])
    return kind if kind in _PLAIN or issubclass(kind, BaseException) else Kind(kind)


def builtin_names(**given: Any) -> dict[str, Any]:
    """The built-in functions and errors of the sandbox, those that are given among them."""
    errors = {
        name: value for name, value in vars(builtins).items() if isinstance(value, type) and issubclass(value, BaseException)
    }
    plain = {name: getattr(builtins, name) for name in _BUILTINS}
    guarded = {"getattr": attribute, "hasattr": _has_attribute, "type": _type_of, _ATTRIBUTE: attribute}
    return {**errors, **plain, **guarded, "__name__": "__main__", **given}


def importer(facades: Mapping[str, Facade]) -> Callable[..., Any]:
    """A function in the place of __import__ that gives facades. It raises ModuleNotFoundError for libraries that are not
    here, which code may catch, and Refused for all else."""

    def guarded(name: str, _globals: Any = None, _locals: Any = None, fromlist: Any = (), level: int = 0) -> Any:
        if name.startswith(_INTERNAL) and name in sys.modules and not level:
            return sys.modules[name]
        top = name.partition(".")[0]
        if not level and name in facades:
            return facades[name] if fromlist else facades[top]
        if top in ABSENT:
            raise ModuleNotFoundError(f"the sandbox has no library {top}", name=top)
        raise Refused(f"import of {name or '.'} is not allowed")

    return guarded
