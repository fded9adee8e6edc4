"""What each device learns alone, before anybody is grouped: the accuracies that KMA looks at.

Not here: a choice of model. Softmax regression, as the authors' simulator trains.
"""

import numpy as np

from kvtools.artifact import Bag
from kvtools.errors import Corrupt
from kvtools.etree.data.devices import Peers, Roster
from kvtools.etree.data.labelled import Labelled, read_labelled
from kvtools.etree.train.local import Trainer, cores
from kvtools.etree.train.models import build


def same_data(src: str, bag: Bag, name: str) -> Labelled:
    """The labelled data that devices were made of; `bag` is the devices', `name` its name. Raises Corrupt for other data."""
    labelled = read_labelled(src)
    made_of = (bag.fields.get("data") or {}).get("digest")
    if made_of is None:
        raise Corrupt(f"{name}: devices without data found. Make them with kvtools devices --data.")
    if labelled.digest != made_of:
        raise Corrupt(
            f"{src}: data of digest {labelled.digest[:12]} found, {str(made_of)[:12]} expected, of which {name} was made."
        )
    return labelled


def accuracies(
    src: str, roster: Roster, bag: Bag, name: str, *, n_epochs: int, rate: float, batch: int, seed: int, peers: Peers
) -> np.ndarray:
    """float64 (n,): the share of test samples that each device gets right after n_epochs alone. Devices are shared among
    peers."""
    labelled = same_data(src, bag, name)
    train, test = labelled.train, labelled.test
    model = build("softmax", labelled.shape, labelled.n_classes)
    trainer = Trainer(model, train.x, train.y, roster.index, roster.offsets, batch, rate, seed, cores(peers.local_size))
    begin, end = (len(roster) * step // peers.size for step in (peers.rank, peers.rank + 1))
    return peers.gather_array(trainer.accuracies(model.init(seed), n_epochs, np.arange(begin, end), test.x, test.y))
