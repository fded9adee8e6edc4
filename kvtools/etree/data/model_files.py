"""Models by name or from files: a TOML recipe, of which nothing is executed, or Python code of the user's, which is run."""

import importlib.util
import tomllib
from pathlib import Path

import torch

from kvtools.errors import unreadable
from kvtools.etree.train.custom_models import CustomModel, from_module, from_recipe
from kvtools.etree.train.models import Model, build


def build_model(text: str, shape: tuple[int, ...], n_classes: int, seed: int) -> Model:
    """The model that `--model` names, for samples of this shape: a known name, FILE.toml, or FILE.py:NAME.

    Raises ValueError for other text and for files that hold no such model, Missing where there is no such file.
    """
    if text.endswith(".toml"):
        return _read_recipe(text, shape, n_classes)
    if text.rpartition(":")[0].endswith(".py"):
        return _run_code(text, shape, n_classes, seed)
    return build(text, shape, n_classes)


def _read_recipe(path: str, shape: tuple[int, ...], n_classes: int) -> CustomModel:
    try:
        recipe = tomllib.loads(_read(path).decode())
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as fault:
        raise ValueError(f"the file is not TOML: {fault}") from None
    layers = recipe.get("layers")
    if set(recipe) != {"layers"} or not isinstance(layers, list):
        raise ValueError(f"a recipe holds `layers` alone, and this one holds {', '.join(recipe) or 'nothing'}")
    return from_recipe(layers, shape, n_classes)


def _run_code(text: str, shape: tuple[int, ...], n_classes: int, seed: int) -> CustomModel:
    """The module that NAME(shape, n_classes) of FILE.py returns, text being FILE.py:NAME."""
    path, _, name = text.rpartition(":")
    _read(path)
    spec = importlib.util.spec_from_file_location(Path(path).stem, path)
    assert spec is not None, "the file's name ends in .py"
    assert spec.loader is not None, "the file's name ends in .py"
    code = importlib.util.module_from_spec(spec)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        spec.loader.exec_module(code)
        function = getattr(code, name, None)
        if not callable(function):
            raise ValueError(f"{path} has no function {name}")
        module = function(shape, n_classes)
    return from_module(module, shape, n_classes, text)


def _read(path: str) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError as fault:
        raise unreadable(f"--model {path}", fault) from None
