"""What each rank of a job is doing: one small file a rank, in a folder that the others and the launcher can read.

A rank that ends well removes its status. One that fails leaves its exit code there; one that is killed leaves neither.
"""

import json
import os
import tempfile
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from r1parallel.atomic import replacing
from r1parallel.parallel.launch.host import this_host

FOLDER = "R1_JOB_DIR"  # environment variable: the folder; with several nodes it lies where all of them see it


@dataclass(frozen=True)
class RankStatus:
    """One rank at one moment.

    Attributes:
        rank: whose status it is.
        host: which host `pid` belongs to, as `this_host` says it.
        pid: its process.
        what: what it does, or did last.
        inside: whether it is still at it.
        time: when it began or ended that, in seconds since 1970; of a rank that failed, when it failed.
        exit_code: of a rank that failed: 0 < code < 128, or 128 + the signal that killed it.
        message: of a rank that failed: its error in one line.
    """

    rank: int
    host: str
    pid: int
    what: str
    inside: bool
    time: float
    exit_code: int | None = None
    message: str = ""

    def failed(self, exit_code: int, message: str) -> "RankStatus":
        """The status that this rank leaves when it fails now."""
        return replace(self, exit_code=exit_code, message=message, time=time.time())


class JobStatus:
    """The status of every rank of one job: a folder of small files."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def write(self, status: RankStatus) -> None:
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        with replacing(self._path(status.rank)) as path:
            path.write_text(json.dumps(asdict(status)), encoding="utf-8")

    def read(self, rank: int) -> RankStatus | None:
        """A rank's status; None when it never started, or ended well."""
        try:
            return RankStatus(**json.loads(self._path(rank).read_text(encoding="utf-8")))
        except FileNotFoundError:
            return None

    def remove(self, rank: int) -> None:
        """Forget a rank. The folder goes when it is empty."""
        self._path(rank).unlink(missing_ok=True)
        try:
            self._folder.rmdir()
        except OSError:  # others have statuses here, or it was never made
            return

    def _path(self, rank: int) -> Path:
        return self._folder / f"rank_{rank}.json"


def new_status(rank: int, what: str, inside: bool) -> RankStatus:
    """This process's status, now."""
    return RankStatus(rank, this_host(), os.getpid(), what, inside, time.time())


def job_status() -> JobStatus:
    """Where the ranks of this worker's job leave their statuses.

    Without a launcher that says where, the workers of one msrun on one host meet in a temporary folder.
    """
    if FOLDER in os.environ:
        return JobStatus(Path(os.environ[FOLDER]))
    job = f"r1parallel-{os.getuid()}-{os.environ['MS_SCHED_PORT']}-{os.getppid()}"
    return JobStatus(Path(tempfile.gettempdir()) / job)
