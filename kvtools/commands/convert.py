"""`kvtools convert`: files of other people's making in, an artifact out; and a model back out, as others want it."""

from pathlib import Path
from typing import Annotated

import typer

from kvtools.options import Columns, Compress, Force, Output, Quiet, Stamp, Strict, Verbose, parse_size

EXAMPLES = [
    "kvtools convert clicks.csv -o clicks.kvs",
    "kvtools convert clicks.inter | kvtools pairs - | kvtools info --records -",
    "kvtools convert Qwen3-0.6B -o qwen3.safetensors",
    "kvtools convert qwen3.safetensors -o Qwen3-again/",
]
EXIT_CODES = (0, 2, 65, 66, 73, 74, 141)
SEE_ALSO = ("kvtools pairs", "kvtools merge", "kvtools info", "kvtools-stream(5)")


def main(
    ctx: typer.Context,
    src: Annotated[
        str,
        typer.Argument(
            metavar="SRC",
            help="Interactions: CSV, TSV, RecBole .inter, or lines USER ITEM ITEM ...; conversations: JSON; - is stdin. Or a "
            "model: a Hugging Face directory, or a bag that becomes one.",
        ),
    ] = "-",
    columns: Columns = None,
    file_size: Annotated[
        str, typer.Option("--file-size", metavar="SIZE", help="Cut a directory's weights into files of at most this.")
    ] = "5GB",
    output: Output = "-",
    compress: Compress = None,
    force: Force = False,
    strict: Strict = False,
    stamp: Stamp = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> int:
    """Turn a file of other people's making into the artifact that holds the same, or a model into a directory for others.

    Interactions become a stream of `interaction` records: whole users, each in time order, checked and put right once. What
    reads interactions makes the same of the stream as of the text. Bad rows are told and left out; the exit code is then 65.
    Rows out of time order, and copies, are put right, and told with -v.

    Conversations, as OpenAI, ShareGPT, LLaVA and LLaMA-Factory lay them out in a JSON list or in lines, become a stream of
    `conversation` records. Pictures and videos stay where they are.

    A Hugging Face directory of Keye-VL, Qwen3 or SigLIP becomes a `model` bag; DST ending in / makes a directory again.
    """
    from kvtools.artifact.files import Sink, is_same_file, refuse_existing
    from kvtools.artifact.history import extend
    from kvtools.artifact.stream import Head, Writer
    from kvtools.errors import Usage

    if is_same_file(src, output):
        raise Usage(f"{src}: both input and output. Name another output.")
    if output.endswith("/") or (src != "-" and Path(src).is_dir()):
        n_bytes = parse_size(file_size, "--file-size")
        if columns:
            raise Usage(f"--column {columns[0]}: of no use with a model. Leave it out.")
        return _convert_model(ctx, src, output, shard_bytes=n_bytes, force=force, stamp=stamp, quiet=quiet)
    if _holds_conversations(src):
        return _convert_conversations(
            ctx, src, output, compress=compress, force=force, strict=strict, stamp=stamp, has_columns=bool(columns)
        )
    if src.endswith(".safetensors"):
        raise Usage(f"{src}: a model becomes a directory. Name a DST that ends in a slash.")
    from kvtools.onerec.interactions.stream import open_interactions, roles, write_interactions

    refuse_existing(output, force=force)
    name = "stdin" if src == "-" else src
    log, skipped, history = open_interactions(src, columns=roles(columns or []))
    code = skipped.report(name, ctx.obj.log, strict=strict, verbose=verbose)
    head = Head("interaction", extend("convert", ctx.obj.argv, before=[history], stamp=stamp))
    with Writer(Sink(output, force=force), head, level=compress) as writer:
        write_interactions(log, writer)
    return code


def _holds_conversations(src: str) -> bool:
    """Whether src is JSON, or a stream of conversations; it can be read from its beginning afterwards."""
    import os
    import shutil
    import tempfile

    from kvtools.artifact import Reader, is_stream
    from kvtools.artifact.files import open_source
    from kvtools.keye.data.conversations import looks_like_json

    file = open_source(src)
    begin = 0
    if src == "-" and not file.seekable():
        # bytes of a pipe cannot be put back: they go to a file that takes its place
        with tempfile.TemporaryFile() as kept:
            shutil.copyfileobj(file, kept)
            kept.flush()
            os.dup2(kept.fileno(), 0)
    elif src == "-":
        begin = file.tell()
    if src == "-":
        os.lseek(0, begin, os.SEEK_SET)
        file = open_source(src)
    found = Reader(file, src).head.kind == "conversation" if is_stream(file) else looks_like_json(file)
    if src == "-":
        os.lseek(0, begin, os.SEEK_SET)
    else:
        file.close()
    return found


def _convert_conversations(
    ctx: typer.Context,
    src: str,
    output: str,
    *,
    compress: int | None,
    force: bool,
    strict: bool,
    stamp: bool,
    has_columns: bool,
) -> int:
    from kvtools.artifact.files import Sink, refuse_existing
    from kvtools.artifact.history import extend
    from kvtools.artifact.stream import Head, Writer
    from kvtools.errors import Corrupt, Usage
    from kvtools.keye.data.conversations import open_conversations, write

    if has_columns:
        raise Usage("--column: of no use with conversations. Leave it out.")
    refuse_existing(output, force=force)
    source = open_conversations(src)
    if not source.conversations:
        raise Corrupt(f"{source.name}: {source.skipped.lines()[0]}; nothing is left.")
    code = source.skipped.report(source.name, ctx.obj.log, strict=strict)
    head = Head("conversation", extend("convert", ctx.obj.argv, before=[source.history], stamp=stamp))
    with Writer(Sink(output, force=force), head, level=compress) as writer:
        write(source.conversations, writer)
    return code


def _convert_model(
    ctx: typer.Context, src: str, output: str, *, shard_bytes: int, force: bool, stamp: bool, quiet: bool
) -> int:
    from kvtools.artifact.directory import new_directory, refuse_existing_directory
    from kvtools.artifact.files import Sink, refuse_existing
    from kvtools.artifact.history import extend
    from kvtools.errors import Usage
    from kvtools.keye.checkpoint.weights import open_weights, write

    is_directory = output.endswith("/")
    if is_directory and src != "-" and Path(output).exists() and Path(output).samefile(src):
        raise Usage(f"{src}: both input and output. Name another output.")
    if is_directory:
        refuse_existing_directory(output, force=force)
    else:
        refuse_existing(output, force=force)
    weights = open_weights(src)
    if weights.unused:
        names = ", ".join(sorted(weights.unused)[:3]) + (" and more" if len(weights.unused) > 3 else "")
        ctx.obj.log(f"{src}: {len(weights.unused)} tensors that the model does not use go along: {names}.", quiet=quiet)
    if weights.ignored_files:
        ctx.obj.log(f"{src}: left behind: {', '.join(weights.ignored_files[:6])}.", quiet=quiet)
    history = extend("convert", ctx.obj.argv, before=[weights.history], stamp=stamp)
    if is_directory:
        with new_directory(output, force=force) as folder:
            write(weights, folder, history=history, shard_bytes=shard_bytes)
    else:
        write(weights, Sink(output, force=force), history=history)
    return 0
