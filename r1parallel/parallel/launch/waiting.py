"""A limit on every wait for other ranks: when it is reached, one line says for what and for whom, and the rank ends."""

import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from r1parallel.parallel.launch.rank_status import FOLDER, JobStatus, RankStatus, new_status

EXIT_CODE = 124  # as of timeout(1)
_SHOWN_RANKS = 4


class Watch:
    """Writes down what this rank does, and ends the process when it waits too long.

    A thread looks at the clock: MindSpore gives Python time while it waits for other ranks.
    """

    def __init__(self, statuses: JobStatus, rank: int, size: int, limit_s: float, leave: Callable[[str], None]) -> None:
        """Start to watch; `leave(message)` is called, in another thread, when a wait took more than `limit_s`."""
        self._statuses, self._rank, self._size = statuses, rank, size
        self._limit_s, self._leave = limit_s, leave
        self._lock = threading.Lock()
        self._inside: list[str] = []
        self._since = time.monotonic()
        self._stopped = threading.Event()
        threading.Thread(target=self._run, name="waiting", daemon=True).start()

    def enter(self, what: str) -> None:
        with self._lock:
            self._inside.append(what)
            self._since = time.monotonic()
            self._statuses.write(new_status(self._rank, what, inside=True))

    def exit(self) -> None:
        """The innermost wait is over: one around it goes on, with a new limit."""
        with self._lock:
            what = self._inside.pop()
            self._since = time.monotonic()
            self._statuses.write(new_status(self._rank, self._inside[-1] if self._inside else what, bool(self._inside)))

    def stop(self) -> None:
        self._stopped.set()

    def _run(self) -> None:
        while not self._stopped.wait(min(1.0, self._limit_s / 10)):
            with self._lock:
                what = self._inside[-1] if self._inside else None
                late = time.monotonic() - self._since > self._limit_s
            if what is not None and late:
                others = {rank: self._statuses.read(rank) for rank in range(self._size) if rank != self._rank}
                self._leave(_describe(self._rank, what, self._limit_s, others))
                return


_watch: Watch | None = None


def watch(statuses: JobStatus, rank: int, size: int, limit_s: float) -> None:
    """From now on, `waiting` in this process has a limit of so many seconds."""
    global _watch

    def leave(message: str) -> None:
        status = statuses.read(rank) or new_status(rank, "start", inside=True)
        statuses.write(status.failed(EXIT_CODE, f"error: {message}"))
        print(f"error: {message}", file=sys.stderr, flush=True)
        sys.stdout.flush()
        os._exit(EXIT_CODE)  # the main thread cannot be interrupted: it waits inside MindSpore

    if _watch is not None:
        _watch.stop()
    _watch = Watch(statuses, rank, size, limit_s, leave)


@contextmanager
def waiting(what: str) -> Iterator[None]:
    """Around anything that may wait for other ranks; every rank calls it with the same text, the step included.

    When the block takes more than `context.wait_limit` seconds, a line such as

        error: rank 2 waited 1800 s for rank 5 in 'weights, step 3'; rank 5 was last in 'rollout, step 3'; raise …

    is printed and the process ends with exit code 124, which ends the job. In a single process there is no limit.
    Inside another `waiting` the inner one counts, and the outer one's seconds begin anew after it.
    """
    if _watch is None:
        yield
        return
    _watch.enter(what)
    try:
        yield
    finally:
        _watch.exit()


def _describe(rank: int, what: str, limit_s: float, others: dict[int, RankStatus | None]) -> str:
    """One line: who waited, how long, for whom, in what, and what those did last."""
    known = {other: status for other, status in others.items() if status is not None}
    late = [other for other, status in known.items() if not (status.inside and status.what == what)]
    start = f"rank {rank} waited {limit_s:g} s"
    end = "raise context.wait_limit if that is normal"
    if late:
        first = min(late, key=lambda other: known[other].time)
        return f"{start} for {_ranks(late)} in '{what}'; {_last(known[first])}; {end}"
    silent = sorted(set(others) - set(known))
    if silent:
        return (
            f"{start} for {_ranks(silent)} in '{what}'; no status of theirs is here: they never started, ended, or "
            f"run on another node ({FOLDER} names a folder that all nodes share); {end}"
        )
    return f"{start} in '{what}' although all ranks are there: look at the network and the devices; {end}"


def _ranks(ranks: list[int]) -> str:
    shown = ", ".join(map(str, ranks[:_SHOWN_RANKS]))
    more = f" and {len(ranks) - _SHOWN_RANKS} others" if len(ranks) > _SHOWN_RANKS else ""
    return f"rank{'s' if len(ranks) > 1 else ''} {shown}{more}"


def _last(status: RankStatus) -> str:
    if status.exit_code is not None:
        return f"rank {status.rank} ended with exit code {status.exit_code}: {status.message}"
    return f"rank {status.rank} was last in '{status.what}'{'' if status.inside else ' and has left it'}"
