"""Settings of a model or a training that NAME=VALUE words override. Not here: which settings there are, and what they do."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from kvtools.errors import Usage
from kvtools.train.durations import parse_duration

# setting -> (test of a value, what the values that pass are, as "0 or more")
Allowed = Mapping[str, tuple[Callable[[Any], bool], str]]

_YES, _NO = ("1", "true", "yes"), ("0", "false", "no")


def parse_overrides(words: Sequence[str], option: str, defaults: Mapping[str, Any]) -> dict[str, Any]:
    """The defaults with NAME=VALUE words applied, each value of its default's type. Raises Usage for another name or type."""
    settings = dict(defaults)
    for word in words:
        name, has_value, value = word.partition("=")
        if name not in defaults:
            raise Usage(f"{option} {word}: there is no setting {name}. The settings are {', '.join(defaults)}.")
        if not has_value:
            raise Usage(f"{option} {word} has no value. Give one, as {name}={_as_typed(defaults[name])}.")
        try:
            settings[name] = _value(value, type(defaults[name]))
        except ValueError:
            good = "yes or no" if isinstance(defaults[name], bool) else f"one such as {name}={_as_typed(defaults[name])}"
            raise Usage(f"{option} {word}: {value!r} is not a value of {name}. Give {good}.") from None
    return settings


def _value(text: str, kind: type) -> Any:
    if kind is not bool:
        return kind(text)
    if text.lower() not in (*_YES, *_NO):
        raise ValueError(text)
    return text.lower() in _YES


def _as_typed(value: Any) -> str:
    """A default as a user types it."""
    return ("yes" if value else "no") if isinstance(value, bool) else str(value)


def refuse_bad_values(option: str, values: Mapping[str, Any], allowed: Allowed, durations: Sequence[str] = ()) -> None:
    """Raise Usage for a value that its setting cannot have. durations: settings that are durations; the others that `allowed`
    does not name must be finite and 0 or more."""
    for name, value in values.items():
        if name in durations:
            parse_duration(value, f"{option} {name}")
            continue
        is_good, good = allowed.get(name, (lambda n: 0 <= n < math.inf, "0 or more"))
        if not is_good(value):
            raise Usage(f"{option} {name}={value} is not possible. Give {good}.")
