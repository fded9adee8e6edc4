"""What the launcher of ranks says in the environment: mpiexec of MPICH and Open MPI, and srun with PMI or PMIx.

Known before MPI is loaded. Not here: the ranks' messages (world.py).
"""

import os
from contextlib import suppress

from kvtools.environment import count_in
from kvtools.errors import Usage

_RANK_AND_SIZE = (  # environment variables of the launchers: MPICH and Slurm's pmi2, PMIx, Open MPI
    ("PMI_RANK", "PMI_SIZE"),
    ("PMIX_RANK", "OMPI_COMM_WORLD_SIZE"),
    ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE"),
)


def launched_rank() -> int:
    """This process's rank as its launcher gives it, known before `World.open()`; 0 in a world of one, or of no numbers."""
    with suppress(Usage):
        return launched()[0]
    return 0


def launched() -> tuple[int, int]:
    """Rank and size in the launcher's environment; (0, 1) where it names no size. Raises Usage for numbers that are none."""
    for rank_name, size_name in _RANK_AND_SIZE:
        rank, size = count_in(rank_name), count_in(size_name)
        if rank is not None and size is not None and size > 1:
            if rank >= size:
                raise Usage(
                    f"{rank_name} is {rank}, and {size_name} is {size}. Unset these environment variables, or correct them."
                )
            return rank, size
        if rank is not None:
            break
    return 0, 1


def n_ranks_here(size: int) -> int:
    """How many of the ranks share this machine's cores; all of them where the launcher does not say. Raises Usage."""
    for name in ("MPI_LOCALNRANKS", "OMPI_COMM_WORLD_LOCAL_SIZE"):
        if (n := count_in(name)) is not None:
            return n
    return count_in("SLURM_STEP_TASKS_PER_NODE", separators=",(") or size  # as 2(x3),1


def is_stdin_limited() -> bool:
    """Whether MPICH's mpiexec hands on stdin: its proxy keeps nothing that rank 0 cannot take at once, and aborts the run."""
    return "HYDI_CONTROL_FD" in os.environ


def refuse_silent_copies() -> None:
    """Raise Usage where srun started several tasks, and nothing tells this one of the others."""
    n_tasks = count_in("SLURM_STEP_NUM_TASKS") or 1
    if "SLURM_STEP_ID" in os.environ and n_tasks > 1:
        raise Usage(
            f"srun started {n_tasks} tasks that cannot see each other. Use srun --mpi=pmi2, or --shard I/N where there is one."
        )
