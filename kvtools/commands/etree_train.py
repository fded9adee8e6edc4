"""`kvtools etree-train`: a tree, its devices and their data in, a trained model out."""

import json
from typing import Annotated, Any, Literal

import typer

from kvtools.options import (
    Config,
    Device,
    Force,
    LogFile,
    Output,
    PrintConfig,
    Quiet,
    Seed,
    Stamp,
    StateDir,
    Verbose,
    require,
    to_toml,
)

EXAMPLES = [
    "kvtools etree-train --tree fleet.tree --data digits.csv fleet.devices --rounds 4 --log run.jsonl -o fleet.model",
    "kvtools etree-train --tree fleet.tree --data digits.csv fleet.devices --algorithm fedavg --rounds 3 | kvtools info -",
]
EXIT_CODES = (0, 2, 65, 66, 73, 74, 75, 141)
SEE_ALSO = ("kvtools kma-cluster", "kvtools devices", "kvtools plot", "kvtools info")
GROUPS = {
    "Aggregation": ("--ratios", "--weights", "--secure"),
    "Network": ("--barrier", "--routing", "--bandwidth", "--compute"),
    "Failures": ("--fail", "--compare", "--regroup", "--quorum", "--deadline", "--late"),
}


def main(
    ctx: typer.Context,
    devices: Annotated[
        str, typer.Argument(metavar="DEVICES", help="The device bag that the tree was made of; - is stdin.")
    ] = "-",
    tree: Annotated[str | None, typer.Option(metavar="TREE", help="The tree, from kvtools kma-cluster.")] = None,
    data: Annotated[str | None, typer.Option(metavar="SRC", help="The devices' labelled data.")] = None,
    algorithm: Annotated[
        Literal["etree", "fedavg", "hierfavg", "gossip", "d-psgd", "individual", "grouped"],
        typer.Option(help="Who averages with whom; all but etree are to compare with."),
    ] = "etree",
    ratios: Annotated[
        str | None, typer.Option(metavar="R,...,1", help="In place of the tree's, see kvtools-kma-cluster(1).")
    ] = None,
    rounds: Annotated[int, typer.Option(metavar="N", min=1, help="Rounds of the algorithm.")] = 10,
    epochs: Annotated[int | None, typer.Option(metavar="N", min=1, help="In place of --rounds: local epochs in all.")] = None,
    every: Annotated[int, typer.Option(metavar="N", min=1, help="Evaluate after every N rounds.")] = 1,
    model: Annotated[
        str, typer.Option(metavar="NAME", help="softmax, mlp:WIDTH[,WIDTH], cnn, FILE.toml or FILE.py:NAME.")
    ] = "softmax",
    lr: Annotated[float, typer.Option(metavar="X", min=0, help="Learning rate of local SGD.")] = 0.05,
    batch: Annotated[int, typer.Option(metavar="N", min=1, help="Samples a step of local SGD.")] = 10,
    weights: Annotated[
        Literal["samples", "uniform"], typer.Option(help="What counts in a mean; the paper's is uniform.")
    ] = "samples",
    barrier: Annotated[
        Literal["global", "subtree"], typer.Option(help="Who waits for whom: all, or those of one parent.")
    ] = "global",
    routing: Annotated[
        Literal["path", "queues"], typer.Option(help="Messages take the shortest path's delay, or hop by hop with queues.")
    ] = "path",
    bandwidth: Annotated[
        float, typer.Option(metavar="MBIT", min=0, help="Of a device's link, each way, in Mbit/s; 0 is without limit.")
    ] = 0.0,
    compute: Annotated[float, typer.Option(metavar="MS", min=0, help="Local work a sample and epoch, in ms.")] = 0.0,
    fail: Annotated[str | None, typer.Option(metavar="SCRIPT", help="Failures, as leaf:10%@5,aggregator:1@8,root@12.")] = None,
    compare: Annotated[
        bool, typer.Option("--compare", help="With --fail: also run without failures, and log the accuracy lost.")
    ] = False,
    regroup: Annotated[
        float, typer.Option(metavar="X", min=0, max=1, help="Give up groups of which less than this share lives.")
    ] = 0.0,
    quorum: Annotated[float, typer.Option(metavar="X", min=0, max=1, help="Share of children that must be heard.")] = 0.0,
    deadline: Annotated[float, typer.Option(metavar="S", min=0, help="Seconds that the missing are waited for.")] = 1.0,
    late: Annotated[
        Literal["drop", "carry"], typer.Option(help="Late updates: drop, or count half in the next step.")
    ] = "drop",
    secure: Annotated[bool, typer.Option("--secure", help="Mask updates: aggregators of groups see sums alone.")] = False,
    state: StateDir = None,
    log: LogFile = None,
    chunk: Annotated[
        int | None, typer.Option(metavar="N", min=1, help="Devices trained at once. Default: what caches hold.")
    ] = None,
    seed: Seed = 0,
    device: Device = "auto",
    output: Output = "-",
    force: Force = False,
    config: Config = None,
    print_config: PrintConfig = False,
    stamp: Stamp = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> int:
    """Train a model over a tree of devices, or by one of its rivals, with bytes and simulated seconds counted.

    Devices train locally; aggregators, which are devices, average what their children send, by the tree's schedule. Rounds of
    different algorithms hold different amounts of work: compare at equal local epochs, bytes or simulated seconds, which --log
    writes and kvtools plot draws. The ranks of mpiexec or srun share the groups. A run into a file that was stopped goes on
    when the same command is run again.
    """
    from kvtools.artifact.bag import write_bag
    from kvtools.artifact.files import Sink, open_log, refuse_existing
    from kvtools.artifact.history import extend
    from kvtools.artifact.state import RunState, lock_folder, state_folder
    from kvtools.errors import Fault, Stopped, Usage
    from kvtools.etree.data.devices import read_roster
    from kvtools.etree.network.traffic import Paths, Queues
    from kvtools.etree.train.local import Trainer, cores
    from kvtools.etree.train.local_accuracy import same_data
    from kvtools.etree.train.models import build
    from kvtools.etree.train.run import Plan, Run
    from kvtools.etree.train.simulation import Costs
    from kvtools.etree.tree.tree import read_tree, same_fleet
    from kvtools.progress import Ticker
    from kvtools.train.device import resolve_device
    from kvtools.world import Stop

    world, stop = ctx.obj.world, Stop() if state or output != "-" else False
    require((tree, devices) != ("-", "-"), "--tree, DEVICES", "- for both", "one input from stdin")
    recipe: dict[str, Any] = {
        "algorithm": algorithm, "ratios": ratios, "rounds": rounds, "epochs": epochs, "every": every, "model": model, "lr": lr,
        "batch": batch, "weights": weights, "barrier": barrier, "routing": routing,
        "bandwidth": bandwidth, "compute": compute, "fail": fail,
        "compare": compare, "regroup": regroup, "quorum": quorum, "deadline": deadline, "late": late, "secure": secure,
        "seed": seed,
    }  # fmt: skip
    if print_config:
        typer.echo(to_toml(recipe), nl=False)
        return 0
    place, _ = resolve_device(device, rank=world.rank)
    require(not secure or late == "drop", "--late", late, "drop with --secure: no second mask hides a late update")
    if tree is None or data is None:
        raise Usage(f"{'--tree' if tree is None else '--data'} is missing. See --help.")
    if world.is_root:
        refuse_existing(output, force=force)
    roster, bag = read_roster(devices, world)
    grown, tree_bag = read_tree(tree, world)
    name = "stdin" if devices == "-" else devices
    digests = same_fleet(roster, bag, name, grown, tree_bag, tree)
    assert roster.delays is not None, "a fleet has delays"
    if ratios:
        grown = grown.with_ratios(ratios)
    labelled = same_data(data, bag, name)
    train, test = labelled.train, labelled.test

    def tell(words: str) -> None:
        ctx.obj.log(words, quiet=quiet or not world.is_root)

    try:
        built = build(model, labelled.shape, labelled.n_classes, seed)
        trainer = Trainer(
            built, train.x, train.y, roster.index, roster.offsets, batch, lr, seed, cores(world.local_size), chunk, place
        )  # fmt: skip
        costs = Costs(bandwidth * 1e6, compute / 1000, deadline, barrier)
        traffic = Queues(roster.delays, roster.edges) if routing == "queues" else Paths(roster.delays)
        plan = Plan(algorithm, rounds, epochs, every, weights, quorum, late, fail, secure, regroup, compare)
        run = Run(plan, grown, roster.delays, trainer, costs, (test.x, test.y), world, tell, traffic)
    except ValueError as fault:
        raise Usage(f"{fault}.") from None
    folder, architecture = state or state_folder(output), getattr(built, "architecture", model)
    made_of = dict(zip(("devices", "tree"), digests, strict=True))
    kept = RunState(folder, "etree-train-state", {**recipe, **made_of, "architecture": architecture})
    tick = Ticker(total=run.n_steps // run.course.round_steps, unit="rounds", label=algorithm, quiet=quiet or not world.is_root)
    line: dict[str, Any] = {}
    with lock_folder(folder, is_root=world.is_root), open_log(log if world.is_root else None) as curve:
        if not force and (stopped := kept.load()):
            run.restore(stopped.tensors, stopped.fields["progress"])
            tell(f"resumed after round {run.course.spent.steps // run.course.round_steps}.")
        try:
            for told in run.rounds():
                tick()
                if told is not None:
                    line = told
                    curve.write(json.dumps(line) + "\n")
                if world.any(stop) and run.course.spent.steps < run.n_steps:
                    tensors, progress = run.state()  # collective: every rank's groups are needed for it
                    if world.is_root:
                        kept.save(tensors, progress=progress)
                    raise Stopped("stopped; run the same command again to go on." if world.is_root else "")
        except ValueError as fault:
            raise Fault(f"{fault}.") from None
    final = run.weights()  # everyone's groups are needed for it
    if not world.is_root:
        return 0
    if compare:
        lost, slower = line["accuracy_lost"], line["simulated_s_lost"]
        tell(
            f"failures cost {100 * lost:.2f} points of accuracy, {line['accuracy']:.4f} reached, and {slower:.3f} simulated s."
        )
    history = extend("etree-train", ctx.obj.argv, before=[bag.history, tree_bag.history], inputs=digests, stamp=stamp)
    result = {name: value for name, value in line.items() if name != "wall_s"}
    write_bag(
        Sink(output, force=force), "model", final, config=recipe, history=history, result=result, architecture=architecture
    )
    kept.forget()
    return 0
