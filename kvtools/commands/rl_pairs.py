"""`kvtools rl pairs`: rollouts in, pairs of a better and a worse answer out."""

from typing import Annotated

from kvtools import options as opt

EXAMPLES = [
    "kvtools rl pairs -q rollouts.kvs -o best-and-worst.kvs",
    "kvtools rl sample -q sums.jsonl --model keye.safetensors --reward length:-1 --max-new 8 | kvtools rl pairs -q | kvtools sum",  # noqa: E501 a line to copy
]
EXIT_CODES = (0, 2, 65, 66, 73, 74, 141)
SEE_ALSO = ("kvtools rl sample", "kvtools rl mpo", "kvtools-stream(5)")
COMMON = ("output", "compress", "force", "strict", "stamp")


def main(
    run: opt.Invocation,
    rollouts: Annotated[
        list[str] | None, opt.argument("ROLLOUTS", "Rollouts, from kvtools rl sample; - is stdin, the default.")
    ] = None,
    margin: Annotated[float, opt.value("X", "Leave out groups whose rewards differ by X or less.", least=0)] = 0.0,
) -> int:
    """Choose the best and the worst answer of each group of rollouts, as pairs for kvtools rl mpo.

    A pair is a conversation that ends in the better answer; the worse one is its `rejected`. Answers without a reward take no
    part, and groups without a difference give no pair.
    """
    from kvtools.artifact import open_stream, source_name
    from kvtools.errors import Corrupt
    from kvtools.keye.data.conversations import write
    from kvtools.keye.rl.pairs import best_and_worst
    from kvtools.keye.rl.records import KIND, from_stream
    from kvtools.skipped import SkippedRows, counted

    sources = rollouts or ["-"]
    run.refuse_shared_stdin(*sources)
    run.refuse_own_input(*sources)
    run.refuse_existing()
    readers = [(source_name(src), open_stream(src, KIND, made_by="kvtools rl sample")) for src in sources]
    skipped = [SkippedRows() for _ in readers]
    config = {"margin": margin}
    with run.writer("conversation", config, before=[reader.head.history for _, reader in readers]) as writer:
        for (name, reader), rows in zip(readers, skipped, strict=True):
            write(best_and_worst(from_stream(reader, name), rows, margin=margin), writer)
        run.info(
            f"{', '.join(name for name, _ in readers)}: {counted(writer.n_records, 'pair')} of a better and a worse answer."
        )
        codes = [
            rows.report(name, run.info, strict=run.strict, verbose=True)
            for (name, _), rows in zip(readers, skipped, strict=True)
        ]
        if not writer.n_records:
            raise Corrupt(
                f"{', '.join(name for name, _ in readers)}: no group has a better and a worse answer. Sample more answers a "
                "prompt, or reward them by another term."
            )
    return max(codes)
