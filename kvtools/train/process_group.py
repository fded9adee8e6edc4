"""torch.distributed, started from the ranks of a World: it carries gradients, and the parts of models, between them.

gloo on CPUs, NCCL on GPUs. Rank 0 opens a store on a port that its system picks, and the world carries the address to the
others: there is no address to configure. Not here: MPI (world.py), and what is exchanged (engine.py, sharded.py).
"""

import fcntl
import os
import socket
import struct
from contextlib import suppress

import torch
import torch.distributed as dist

from kvtools.errors import Fault
from kvtools.liveness import addresses
from kvtools.world import World

_CONNECT_S = 2.0  # an address where nobody answers
_GET_ADDRESS = 0x8915  # SIOCGIFADDR of Linux: the address of a network interface
_LOOPBACK = "127.0.0.1"
_ADVICE = "Open the TCP ports between the machines, or run on one machine."


def open_process_group(world: World, device: str) -> None:
    """Start the process group of all ranks, where it is not there yet; a collective. device: of this rank's tensors.

    Raises Fault where the ranks do not reach one another.
    """
    if dist.is_initialized():
        return
    store = None
    if world.is_root:
        store = dist.TCPStore(_LOOPBACK, 0, world.size, is_master=True, wait_for_workers=False)  # type: ignore[attr-defined]
    port: int = world.broadcast(store.port if store is not None else 0)
    host = _reachable_host(world, port)
    if store is None:
        store = dist.TCPStore(host, port, world.size, is_master=False)  # type: ignore[attr-defined]
    is_cuda = torch.device(device).type == "cuda"
    if is_cuda:
        torch.cuda.set_device(device)
    elif (name := _interface_towards(host)) is not None:
        # gloo would take the one that the host name resolves to, which on many machines nobody else can reach
        os.environ.setdefault("GLOO_SOCKET_IFNAME", name)
    try:
        dist.init_process_group("nccl" if is_cuda else "gloo", store=store, rank=world.rank, world_size=world.size)
    except RuntimeError as error:
        reason = str(error).partition("\n")[0].rstrip(".")
        raise Fault(f"rank {world.rank} cannot exchange gradients with the others ({reason}). {_ADVICE}") from None


def close_process_group() -> None:
    """End the process group, if there is one; all ranks do so together."""
    if dist.is_initialized():
        dist.destroy_process_group()


def _reachable_host(world: World, port: int) -> str:
    """The first address of rank 0 that all ranks reach; a collective. Raises Fault on all ranks where there is none."""
    is_one_machine = world.local_size == world.size
    hosts = [_LOOPBACK] if is_one_machine else [host for host in addresses() if not host.startswith("127.")]
    hosts = world.broadcast(hosts)
    is_reached = False
    for host in hosts:
        is_reached = world.is_root or _is_reached(host, port)
        if not world.any(not is_reached):
            return str(host)
    speaker = world.max(-1 if is_reached else world.rank)  # one rank says it, of those that did not reach the last address
    where = f"{' or '.join(hosts)}, port {port}" if hosts else "its host name has no address"
    fault = Fault(f"rank {speaker} does not reach rank 0 by TCP ({where}), which carries gradients. {_ADVICE}")
    raise fault if world.rank == speaker else Fault("")


def _is_reached(host: str, port: int) -> bool:
    try:
        socket.create_connection((host, port), timeout=_CONNECT_S).close()
    except OSError:
        return False
    return True


def _interface_towards(host: str) -> str | None:
    """The network interface by which this machine reaches an address; None where the system does not tell."""
    with suppress(OSError), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect((host, 9))  # no packet leaves: it only asks for the route
        own = socket.inet_aton(probe.getsockname()[0])
        for _, name in socket.if_nameindex():
            with suppress(OSError):
                if fcntl.ioctl(probe, _GET_ADDRESS, struct.pack("256s", name.encode()))[20:24] == own:
                    return name
    return None
