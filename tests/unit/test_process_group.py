"""How ranks meet: those that do not reach one another say where they looked, and one rank alone meets nobody."""

import subprocess
import sys

import pytest
import torch.distributed as dist
from test_loop import Toy, plan

from kvtools.errors import Fault
from kvtools.train.loop import Trainer
from kvtools.train.process_group import open_process_group
from kvtools.train.resume import train_state
from kvtools.train.sharded import Cut
from kvtools.world import World


def test_one_rank_alone_starts_no_process_group(monkeypatch):
    monkeypatch.setattr(dist, "init_process_group", pytest.fail)
    run = Trainer(Toy(), plan(n_steps=2), train_state(None, {}), World(), cut=Cut((), ()))
    assert len([*run.run(False)]) == 3


class Unreached(World):
    """Two ranks on two machines, of which this one, rank 1, does not reach the other."""

    rank, size, local_size = 1, 2, 1

    def __init__(self, hosts):
        self._hosts, self._answers = hosts, [9, hosts]

    def broadcast(self, _value):
        return self._answers.pop(0)

    def any(self, flag):
        return flag

    def max(self, value):
        return value


@pytest.mark.parametrize(
    ("hosts", "where"), [(["127.0.0.2", "127.0.0.3"], "127.0.0.2 or 127.0.0.3, port 9"), ([], "its host name has no address")]
)
def test_ranks_that_do_not_reach_one_another_say_so_in_one_line(hosts, where):
    with pytest.raises(Fault) as told:
        open_process_group(Unreached(hosts), "cpu")
    assert str(told.value) == (
        f"rank 1 does not reach rank 0 by TCP ({where}), which carries gradients. "
        "Open the TCP ports between the machines, or run on one machine."
    )


CHOICE = """
import sys, torch, torch.distributed as dist
from kvtools.train.engine import share_buffers
rank, store = int(sys.argv[1]), sys.argv[2]
dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
model = torch.nn.Module()
model.register_buffer("gain", torch.tensor(0.8 if rank == 0 else 1.0))
model.register_buffer("codes", torch.tensor([rank]))
share_buffers(model)
print(f"{model.gain.item():.1f} {model.codes.item()}")
dist.destroy_process_group()
"""


def test_what_a_validation_chose_on_rank_0_is_on_all_ranks(tmp_path):
    ranks = [
        subprocess.Popen([sys.executable, "-c", CHOICE, str(rank), str(tmp_path / "store")], stdout=subprocess.PIPE, text=True)
        for rank in range(2)
    ]
    assert [rank.communicate(timeout=120)[0].strip() for rank in ranks] == ["0.8 0", "0.8 1"]
