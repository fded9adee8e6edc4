"""`kvtools kma-cluster`: devices in, a tree of aggregators over them out."""

from typing import TYPE_CHECKING, Annotated, Any, Literal

from kvtools import options as opt

if TYPE_CHECKING:
    from kvtools.etree.tree.kma import Groups

EXAMPLES = [
    "kvtools kma-cluster -k 3 --method k-medoids fleet.devices -o near.tree",
    "kvtools devices --data digits.csv --graph edges.txt | kvtools kma-cluster -k 3 --data digits.csv - | kvtools info -",
]
EXIT_CODES = (0, 2, 65, 66, 73, 74, 75, 141)
SEE_ALSO = ("kvtools devices", "kvtools etree-train", "kvtools info", "kvtools-stream(5)")
COMMON = ("output", "force", "config", "print_config", "stamp")
GROUPS = {
    "Local training": ("--pretrain", "--lr", "--batch"),
    "Grouping": ("--label-weight", "--slack", "--public", "--sweeps"),
}


def main(
    run: opt.Invocation,
    devices: Annotated[str, opt.argument("DEVICES", "A device bag; - is stdin.")] = "-",
    groups: Annotated[int, opt.value("K", "Number of groups of devices.", "-k", "--groups", least=1)] = 10,
    method: Annotated[
        Literal["kma", "kma-code", "k-medoids", "accuracy-only", "balanced", "random", "contiguous"],
        opt.option("How devices are grouped; see kvtools-kma-cluster(1)."),
    ] = "kma",
    delta: Annotated[
        float, opt.value("X", "A group's mean accuracy differs by less than X from that of all devices.", least=0)
    ] = 0.05,
    levels: Annotated[str | None, opt.value("N,...,1", "Aggregators on each level above the groups. Default: 1.")] = None,
    ratios: Annotated[
        str | None,
        opt.value(
            "R,...,1", "Local epochs per upload, then aggregations of each level per upload to the next. Default: 1,5,…,1."
        ),
    ] = None,
    data: Annotated[str | None, opt.value("SRC", "Labelled data of the devices, for methods that need accuracies.")] = None,
    pretrain: Annotated[int, opt.value("N", "Epochs of the local pre-training.", least=1)] = 10,
    lr: Annotated[float, opt.value("X", "Learning rate of the local pre-training.", least=0)] = 0.05,
    batch: Annotated[int, opt.value("N", "Samples per step of the local pre-training.", least=1)] = 10,
    label_weight: Annotated[
        float, opt.value("X", "For balanced: weight of labels; delays have the weight 1 - X.", least=0, most=1)
    ] = 0.5,
    slack: Annotated[
        float, opt.value("X", "For balanced and --since: group sizes differ from n/K by up to X n/K.", least=0)
    ] = 0.2,
    public: Annotated[float, opt.value("X", "Let up to this fraction of devices belong to all groups.", least=0, most=1)] = 0.0,
    since: Annotated[
        str | None, opt.value("TREE", "Add devices to this tree, which has the first of them; other groups stay.")
    ] = None,
    sweeps: Annotated[int, opt.value("N", "Sweeps over the devices, at most.", least=1)] = 100,
    seed: opt.Seed = 0,
) -> int:
    """Group devices with short delays between them into a tree of aggregators.

    By default, the mean accuracy of a group also stays near that of all devices. The medoid of each group aggregates for it;
    the medoids are grouped again, by delay alone, up to one root. A report gives the mean delay in the groups and how much they
    differ in accuracy and in labels, which need not agree; kvtools info shows it. The ranks of mpiexec or srun share the work,
    and the tree does not depend on their number. A stopped run continues when the same command is run again.
    """
    import numpy as np

    from kvtools.artifact import source_name
    from kvtools.artifact.bag import write_bag
    from kvtools.artifact.digest import Digest
    from kvtools.artifact.state import RunState, lock_folder, state_folder
    from kvtools.errors import Usage, raising
    from kvtools.etree.data.devices import delays_of, read_data_of, read_devices
    from kvtools.etree.data.fleet import read_tree
    from kvtools.etree.train.local import LocalTrainer
    from kvtools.etree.train.models import build
    from kvtools.etree.tree import kma
    from kvtools.etree.tree.balanced import balanced
    from kvtools.etree.tree.regroup import joined
    from kvtools.etree.tree.run import ClusterRun
    from kvtools.etree.tree.tree import grow
    from kvtools.progress import Ticker
    from kvtools.train.device import own_cores

    world = run.world
    above = _counts(levels, "--levels") if levels else ([1] if groups > 1 else [])
    ratio_list = _counts(ratios, "--ratios") if ratios else [1, *[5] * len(above), 1]
    recipe: dict[str, Any] = {
        "groups": groups, "method": method, "delta": delta, "levels": ",".join(map(str, above)) or None,
        "ratios": ",".join(map(str, ratio_list)), "pretrain": pretrain, "lr": lr, "batch": batch,
        "label_weight": label_weight, "slack": slack, "public": public, "since": since, "sweeps": sweeps, "seed": seed,
    }  # fmt: skip
    if run.print_config:
        return run.print_recipe(recipe)
    sizes = [groups, *above]
    needs_accuracy = public or (since is None and method in ("kma", "kma-code", "accuracy-only"))
    opt.refuse_if(
        *(
            (since and name in run.given, f"--{name} cannot be given with --since, whose tree has its own. Leave it out.")
            for name in ("groups", "method", "levels", "ratios")
        ),
        (
            sizes[-1] != 1 or sizes != sorted(sizes, reverse=True),
            f"--levels {levels} does not fall from {groups} groups to 1 aggregator. Give counts such as {groups // 2 or 1},1.",
        ),
        (
            len(ratio_list) != len(above) + 2 or ratio_list[-1] != 1,
            f"--ratios {ratios} does not fit the levels. Give {len(above) + 2} counts, the last of them 1.",
        ),
        (public and data is None, "--public needs the accuracy of each device alone. Give --data."),
        (needs_accuracy and data is None, f"--method {method} needs the accuracy of each device alone. Give --data."),
    )
    run.refuse_shared_stdin(devices, since, is_broadcast=True)
    run.refuse_existing()
    fleet, bag = read_devices(devices, world)
    name = source_name(devices)
    delays = delays_of(fleet, name)
    old_tree, old_bag = read_tree(since, world) if since else (None, None)
    accuracy, digest, folder = None, str(Digest.of_bag(bag.tensors)), state_folder(run.output)
    tick = Ticker(total=sweeps, unit="sweeps", label="cluster", quiet=run.is_silent)
    remedy = "Give the devices of the tree, and new ones after them." if since else "Give fewer groups, or another --method."
    state = RunState(folder, "kma-cluster-state", {**recipe, "devices": digest})
    with lock_folder(folder, is_root=world.is_root):
        clustering = ClusterRun(state, world, tick, start_over=run.force)
        if clustering.is_resumed:
            run.info("resumed where the stopped run was.")
        if needs_accuracy and data is not None:
            labelled = read_data_of(data, bag, name)
            train, test = labelled.train, labelled.test
            model = build("softmax", labelled.shape, labelled.n_classes)  # as the authors' simulator trains
            trainer = LocalTrainer(
                model, train.x, train.y, fleet.index, fleet.offsets, batch=batch, lr=lr, seed=seed,
                n_threads=own_cores(world),
            )  # fmt: skip
            accuracy = clustering.accuracies(trainer, pretrain, test.x, test.y)
        options: dict[str, Any] = {"n_sweeps": sweeps, "on_sweep": clustering.on_sweep, "earlier": clustering.search}
        with raising(Usage, name, remedy=remedy):
            if old_tree is not None:
                tree = joined(old_tree, delays, slack, seed, world)
                grouped = kma.Groups(tree.group.astype(np.int32), tree.device[tree.nodes(1)].astype(np.int64))
                recipe |= {"groups": len(grouped.centre), "levels": None, "ratios": None, "method": "joined"}
            else:
                if method == "balanced":
                    options |= {"weight": label_weight, "slack": slack}
                    grouped = balanced(delays, fleet.labels, groups, seed=seed, world=world, **options)
                else:
                    options |= {"accuracy": accuracy, "delta": delta}
                    grouped = kma.cluster(method, delays, groups, seed=seed, world=world, **options)
                tree = grow(grouped, delays, above, ratio_list, seed, world)
    if not world.is_root:
        return 0
    tensors = tree.tensors()
    if accuracy is not None:
        tensors["accuracy"] = accuracy.astype(np.float32)
    if public and accuracy is not None:
        tensors["public"] = kma.public_devices(grouped, delays, accuracy, delta, public)
    if reason := _why_not_last(grouped):
        run.info(reason)
    report = {"method": recipe["method"], "made_of": digest, **kma.report(grouped, delays, fleet.labels, accuracy)}
    earlier = [artifact.history for artifact in (bag, old_bag) if artifact is not None]
    write_bag(run.sink(), "tree", tensors, config=recipe, history=run.history(earlier, [digest]), **report)
    state.forget()
    return 0


def _counts(text: str, option: str) -> list[int]:
    from kvtools.errors import Usage, raising
    from kvtools.etree.tree.tree import parse_counts

    with raising(Usage, f"{option} {text}", remedy="Give counts such as 4,1."):
        return parse_counts(text)


def _why_not_last(groups: "Groups") -> str:
    """Why the best sweep was not the last; empty where it was."""
    if groups.cycle:
        return f"the centres returned after {groups.cycle} sweeps; the best of {groups.n_sweeps} sweeps is taken."
    return "" if groups.is_converged else f"the centres still moved after {groups.n_sweeps} sweeps; the best sweep is taken."
