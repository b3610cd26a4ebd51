"""What the workers of benchmarks.speed share: a job in, timed iterations and peak memory out. Needs no package."""

import json
import os
import time
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from benchmarks.common.machine import write
from r1parallel.monitor.memory import peak_resident_bytes

Work = Callable[[int], dict[str, Any]]  # number of the iteration, from 0 → what is kept of it beside its seconds


def read_job(path: str) -> dict[str, Any]:
    return json.loads(Path(path).read_text(encoding="utf-8"))


def seconds_since_start() -> float:
    """Since the kernel started this process, to a hundredth of a second."""
    fields = Path("/proc/self/stat").read_text().rpartition(")")[2].split()  # from the third field of proc(5) on
    return time.clock_gettime(time.CLOCK_BOOTTIME) - int(fields[19]) / os.sysconf("SC_CLK_TCK")


def timed(work: Work, job: dict[str, Any], packages: Sequence[str]) -> None:
    """Do the job's iterations one after the other and write what they took; those to warm up are kept apart."""
    iterations: list[dict[str, Any]] = []
    first = None
    for number in range(job["warm_up"] + job["iterations"]):
        began = time.perf_counter()
        said = work(number)
        iterations.append({"seconds": time.perf_counter() - began, **said})
        first = first or seconds_since_start()
        print(json.dumps(iterations[-1]), flush=True)
    write_found(job, iterations, first, packages)


def write_found(
    job: dict[str, Any], iterations: list[dict[str, Any]], first: float | None, packages: Sequence[str]
) -> None:
    """Write the job's output.

    Args:
        job: says how many of the iterations were to warm up.
        iterations: seconds and more of each.
        first: seconds from the start of the process to the end of the first iteration.
        packages: whose versions are kept.
    """
    found = {
        "first": first,
        "peak_bytes": peak_resident_bytes(),
        "warm_up": iterations[: job["warm_up"]],
        "iterations": iterations[job["warm_up"] :],
        "versions": {name: version(name) for name in packages},
    }
    write(Path(job["output"]), json.dumps(found))


def counted(lengths: Sequence[int]) -> dict[str, Any]:
    """What is kept of a rollout: tokens, the end of each completion included."""
    return {"tokens": sum(lengths), "mean_length": sum(lengths) / len(lengths), "longest": max(lengths)}
