"""`kvtools devices`: labelled data and a network in, devices with their samples and delays out."""

from typing import TYPE_CHECKING, Annotated, Any, Literal

from kvtools import options as opt

if TYPE_CHECKING:
    from kvtools.etree.data.sample_files import Samples
    from kvtools.etree.network.delay import Delays
    from kvtools.etree.network.graphs import Edges, Log

EXAMPLES = [
    "kvtools devices --data digits.csv --partition shards:2 --graph edges.txt -o digits.devices",
    "kvtools devices --data digits.csv --partition dirichlet:0.5 --devices 8 --delay pings.csv | kvtools info -",
]
EXIT_CODES = (0, 2, 65, 66, 73, 74, 141)
SEE_ALSO = ("kvtools kma-cluster", "kvtools info", "kvtools-stream(5)")
COMMON = ("output", "force", "stamp")

_SCALES = {"ms": 1.0, "s": 1000.0, "km": 1 / 200}  # km: light in glass, see etree/network/graphs.py
_LAST_MILE = (5.0, 2.0)  # mean and deviation in ms, where devices must share sites and --last-mile is not given


def main(
    run: opt.Invocation,
    data: Annotated[str | None, opt.value("SRC", "Labelled data, a file or a folder. Default: devices without data.")] = None,
    partition: Annotated[
        str, opt.value("FORM", "iid, shards:S, classes:C, dirichlet:A, mixture:A, quantity:SIGMA, natural, or file:FILE.")
    ] = "iid",
    devices: Annotated[
        int | None, opt.value("N", "Number of devices. Default: one for each site, or for each user of the data.", least=1)
    ] = None,
    delay: Annotated[
        str | None, opt.value("FILE", "Matrix of delays, or pings: a table, or a file or folder of WonderNetwork's.")
    ] = None,
    graph: Annotated[str | None, opt.value("FILE", "Edges: lines `node node ms`, GML or GraphML.")] = None,
    coordinates: Annotated[str | None, opt.value("FILE", "CSV of latitudes and longitudes, or an .npy of positions.")] = None,
    unit: Annotated[Literal["ms", "s", "km"], opt.option("Unit of the network's numbers; 200 km take 1 ms.")] = "ms",
    rtt: Annotated[bool, opt.option("The numbers are round trips: halve them.", "--rtt")] = False,
    symmetrize: Annotated[
        bool, opt.option("Average both directions of a delay; fill missing delays by the shortest detour.", "--symmetrize")
    ] = False,
    last_mile: Annotated[
        str | None,
        opt.value("MEAN:SD", "Delay in ms between a device and its site. Default: none, or 5:2 with more devices than sites."),
    ] = None,
    seed: opt.Seed = 0,
) -> int:
    """Spread labelled data over the devices of a network: which device holds which samples, and the delays between devices.

    Every sample goes to one device, and every device gets at least one; the digest of the partition is stored. More devices
    than the network has sites share the sites, each at the end of a random last mile: such a network is extrapolated, and the
    output says so.
    """
    import numpy as np

    from kvtools.artifact.bag import write_bag
    from kvtools.errors import Usage, raising
    from kvtools.etree.data.devices import Devices
    from kvtools.etree.data.labelled import read_labelled
    from kvtools.etree.data.partition import digest, histogram, parse
    from kvtools.etree.network.readers import spread

    options = {"--delay": delay, "--graph": graph, "--coordinates": coordinates}
    networks = {option: src for option, src in options.items() if src is not None}
    mile = None if last_mile is None else _mean_and_deviation(last_mile)
    opt.refuse_if(
        (len(networks) > 1, f"{' and '.join(networks)} are two networks. Give one of them."),
        (
            data is None and not networks,
            "no data and no network are given. Give --data, or one of --delay, --graph and --coordinates.",
        ),
        (rtt and not networks, "--rtt is about a network. Give one with --delay, --graph or --coordinates."),
        (
            last_mile and not networks,
            "--last-mile is about a network. Give one with --delay, --graph or --coordinates.",
        ),
        (
            last_mile is not None and mile is None,
            f"--last-mile {last_mile} is not a mean and a deviation in ms. Give MEAN:SD, as 5:2.",
        ),
        (
            data and not devices and not networks and partition != "natural" and not partition.startswith("file:"),
            "the number of devices is unknown, since there is no network whose sites could be counted. Give --devices.",
        ),
        (
            symmetrize and delay is None and graph is None,
            "--symmetrize is about the delays of --delay or --graph. Give one of them, or leave it out.",
        ),
    )
    if not partition.startswith("file:"):
        with raising(Usage, f"--partition {partition}", remedy="Give a form such as dirichlet:0.5."):
            parse(partition)
    run.refuse_existing()

    delays, edges = None, None
    for option, src in networks.items():
        log = lambda message, src=src: run.info(f"{src}: {message}.")
        delays, edges = _read_network(option, src, _SCALES[unit] / (2 if rtt else 1), log, is_repaired=symmetrize)

    fields: dict[str, Any] = {}
    labelled = None if data is None else read_labelled(data, lambda message: run.info(f"{data}: {message}."))
    n_sites = None if delays is None else delays.n_sites
    if labelled is None:
        n_devices = devices or n_sites or 0
        index, offsets = np.zeros(0, np.int64), np.zeros(n_devices + 1, np.int64)
        labels = np.zeros((n_devices, 0), np.int32)
    else:
        index, offsets = _partitioned(partition, labelled.train, devices, n_sites, seed)
        n_devices, sizes = len(offsets) - 1, np.diff(offsets)
        labels = histogram(labelled.train.y, index, offsets, labelled.n_classes)
        fields["partition"] = {"form": partition, "digest": digest(index, offsets), "samples": len(index)}
        fields["partition"] |= {"least": int(sizes.min()), "most": int(sizes.max())}
        fields["data"] = {"digest": labelled.digest, "classes": labelled.n_classes, "shape": list(labelled.shape)}
    if delays is not None:
        is_extrapolated = mile is not None or n_devices > delays.n_sites
        delays = spread(delays, n_devices, (mile or _LAST_MILE) if is_extrapolated else None, seed)
        fields["network"] = {"metric": delays.metric, "sites": delays.n_sites, "extrapolated": is_extrapolated}
        if is_extrapolated and mile is None:
            run.info(f"{n_devices} devices share {delays.n_sites} sites; last miles of 5 ± 2 ms are random.")
    recipe = {"partition": partition if data else None, "unit": unit, "rtt": rtt, "symmetrize": symmetrize, "seed": seed}
    recipe |= {"devices": n_devices, "last_mile": last_mile}
    tensors = Devices(labels, index, offsets, delays, edges).tensors()
    history = run.history(inputs=[labelled.digest] if labelled else [])
    write_bag(run.sink(), "device", tensors, config=recipe, history=history, **fields)
    return 0


def _read_network(option: str, src: str, scale: float, log: "Log", *, is_repaired: bool) -> tuple["Delays", "Edges | None"]:
    """Delays between sites, and the edges of a graph."""
    import os

    from kvtools.artifact.files import open_source
    from kvtools.artifact.open import source_name
    from kvtools.errors import Corrupt
    from kvtools.etree.network import graphs, readers

    name = source_name(src)
    try:
        if option == "--graph":
            return graphs.read_graph(open_source(src), name, scale=scale, is_repaired=is_repaired, log=log)
        if option == "--coordinates":
            return readers.read_coordinates(open_source(src), name, scale=scale), None
        source = src if os.path.isdir(src) else open_source(src)
        return readers.read_matrix(source, name, scale=scale, is_repaired=is_repaired, log=log), None
    except graphs.AsymmetricDelays as fault:
        raise Corrupt(
            f"{name}: {fault}. Give --symmetrize to average both directions and fill missing delays by the shortest detour."
        ) from None
    except (ValueError, EOFError) as fault:
        remedy = "Correct its files, or give" if os.path.isdir(src) else "Correct the file, or give"
        raise Corrupt(f"{name}: {str(fault).rstrip('.')}. {remedy} another.") from None


def _partitioned(form: str, train: "Samples", n_devices: int | None, n_sites: int | None, seed: int) -> Any:
    """The samples of each device: index and offsets, as etree.data.partition has them."""
    import numpy as np

    from kvtools.artifact.files import open_source
    from kvtools.artifact.open import source_name
    from kvtools.errors import Corrupt, Usage, raising
    from kvtools.etree.data import partition

    if form.startswith("file:"):
        src = form.removeprefix("file:")
        with open_source(src) as file, raising(Corrupt, source_name(src), remedy="Correct the file."):
            index, offsets = partition.read_partition(file, len(train.y))
        n_lists = len(offsets) - 1
        sentence = f"--devices {n_devices} is not the number of devices in {src}, {n_lists}. Leave it out, or give {n_lists}."
        opt.refuse_if((n_devices not in (None, n_lists), sentence))
        return index, offsets
    n_users = len(np.unique(train.users)) if form == "natural" and train.users is not None else None
    count = n_devices or n_users or n_sites or 1  # 1 where `natural` is about to be refused, since there are no users
    with raising(Usage, f"--partition {form}", remedy="Give another form, or another number of --devices."):
        return partition.partition(form, train.y, count, seed, train.users)


def _mean_and_deviation(text: str) -> tuple[float, float] | None:
    """`MEAN:SD` or `MEAN` in ms; None for other text."""
    mean, colon, deviation = text.partition(":")
    try:
        values = float(mean), float(deviation) if colon else 0.0
    except ValueError:
        return None
    return values if all(0 <= value < 1e6 for value in values) else None
