"""`kvtools info`: what an artifact holds, and the commands that led to it."""

from typing import Annotated, Any

from kvtools import options as opt
from kvtools.invocation import to_toml

EXAMPLES = ["kvtools info clips.kvs", "kvtools tokenize-video clip.mp4 | kvtools info --records -"]
EXIT_CODES = (0, 2, 65, 66)
SEE_ALSO = ("kvtools check", "kvtools cat", "kvtools-stream(5)")

_TREE = ("k", "delay_ms", "accuracy_gap", "label_gap_l1", "label_gap_js", "sizes", "sweeps", "cycled")  # of a tree's report
_MOST_SHOWN = 12  # tensors, or values of a list, in a table


def main(
    run: opt.Invocation,
    inputs: opt.Inputs = None,
    as_json: opt.AsJson = False,
    records: Annotated[bool, opt.option("One line a record, with the types and shapes of its tensors.", "--records")] = False,
    config: Annotated[bool, opt.option("Print the recipe the artifact was made with, as TOML.", "--config")] = False,
) -> int:
    """Print what artifacts hold: form, kind, records, bytes, and the commands that led to them.

    An artifact is a stream of records (.kvs), or a bag: a safetensors file with a kind. Of a stream in a file only the head
    and the index are read, which is fast whatever its size; --records and pipes read all of it. `kvtools check` verifies it.
    """
    from kvtools.artifact.history import describe
    from kvtools.artifact.summary import record_lines, summarize
    from kvtools.errors import Fault

    worst = 0
    for src in inputs or ["-"]:
        try:
            for line in record_lines(src) if records else [summarize(src)]:
                if config:
                    run.print(to_toml(line.get("config", {})), nl=False)
                elif as_json:
                    run.print_json(line)
                elif records:
                    run.print(_row(line))
                else:
                    _print_table(run, src, line, describe(line["history"]))
        except Fault as fault:
            run.log(str(fault))
            worst = max(worst, fault.code)
    return worst


def _print_table(run: opt.Invocation, src: str, line: dict[str, Any], steps: list[str]) -> None:
    for title, value in (("file", src), ("form", line["form"]), ("kind", line["kind"] or "foreign")):
        run.print(f"{title:<8} {value}")
    run.print(f"{'records':<8} {line['records']}")
    run.print(f"{'bytes':<8} {line['bytes']:,}")
    tensors = list(line.get("tensors", {}).items())
    for name, (dtype, shape) in tensors[:_MOST_SHOWN]:
        run.print(f"{'tensor':<8} {name} {dtype} {tuple(shape)}")
    if len(tensors) > _MOST_SHOWN:
        run.print(f"{'tensor':<8} and {len(tensors) - _MOST_SHOWN} more; --json names them")
    for name, value in {
        **line.get("quality", {}),
        **{name: line[name] for name in _TREE if line.get(name) is not None},
    }.items():
        if name not in line["config"]:
            run.print(f"{'quality':<8} {name:<16} {_rounded(value)}")
    for part in ("partition", "network"):
        for name, value in line[part].items() if isinstance(line.get(part), dict) else ():
            run.print(f"{part:<9}{name:<16} {_rounded(value)}")
    for name, state in line.get("pathways", {}).items():
        run.print(f"{'pathway':<8} {name:<16} {state}")
    for name in ("parameters", "stage", "step", "loss", "validation"):
        if isinstance(line.get(name), int | float | str):
            run.print(f"{'model':<8} {name:<16} {_rounded(line[name])}")
    for step in steps:
        run.print(f"{'history':<8} {step}")


def _rounded(value: Any) -> str:
    values = value if isinstance(value, list) else [value]
    if len(values) > _MOST_SHOWN:
        return f"{min(values):,} to {max(values):,}, {len(values):,} of them"
    return "  ".join(
        f"{v:.4g}" if isinstance(v, float) else f"{v:,}" if isinstance(v, int) and not isinstance(v, bool) else str(v)
        for v in values
    )


def _row(line: dict[str, Any]) -> str:
    shapes = "  ".join(f"{name} {dtype}({','.join(map(str, shape))})" for name, (dtype, shape) in line["tensors"].items())
    seconds = f"  {line['duration']:.2f} s" if isinstance(line.get("duration"), float) else ""
    return f"{line['record']:>6}  {line['key']}  {shapes}{seconds}"
