"""`kvtools convert`: files of other tools to artifacts, and models back."""

from pathlib import Path
from typing import Annotated

from kvtools import options as opt

EXAMPLES = [
    "kvtools convert clicks.csv -o clicks.kvs",
    "kvtools convert clicks.inter | kvtools pairs - | kvtools info --records -",
    "kvtools convert Qwen3-0.6B -o qwen3.safetensors",
    "kvtools convert qwen3.safetensors -o Qwen3-again/",
]
EXIT_CODES = (0, 2, 65, 66, 73, 74, 141)
SEE_ALSO = ("kvtools pairs", "kvtools merge", "kvtools info", "kvtools-stream(5)")
COMMON = ("output", "compress", "force", "strict", "stamp")


def main(
    run: opt.Invocation,
    src: Annotated[
        str,
        opt.argument(
            "SRC",
            "Interactions: CSV, TSV, RecBole .inter, or lines USER ITEM ITEM ...; conversations: JSON; - is stdin. Or a "
            "model: a Hugging Face directory, or a bag that becomes one.",
        ),
    ] = "-",
    columns: opt.Columns = None,
    file_size: Annotated[
        str, opt.value("SIZE", "Cut a directory's weights into files of at most this.", "--file-size")
    ] = "5GB",
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
    from kvtools.artifact.files import open_seekable
    from kvtools.errors import Corrupt, raising
    from kvtools.keye.data.conversation_files import holds_conversations
    from kvtools.keye.data.conversations import open_conversations, write
    from kvtools.onerec.interactions.stream import open_interactions, roles, write_interactions

    is_model = run.output.endswith("/") or (src != "-" and Path(src).is_dir())
    run.refuse_own_input(src)
    opt.refuse_if((is_model and columns, "--column is of no use with a model. Leave it out."))
    if is_model:
        return _convert_model(run, src, opt.parse_size(file_size, "--file-size"))

    name, file = source_name(src), open_seekable(src)
    begin = file.tell()
    with raising(Corrupt, name, "Repair the file."):
        has_chats = Reader(file, name).head.kind == "conversation" if is_stream(file) else holds_conversations(file)
    file.seek(begin)
    opt.refuse_if(
        (has_chats and columns, "--column is of no use with conversations. Leave it out."),
        (
            src.endswith(".safetensors") and not has_chats,
            f"{src}: a model is converted to a directory. Give an output that ends in a slash.",
        ),
    )
    run.refuse_existing()
    if not file.peek(1):  # type: ignore[attr-defined]
        raise Corrupt(f"{name}: this is empty. Give interactions or conversations.")
    if has_chats:
        chats = open_conversations(src, file)
        if not chats.conversations:
            raise Corrupt(f"{name}: {chats.skipped.lines()[0]}. No conversation is left. Repair the file.")
        skipped, history = chats.skipped, chats.history
    else:
        interactions, skipped, history = open_interactions(src, columns=roles(columns or []), file=file)
    code = skipped.report(name, run.log, strict=run.strict, verbose=run.verbose or has_chats)
    with run.writer("conversation" if has_chats else "interaction", before=[history]) as writer:
        if has_chats:
            write(chats.conversations, writer)
        else:
            write_interactions(interactions, writer)
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
