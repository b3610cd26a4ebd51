"""A pool of processes that compute rewards, so that a reward that misbehaves costs its own samples only."""

import atexit
import contextlib
import json
import math
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from pathlib import Path

import psutil

from r1parallel.errors import UserError
from r1parallel.rewards.registry import is_from_file

_PACKAGE_PARENT = Path(__file__).resolve().parents[2]
_START_LIMIT = 120.0  # seconds to start a worker, or to load a file or a library
_MOST_WORKERS = 8
_LARGEST_CHUNK = 32  # rows in one call of a user's function


@dataclass
class Results:
    """What became of each row: it has a score (None: skipped), or an error, or it ran out of time."""

    scores: dict[int, float | None] = field(default_factory=dict)
    errors: dict[int, str] = field(default_factory=dict)
    timeouts: set[int] = field(default_factory=set)


@dataclass
class Task:
    """Rows for one call of a reward; without rows it is only loaded."""

    reward: str
    rows: Sequence[int]
    last_try: bool = False  # its worker died once already, which another may be to blame for


class Worker:
    """A process of `worker` and what it is doing."""

    def __init__(self, memory_limit: int) -> None:
        self.connection, theirs = multiprocessing.Pipe()
        self.task: Task | None = None
        self.deadline = math.inf
        self.started = False
        paths = [str(_PACKAGE_PARENT), *filter(None, [os.environ.get("PYTHONPATH")])]
        with theirs:
            self.process = subprocess.Popen(
                [
                    *(sys.executable, "-m", "r1parallel.rewards.worker"),
                    *(str(theirs.fileno()), str(memory_limit), str(os.getpid())),
                ],
                stdin=subprocess.DEVNULL,
                pass_fds=(theirs.fileno(),),
                env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
                start_new_session=True,  # Ctrl-C is for the trainer, which ends its workers itself
            )

    def end(self) -> int:
        """Kill the process and all that it has started; the exit status."""
        self.connection.close()
        with contextlib.suppress(psutil.NoSuchProcess):
            family = psutil.Process(self.process.pid)
            family.suspend()  # orphans come to it, so it stays until there are none
            while children := list(_living(family)):
                for child in children:
                    with contextlib.suppress(psutil.NoSuchProcess):
                        child.kill()
            family.kill()
        with contextlib.suppress(ProcessLookupError):  # where it died before, its group may be left
            os.killpg(self.process.pid, signal.SIGKILL)
        return self.process.wait()


class Pool:
    """Up to `num_workers` workers (0: one for each CPU, 8 at most), started when needed and kept.

    Threads may share it: batches go through one by one.
    """

    def __init__(self, num_workers: int, memory_limit: int) -> None:
        self.settings = (num_workers, memory_limit)
        self._size = num_workers or min(_MOST_WORKERS, len(os.sched_getaffinity(0)))
        self._memory_limit = memory_limit
        self._workers: list[Worker] = []
        self._slow: set[str] = set()
        self._lock = threading.Lock()

    def load(self, reward: str) -> None:
        """Load a reward as a worker would. Raises `UserError` when it cannot be."""
        with self._lock, self._closed_on_error():
            self._run([Task(reward, ())], {reward: Results()}, _NO_ROWS, _START_LIMIT)

    def run(
        self, rewards: Sequence[str], columns: Mapping[str, Sequence[str]], time_limit: float
    ) -> dict[str, Results]:
        """Score every row of `columns` (prompts, completions, solution) by every reward.

        `time_limit` is in seconds for one reward and row. Raises `UserError` when a reward needs something that is
        not there, or gives a wrong number of scores.
        """
        results = {reward: Results() for reward in rewards}
        with self._lock, self._closed_on_error():
            count = len(columns["completions"])
            tasks = [task for reward in rewards for task in self._tasks(reward, count)]
            self._run(tasks, results, columns, time_limit)
        return results

    def close(self) -> None:
        """End all workers; the next batch starts others."""
        while self._workers:
            self._workers.pop().end()

    @contextlib.contextmanager
    def _closed_on_error(self) -> Iterator[None]:
        try:
            yield
        except BaseException:  # an interrupted batch would leave its replies to the next one
            self.close()
            raise

    def _tasks(self, reward: str, count: int) -> list[Task]:
        # The package's own rewards look at one row at a time; a user's may do better with many.
        by_row = not is_from_file(reward) or reward in self._slow
        size = 1 if by_row else min(_LARGEST_CHUNK, -(-count // self._size))
        return [Task(reward, range(start, min(start + size, count))) for start in range(0, count, size)]

    def _run(
        self,
        tasks: list[Task],
        results: dict[str, Results],
        columns: Mapping[str, Sequence[str]],
        time_limit: float,
    ) -> None:
        waiting = deque(tasks)
        while waiting or any(worker.task for worker in self._workers):
            while waiting and (worker := self._idle_worker()) is not None:
                self._give(worker, waiting.popleft(), columns, time_limit)
            busy: dict[Connection, Worker] = {w.connection: w for w in self._workers if w.task}
            nearest = min(worker.deadline for worker in busy.values())
            for connection in wait(list(busy), max(0.0, nearest - time.monotonic())):
                worker = busy[connection]  # type: ignore[index]
                waiting.extendleft(self._receive(worker, results[_task_of(worker).reward], time_limit))
            for worker in busy.values():
                if worker.task and worker.deadline <= time.monotonic():
                    waiting.extendleft(self._stop(worker, results[worker.task.reward]))

    def _idle_worker(self) -> Worker | None:
        for worker in [worker for worker in self._workers if worker.task is None]:
            if worker.process.poll() is None:
                return worker
            self._remove(worker)  # killed from outside, or by the end of the thread that started it
        if len(self._workers) == self._size:
            return None
        self._workers.append(Worker(self._memory_limit))
        return self._workers[-1]

    def _give(self, worker: Worker, task: Task, columns: Mapping[str, Sequence[str]], time_limit: float) -> None:
        rows = {name: [column[row] for row in task.rows] for name, column in columns.items()}
        request = {"reward": task.reward, "columns": rows, "time_limit": time_limit}
        worker.task = task
        worker.deadline = time.monotonic() + (time_limit if worker.started else _START_LIMIT)
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # a dead worker shows when we read
            worker.connection.send_bytes(json.dumps(request).encode())

    def _receive(self, worker: Worker, results: Results, time_limit: float) -> list[Task]:
        """Take a worker's message; the tasks that have to be done again."""
        try:
            message = json.loads(worker.connection.recv_bytes())
        except (EOFError, OSError):
            return self._bury(worker, results)
        if "timed" in message:
            worker.started = True
            worker.deadline = time.monotonic() + (time_limit if message["timed"] else _START_LIMIT)
            return []
        task, worker.task = _task_of(worker), None
        if message.get("last"):
            self._remove(worker)
        if "user_error" in message:
            raise UserError(message["user_error"])
        if "error" in message:
            return _fail(task, results, message["error"])
        for row, (score, error) in zip(task.rows, message["scores"], strict=True):
            if error is None:
                results.scores[row] = score
            else:
                results.errors[row] = error
        return []

    def _bury(self, worker: Worker, results: Results) -> list[Task]:
        task, status = _task_of(worker), self._remove(worker)
        if not worker.started:
            raise UserError(f"a process for rewards could not be started (exit status {status}, see its message above)")
        if len(task.rows) <= 1 and not task.last_try:
            return [Task(task.reward, task.rows, last_try=True)]
        return _fail(task, results, f"its process ended with status {status}")

    def _stop(self, worker: Worker, results: Results) -> list[Task]:
        """End a worker whose time is up."""
        task = _task_of(worker)
        self._remove(worker)
        if not worker.started:
            raise UserError(f"a process for rewards was not ready after {_START_LIMIT:g} s; is the machine overloaded?")
        if len(task.rows) > 1:
            self._slow.add(task.reward)
            return _rows_of(task)
        results.timeouts |= set(task.rows)
        return []

    def _remove(self, worker: Worker) -> int:
        self._workers.remove(worker)
        worker.task = None
        return worker.end()


_NO_ROWS: dict[str, list[str]] = {"prompts": [], "completions": [], "solution": []}


def _task_of(worker: Worker) -> Task:
    assert worker.task is not None
    return worker.task


def _fail(task: Task, results: Results, error: str) -> list[Task]:
    if len(task.rows) > 1:
        return _rows_of(task)
    results.errors |= dict.fromkeys(task.rows, error)
    return []


def _rows_of(task: Task) -> list[Task]:
    return [Task(task.reward, [row], last_try=True) for row in reversed(task.rows)]


def _living(parent: psutil.Process) -> Iterator[psutil.Process]:
    for child in parent.children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            if child.status() != psutil.STATUS_ZOMBIE:
                yield child


_POOL: Pool | None = None


def shared_pool(num_workers: int, memory_limit: int) -> Pool:
    """The pool of this process; one with other settings is closed."""
    global _POOL
    if _POOL is None or _POOL.settings != (num_workers, memory_limit):
        close_shared_pool()
        _POOL = Pool(num_workers, memory_limit)
    return _POOL


@atexit.register
def close_shared_pool() -> None:
    """End the workers of this process."""
    if _POOL is not None:
        _POOL.close()
