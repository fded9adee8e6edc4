"""`kvtools etree-train`: a tree, its devices and their data in, a trained model out."""

from contextlib import ExitStack
from typing import Annotated, Any, Literal

from kvtools import options as opt

EXAMPLES = [
    "kvtools etree-train --tree fleet.tree --data digits.csv fleet.devices --rounds 4 --log run.jsonl -o fleet.model",
    "kvtools etree-train --tree fleet.tree --data digits.csv fleet.devices --algorithm fedavg --rounds 3 | kvtools info -",
]
EXIT_CODES = (0, 2, 65, 66, 73, 74, 75, 141)
SEE_ALSO = ("kvtools kma-cluster", "kvtools devices", "kvtools plot", "kvtools info")
COMMON = ("output", "force", "config", "print_config", "stamp")
GROUPS = {
    "Aggregation": ("--ratios", "--weights", "--secure"),
    "Network": ("--barrier", "--routing", "--bandwidth", "--compute"),
    "Failures": ("--fail", "--compare", "--regroup", "--quorum", "--deadline", "--late"),
}


def main(
    run: opt.Invocation,
    devices: Annotated[str, opt.argument("DEVICES", "The device bag that the tree was made of; - is stdin.")] = "-",
    tree: Annotated[str | None, opt.value("TREE", "The tree, from kvtools kma-cluster.")] = None,
    data: Annotated[str | None, opt.value("SRC", "Labelled data of the devices.")] = None,
    algorithm: Annotated[
        Literal["etree", "fedavg", "hierfavg", "gossip", "d-psgd", "individual", "grouped"],
        opt.option("Which models are averaged; all but etree are for comparison."),
    ] = "etree",
    ratios: Annotated[str | None, opt.value("R,...,1", "Replace the tree's ratios, see kvtools-kma-cluster(1).")] = None,
    rounds: Annotated[int, opt.value("N", "Rounds of the algorithm.", least=1)] = 10,
    epochs: Annotated[int | None, opt.value("N", "Local epochs in all; replaces --rounds.", least=1)] = None,
    every: Annotated[int, opt.value("N", "Evaluate after every N rounds.", least=1)] = 1,
    model: Annotated[str, opt.value("NAME", "softmax, mlp:WIDTH[,WIDTH], cnn, FILE.toml or FILE.py:NAME.")] = "softmax",
    lr: Annotated[float, opt.value("X", "Learning rate of local SGD.", least=0)] = 0.05,
    batch: Annotated[int, opt.value("N", "Samples per step of local SGD.", least=1)] = 10,
    weights: Annotated[Literal["samples", "uniform"], opt.option("Weights of a mean; the paper's are uniform.")] = "samples",
    barrier: Annotated[
        Literal["global", "subtree"], opt.option("Who waits for whom: all of a level, or the children of one parent.")
    ] = "global",
    routing: Annotated[
        Literal["path", "queues"], opt.option("Messages take the shortest path's delay, or hop by hop with queues.")
    ] = "path",
    bandwidth: Annotated[
        float, opt.value("MBIT", "Bandwidth of a device's link, each way, in Mbit/s; 0 is no limit.", least=0)
    ] = 0.0,
    compute: Annotated[float, opt.value("MS", "Local work per sample and epoch, in ms.", least=0)] = 0.0,
    fail: Annotated[str | None, opt.value("SCRIPT", "Failures, as leaf:10%@5,aggregator:1@8,root@12.")] = None,
    compare: Annotated[
        bool, opt.option("With --fail: also run without failures, and log the accuracy lost.", "--compare")
    ] = False,
    regroup: Annotated[float, opt.value("X", "Dissolve groups of which less than this fraction works.", least=0, most=1)] = 0.0,
    quorum: Annotated[
        float, opt.value("X", "Fraction of its children that an aggregator needs for a mean.", least=0, most=1)
    ] = 0.0,
    deadline: Annotated[float, opt.value("S", "Seconds to wait for missing updates.", least=0)] = 1.0,
    late: Annotated[Literal["drop", "carry"], opt.option("Late updates: drop, or count half in the next step.")] = "drop",
    secure: Annotated[bool, opt.option("Mask updates: aggregators of groups see sums alone.", "--secure")] = False,
    state: opt.StateDir = None,
    log: opt.LogFile = None,
    chunk: Annotated[
        int | None, opt.value("N", "Devices trained at once. Default: as many as the cache holds.", least=1)
    ] = None,
    seed: opt.Seed = 0,
    device: opt.Device = "auto",
) -> int:
    """Train a model over a tree of devices, or by an algorithm to compare with; count bytes and simulated seconds.

    Devices train locally; aggregators, which are devices, average the models of their children by the tree's schedule. Rounds
    of different algorithms hold different amounts of work: compare at equal local epochs, bytes or simulated seconds, which
    --log writes and kvtools plot draws. The ranks of mpiexec or srun share the groups. A stopped run continues when the same
    command is run again.
    """
    from kvtools.artifact.bag import write_bag
    from kvtools.artifact.state import RunState, SaveTimer, lock_folder, state_folder
    from kvtools.artifact.training_log import TrainingLog
    from kvtools.errors import Fault, Stopped, Usage, raising
    from kvtools.etree.data.fleet import read_fleet
    from kvtools.etree.data.model_files import build_model
    from kvtools.etree.network.traffic import Queues
    from kvtools.etree.train.costs import CostModel
    from kvtools.etree.train.failures import read_script
    from kvtools.etree.train.local import LocalTrainer
    from kvtools.etree.train.run import DECENTRALISED, Run, SimulationPlan, algorithm_tree, rounds_of
    from kvtools.etree.tree.tree import parse_counts
    from kvtools.progress import Ticker
    from kvtools.train.device import own_cores, resolve_device
    from kvtools.world import Stop

    world, stop = run.world, Stop() if state or run.output != "-" else False
    recipe: dict[str, Any] = {
        "algorithm": algorithm, "ratios": ratios, "rounds": rounds, "epochs": epochs, "every": every, "model": model, "lr": lr,
        "batch": batch, "weights": weights, "barrier": barrier, "routing": routing, "bandwidth": bandwidth, "compute": compute,
        "fail": fail, "compare": compare, "regroup": regroup, "quorum": quorum, "deadline": deadline, "late": late,
        "secure": secure, "seed": seed,
    }  # fmt: skip
    if run.print_config:
        return run.print_recipe(recipe)
    opt.refuse_if(
        (tree is None, "--tree is missing. Give a tree, from kvtools kma-cluster."),
        (data is None, "--data is missing. Give the labelled data that the devices were made of."),
        (
            secure and late == "carry",
            "--late carry cannot be combined with --secure: late updates are not masked twice. Use --late drop.",
        ),
        (compare and fail is None, "--compare is about failures. Give them with --fail, or leave it out."),
        (
            fail is not None and algorithm in DECENTRALISED,
            f"--fail needs aggregators, and {algorithm} has none. Choose etree, fedavg, hierfavg or grouped.",
        ),
        (
            secure and algorithm in DECENTRALISED,
            f"--secure needs aggregators, and {algorithm} has none. Choose etree, fedavg, hierfavg or grouped.",
        ),
    )
    run.refuse_shared_stdin(tree, devices, is_broadcast=True)
    torch_device, _ = resolve_device(device, rank=world.rank)
    run.refuse_existing()
    fleet = read_fleet(devices, str(tree), str(data), world)
    given_tree, delays, train, test = fleet.tree, fleet.delays, fleet.data.train, fleet.data.test
    tree_ratios = ",".join(map(str, given_tree.ratios.tolist()))
    with raising(Usage, f"--ratios {ratios}", remedy=f"Give counts such as {tree_ratios}, the tree's own."):
        given_tree = given_tree.with_ratios(parse_counts(ratios)) if ratios else given_tree
    is_file = model.endswith(".toml") or ".py:" in model
    with raising(Usage, f"--model {model}", remedy="Correct the file." if is_file else "Give another, such as mlp:64."):
        built = build_model(model, fleet.data.shape, fleet.data.n_classes, seed)
    trained_tree = algorithm_tree(algorithm, given_tree, delays)
    with raising(Usage, f"--epochs {epochs}", remedy="Give such a number, or --rounds."):
        n_rounds = rounds if epochs is None else rounds_of(epochs, trained_tree)
    with raising(Usage, f"--fail {fail or repr(fail)}", remedy="Give events such as leaf:10%@5,root@12."):
        events = () if fail is None else tuple(read_script(fail, trained_tree, seed))
    held, n_threads = fleet.devices, own_cores(world)
    trainer = LocalTrainer(
        built, train.x, train.y, held.index, held.offsets, batch=batch, lr=lr, seed=seed, n_threads=n_threads, chunk=chunk,
        torch_device=torch_device,
    )  # fmt: skip
    cost_model = CostModel(bandwidth=bandwidth * 1e6, compute=compute / 1000, deadline=deadline, barrier=barrier)
    queues = Queues(delays, held.edges) if routing == "queues" else None
    plan = SimulationPlan(
        algorithm=algorithm, rounds=n_rounds, every=every, weights=weights, quorum=quorum, late_updates=late, events=events,
        is_secure=secure, regroup=regroup, is_compared=compare,
    )  # fmt: skip

    with raising(Usage, f"--algorithm {algorithm}", remedy="Choose a smaller model, or another algorithm."):
        simulation = Run(
            plan, given_tree, delays, trainer, cost_model, test=(test.x, test.y), world=world, log=run.info, queues=queues
        )
    for begin in sorted({event.begin for event in events if event.begin > simulation.n_steps}):
        run.info(f"--fail: step {begin} comes after the last step, {simulation.n_steps}, so that event never happens.")
    folder, architecture = state or state_folder(run.output), getattr(built, "architecture", model)
    run_state = RunState(folder, "etree-train-state", {**recipe, **fleet.digests, "architecture": architecture})
    tick = Ticker(total=n_rounds, unit="rounds", label=algorithm, quiet=run.is_silent)
    last: dict[str, Any] = {}
    timer = SaveTimer(is_running=folder is not None and world.is_root)
    with lock_folder(folder, is_root=world.is_root), ExitStack() as stack:
        stopped = run_state.load(start_over=run.force)
        if stopped is not None:
            simulation.restore(stopped.tensors, stopped.fields["progress"])
            run.info(f"resumed after round {simulation.n_rounds}.")
        at = None if stopped is None else simulation.n_rounds
        curve = stack.enter_context(TrainingLog(log if world.is_root else None, at=at, key="round"))
        with raising(Fault, f"training with --lr {lr:g}", remedy="Give a lower --lr."):
            for line in simulation.rounds():
                tick()
                if line is not None:
                    last = line
                    curve.write(line)
                asked = world.max(max(2 * bool(stop), timer.is_due()))  # 1: to save, 2: to stop
                if asked and simulation.n_rounds < n_rounds:
                    tensors, progress = simulation.state()  # a collective
                    if world.is_root:
                        run_state.save(tensors, progress=progress)
                if asked == 2 and simulation.n_rounds < n_rounds:
                    raise Stopped("stopped; run the same command again to continue." if world.is_root else "")
    final = simulation.weights()  # a collective
    if not world.is_root:
        return 0
    if compare:
        lost, slower = 100 * last["accuracy_lost"], last["simulated_s_lost"]
        run.info(f"failures cost {lost:.2f} points of accuracy, {last['accuracy']:.4f} reached, and {slower:.3f} simulated s.")
    history = run.history(fleet.histories, fleet.digests.values())
    result = {key: value for key, value in last.items() if key != "wall_s"}
    write_bag(run.sink(), "model", final, config=recipe, history=history, result=result, architecture=architecture)
    run_state.forget()
    return 0
