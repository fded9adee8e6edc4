"""`kvtools convert`: files of other people's making in, an artifact out."""

from typing import Annotated

import typer

from kvtools.options import Compress, Force, Output, Quiet, Stamp, Strict, Verbose

EXAMPLES = [
    "kvtools convert clicks.csv -o clicks.kvs",
    "kvtools convert clicks.inter | kvtools pairs - | kvtools info --records -",
]
EXIT_CODES = (0, 2, 65, 66, 73, 74, 141)
SEE_ALSO = ("kvtools pairs", "kvtools info", "kvtools-stream(5)")


def main(
    ctx: typer.Context,
    src: Annotated[
        str,
        typer.Argument(metavar="SRC", help="Interactions: CSV, TSV, RecBole .inter, or lines USER ITEM ITEM ...; - is stdin."),
    ] = "-",
    columns: Annotated[
        list[str] | None,
        typer.Option(
            "--column",
            metavar="ROLE=COL",
            help="Name the column of the user, item, time, rating, part, author, tag, playtime or duration; may be repeated.",
        ),
    ] = None,
    output: Output = "-",
    compress: Compress = None,
    force: Force = False,
    strict: Strict = False,
    stamp: Stamp = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> int:
    """Turn a file of other people's making into the artifact that holds the same.

    Interactions become a stream of `interaction` records: whole users, each in time order, checked and put right once. What
    reads interactions makes the same of the stream as of the text. Bad rows are told and left out; the exit code is then 65.
    Rows out of time order, and copies, are put right, and told with -v.
    """
    from kvtools.artifact.files import Sink, is_same_file, refuse_existing
    from kvtools.artifact.history import extend
    from kvtools.artifact.stream import Head, Writer
    from kvtools.faults import Usage
    from kvtools.onerec.interaction_stream import open_interactions, roles, write_interactions

    if is_same_file(src, output):
        raise Usage(f"{src}: both input and output. Name another output.")
    refuse_existing(output, force=force)
    name = "stdin" if src == "-" else src
    log, findings, history = open_interactions(src, columns=roles(columns or []))
    code = findings.settle(name, lambda words: ctx.obj.note(words, quiet=quiet), strict=strict, is_told=verbose)
    head = Head("interaction", extend("convert", ctx.obj.argv, before=[history], stamp=stamp))
    with Writer(Sink(output, force=force), head, level=compress) as writer:
        write_interactions(log, writer)
    return code
