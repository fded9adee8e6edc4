"""A `tree` bag, read; and whether it was made of the devices that are given with it."""

from kvtools.artifact import Bag, kinds
from kvtools.artifact.digest import Digest
from kvtools.artifact.open import source_name
from kvtools.errors import Corrupt, raising
from kvtools.etree.data.devices import Devices, read_on_all_ranks
from kvtools.etree.network.delay import Delays
from kvtools.etree.tree.tree import Tree, from_tensors
from kvtools.world import World


def read_tree(src: str, world: World) -> tuple[Tree, Bag]:
    """The tree of a `tree` bag, and the bag. Raises Corrupt for other artifacts and for nodes that do not form a tree."""
    bag = read_on_all_ranks(src, "tree", "kvtools kma-cluster", world)
    with raising(Corrupt, source_name(src)):
        kinds.check("tree", "bag", bag.tensors, bag.fields)
        return from_tensors(bag.tensors), bag


def delays_of(devices: Devices, name: str) -> Delays:
    """The delays between devices. Raises Corrupt, with the bag's name, where they have none."""
    if devices.delays is None:
        raise Corrupt(f"{name}: these devices have no network. Make them with kvtools devices --delay or --graph.")
    return devices.delays


def digests_of(bag: Bag, name: str, tree: Tree, tree_bag: Bag, tree_name: str) -> tuple[str, str]:
    """The digests of a `device` bag and of a tree that was made of it. Raises Corrupt where it was made of other devices."""
    n_devices = len(bag.tensors["labels"])
    if n_devices != tree.n_devices:
        raise Corrupt(f"{name}: there are {n_devices} devices, and {tree_name} has {tree.n_devices}. Make a tree of this bag.")
    devices, of_tree = str(Digest.of_bag(bag.tensors)), str(Digest.of_bag(tree_bag.tensors))
    if tree_bag.fields.get("made_of", devices) != devices:
        raise Corrupt(f"{name}: {tree_name} was made of other devices. Give those, or make a tree of this bag.")
    return devices, of_tree
