"""Tests under msrun: `run_workers` runs a script in several processes and gives exit code, output and logs."""

from r1parallel.parallel.msrun import TIMED_OUT, Job, run_workers

__all__ = ["TIMED_OUT", "Job", "run_workers"]
