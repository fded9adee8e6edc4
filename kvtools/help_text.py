"""What a command says of itself: `--help` for people, `--describe` for programs. Light: every `--help` loads it."""

import textwrap
from types import ModuleType
from typing import Any, Literal, get_args, get_origin

from kvtools import options

EXIT_CODES = {
    0: "done", 1: "the answer is no, or an unexpected error", 2: "usage error",
    65: "input corrupt, truncated or of the wrong kind", 66: "input missing", 73: "cannot create the output",
    74: "input/output error", 75: "stopped on request; run again to resume", 141: "the reader of stdout went away",
}  # fmt: skip
_MAX_UNGROUPED = 12  # options; a command with more shows titled groups


def write(command: Any, ctx: Any, formatter: Any, module: ModuleType) -> None:
    """Help in the house's order: sentence, usage, examples, more words, options, exit codes, see also."""
    sentence, _, rest = (command.help or "").partition("\n")
    formatter.write(sentence + "\n\n")
    command.format_usage(ctx, formatter)
    _section(formatter, "Examples", module.EXAMPLES)
    if rest.strip():
        formatter.write("\n" + textwrap.fill(" ".join(rest.split()), formatter.width) + "\n")
    parameters = command.get_params(ctx)
    _definitions(formatter, "Arguments", [p.get_help_record(ctx) for p in parameters if p.param_type_name == "argument"])
    for title, group in _groups(parameters, module).items():
        _definitions(formatter, title or "Options", [p.get_help_record(ctx) for p in group])
    _section(formatter, "Exit codes", [f"{code:<3}  {EXIT_CODES[code]}" for code in module.EXIT_CODES])
    _section(formatter, "See also", [", ".join(module.SEE_ALSO)])


def describe(command: Any, module: ModuleType) -> dict[str, Any]:
    """A command's arguments and options as plain JSON; options in the order of the help, each with its group's title."""
    parameters = [p for p in command.params if p.name != "help"]
    return {
        "arguments": [
            {"name": p.metavar or p.name, "many": p.nargs == -1, "required": p.required, "help": p.help}
            for p in parameters
            if p.param_type_name == "argument"
        ],
        "options": [
            {
                "names": [*p.opts, *p.secondary_opts],
                "group": title,
                "type": "flag" if p.is_flag else _type_of(p.type_descriptor.annotation),
                "metavar": p.metavar,
                "default": p.default if isinstance(p.default, bool | int | float | str) else None,
                "help": p.help,
            }
            for title, group in _groups(parameters, module).items()
            for p in group
        ],
    }


def _groups(parameters: list[Any], module: ModuleType) -> dict[str | None, list[Any]]:
    """{title: options}, the main options first, under None; a command with few options has no other group."""
    declared = [p for p in parameters if p.param_type_name == "option"]
    titled = {**getattr(module, "GROUPS", {}), **options.GROUPS} if len(declared) > _MAX_UNGROUPED else {}
    titles: dict[str, str] = {option: title for title, names in titled.items() for option in names}
    groups: dict[str | None, list[Any]] = {title: [] for title in (None, *titled)}
    for parameter in declared:
        groups[titles.get(parameter.opts[0])].append(parameter)
    return {title: group for title, group in groups.items() if group}


def _type_of(annotation: Any) -> str | list[str]:
    """A type's name, or the choices there are."""
    if get_origin(annotation) is Literal:
        return list(get_args(annotation))
    return annotation.__name__ if isinstance(annotation, type) and not get_args(annotation) else str(annotation)


def _definitions(formatter: Any, title: str, rows: list[tuple[str, str] | None]) -> None:
    if rows:
        with formatter.section(title):
            formatter.write_dl([row for row in rows if row is not None])


def _section(formatter: Any, title: str, lines: list[str]) -> None:
    with formatter.section(title):
        for line in lines:
            formatter.write(" " * formatter.current_indent + line + "\n")
