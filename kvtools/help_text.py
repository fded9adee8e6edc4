"""What a command says of itself: `--help` for people, `--describe` for programs. Light: every `--help` loads it."""

import textwrap
from types import ModuleType
from typing import Any, Literal, get_args, get_origin

EXIT_CODES = {
    0: "done", 1: "the answer is no, or unexpected", 2: "usage", 65: "input corrupt, truncated or of the wrong kind",
    66: "input missing", 73: "cannot create the output", 74: "input/output error", 75: "stopped on request: run again",
    141: "the reader of stdout went away",
}  # fmt: skip


def write(command: Any, ctx: Any, formatter: Any, module: ModuleType) -> None:
    """Help in the house's order: sentence, usage, examples, more words, options, exit codes, see also."""
    sentence, _, rest = (command.help or "").partition("\n")
    formatter.write(sentence + "\n\n")
    command.format_usage(ctx, formatter)
    _section(formatter, "Examples", module.EXAMPLES)
    if rest.strip():
        formatter.write("\n" + textwrap.fill(" ".join(rest.split()), formatter.width) + "\n")
    command.format_options(ctx, formatter)
    _section(formatter, "Exit codes", [f"{code:<3}  {EXIT_CODES[code]}" for code in module.EXIT_CODES])
    _section(formatter, "See also", [", ".join(module.SEE_ALSO)])


def describe(command: Any) -> dict[str, Any]:
    """A command's arguments and options as plain JSON."""
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
                "type": "flag" if p.is_flag else _type_of(p.type_descriptor.annotation),
                "metavar": p.metavar,
                "default": p.default if isinstance(p.default, bool | int | float | str) else None,
                "help": p.help,
            }
            for p in parameters
            if p.param_type_name == "option"
        ],
    }


def _type_of(annotation: Any) -> str | list[str]:
    """A type's name, or the choices there are."""
    if get_origin(annotation) is Literal:
        return list(get_args(annotation))
    return annotation.__name__ if isinstance(annotation, type) and not get_args(annotation) else str(annotation)


def _section(formatter: Any, title: str, lines: list[str]) -> None:
    with formatter.section(title):
        for line in lines:
            formatter.write(" " * formatter.current_indent + line + "\n")
