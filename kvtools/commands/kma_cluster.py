"""`kvtools kma-cluster`: devices in, a tree of aggregators over them out."""

from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from kvtools.options import Config, Force, Output, PrintConfig, Quiet, Seed, Stamp, Verbose, is_given, require, to_toml

if TYPE_CHECKING:
    from kvtools.etree.tree.kma import Groups

EXAMPLES = [
    "kvtools kma-cluster -k 3 --method k-medoids fleet.devices -o near.tree",
    "kvtools devices --data digits.csv --graph edges.txt | kvtools kma-cluster -k 3 --data digits.csv - | kvtools info -",
]
EXIT_CODES = (0, 2, 65, 66, 73, 74, 141)
SEE_ALSO = ("kvtools devices", "kvtools etree-train", "kvtools info", "kvtools-stream(5)")
GROUPS = {
    "Local training": ("--pretrain", "--lr", "--batch"),
    "Grouping": ("--label-weight", "--slack", "--public", "--sweeps"),
}


def main(
    ctx: typer.Context,
    devices: Annotated[str, typer.Argument(metavar="DEVICES", help="A device bag; - is stdin.")] = "-",
    groups: Annotated[int, typer.Option("-k", "--groups", metavar="K", min=1, help="Groups of devices.")] = 10,
    method: Annotated[
        Literal["kma", "kma-code", "k-medoids", "accuracy-only", "balanced", "random", "contiguous"],
        typer.Option(help="How devices are grouped; see kvtools-kma-cluster(1)."),
    ] = "kma",
    delta: Annotated[
        float, typer.Option(metavar="X", min=0, help="A group's mean accuracy may differ by less than X from all devices'.")
    ] = 0.05,
    levels: Annotated[
        str | None, typer.Option(metavar="N,...,1", help="Aggregators on each level above the groups. Default: 1.")
    ] = None,
    ratios: Annotated[
        str | None,
        typer.Option(
            metavar="R,...,1",
            help="Local epochs an upload, then aggregations of each level an upload to the next. Default: 1,5,…,1.",
        ),
    ] = None,
    data: Annotated[str | None, typer.Option(metavar="SRC", help="The devices' labelled data, for kma and its like.")] = None,
    pretrain: Annotated[int, typer.Option(metavar="N", min=1, help="Epochs that each device trains alone.")] = 10,
    lr: Annotated[float, typer.Option(metavar="X", min=0, help="Learning rate of that.")] = 0.05,
    batch: Annotated[int, typer.Option(metavar="N", min=1, help="Samples a step of that.")] = 10,
    label_weight: Annotated[
        float, typer.Option(metavar="X", min=0, max=1, help="balanced: what labels weigh; delays weigh 1 - X.")
    ] = 0.5,
    slack: Annotated[
        float, typer.Option(metavar="X", min=0, help="balanced: sizes differ from even ones by a share of up to X.")
    ] = 0.2,
    public: Annotated[
        float, typer.Option(metavar="X", min=0, max=1, help="Let up to this share of devices belong to all groups.")
    ] = 0.0,
    since: Annotated[
        str | None, typer.Option(metavar="TREE", help="Let devices that this tree has not yet join it; no other group changes.")
    ] = None,
    sweeps: Annotated[int, typer.Option(metavar="N", min=1, help="Sweeps over the devices, at most.")] = 100,
    seed: Seed = 0,
    output: Output = "-",
    force: Force = False,
    config: Config = None,
    print_config: PrintConfig = False,
    stamp: Stamp = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> int:
    """Group devices that are near one another, and alike in what they learned, into a tree of aggregators.

    The middle of each group aggregates for it; the middles are grouped again, by delay alone, up to one root. A report says how
    near and how alike the groups came out, in accuracy and in labels, which need not agree; kvtools info shows it. The ranks of
    mpiexec or srun share the work, and the tree does not depend on how many there are.
    """
    import numpy as np

    from kvtools.artifact.bag import write_bag
    from kvtools.artifact.digest import Digest
    from kvtools.artifact.files import Sink, refuse_existing
    from kvtools.artifact.history import extend
    from kvtools.errors import Corrupt, Usage
    from kvtools.etree.data.devices import read_roster
    from kvtools.etree.train.local_accuracy import accuracies
    from kvtools.etree.tree import balanced, kma
    from kvtools.etree.tree.regroup import joined
    from kvtools.etree.tree.tree import counts, grow, read_tree
    from kvtools.progress import Ticker

    world = ctx.obj.world
    if since:
        _refuse_shapes(ctx)
    above = counts(levels, "--levels") if levels else ([1] if groups > 1 else [])
    given = counts(ratios, "--ratios") if ratios else [1, *[5] * len(above), 1]
    recipe: dict[str, Any] = {
        "groups": groups, "method": method, "delta": delta, "levels": ",".join(map(str, above)) or None,
        "ratios": ",".join(map(str, given)), "pretrain": pretrain, "lr": lr, "batch": batch, "label_weight": label_weight,
        "slack": slack, "public": public, "since": since, "sweeps": sweeps, "seed": seed,
    }  # fmt: skip
    if print_config:
        typer.echo(to_toml(recipe), nl=False)
        return 0
    is_falling = all(a >= b for a, b in zip([groups, *above], above, strict=False))
    require(([groups, *above][-1]) == 1 and is_falling, "--levels", levels, f"counts that fall from {groups} groups to 1")
    require(len(given) == len(above) + 2 and given[-1] == 1, "--ratios", ratios, f"{len(above) + 2} counts, the last of them 1")
    needs_data = (method in ("kma", "kma-code", "accuracy-only") and not since) or bool(public)
    if needs_data and data is None:
        option = "--public" if public else f"--method {method}"
        raise Usage(f"--data is missing: {option} measures how well each device learns alone. Give the devices' labelled data.")
    if world.is_root:
        refuse_existing(output, force=force)
    roster, bag = read_roster(devices, world)
    name = "stdin" if devices == "-" else devices
    if roster.delays is None:
        raise Corrupt(
            f"{name}: devices without a network found, delays expected. Make it with kvtools devices --delay or --graph."
        )
    accuracy = None
    grown, before = read_tree(since, world) if since else (None, None)
    if needs_data and data is not None:
        accuracy = accuracies(data, roster, bag, name, n_epochs=pretrain, rate=lr, batch=batch, seed=seed, peers=world)
    tick = Ticker(total=sweeps, unit="sweeps", label="cluster", quiet=quiet or not world.is_root)
    try:
        if grown is not None:
            tree = joined(grown, roster.delays, slack, seed)
            found = kma.Groups(tree.group.astype(np.int32), tree.device[tree.nodes(1)].astype(np.int64))
        else:
            found = balanced.grouped(
                method, roster.delays, roster.labels, groups,
                seed=seed, accuracy=accuracy, delta=delta, weight=label_weight, slack=slack, n_sweeps=sweeps,
                peers=world, tell=tick,
            )  # fmt: skip
            tree = grow(found, roster.delays, above, given, seed, world)
    except ValueError as fault:
        raise Usage(f"{name}: {fault}.") from None
    if not world.is_root:
        return 0
    tensors = tree.tensors()
    apart = roster.delays.elementwise(np.arange(len(roster)), found.centre[found.group])
    made_of = str(Digest.of_bag(bag.tensors))
    recipe |= {} if before is None else {"groups": len(found.centre), "levels": None, "ratios": None, "method": "joined"}
    report: dict[str, Any] = {"k": len(found.centre), "devices": len(roster), "delay_ms": float(apart.mean())}
    report |= {"method": recipe["method"], "made_of": made_of}
    report |= {"sweeps": found.n_sweeps, "cycled": found.cycle > 0, "settled": found.is_settled}
    report |= {"sizes": found.sizes.tolist(), "accuracy_gap": None, "label_gap_l1": None, "label_gap_js": None}
    if words := _unsettled(found):
        ctx.obj.log(words, quiet=quiet)
    if roster.has_data:
        l1, js = kma.label_gaps(found, roster.labels)
        report |= {"label_gap_l1": float(l1.mean()), "label_gap_js": float(js.mean())}
    if accuracy is not None:
        report["accuracy_gap"] = float(kma.accuracy_gaps(found, accuracy).mean())
        report["accuracy"] = {"mean": float(accuracy.mean()), "deviation": float(accuracy.std())}
        tensors["accuracy"] = accuracy.astype(np.float32)
    if public and accuracy is not None:
        tensors["public"] = kma.public_devices(found, roster.delays, accuracy, delta, public)
    earlier = [each.history for each in (bag, before) if each is not None]
    write_bag(
        Sink(output, force=force), "tree", tensors, config=recipe,
        history=extend("kma-cluster", ctx.obj.argv, before=earlier, inputs=[made_of], stamp=stamp), **report,
    )  # fmt: skip
    return 0


def _unsettled(found: "Groups") -> str:
    """Why the best sweep was not the last, empty where it was."""
    if found.cycle:
        return f"centres came back after {found.cycle} sweeps; the best of {found.n_sweeps} is taken."
    return "" if found.is_settled else f"centres still moved after {found.n_sweeps} sweeps; the best of them is taken."


def _refuse_shapes(ctx: typer.Context) -> None:
    """Raise Usage for options that say how a tree is to be, where others only join one."""
    for name in ("groups", "method", "levels", "ratios"):
        require(not is_given(ctx, name), f"--{name}", "given with --since", "the tree's own, which others join,")
