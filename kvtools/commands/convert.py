"""`kvtools convert`: files of other tools to artifacts, and models back."""

from pathlib import Path
from typing import Annotated, BinaryIO, Literal

from kvtools import options as opt

EXAMPLES = [
    "kvtools convert clicks.csv -o clicks.kvs",
    "kvtools convert clicks.inter | kvtools pairs - | kvtools info --records -",
    "kvtools convert --dry-run clicks.csv",
    "kvtools convert items.ids --to index -o index.json",
    "kvtools convert Qwen3-0.6B -o qwen3.safetensors",
    "kvtools convert qwen3.safetensors -o Qwen3-again/",
]
EXIT_CODES = (0, 2, 65, 66, 73, 74, 141)
SEE_ALSO = ("kvtools pairs", "kvtools merge", "kvtools info", "kvtools-stream(5)")
COMMON = ("output", "compress", "force", "strict", "dry_run", "stamp")
GROUPS = {"Interactions": ("--column", "--columns", "--encoding", "--valid", "--test", "--split")}


_TABLE_OPTIONS = "--column, --columns, --encoding, --valid, --test, --split and several inputs"


def main(
    run: opt.Invocation,
    sources: Annotated[
        list[str] | None,
        opt.argument(
            "SRC",
            "Interactions, semantic IDs, conversations, or a model; - is stdin. Several files of interactions are read as one.",
        ),
    ] = None,
    kind: Annotated[
        Literal["auto", "interaction", "semantic-id", "conversation"],
        opt.option("What SRC holds, where its first bytes do not tell."),
    ] = "auto",
    columns: opt.Columns = None,
    names: Annotated[
        str | None,
        opt.value("NAME,...", "The columns of a table without a header, as user,item,rating,time; _ for others.", "--columns"),
    ] = None,
    encoding: Annotated[str, opt.value("NAME", "Encoding of the text, as latin-1 or gbk.", "--encoding")] = "utf-8",
    valid: Annotated[str | None, opt.value("FILE", "Interactions of the validation part.", "--valid")] = None,
    test: Annotated[str | None, opt.value("FILE", "Interactions of the test part.", "--test")] = None,
    split: opt.Split = None,
    to: Annotated[
        Literal["index", "openonerec", "csv"] | None,
        opt.option("Write semantic IDs as MiniOneRec's index.json, in OpenOneRec's form, or as CSV."),
    ] = None,
    file_size: Annotated[
        str, opt.value("SIZE", "Cut a directory's weights into files of at most this.", "--file-size")
    ] = "5GB",
    report: opt.ReportFile = None,
) -> int:
    """Convert files of other tools into artifacts, and semantic IDs and models back.

    Interactions become a stream of `interaction` records: whole users, each in time order, checked and repaired once. Read are
    CSV, TSV, RecBole's files, parquet, JSON rows, {user: [items]}, lines USER ITEM ITEM ..., and rows with a history, also
    compressed. Commands that read interactions give the same results from the stream as from the text. What was read is told
    in one line, which --dry-run prints alone. Bad rows are reported and left out, and the exit code is then 65.

    Semantic IDs of MiniOneRec, LETTER and OpenOneRec become a bag of kind `semantic-id`, and with --to leave it again.

    Conversations in the layouts of OpenAI, ShareGPT, LLaVA and LLaMA-Factory, in a JSON list or in lines, become a stream of
    `conversation` records. Pictures and videos stay where they are.

    A Hugging Face directory of Keye-VL, Qwen3 or SigLIP becomes a bag of kind `model`, a safetensors file with a kind. A DST
    that ends in / becomes a directory again.
    """
    from kvtools.artifact import Reader, is_bag, is_stream, source_name
    from kvtools.artifact.containers import is_encoding
    from kvtools.artifact.files import open_seekable
    from kvtools.errors import Corrupt
    from kvtools.onerec.interactions.files import Layout, holds, open_all
    from kvtools.onerec.interactions.split import parse_split, with_split
    from kvtools.onerec.interactions.stream import roles, write_interactions

    srcs = sources or ([] if valid or test else ["-"])
    src = [*srcs, valid or test or ""][0]
    is_model = run.output.endswith("/") or (src != "-" and Path(src).is_dir())
    run.refuse_own_input(*srcs, *filter(None, (valid, test)), report=report)
    run.refuse_shared_stdin(*srcs, valid, test)
    parse_split(split)
    is_table = any((columns, names, valid, test, split, encoding != "utf-8", len(srcs) > 1))
    opt.refuse_if(
        (is_model and is_table, f"{_TABLE_OPTIONS} are of no use with a model. Leave them out."),
        (is_model and to, "--to is of use with semantic IDs only. Leave it out."),
        (not is_encoding(encoding), f"--encoding {encoding} is unknown. Give a name that Python knows, as latin-1 or gbk."),
    )
    if is_model:
        return _convert_model(run, src, opt.parse_size(file_size, "--file-size"))

    name, file = source_name(src), open_seekable(src)
    if not file.peek(1):  # type: ignore[attr-defined]
        raise Corrupt(f"{name}: this is empty. Give interactions or conversations.")
    begin = file.tell()
    if is_stream(file):
        kind = "conversation" if Reader(file, name).head.kind == "conversation" else "interaction"
        file.seek(begin)
    elif kind == "auto":
        kind = "semantic-id" if is_bag(file) else holds(file, name)
    opt.refuse_if(
        (is_table and kind != "interaction", f"{_TABLE_OPTIONS} are of use with interactions only. Leave them out."),
        (to and kind != "semantic-id", "--to is of use with semantic IDs only. Leave it out."),
    )
    if not run.dry_run:
        run.refuse_existing(report)
    if kind == "semantic-id":
        return _convert_ids(run, src, file, to)
    if kind == "conversation":
        return _convert_conversations(run, src, file)
    header = None if names is None else [column.strip() for column in names.split(",")]
    layout = Layout(roles(columns or []), encoding, header)
    read, skipped, history = open_all(srcs, layout, valid=valid, test=test, file=file)
    interactions = with_split(read, split, name)
    code = skipped.report(name, run.log, strict=run.strict, verbose=run.verbose)
    if account := interactions.account:
        run.info(account.line())
        run.write_report(report, account.to_json())
    if not run.dry_run:
        with run.writer("interaction", before=history) as writer:
            write_interactions(interactions, writer)
    return code


def _convert_conversations(run: opt.Invocation, src: str, file: BinaryIO) -> int:
    from kvtools.artifact import source_name
    from kvtools.errors import Corrupt
    from kvtools.keye.data.conversations import open_conversations, write

    chats = open_conversations(src, file)
    if not chats.conversations:
        raise Corrupt(f"{source_name(src)}: {chats.skipped.lines()[0]}. No conversation is left. Repair the file.")
    code = chats.skipped.report(source_name(src), run.log, strict=run.strict)
    if run.dry_run:
        return code
    with run.writer("conversation", before=[chats.history]) as writer:
        write(chats.conversations, writer)
    return code


def _convert_ids(run: opt.Invocation, src: str, file: BinaryIO, to: Literal["index", "openonerec", "csv"] | None) -> int:
    from kvtools.artifact import is_bag, source_name
    from kvtools.onerec.semantic_ids.ids import SemanticIds
    from kvtools.onerec.semantic_ids.published import read_ids, written
    from kvtools.skipped import SkippedRows

    name = source_name(src)
    is_ours = is_bag(file)
    opt.refuse_if(
        (
            is_ours and to is None,
            f"{name}: this is a bag already. Give --to for semantic IDs, or an output that ends in a slash for a model.",
        ),
    )
    ids, skipped = (SemanticIds.open(src, file=file), SkippedRows()) if is_ours else read_ids(file, name)
    code = skipped.report(name, run.log, strict=run.strict)
    run.info(f"{name}: {len(ids):,} items with {ids.codes_NS.shape[1]} codes each, {ids.n_distinct:,} of them distinct.")
    if run.dry_run:
        return code
    if to is None:
        ids.save(run.sink(), history=run.history())
    elif run.output == "-":
        for line in written(ids, to):
            run.print(line)
    else:
        run.sink().write_whole([f"{line}\n".encode() for line in written(ids, to)])
    return code


def _convert_model(run: opt.Invocation, src: str, file_bytes: int) -> int:
    from kvtools.artifact.directory import new_directory, refuse_existing_directory
    from kvtools.keye.checkpoint.adapters import open_model_weights
    from kvtools.keye.checkpoint.weights import write

    is_directory = run.output.endswith("/")
    if is_directory:
        refuse_existing_directory(run.output, force=run.force)
    else:
        run.refuse_existing()
    weights = open_model_weights(src)
    if weights.unused:
        names = ", ".join(sorted(weights.unused)[:3]) + (" and more" if len(weights.unused) > 3 else "")
        run.info(f"{src}: {len(weights.unused)} tensors that the model does not use are kept: {names}.")
    if weights.ignored_files:
        run.info(f"{src}: these files are not converted: {', '.join(weights.ignored_files[:6])}.")
    history = run.history([weights.history])
    if is_directory:
        with new_directory(run.output, force=run.force) as folder:
            write(weights, folder, history=history, shard_bytes=file_bytes)
    else:
        write(weights, run.sink(), history=history)
    return 0
