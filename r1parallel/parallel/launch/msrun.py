"""Starting msrun: its command line, the environment of what it starts, and an end that leaves no process behind."""

import ctypes
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

import r1parallel

TIMED_OUT = 124  # the exit code of a job that was ended because it took too long, as of timeout(1)
_PR_SET_PDEATHSIG = 1
_CLUSTER_TIMEOUT_S = 300  # for all processes to find each other; msrun's default is 600


@dataclass(frozen=True)
class Job:
    """What a job that has ended left.

    Attributes:
        returncode: msrun's, or `TIMED_OUT`.
        output: what msrun printed; the workers' own output is in their logs and, through msrun's `tail`, here too.
        folder: where the job ran; log/ holds worker_<rank>.log and scheduler.log.
    """

    returncode: int
    output: str
    folder: Path

    def log(self, rank: int) -> str:
        """What a rank printed; empty when it was never started."""
        path = self.folder / "log" / f"worker_{rank}.log"
        return path.read_text(errors="replace") if path.exists() else ""


def run_workers(
    script: Path,
    args: Sequence[str],
    workers: int,
    folder: Path,
    limit_s: float = 300,
    env: Mapping[str, str] | None = None,
) -> Job:
    """Run `python script *args` in several processes on this host and wait for their end.

    Args:
        script: what each worker and the scheduler run.
        args: its arguments.
        workers: how many.
        folder: where they run and where logs and msrun.log go; made when it is missing.
        limit_s: seconds after which all of them are killed.
        env: variables in addition to this process's.
    """
    folder.mkdir(parents=True, exist_ok=True)
    command = [*msrun_command(workers, free_port(), folder / "log"), str(script), *args]
    with (folder / "msrun.log").open("w+", errors="replace") as log:
        process = subprocess.Popen(
            command,
            cwd=folder,
            env=worker_environment() | {"OMP_NUM_THREADS": "1"} | dict(env or {}),
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            returncode = process.wait(limit_s)
        except subprocess.TimeoutExpired:
            returncode = TIMED_OUT
        finally:
            end_job(process)
        log.seek(0)
        return Job(returncode, log.read(), folder)


def msrun_command(workers: int, port: int, log_dir: Path, **options: object) -> list[str]:
    """The words of msrun up to the script; `options` are further options of msrun, or others for those set here."""
    given = {
        "worker_num": workers,
        "local_worker_num": workers,
        "master_port": port,
        "log_dir": log_dir,
        "join": True,
        "cluster_time_out": _CLUSTER_TIMEOUT_S,
    } | options
    return [
        sys.executable,
        "-m",
        "mindspore.parallel.cluster.run",
        *(f"--{key}={value}" for key, value in given.items()),
    ]


def worker_environment() -> dict[str, str]:
    """What msrun gets: it calls "python", so let that be this one, and let it find this package."""
    package = str(Path(r1parallel.__file__).parents[1])
    return os.environ | {
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)]),
        "PYTHONPATH": os.pathsep.join([package, *filter(None, [os.environ.get("PYTHONPATH")])]),
    }


def end_job(process: subprocess.Popen) -> None:
    """Kill msrun and all that it started: workers lead process groups of their own, so its group is not enough."""
    try:
        parent = psutil.Process(process.pid)
        parent.suspend()  # it starts nobody while we look
        family = [*parent.children(recursive=True), parent]
    except psutil.NoSuchProcess:
        family = []
    for member in family:
        try:
            member.kill()
        except psutil.NoSuchProcess:
            continue
    process.wait()


def die_with_parent() -> None:
    """Let the kernel kill this process when the one that started it ends, however that ends."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def free_port() -> int:
    """A port that nobody on this host uses now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def is_free(port: int) -> bool:
    """Whether a process of this host can listen at a port."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # so that the last job's connections do not count
        try:
            probe.bind(("", port))
        except OSError:
            return False
        return True
