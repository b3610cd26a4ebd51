"""Which process of the job this is."""

import os
from dataclasses import dataclass


@dataclass(frozen=True)
class World:
    """One process among all of a job; a single process is rank 0 of 1.

    Attributes:
        rank: 0 … size - 1, MindSpore's numbering.
        size: number of processes.
    """

    rank: int = 0
    size: int = 1

    @property
    def is_leader(self) -> bool:
        """Whether this process writes what only one may write: metrics, samples, the report."""
        return self.rank == 0


@dataclass(frozen=True)
class CompileOnlyWorld(World):
    """A rank of which only this process exists: programs are compiled for it and never run.

    Attributes:
        strategy_file: where MindSpore writes how it laid out the parameters.
    """

    strategy_file: str = ""


def launched_world_size() -> int:
    """How many workers msrun was told to start; 1 without msrun. Needs no MindSpore."""
    return int(os.environ.get("MS_WORKER_NUM", "1"))


def is_worker() -> bool:
    """Whether msrun started this process as a rank of a job."""
    return os.environ.get("MS_ROLE") == "MS_WORKER"


def is_scheduler() -> bool:
    """Whether msrun started this process as the one where the ranks find each other. It runs the same script."""
    return os.environ.get("MS_ROLE") == "MS_SCHED"
