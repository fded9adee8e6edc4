"""`kvtools devices`: labelled data and a network in, devices with their samples and delays out."""

from typing import Annotated, Any, Literal

import typer

from kvtools.options import Force, Output, Quiet, Seed, Stamp, Verbose, require

EXAMPLES = [
    "kvtools devices --data digits.csv --partition shards:2 --graph edges.txt -o digits.devices",
    "kvtools devices --data digits.csv --partition dirichlet:0.5 --devices 8 --delay pings.csv | kvtools info -",
]
EXIT_CODES = (0, 2, 65, 66, 73, 74, 141)
SEE_ALSO = ("kvtools kma-cluster", "kvtools info", "kvtools-stream(5)")

_SCALES = {"ms": 1.0, "s": 1000.0, "km": 1 / 200}  # km: light in glass, see etree.network


def main(
    ctx: typer.Context,
    data: Annotated[
        str | None, typer.Option(metavar="SRC", help="Labelled data, a file or a folder. Default: devices without data.")
    ] = None,
    partition: Annotated[
        str,
        typer.Option(
            metavar="FORM", help="iid, shards:S, classes:C, dirichlet:A, mixture:A, quantity:SIGMA, natural, or file:FILE."
        ),
    ] = "iid",
    devices: Annotated[
        int | None, typer.Option(metavar="N", min=1, help="How many devices. Default: one a site, or a user.")
    ] = None,
    delay: Annotated[
        str | None,
        typer.Option(metavar="FILE", help="A matrix of delays, or pings: a table, or WonderNetwork's file or folder."),
    ] = None,
    graph: Annotated[str | None, typer.Option(metavar="FILE", help="Edges: lines `node node ms`, GML or GraphML.")] = None,
    places: Annotated[
        str | None,
        typer.Option("--coordinates", metavar="FILE", help="CSV of latitudes and longitudes, or an .npy of positions."),
    ] = None,
    unit: Annotated[Literal["ms", "s", "km"], typer.Option(help="Of the network's numbers; km at 200 a ms.")] = "ms",
    rtt: Annotated[bool, typer.Option("--rtt", help="The numbers are round trips: halve them.")] = False,
    symmetrize: Annotated[
        bool, typer.Option("--symmetrize", help="Average both directions; fill what is missing by the shortest detour.")
    ] = False,
    last_mile: Annotated[
        str | None,
        typer.Option(
            metavar="MEAN:SD",
            help="Put so many ms between a device and its site. Default: none; 5:2 with more devices than sites.",
        ),
    ] = None,
    seed: Seed = 0,
    output: Output = "-",
    force: Force = False,
    stamp: Stamp = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> int:
    """Spread labelled data over the devices of a network: who holds which samples, and how far they are from one another.

    Every sample goes to one device and every device gets one at least; the partition is held to that and its digest is
    written down. More devices than the network has sites are put at the same sites, each at the end of a random last mile:
    such a network is extrapolated, and says so.
    """
    import os
    from functools import partial

    import numpy as np

    from kvtools.artifact.bag import write_bag
    from kvtools.artifact.files import Sink, open_source, refuse_existing
    from kvtools.artifact.history import extend
    from kvtools.errors import Corrupt, Usage
    from kvtools.etree.data import partition as partitions
    from kvtools.etree.data.devices import Roster
    from kvtools.etree.data.labelled import read_labelled
    from kvtools.etree.network import readers as network

    named = {"--delay": delay, "--graph": graph, "--coordinates": places}
    given = {option: src for option, src in named.items() if src is not None}
    if len(given) > 1:
        raise Usage(f"{' and '.join(given)}: two networks found, one expected.")
    if data is None and not given:
        raise Usage(
            "neither data nor a network: nothing to make devices of. Give --data, or one of --delay, --graph, --coordinates."
        )
    require(
        bool(given) or not (rtt or symmetrize or last_mile), "--rtt, --symmetrize, --last-mile", "alone", "a network beside it"
    )
    require(not symmetrize or delay is not None, "--symmetrize", "alone", "--delay FILE beside it")
    mile = None if last_mile is None else _mean_and_deviation(last_mile)
    if not partition.startswith("file:"):
        try:
            partitions.parse(partition)
        except ValueError as fault:
            raise Usage(f"--partition {partition}: {fault}.") from None
    refuse_existing(output, force=force)

    delays, edges = None, None
    for option, src in given.items():
        scale = _SCALES[unit] / (2 if rtt else 1)
        tell = lambda words, src=src: ctx.obj.log(f"{src}: {words}.", quiet=quiet)
        readers: dict[str, Any] = {
            "--delay": partial(network.read_matrix, is_mended=symmetrize, tell=tell, name=src),
            "--graph": partial(network.read_graph, tell=tell),
            "--coordinates": network.read_coordinates,
        }
        try:
            source = src if option == "--delay" and os.path.isdir(src) else open_source(src)
            read = readers[option](source, scale=scale)
        except (ValueError, EOFError) as fault:
            raise Corrupt(f"{'stdin' if src == '-' else src}: {fault}.") from None
        delays, edges = read if option == "--graph" else (read, None)

    fields: dict[str, Any] = {}
    labelled = None if data is None else read_labelled(data)
    n_sites = None if delays is None else delays.n_sites
    n_devices = devices or n_sites or 0
    if labelled is None:
        roster = Roster(np.zeros((n_devices, 0), np.int32), np.zeros(0, np.int64), np.zeros(n_devices + 1, np.int64))
    else:
        train = labelled.train
        try:
            if partition.startswith("file:"):
                src = partition.removeprefix("file:")
                with open_source(src) as file:
                    index, offsets = partitions.read_partition(file, len(train.y))
                require(devices in (None, len(offsets) - 1), "--devices", devices, f"the {len(offsets) - 1} of {src}")
            else:
                n_users = len(np.unique(train.users)) if partition == "natural" and train.users is not None else None
                count = devices or n_users or n_sites
                if count is None:
                    raise Usage("--devices: missing, and no network whose sites could be counted. Say how many.")
                index, offsets = partitions.partition(partition, train.y, count, seed, train.users)
        except ValueError as fault:
            if partition.startswith("file:"):
                raise Corrupt(f"{partition.removeprefix('file:')}: {fault}.") from None
            raise Usage(f"--partition {partition}: {fault}.") from None
        n_devices = len(offsets) - 1
        labels = partitions.histogram(train.y, index, offsets, labelled.n_classes)
        roster = Roster(labels, index, offsets)
        sizes = np.diff(offsets)
        fields["partition"] = {"form": partition, "digest": partitions.digest(index, offsets), "samples": len(index)}
        fields["partition"] |= {"least": int(sizes.min()), "most": int(sizes.max())}
        fields["data"] = {"digest": labelled.digest, "classes": labelled.n_classes, "shape": list(labelled.shape)}
    if delays is not None:
        is_extrapolated = mile is not None or n_devices > delays.n_sites
        delays = network.spread(delays, n_devices, (mile or (5.0, 2.0)) if is_extrapolated else None, seed)
        fields["network"] = {"metric": delays.metric, "sites": delays.n_sites, "extrapolated": is_extrapolated}
        roster = Roster(roster.labels, roster.index, roster.offsets, delays, edges)
        if is_extrapolated and mile is None:
            ctx.obj.log(f"{n_devices} devices at {delays.n_sites} sites: last miles of 5 ± 2 ms were made up.", quiet=quiet)
    recipe = {"partition": partition if data else None, "unit": unit, "rtt": rtt, "symmetrize": symmetrize, "seed": seed}
    recipe |= {"devices": n_devices, "last_mile": last_mile}
    write_bag(
        Sink(output, force=force), "device", roster.tensors(), config=recipe,
        history=extend("devices", ctx.obj.argv, inputs=[labelled.digest] if labelled else [], stamp=stamp), **fields,
    )  # fmt: skip
    return 0


def _mean_and_deviation(words: str) -> tuple[float, float]:
    mean, colon, deviation = words.partition(":")
    try:
        found = float(mean), float(deviation) if colon else 0.0
    except ValueError:
        found = (-1.0, -1.0)
    require(all(0 <= x < 1e6 for x in found), "--last-mile", words, "MEAN:SD in ms, as 5:2")
    return found
