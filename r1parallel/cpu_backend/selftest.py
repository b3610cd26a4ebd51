"""python -m r1parallel.cpu_backend.selftest: every collective on this machine, checked against NumPy.

Starts msrun with a few processes on this host. With four or more, groups that are a part of the ranks are checked too.
"""

import argparse
import json
import tempfile
from collections.abc import Sequence
from pathlib import Path

from r1parallel.errors import UserError, run_command
from r1parallel.parallel.launch.msrun import TIMED_OUT, run_workers

# msrun's own start takes 16 s with two workers on two cores; compiling the kernels takes about as long.
TIME_LIMIT_S = 300
_WORKER = """\
import sys
from r1parallel.cpu_backend.selftest_worker import run
run(sys.argv[1])
"""


def main(argv: Sequence[str]) -> None:
    """Print one line for each collective; fail when one of them is wrong."""
    parser = argparse.ArgumentParser(description="Check the CPU backend's collectives.", allow_abbrev=False)
    parser.add_argument("--workers", type=int, default=2, help="how many processes (default: %(default)s)")
    workers = parser.parse_args(argv).workers
    if workers < 2 or workers % 2:
        raise UserError(f"--workers {workers}: an even number of 2 or more is needed")
    with tempfile.TemporaryDirectory() as folder:
        faults = _run(Path(folder), workers)
    for name, fault in faults.items():
        print(f"{name:<40} {fault or 'ok'}")
    wrong = sum(bool(fault) for fault in faults.values())
    if wrong:
        raise UserError(f"{wrong} of {len(faults)} checks of the CPU backend failed: do not train with it here")


def _run(folder: Path, workers: int) -> dict[str, str]:
    """Check → what the first rank that disagrees says of it, or an empty text."""
    script = folder / "worker.py"
    script.write_text(_WORKER)
    job = run_workers(script, [str(folder)], workers, folder, TIME_LIMIT_S)
    if job.returncode == TIMED_OUT:
        raise UserError(f"the self-test did not end within {TIME_LIMIT_S} s: {_last_error(job.log(0))}")
    faults: dict[str, str] = {}
    for rank in range(workers):
        result = folder / f"rank_{rank}.json"
        if not result.exists():
            raise UserError(
                f"rank {rank} of the self-test ended early: {_last_error(job.log(rank)) or job.output[-300:]}"
            )
        for name, fault in json.loads(result.read_text()).items():
            faults[name] = faults.get(name) or (fault and f"WRONG on rank {rank}: {fault}")
    return faults


def _last_error(log: str) -> str:
    """The last line that says "Error" in a worker's log."""
    return next((line for line in reversed(log.splitlines()) if "Error" in line), "")


if __name__ == "__main__":
    run_command(main)
