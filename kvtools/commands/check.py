"""`kvtools check`: verify artifacts."""

from kvtools import options as opt

EXAMPLES = ["kvtools check clips.kvs", "kvtools tokenize-video clip.mp4 | kvtools check --json -"]
EXIT_CODES = (0, 2, 65, 66)
SEE_ALSO = ("kvtools info", "kvtools sum", "kvtools-stream(5)")


def main(
    run: opt.Invocation,
    inputs: opt.Inputs = None,
    as_json: opt.AsJson = False,
) -> int:
    """Read artifacts to their end, and check every record against its checksums and its kind.

    Prints nothing where no fault is found. A fault is reported with the record's number, the other artifacts are still checked,
    and the exit code is 65.
    """
    from kvtools.artifact import Reader, kinds, open_artifact, source_name
    from kvtools.errors import Corrupt, Fault

    worst = 0
    for src in inputs or ["-"]:
        n_records, fault = 0, None
        try:
            artifact = open_artifact(src)
            try:
                if isinstance(artifact, Reader):
                    for record in artifact:
                        kinds.check(artifact.head.kind, "stream", record.tensors, record.fields)
                        n_records += 1
                else:
                    kinds.check(artifact.kind or "", "bag", artifact.tensors, artifact.fields)
                    n_records = 1
            except ValueError as difference:
                raise Corrupt(f"{source_name(src)}: record {n_records}: {difference}. Make it again.") from None
        except Fault as found:
            fault = str(found)
            worst = max(worst, found.code)
        if as_json:
            run.print_json({"ok": fault is None, "records": n_records, "fault": fault, "name": src})
        elif fault is not None:
            run.log(fault)
    return worst
