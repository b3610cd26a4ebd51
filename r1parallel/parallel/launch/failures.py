"""Which rank of a job failed first: from the status of each rank, and how its process ended if it is on this host."""

import os
import select
import time
from pathlib import Path

from r1parallel.parallel.launch.host import this_host
from r1parallel.parallel.launch.rank_status import JobStatus, RankStatus

SETTLE_S = 1.0  # after the first failure that is seen: for an earlier one to become known


class Failures:
    """Looks at a job until it has ended."""

    def __init__(self, statuses: JobStatus, size: int) -> None:
        self._statuses, self._size = statuses, size
        self._unseen = set(range(size))
        self._running: dict[int, RankStatus] = {}  # descriptor of the process → status
        self._poll = select.poll()
        self._found: dict[int, RankStatus] = {}
        self._num_ended = 0

    def look(self, timeout_s: float) -> None:
        """Wait so long for an end of one of this host's ranks, in the order in which they end."""
        self._meet()
        if not self._running:
            time.sleep(timeout_s)
            return
        for descriptor, _ in self._poll.poll(timeout_s * 1000):
            self._poll.unregister(descriptor)
            os.close(descriptor)
            status = self._running.pop(descriptor)
            self._end(status, _exit_code(status.pid))

    @property
    def num_ended(self) -> int:
        """How many ranks of this host have been seen and have ended since; 0 as long as one of them runs."""
        return 0 if self._running else self._num_ended

    def any(self) -> bool:
        return bool(self._found)

    def first(self) -> RankStatus | None:
        """The rank that failed earliest, on any node whose statuses can be read; None when none failed."""
        if not self._found:
            return None
        statuses = filter(None, map(self._statuses.read, range(self._size)))
        return min((status for status in statuses if status.exit_code is not None), key=lambda status: status.time)

    def _meet(self) -> None:
        """Begin to watch the processes that have left a status since the last look."""
        for rank in sorted(self._unseen):
            status = self._statuses.read(rank)
            if status is None:
                continue
            self._unseen.remove(rank)
            if status.host != this_host():
                continue  # a process elsewhere: its own launcher looks after it
            try:
                descriptor = os.pidfd_open(status.pid)
            except ProcessLookupError:
                self._end(status, None)
                continue
            self._poll.register(descriptor, select.POLLIN)
            self._running[descriptor] = status

    def _end(self, started: RankStatus, exit_code: int | None) -> None:
        """Keep how a process ended, if it did not end well."""
        self._num_ended += 1
        last = self._statuses.read(started.rank)
        if last is None or last.exit_code is None:
            if exit_code == 0 or (exit_code is None and last is None):
                return
            code = exit_code or 1
            last = (last or started).failed(code, f"killed by signal {code - 128}" if code > 128 else "")
            self._statuses.write(last)  # for the launchers of other nodes
        self._found[last.rank] = last


def _exit_code(pid: int) -> int | None:
    """How a process ended, as a shell says it; None when its parent has asked before us and it is forgotten."""
    try:
        status = int(Path(f"/proc/{pid}/stat").read_text().split()[-1])
    except (FileNotFoundError, ProcessLookupError):
        return None
    return 128 + (status & 0x7F) if status & 0x7F else status >> 8
