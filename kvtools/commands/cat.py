"""`kvtools cat`: join streams."""

from itertools import chain
from typing import TYPE_CHECKING, Annotated

from kvtools import options as opt

if TYPE_CHECKING:
    from collections.abc import Iterator

    from kvtools.artifact.concat import Concat
    from kvtools.artifact.stream import Record

EXAMPLES = [
    "kvtools cat part-*.kvs -o all.kvs",
    "kvtools cat --prefix part-00.kvs clips.kvs | kvtools info --records -",
    "kvtools cat --tar clips.kvs -o clips.tar",
    "kvtools cat --key yoga.mp4 clips.kvs | kvtools info --records -",
]
EXIT_CODES = (0, 2, 65, 66, 73, 74, 75, 141)
SEE_ALSO = ("kvtools info", "kvtools sum", "kvtools-stream(5)")
COMMON = ("compress", "force", "strict", "stamp")


def main(
    run: opt.Invocation,
    inputs: opt.Inputs = None,
    output: opt.Output = "-",  # noqa: ARG001 stands first in --help; read as run.output, as in other commands
    keys: Annotated[list[str] | None, opt.value("KEY", "Only the record of this key; may be repeated.", "--key")] = None,
    prefix: Annotated[bool, opt.option("Put the name of its input and a slash before each key.", "--prefix")] = False,
    limit: Annotated[int | None, opt.value("N", "At most N records.", "-n", "--limit", least=0)] = None,
    partial: Annotated[
        bool, opt.option("Join parts of --shard even where some are missing or there twice.", "--partial")
    ] = False,
    as_json: opt.AsJson = False,
    as_tar: Annotated[bool, opt.option("Write a tar in the layout of WebDataset, with .json and .npy files.", "--tar")] = False,
) -> int:
    """Join streams of one kind into one, with its own index and end.

    Two clips of one key that differ are refused, since readers find clips by their keys; --prefix tells them apart. With --key,
    records of a file are fetched through its index. With --json, records are printed as text: JSON fields, tensor shapes, and
    the document of a record that holds one. With --tar, they are written as WebDataset reads them, for other trainers. The
    records of a damaged file are copied up to the damage, the file is named, and the exit code is 65. Parts that --shard made
    are refused where one is missing or there twice, unless --partial is given; for one input alone a note says so. They are
    known by their histories, also where cat has joined them before. A damaged stdin ends the command, so that no reader
    takes a part for the whole. From files into a file, a run that was stopped goes on when the same command is run again.
    """
    from kvtools.artifact.concat import Concat, distinct_names
    from kvtools.artifact.resumable import stop_between, write_all
    from kvtools.artifact.summary import record_json
    from kvtools.artifact.webdataset import write_tar

    opt.refuse_if((as_json and as_tar, "--json and --tar cannot be used together. Give one of them."))
    sources = inputs or ["-"]
    stop = None if as_json or as_tar else stop_between(sources, run.output)
    run.refuse_own_input(*sources)
    prefixes = {src: f"{name}/" for src, name in distinct_names(sources).items()} if prefix else {}
    records = Concat(sources, keys=keys, prefixes=prefixes, limit=limit, strict=run.strict, log=run.log)
    is_whole = not (keys or prefix or partial or (limit is not None and records.has_pipes))
    remaining = _parts_checked(run, records, len(sources)) if is_whole else iter(records)
    if as_json:
        for each in remaining:
            run.print_json(record_json(each))
        return records.code
    record = next(remaining, None)  # before the sink is opened: without any record the output stays as it was
    if not records.heads or (record is None and records.code):
        return records.code
    if as_tar:
        write_tar([] if record is None else chain([record], remaining), run.sink())
        return records.code
    configs = [head.config for head in records.heads if head.config]
    config = configs[0] if configs and all(config == configs[0] for config in configs) else {}
    before = [head.history for head in records.heads]
    with run.writer(records.heads[0].kind, config, before=before, keep_partial=stop is not None) as writer:
        write_all(writer, map(_encoded if prefix else _unchanged, chain([record] if record else [], remaining)), stop)
    return records.code


def _parts_checked(run: opt.Invocation, records: "Concat", n_inputs: int) -> "Iterator[Record]":
    """All records. Raises Corrupt for parts of --shard that are missing or there twice; for one input it tells them. Before the
    first record, or after the last where a pipe is among the inputs, whose heads are known then."""
    from kvtools.artifact.shards import missing_parts
    from kvtools.errors import Corrupt

    def refuse() -> None:
        faults = [] if records.code else missing_parts(head.history for head in records.heads)
        if faults and n_inputs > 1:
            raise Corrupt(f"{'; '.join(faults)}. Give each part once, or --partial.")
        if faults:
            run.info(f"{'; '.join(faults)}.")

    if not records.has_pipes:
        refuse()
    yield from records
    if records.has_pipes:
        refuse()


def _unchanged(record: "Record") -> tuple[str, list[memoryview]]:
    return record.key, [record.raw]


def _encoded(record: "Record") -> tuple[str, list[memoryview]]:
    """A record under another key than the one that its fields still have."""
    from kvtools.artifact import blob

    return record.key, list(blob.encode(record.tensors, {**record.fields, "key": record.key}))
