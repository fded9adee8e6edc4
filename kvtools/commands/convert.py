"""`kvtools convert`: files of other tools to artifacts, and models back."""

from pathlib import Path
from typing import Annotated

import typer

from kvtools.options import Columns, Compress, Force, Output, Quiet, Stamp, Strict, Verbose, parse_size, refuse_if

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
    """Convert files of other tools into artifacts, and a model into a directory for other tools.

    Interactions become a stream of `interaction` records: whole users, each in time order, checked and repaired once. Commands
    that read interactions give the same results from the stream as from the text. Bad rows are reported and left out, and the
    exit code is then 65. Rows out of time order are sorted and copies removed, which -v reports.

    Conversations in the layouts of OpenAI, ShareGPT, LLaVA and LLaMA-Factory, in a JSON list or in lines, become a stream of
    `conversation` records. Pictures and videos stay where they are.

    A Hugging Face directory of Keye-VL, Qwen3 or SigLIP becomes a bag of kind `model`, a safetensors file with a kind. A DST
    that ends in / becomes a directory again.
    """
    from kvtools.artifact import Reader, is_stream, source_name
    from kvtools.artifact.files import Sink, is_same_file, open_seekable, refuse_existing
    from kvtools.artifact.history import extend
    from kvtools.artifact.stream import Head, Writer
    from kvtools.errors import Corrupt
    from kvtools.keye.data.conversations import looks_like_json, open_conversations, write
    from kvtools.onerec.interactions.stream import open_interactions, roles, write_interactions

    is_model = output.endswith("/") or (src != "-" and Path(src).is_dir())
    refuse_if(
        (is_same_file(src, output), f"{src}: this is both the input and the output. Name another output."),
        (is_model and columns, "--column is of no use with a model. Leave it out."),
    )
    if is_model:
        n_bytes = parse_size(file_size, "--file-size")
        return _convert_model(ctx, src, output, shard_bytes=n_bytes, force=force, stamp=stamp, quiet=quiet)

    name, file = source_name(src), open_seekable(src)
    begin = file.tell()
    has_chats = Reader(file, name).head.kind == "conversation" if is_stream(file) else looks_like_json(file)
    file.seek(begin)
    refuse_if(
        (has_chats and columns, "--column is of no use with conversations. Leave it out."),
        (
            src.endswith(".safetensors") and not has_chats,
            f"{src}: a model is converted to a directory. Give an output that ends in a slash.",
        ),
    )
    refuse_existing(output, force=force)
    if has_chats:
        chats = open_conversations(src, file)
        if not chats.conversations:
            raise Corrupt(f"{name}: {chats.skipped.lines()[0]}; nothing is left.")
        skipped, history = chats.skipped, chats.history
    else:
        interactions, skipped, history = open_interactions(src, columns=roles(columns or []), file=file)
    code = skipped.report(name, ctx.obj.log, strict=strict, verbose=verbose or has_chats)
    head = Head("conversation" if has_chats else "interaction", extend("convert", ctx.obj.argv, before=[history], stamp=stamp))
    with Writer(Sink(output, force=force), head, level=compress) as writer:
        if has_chats:
            write(chats.conversations, writer)
        else:
            write_interactions(interactions, writer)
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
        raise Usage(f"{src}: this is both the input and the output. Name another output.")
    if is_directory:
        refuse_existing_directory(output, force=force)
    else:
        refuse_existing(output, force=force)
    weights = open_weights(src)
    if weights.unused:
        names = ", ".join(sorted(weights.unused)[:3]) + (" and more" if len(weights.unused) > 3 else "")
        ctx.obj.log(f"{src}: {len(weights.unused)} tensors that the model does not use are kept: {names}.", quiet=quiet)
    if weights.ignored_files:
        ctx.obj.log(f"{src}: these files are not converted: {', '.join(weights.ignored_files[:6])}.", quiet=quiet)
    history = extend("convert", ctx.obj.argv, before=[weights.history], stamp=stamp)
    if is_directory:
        with new_directory(output, force=force) as folder:
            write(weights, folder, history=history, shard_bytes=shard_bytes)
    else:
        write(weights, Sink(output, force=force), history=history)
    return 0
