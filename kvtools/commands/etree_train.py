"""`kvtools etree-train`: a tree, its devices and their data in, a trained model out."""

import json
from typing import Annotated, Any, Literal

import typer

from kvtools import options
from kvtools.options import Config, Device, Force, LogFile, Output, PrintConfig, Quiet, Seed, Stamp, StateDir, Verbose

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
    data: Annotated[str | None, typer.Option(metavar="SRC", help="Labelled data of the devices.")] = None,
    algorithm: Annotated[
        Literal["etree", "fedavg", "hierfavg", "gossip", "d-psgd", "individual", "grouped"],
        typer.Option(help="Which models are averaged; all but etree are for comparison."),
    ] = "etree",
    ratios: Annotated[
        str | None, typer.Option(metavar="R,...,1", help="Replace the tree's ratios, see kvtools-kma-cluster(1).")
    ] = None,
    rounds: Annotated[int, typer.Option(metavar="N", min=1, help="Rounds of the algorithm.")] = 10,
    epochs: Annotated[int | None, typer.Option(metavar="N", min=1, help="Local epochs in all; replaces --rounds.")] = None,
    every: Annotated[int, typer.Option(metavar="N", min=1, help="Evaluate after every N rounds.")] = 1,
    model: Annotated[
        str, typer.Option(metavar="NAME", help="softmax, mlp:WIDTH[,WIDTH], cnn, FILE.toml or FILE.py:NAME.")
    ] = "softmax",
    lr: Annotated[float, typer.Option(metavar="X", min=0, help="Learning rate of local SGD.")] = 0.05,
    batch: Annotated[int, typer.Option(metavar="N", min=1, help="Samples per step of local SGD.")] = 10,
    weights: Annotated[
        Literal["samples", "uniform"], typer.Option(help="Weights of a mean; the paper's are uniform.")
    ] = "samples",
    barrier: Annotated[
        Literal["global", "subtree"], typer.Option(help="Who waits for whom: all of a level, or the children of one parent.")
    ] = "global",
    routing: Annotated[
        Literal["path", "queues"], typer.Option(help="Messages take the shortest path's delay, or hop by hop with queues.")
    ] = "path",
    bandwidth: Annotated[
        float, typer.Option(metavar="MBIT", min=0, help="Bandwidth of a device's link, each way, in Mbit/s; 0 is no limit.")
    ] = 0.0,
    compute: Annotated[float, typer.Option(metavar="MS", min=0, help="Local work per sample and epoch, in ms.")] = 0.0,
    fail: Annotated[str | None, typer.Option(metavar="SCRIPT", help="Failures, as leaf:10%@5,aggregator:1@8,root@12.")] = None,
    compare: Annotated[
        bool, typer.Option("--compare", help="With --fail: also run without failures, and log the accuracy lost.")
    ] = False,
    regroup: Annotated[
        float, typer.Option(metavar="X", min=0, max=1, help="Dissolve groups of which less than this fraction works.")
    ] = 0.0,
    quorum: Annotated[
        float, typer.Option(metavar="X", min=0, max=1, help="Fraction of its children that an aggregator needs for a mean.")
    ] = 0.0,
    deadline: Annotated[float, typer.Option(metavar="S", min=0, help="Seconds to wait for missing updates.")] = 1.0,
    late: Annotated[
        Literal["drop", "carry"], typer.Option(help="Late updates: drop, or count half in the next step.")
    ] = "drop",
    secure: Annotated[bool, typer.Option("--secure", help="Mask updates: aggregators of groups see sums alone.")] = False,
    state: StateDir = None,
    log: LogFile = None,
    chunk: Annotated[
        int | None, typer.Option(metavar="N", min=1, help="Devices trained at once. Default: as many as the cache holds.")
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
    """Train a model over a tree of devices, or by an algorithm to compare with; count bytes and simulated seconds.

    Devices train locally; aggregators, which are devices, average the models of their children by the tree's schedule. Rounds
    of different algorithms hold different amounts of work: compare at equal local epochs, bytes or simulated seconds, which
    --log writes and kvtools plot draws. The ranks of mpiexec or srun share the groups. A stopped run continues when the same
    command is run again.
    """
    from kvtools.artifact.bag import write_bag
    from kvtools.artifact.files import Sink, open_log, refuse_existing
    from kvtools.artifact.history import extend
    from kvtools.artifact.state import RunState, lock_folder, state_folder
    from kvtools.errors import Fault, Stopped, Usage, raising
    from kvtools.etree.data.fleet import read_fleet
    from kvtools.etree.data.model_files import build_model
    from kvtools.etree.network.traffic import Queues
    from kvtools.etree.train.costs import CostModel
    from kvtools.etree.train.failures import read_script
    from kvtools.etree.train.local import Trainer
    from kvtools.etree.train.run import DECENTRALISED, Plan, Run, algorithm_tree, rounds_of
    from kvtools.etree.tree.tree import parse_counts
    from kvtools.progress import Ticker
    from kvtools.train.device import n_cores, resolve_device
    from kvtools.world import Stop

    world, stop = ctx.obj.world, Stop() if state or output != "-" else False
    recipe: dict[str, Any] = {
        "algorithm": algorithm, "ratios": ratios, "rounds": rounds, "epochs": epochs, "every": every, "model": model, "lr": lr,
        "batch": batch, "weights": weights, "barrier": barrier, "routing": routing, "bandwidth": bandwidth, "compute": compute,
        "fail": fail, "compare": compare, "regroup": regroup, "quorum": quorum, "deadline": deadline, "late": late,
        "secure": secure, "seed": seed,
    }  # fmt: skip
    if print_config:
        typer.echo(options.to_toml(recipe), nl=False)
        return 0
    with_aggregators = "Choose etree, fedavg, hierfavg or grouped."
    options.refuse_if(
        (tree is None, "--tree is missing. See --help."),
        (data is None, "--data is missing. See --help."),
        (tree == devices == "-", "--tree and DEVICES cannot both come from stdin. Name a file for one of them."),
        (
            secure and late == "carry",
            "--late carry cannot be combined with --secure: late updates are not masked twice. Use --late drop.",
        ),
        (compare and fail is None, "--compare is about failures. Give them with --fail, or leave it out."),
        (
            fail is not None and algorithm in DECENTRALISED,
            f"--fail needs aggregators, and {algorithm} has none. {with_aggregators}",
        ),
        (secure and algorithm in DECENTRALISED, f"--secure needs aggregators, and {algorithm} has none. {with_aggregators}"),
    )
    torch_device, _ = resolve_device(device, rank=world.rank)
    if world.is_root:
        refuse_existing(output, force=force)
    is_quiet = quiet or not world.is_root
    fleet = read_fleet(devices, str(tree), str(data), world)
    given_tree, delays, train, test = fleet.tree, fleet.delays, fleet.data.train, fleet.data.test
    with raising(Usage, f"--ratios {ratios}"):
        given_tree = given_tree.with_ratios(parse_counts(ratios)) if ratios else given_tree
    with raising(Usage, f"--model {model}"):
        built = build_model(model, fleet.data.shape, fleet.data.n_classes, seed)
    trained_tree = algorithm_tree(algorithm, given_tree, delays)
    with raising(Usage, f"--epochs {epochs}"):
        n_rounds = rounds if epochs is None else rounds_of(epochs, trained_tree)
    with raising(Usage, f"--fail {fail or repr(fail)}"):
        events = () if fail is None else tuple(read_script(fail, trained_tree, seed))
    held, n_threads = fleet.devices, n_cores(world.local_size)
    trainer = Trainer(built, train.x, train.y, held.index, held.offsets, batch, lr, seed, n_threads, chunk, torch_device)
    cost_model = CostModel(bandwidth * 1e6, compute / 1000, deadline, barrier)
    queues = Queues(delays, held.edges) if routing == "queues" else None
    plan = Plan(algorithm, n_rounds, every, weights, quorum, late, events, secure, regroup, compare)

    def note(message: str) -> None:
        ctx.obj.log(message, quiet=is_quiet)

    with raising(Usage, f"--algorithm {algorithm}"):
        run = Run(plan, given_tree, delays, trainer, cost_model, (test.x, test.y), world, note, queues)
    for begin in sorted({event.begin for event in events if event.begin > run.n_steps}):
        note(f"--fail: step {begin} comes after the last step, {run.n_steps}, so that event never happens.")
    folder, architecture = state or state_folder(output), getattr(built, "architecture", model)
    kept = RunState(folder, "etree-train-state", {**recipe, **fleet.digests, "architecture": architecture})
    tick = Ticker(total=n_rounds, unit="rounds", label=algorithm, quiet=is_quiet)
    last: dict[str, Any] = {}
    with lock_folder(folder, is_root=world.is_root), open_log(log if world.is_root else None) as curve:
        if not force and (stopped := kept.load()):
            run.restore(stopped.tensors, stopped.fields["progress"])
            note(f"resumed after round {run.n_rounds}.")
        with raising(Fault, f"training with --lr {lr:g}"):
            for line in run.rounds():
                tick()
                if line is not None:
                    last = line
                    curve.write(json.dumps(line) + "\n")
                if world.any(stop) and run.n_rounds < n_rounds:
                    tensors, progress = run.state()  # a collective
                    if world.is_root:
                        kept.save(tensors, progress=progress)
                    raise Stopped("stopped; run the same command again to continue." if world.is_root else "")
    final = run.weights()  # a collective
    if not world.is_root:
        return 0
    if compare:
        lost, slower = 100 * last["accuracy_lost"], last["simulated_s_lost"]
        note(f"failures cost {lost:.2f} points of accuracy, {last['accuracy']:.4f} reached, and {slower:.3f} simulated s.")
    history = extend("etree-train", ctx.obj.argv, before=fleet.histories, inputs=fleet.digests.values(), stamp=stamp)
    result = {key: value for key, value in last.items() if key != "wall_s"}
    sink = Sink(output, force=force)
    write_bag(sink, "model", final, config=recipe, history=history, result=result, architecture=architecture)
    kept.forget()
    return 0
