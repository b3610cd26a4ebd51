"""Tests under msrun: `run_workers` runs a script in several processes and gives exit code, output and logs."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from r1parallel.parallel.launch import msrun
from r1parallel.parallel.launch.msrun import TIMED_OUT, Job

__all__ = ["LAUNCH_WORKER", "TESTS_ON_PATH", "TIMED_OUT", "Job", "run_workers"]

_TESTS = Path(__file__).resolve().parents[1]
LAUNCH_WORKER = Path(__file__).with_name("launch_worker.py")
# For a process that imports `helpers`, and the package of this checkout.
TESTS_ON_PATH = {"PYTHONPATH": os.pathsep.join((str(_TESTS.parent), str(_TESTS)))}


def run_workers(
    script: Path,
    args: Sequence[str],
    workers: int,
    folder: Path,
    limit_s: float = 300,
    env: Mapping[str, str] | None = None,
) -> Job:
    """`msrun.run_workers`, with workers that can import `helpers`."""
    return msrun.run_workers(script, args, workers, folder, limit_s, TESTS_ON_PATH | dict(env or {}))
