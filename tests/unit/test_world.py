"""The world as the launcher's environment describes it, before any rank communicates."""

import numpy as np
import pytest

from kvtools import cli
from kvtools.errors import Fault, Missing, Stopped, Usage
from kvtools.invocation import Invocation
from kvtools.launcher import launched_rank, n_ranks_here
from kvtools.world import World, shard

LAUNCHERS = {
    "mpiexec of MPICH, srun --mpi=pmi2": {"PMI_RANK": "3", "PMI_SIZE": "4"},
    "srun --mpi=pmix": {"PMIX_RANK": "3", "OMPI_COMM_WORLD_SIZE": "4"},
    "mpiexec of Open MPI": {"OMPI_COMM_WORLD_RANK": "3", "OMPI_COMM_WORLD_SIZE": "4"},
}


@pytest.fixture(autouse=True)
def no_launcher(monkeypatch):
    for names in LAUNCHERS.values():
        for name in names:
            monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_the_rank_of_every_launcher_is_known_before_the_world_opens(monkeypatch, launcher):
    assert launched_rank() == 0
    for name, value in LAUNCHERS[launcher].items():
        monkeypatch.setenv(name, value)
    assert launched_rank() == 3


def test_ranks_that_cannot_see_each_other_are_each_the_first_of_their_own_world(monkeypatch):
    monkeypatch.setenv("PMIX_RANK", "3")  # and no size: srun --mpi=pmix without an MPI of ours
    assert launched_rank() == 0


@pytest.mark.parametrize(
    ("variables", "named"),
    [
        ("PMI_RANK=x PMI_SIZE=2", "PMI_RANK, an environment variable, is 'x'"),
        ("PMI_RANK=0 PMI_SIZE=two", "PMI_SIZE, an environment variable, is 'two'"),
        ("PMIX_RANK=0 OMPI_COMM_WORLD_SIZE=2.0", "OMPI_COMM_WORLD_SIZE, an environment variable, is '2.0'"),
        ("OMPI_COMM_WORLD_RANK=² OMPI_COMM_WORLD_SIZE=2", "OMPI_COMM_WORLD_RANK, an environment variable, is '²'"),
        ("OMPI_COMM_WORLD_RANK=2 OMPI_COMM_WORLD_SIZE=2", "OMPI_COMM_WORLD_RANK is 2, and OMPI_COMM_WORLD_SIZE is 2"),
        ("SLURM_STEP_ID=0 SLURM_STEP_NUM_TASKS=many", "SLURM_STEP_NUM_TASKS, an environment variable, is 'many'"),
        ("SLURM_JOB_END_TIME=noon", "SLURM_JOB_END_TIME, an environment variable, is 'noon'"),
        ("OMP_NUM_THREADS=auto", "OMP_NUM_THREADS, an environment variable, is 'auto'"),
    ],
)
def test_a_variable_of_a_launcher_that_is_no_number_is_named(kv, monkeypatch, variables, named):
    for variable in variables.split():
        monkeypatch.setenv(*variable.split("="))
    code, err = kv("pretrain onerec nothing -o new")
    assert (code, err.count("\n")) == (2, 1)
    assert err.startswith(f"kvtools pretrain onerec: {named}")


@pytest.mark.parametrize("name", ["MPI_LOCALNRANKS", "OMPI_COMM_WORLD_LOCAL_SIZE", "SLURM_STEP_TASKS_PER_NODE"])
def test_ranks_of_a_machine_that_are_no_number_are_named(monkeypatch, name):
    monkeypatch.setenv(name, "x")
    with pytest.raises(Usage, match=f"^{name}, an environment variable, is 'x'"):
        n_ranks_here(4)
    monkeypatch.setenv(name, "2(x3),1" if "SLURM" in name else "2")
    assert n_ranks_here(4) == 2


@pytest.mark.parametrize("launcher", LAUNCHERS)
@pytest.mark.parametrize(
    "fault", [Usage("--lr is odd."), Missing("a: no such file."), Stopped("stopped.")], ids=lambda f: f.code
)
def test_rank_0_alone_prints_what_every_rank_meets(monkeypatch, capfd, launcher, fault):
    monkeypatch.setattr(cli, "_ROOT_FIRST_S", 0)
    cli._report(fault, Invocation("check"))
    assert capfd.readouterr().err == f"kvtools check: {fault}\n"
    for name, value in LAUNCHERS[launcher].items():
        monkeypatch.setenv(name, value)
    cli._report(fault, Invocation("check"))
    assert capfd.readouterr().err == ""
    cli._report(Fault("disk on fire."), Invocation("check"))  # this rank alone knows it
    assert capfd.readouterr().err == "kvtools check: disk on fire.\n"


@pytest.mark.parametrize(("options", "code"), [("", 2), ("--shard-model", 2), ("--shard-optimizer", 2), ("--shard 3/4", 66)])
def test_tasks_of_srun_that_cannot_see_each_other_are_refused_unless_each_takes_a_part(kv, monkeypatch, options, code):
    monkeypatch.setenv("SLURM_STEP_ID", "0")
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "4")
    command = "tokenize-video" if code == 66 else "pretrain onerec"
    found, err = kv(f"{command} {options} nothing -o new")
    assert found == code
    assert err.startswith(f"kvtools {command}: " + ("nothing" if code == 66 else "srun started 4 tasks that cannot see each"))


@pytest.mark.parametrize("n", [1, 2, 3, 7, 9])
def test_shards_one_after_the_other_are_the_whole_list(n):
    items = list(range(7))
    assert [item for i in range(n) for item in shard(items, f"{i}/{n}")] == items


@pytest.mark.parametrize("spec", ["3", "3/3", "-1/3", "1/x", "/", "1/0"])
def test_a_shard_that_is_none_is_refused(spec):
    with pytest.raises(Usage) as found:
        shard([1], spec)
    assert str(found.value) == f"--shard {spec} is not a part of n. Give I/N with 0 <= I < N, as 0/16."


class Gathered:
    """The messages of rank 0 among ranks that send one number each."""

    def __init__(self, numbers):
        self.numbers = numbers

    def Iallgather(self, _mine, everyone):  # noqa: N802
        everyone[0][:] = self.numbers.view(np.uint8).reshape(everyone[0].shape)
        return self

    def Test(self):  # noqa: N802
        return True


def test_one_number_of_many_ranks_is_added_in_rank_order():
    for seed in range(20):
        numbers = np.random.default_rng(seed).normal(size=16).astype(np.float32)
        world = World()
        world._comm, world.size = Gathered(numbers), len(numbers)
        expected = np.float32(0)
        for number in numbers:
            expected = np.float32(expected + number)
        assert world.sum_array(numbers[:1])[0] == expected
