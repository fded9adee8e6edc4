"""`kvtools cat`: join streams."""

import json
from typing import Annotated

import typer

from kvtools.options import AsJson, Compress, Force, Inputs, Output, Quiet, Stamp, Strict, Verbose

EXAMPLES = ["kvtools cat part-*.kvs -o all.kvs", "kvtools cat --key yoga.mp4 clips.kvs | kvtools info --records -"]
EXIT_CODES = (0, 2, 65, 66, 73, 74, 141)
SEE_ALSO = ("kvtools info", "kvtools sum", "kvtools-stream(5)")


def main(
    ctx: typer.Context,
    inputs: Inputs = None,
    output: Output = "-",
    keys: Annotated[
        list[str] | None, typer.Option("--key", metavar="KEY", help="Only the record of this key; may be repeated.")
    ] = None,
    limit: Annotated[int | None, typer.Option("-n", "--limit", metavar="N", min=0, help="At most N records.")] = None,
    as_json: AsJson = False,
    compress: Compress = None,
    force: Force = False,
    strict: Strict = False,
    stamp: Stamp = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> int:
    """Join streams of one kind into one, with its own index and end.

    With --key, records of a file are fetched through its index. With --json, records are printed as text: JSON fields,
    tensor shapes, and the document of a record that holds one. The records of a damaged file are copied up to the damage,
    the file is named, and the exit code is 65. A damaged stdin ends the command, so that no reader takes a part for the
    whole.
    """
    from kvtools.artifact.concat import Concat
    from kvtools.artifact.files import Sink, is_same_file
    from kvtools.artifact.history import extend
    from kvtools.artifact.stream import Head, Writer
    from kvtools.artifact.summary import record_json
    from kvtools.errors import Usage

    sources = inputs or ["-"]
    for src in sources:
        if is_same_file(src, output):
            raise Usage(f"{src}: this is both an input and the output. Name another output.")
    records = Concat(sources, keys=keys, limit=limit, strict=strict, log=ctx.obj.log)
    if as_json:
        for each in records:
            typer.echo(json.dumps(record_json(each), ensure_ascii=False))
        return records.code
    remaining = iter(records)
    record = next(remaining, None)  # before the sink is opened: without any record the output stays as it was
    if not records.heads:
        return records.code
    configs = [head.config for head in records.heads if head.config]
    head = Head(
        records.heads[0].kind,
        extend("cat", ctx.obj.argv, before=[h.history for h in records.heads], stamp=stamp),
        configs[0] if configs and all(config == configs[0] for config in configs) else {},
    )
    with Writer(Sink(output, force=force), head, level=compress) as writer:
        while record is not None:
            writer.write_pieces(record.key, [record.raw])
            record = next(remaining, None)
    return records.code
