"""python -m r1parallel.cpu_backend.selftest: every collective on this machine, checked against NumPy.

Starts msrun with a few processes on this host. With four or more, groups that are a part of the ranks are checked too.
"""

import argparse
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import r1parallel
from r1parallel.errors import UserError, run_command

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
    output = _msrun(script, folder, workers)
    faults: dict[str, str] = {}
    for rank in range(workers):
        result = folder / f"rank_{rank}.json"
        if not result.exists():
            raise UserError(f"rank {rank} of the self-test ended early: {_last_error(folder, rank) or output}")
        for name, fault in json.loads(result.read_text()).items():
            faults[name] = faults.get(name) or (fault and f"WRONG on rank {rank}: {fault}")
    return faults


def _msrun(script: Path, folder: Path, workers: int) -> str:
    """Run the workers in a process group of their own and leave none behind; gives the end of msrun's output."""
    command = [sys.executable, "-m", "mindspore.parallel.cluster.run", "--join=True", "--cluster_time_out=120"]
    command += [f"--worker_num={workers}", f"--local_worker_num={workers}", f"--master_port={_free_port()}"]
    command += [f"--log_dir={folder / 'log'}", str(script), str(folder)]
    with (folder / "msrun.log").open("w+") as log:
        process = subprocess.Popen(
            command, cwd=folder, env=_environment(), stdout=log, stderr=subprocess.STDOUT, start_new_session=True
        )
        try:
            process.wait(TIME_LIMIT_S)
        except subprocess.TimeoutExpired:
            raise UserError(f"the self-test did not end within {TIME_LIMIT_S} s: {_last_error(folder, 0)}") from None
        finally:
            _end_group(process)
        log.seek(0)
        return log.read()[-300:]


def _environment() -> dict[str, str]:
    """What msrun gets: it calls "python", so let that be this one, and let it find this package."""
    package = str(Path(r1parallel.__file__).parents[1])
    return os.environ | {
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)]),
        "PYTHONPATH": os.pathsep.join([package, *filter(None, [os.environ.get("PYTHONPATH")])]),
        "MS_NODE_TIMEOUT": "10",  # seconds until the others end when one dies
        "OMP_NUM_THREADS": "1",  # the workers share this machine's cores
    }


def _end_group(process: subprocess.Popen[bytes]) -> None:
    with contextlib.suppress(ProcessLookupError):  # nobody is left
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _last_error(folder: Path, rank: int) -> str:
    """The last line that says "Error" in a worker's log."""
    log = folder / "log" / f"worker_{rank}.log"
    lines = log.read_text(errors="replace").splitlines() if log.exists() else []
    return next((line for line in reversed(lines) if "Error" in line), "")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


if __name__ == "__main__":
    run_command(main)
