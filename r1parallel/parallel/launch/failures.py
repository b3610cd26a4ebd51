"""Which rank of a job failed first: from the notes of the ranks, and from the ends of their processes on this host."""

import os
import select
import time
from pathlib import Path

from r1parallel.parallel.launch.host import this_host
from r1parallel.parallel.launch.rank_status import Note, Notes

SETTLE_S = 1.0  # after the first failure that is seen: for an earlier one to become known


class Failures:
    """Looks at a job until it has ended."""

    def __init__(self, notes: Notes, size: int) -> None:
        self._notes, self._size = notes, size
        self._unseen = set(range(size))
        self._running: dict[int, Note] = {}  # descriptor of the process → note
        self._poll = select.poll()
        self._found: dict[int, Note] = {}
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
            note = self._running.pop(descriptor)
            self._end(note, _exit_code(note.pid))

    @property
    def num_ended(self) -> int:
        """How many ranks of this host have been seen and have ended since; 0 as long as one of them runs."""
        return 0 if self._running else self._num_ended

    def any(self) -> bool:
        return bool(self._found)

    def first(self) -> Note | None:
        """The note of the rank that failed earliest, on any node whose notes can be read; None when none failed."""
        if not self._found:
            return None
        notes = filter(None, map(self._notes.read, range(self._size)))
        return min((note for note in notes if note.exit_code is not None), key=lambda note: note.time)

    def _meet(self) -> None:
        """Begin to watch the processes that have left a note since the last look."""
        for rank in sorted(self._unseen):
            note = self._notes.read(rank)
            if note is None:
                continue
            self._unseen.remove(rank)
            if note.host != this_host():
                continue  # a process elsewhere: its own launcher looks after it
            try:
                descriptor = os.pidfd_open(note.pid)
            except ProcessLookupError:
                self._end(note, None)
                continue
            self._poll.register(descriptor, select.POLLIN)
            self._running[descriptor] = note

    def _end(self, started: Note, exit_code: int | None) -> None:
        """Keep how a process ended, if it did not end well."""
        self._num_ended += 1
        last = self._notes.read(started.rank)
        if last is None or last.exit_code is None:
            if exit_code == 0 or (exit_code is None and last is None):
                return
            code = exit_code or 1
            last = (last or started).failed(code, f"killed by signal {code - 128}" if code > 128 else "")
            self._notes.write(last)  # for the launchers of other nodes
        self._found[last.rank] = last


def _exit_code(pid: int) -> int | None:
    """How a process ended, as a shell says it; None when its parent has asked before us and it is forgotten."""
    try:
        status = int(Path(f"/proc/{pid}/stat").read_text().split()[-1])
    except (FileNotFoundError, ProcessLookupError):
        return None
    return 128 + (status & 0x7F) if status & 0x7F else status >> 8
