"""A `tree` bag, and the fleet that is trained: a tree, the devices that it was made of, and their data."""

from dataclasses import dataclass
from typing import Any

from kvtools.artifact import Bag
from kvtools.artifact.digest import Digest
from kvtools.artifact.open import source_name
from kvtools.errors import Corrupt, raising
from kvtools.etree.data.devices import Devices, delays_of, read_data_of, read_devices, read_on_all_ranks
from kvtools.etree.data.labelled import LabelledData
from kvtools.etree.network.delay import Delays
from kvtools.etree.tree.tree import Tree, from_tensors
from kvtools.world import World


@dataclass(frozen=True)
class Fleet:
    """Devices with their network and data, and a tree over them."""

    devices: Devices
    delays: Delays
    tree: Tree
    data: LabelledData
    digests: dict[str, str]  # of the bags `devices` and `tree`
    histories: list[list[dict[str, Any]]]  # of the same


def read_tree(src: str, world: World) -> tuple[Tree, Bag]:
    """The tree of a `tree` bag, and the bag. Raises Corrupt for other artifacts and for nodes that do not form a tree."""
    bag = read_on_all_ranks(src, "tree", "kvtools kma-cluster", world)
    with raising(Corrupt, source_name(src), remedy="Make it again with kvtools kma-cluster."):
        return from_tensors(bag.tensors), bag


def read_fleet(devices_src: str, tree_src: str, data_src: str, world: World) -> Fleet:
    """The fleet of a `device` bag, a `tree` bag and labelled data. Raises Corrupt where one was not made of the others."""
    name = source_name(devices_src)
    devices, bag = read_devices(devices_src, world)
    tree, tree_bag = read_tree(tree_src, world)
    delays = delays_of(devices, name)
    digests = _digests(bag, name, tree, tree_bag, source_name(tree_src))
    return Fleet(devices, delays, tree, read_data_of(data_src, bag, name), digests, [bag.history, tree_bag.history])


def _digests(bag: Bag, name: str, tree: Tree, tree_bag: Bag, tree_name: str) -> dict[str, str]:
    n_devices = len(bag.tensors["labels"])
    if n_devices != tree.n_devices:
        raise Corrupt(f"{name}: there are {n_devices} devices, and {tree_name} has {tree.n_devices}. Make a tree of this bag.")
    digests = {"devices": str(Digest.of_bag(bag.tensors)), "tree": str(Digest.of_bag(tree_bag.tensors))}
    if tree_bag.fields.get("made_of", digests["devices"]) != digests["devices"]:
        raise Corrupt(f"{name}: {tree_name} was made of other devices. Give those, or make a tree of this bag.")
    return digests
