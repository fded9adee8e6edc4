"""Each rank takes its part of the cores: by affinity, control group, Slurm and the user's word."""

import math
import re

import numpy as np
import pytest
from threadpoolctl import threadpool_info

from kvtools.errors import Usage
from kvtools.train import device
from kvtools.train.device import cpu_quota, limit_threads, own_cores
from kvtools.world import World


class Ranks(World):
    """Ranks of one machine, of which some may run on the same cores as this one."""

    def __init__(self, size, sharing):
        super().__init__()
        self.size = self.local_size = size
        self._sharing = sharing

    def gather_array(self, array):
        return np.array([array[0] + (rank >= self._sharing) for rank in range(self.size)])


@pytest.fixture
def machine(monkeypatch):
    for name in ("OMP_NUM_THREADS", "SLURM_CPUS_PER_TASK"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(device.os, "sched_getaffinity", lambda _: set(range(8)))
    monkeypatch.setattr(device, "cpu_quota", lambda: math.inf)
    return monkeypatch


@pytest.mark.parametrize(("size", "sharing", "expected"), [(1, 1, 8), (2, 2, 4), (3, 3, 2), (16, 16, 1), (4, 1, 8), (4, 2, 4)])
def test_ranks_that_share_cores_have_even_parts_and_bound_ones_their_own(machine, size, sharing, expected):
    assert own_cores(Ranks(size, sharing) if size > 1 else World()) == expected


@pytest.mark.parametrize(("quota", "size", "expected"), [(3.0, 1, 3), (3.0, 2, 1), (0.5, 1, 1), (6.5, 3, 2), (100.0, 2, 4)])
def test_a_quota_is_shared_by_the_ranks(machine, quota, size, expected):
    machine.setattr(device, "cpu_quota", lambda: quota)
    assert own_cores(Ranks(size, size)) == expected


@pytest.mark.parametrize("name", ["SLURM_CPUS_PER_TASK", "OMP_NUM_THREADS"])
def test_the_environment_may_ask_for_fewer(machine, name):
    for text, expected in {"3": 3, "99": 8, "": 8, " 2 ": 2, "0": 8, "3,1": 3}.items():
        machine.setenv(name, text)
        assert own_cores(World()) == expected
    for text in ("x", "-1", "2.5", "²", "1e1"):
        machine.setenv(name, text)
        with pytest.raises(Usage, match=f"^{name}, an environment variable, is '{text}', and a whole number is needed"):
            own_cores(World())


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, math.inf),
        ({"cpu.max": "max 100000\n"}, math.inf),
        ({"cpu.max": "150000 100000\n"}, 1.5),
        ({"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, math.inf),
        ({"cpu/cpu.cfs_quota_us": "400000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 4),
        ({"cpu.max": "\n"}, math.inf),
    ],
)
def test_quotas_of_both_versions_are_read(tmp_path, files, expected):
    (tmp_path / "cpu").mkdir()
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    assert cpu_quota(str(tmp_path)) == expected


def test_all_pools_of_threads_have_that_many(machine):
    import torch

    before = torch.get_num_threads()
    machine.setenv("OMP_NUM_THREADS", "1")
    limit_threads(World())
    assert {pool["num_threads"] for pool in threadpool_info()} == {1}
    torch.set_num_threads(before)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, {"OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": "1000"}),
        ({"OMP_WAIT_POLICY": "active"}, {"OMP_WAIT_POLICY": "ACTIVE", "GOMP_SPINCOUNT": "30000000000"}),
        ({"GOMP_SPINCOUNT": "7"}, {"GOMP_SPINCOUNT": "7"}),
    ],
)
def test_waiting_threads_sleep_unless_the_user_says_otherwise(sh, given, expected):
    told = sh("kvtools semid-build missing.kvs", OMP_DISPLAY_ENV="verbose", **given).err  # as the library itself has read it
    for name, value in expected.items():
        assert re.search(rf"\b{name} = '{value}'", told)


def test_blas_threads_sleep_too(machine):
    for name in ("OPENBLAS_THREAD_TIMEOUT", *device._WAITS_OF_OPENMP):
        machine.setenv(name, "")
        machine.delenv(name)
    device.let_waiting_threads_sleep()
    assert device.os.environ["OPENBLAS_THREAD_TIMEOUT"] == "15"
    machine.setenv("OPENBLAS_THREAD_TIMEOUT", "26")
    device.let_waiting_threads_sleep()
    assert device.os.environ["OPENBLAS_THREAD_TIMEOUT"] == "26"
