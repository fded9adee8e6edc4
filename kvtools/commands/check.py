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

    Two clips of a stream that have one key and differ are a fault, too. Prints nothing where no fault is found. A fault is
    reported with the record's number, the other artifacts are still checked, and the exit code is 65.
    """
    from kvtools.artifact import Reader, check_bag, checked_records, open_artifact, source_name
    from kvtools.artifact.equal_keys import KeysSoFar, is_looked_up
    from kvtools.errors import Fault

    worst = 0
    for src in inputs or ["-"]:
        n_records, fault = 0, None
        try:
            artifact = open_artifact(src)
            if isinstance(artifact, Reader):
                keys_so_far = KeysSoFar()
                for record in checked_records(artifact):
                    if is_looked_up(artifact.head.kind):
                        keys_so_far.add(f"{artifact.name}: record {record.number}", record.key, record.tensors)
                    n_records += 1
            else:
                check_bag(artifact, source_name(src))
                n_records = 1
        except Fault as found:
            fault = str(found)
            worst = max(worst, found.code)
        if as_json:
            run.print_json({"ok": fault is None, "records": n_records, "fault": fault, "name": src})
        elif fault is not None:
            run.log(fault)
    return worst
