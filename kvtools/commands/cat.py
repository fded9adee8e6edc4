"""`kvtools cat`: many streams into one."""

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
        list[str] | None, typer.Option("--key", metavar="KEY", help="Only the record of that key; may be repeated.")
    ] = None,
    limit: Annotated[int | None, typer.Option("-n", "--limit", metavar="N", min=0, help="At most so many records.")] = None,
    as_json: AsJson = False,
    compress: Compress = None,
    force: Force = False,
    strict: Strict = False,
    stamp: Stamp = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> int:
    """Join streams of one kind into one, with its own index and end.

    With --key, records are fetched through the index where the input is a file. With --json, records are printed as
    text instead: JSON fields, tensor shapes, and the document itself where the record is one. A damaged file gives its
    records up to the damage, is named, and the exit code is 65; a damaged stdin ends everything, since whoever reads us
    must not take half for the whole.
    """
    from kvtools.artifact.concat import Tour
    from kvtools.artifact.files import Sink, is_same_file
    from kvtools.artifact.history import extend
    from kvtools.artifact.stream import Head, Writer
    from kvtools.artifact.text import as_text
    from kvtools.errors import Usage

    sources = inputs or ["-"]
    for src in sources:
        if is_same_file(src, output):
            raise Usage(f"{src}: both input and output. Name another output.")
    tour = Tour(sources, keys=keys, limit=limit, strict=strict, tell=ctx.obj.log)
    if as_json:
        for record in tour:
            typer.echo(json.dumps(as_text(record), ensure_ascii=False))
        return tour.code
    records = iter(tour)
    first = next(records, None)
    if not tour.heads:
        return tour.code
    configs = [head.config for head in tour.heads if head.config]
    head = Head(
        tour.heads[0].kind,
        extend("cat", ctx.obj.argv, before=[h.history for h in tour.heads], stamp=stamp),
        configs[0] if configs and all(config == configs[0] for config in configs) else {},
    )
    with Writer(Sink(output, force=force), head, level=compress) as writer:
        while first is not None:
            writer.write_pieces(first.key, [first.raw])
            first = next(records, None)
    return tour.code
