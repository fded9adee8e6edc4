"""`kvtools sum`: digests that do not depend on the order of records."""

from kvtools import options as opt

EXAMPLES = ["kvtools sum clips.kvs", "kvtools cat part-*.kvs | kvtools sum -"]
EXIT_CODES = (0, 2, 65, 66)
SEE_ALSO = ("kvtools check", "kvtools cat", "kvtools-stream(5)")


def main(
    run: opt.Invocation,
    inputs: opt.Inputs = None,
    as_json: opt.AsJson = False,
) -> int:
    """Print a digest of each artifact that is equal for the same records in any order.

    Order, sharding, compression, history and the number of ranks do not change the digest; a record that is lost, doubled
    or changed does. The digest of a bag covers its tensors. It detects accidents, not forgery.
    """
    from kvtools.artifact import Reader, open_artifact
    from kvtools.artifact.digest import Digest
    from kvtools.errors import Fault

    worst = 0
    for src in inputs or ["-"]:
        digest, n_records = Digest(), 0
        try:
            artifact = open_artifact(src)
            if isinstance(artifact, Reader):
                for record in artifact:
                    digest.add(record.tensors, record.fields)
                    n_records += 1
            else:
                digest, n_records = Digest.of_bag(artifact.tensors), 1
        except Fault as fault:
            run.log(str(fault))
            worst = max(worst, fault.code)
            continue
        if as_json:
            run.print_json({"digest": str(digest), "records": n_records, "name": src})
        else:
            run.print(f"{digest}  {src}")
    return worst
