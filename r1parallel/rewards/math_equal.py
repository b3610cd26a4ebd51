"""Symbolic comparison with a time limit of our own.

math-verify limits its time by SIGALRM, which raises outside the main thread; where callers catch that, every
score is 0. Here math-verify runs without a limit in a process of its own, and that process the limit ends.
"""

import atexit
import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path

from r1parallel.errors import UserError

from .numerals import unwrap

_PACKAGE_PARENT = Path(__file__).resolve().parents[2]
_WORDS = re.compile(r"[A-Za-z]{3,}(?: [A-Za-z]+)*")


@dataclass
class Budget:
    """Seconds that one comparison may take, and how many were stopped at that limit or broke the worker."""

    time_limit: float
    timeouts: int = 0


DEFAULT_TIME_LIMIT = 5.0  # seconds
_BUDGET: ContextVar[Budget | None] = ContextVar("budget", default=None)


@contextlib.contextmanager
def comparison_budget(time_limit: float) -> Iterator[Budget]:
    """Limit each `math_equal` of this thread inside the block to `time_limit` seconds; count those stopped."""
    budget = Budget(time_limit)
    token = _BUDGET.set(budget)
    try:
        yield budget
    finally:
        _BUDGET.reset(token)


def math_equal(gold: str, answer: str) -> float | None:
    """1.0 when `answer` equals `gold`, 0.0 when not or when it takes too long, None when `gold` is unreadable.

    Equal strings and plain words are settled here, the rest goes to math-verify. The limit is that of the
    `comparison_budget` around the call, else `DEFAULT_TIME_LIMIT`.
    """
    gold, answer = unwrap(gold), unwrap(answer)
    if gold == answer:
        return 1.0
    if _WORDS.fullmatch(gold):  # as LaTeX, "east" and "seat" are the same product of four letters
        return float(gold.casefold() == answer.casefold())
    budget = _BUDGET.get() or Budget(DEFAULT_TIME_LIMIT)
    try:
        equal = _WORKER.compare(gold, answer, budget.time_limit)
    except WorkerDied:
        budget.timeouts += 1
        return 0.0
    return None if equal is None else float(equal)


class WorkerDied(Exception):
    """The worker ended without an answer: it ran out of time, or the comparison broke it."""

    def __init__(self, exit_status: int) -> None:
        super().__init__(exit_status)
        self.exit_status = exit_status


class MathWorker:
    """One `math_worker` process, started at the first comparison and again after each that ended it.

    Threads may share it: comparisons go through one by one.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None

    def compare(self, gold: str, answer: str, time_limit: float) -> bool | None:
        """Ask the worker; None when `gold` is unreadable.

        `time_limit` is in seconds. Raises `WorkerDied`, and `UserError` when no worker can be started.
        """
        request = {"gold": gold, "answer": answer, "time_limit": time_limit}
        with self._lock:
            try:
                return self._ask_again_once(request)["equal"]
            except BaseException:
                self.close()  # an interrupted request would leave its reply to the next one
                raise

    def close(self) -> None:
        """End the worker, if there is one; the next comparison starts another."""
        if self._process is not None:
            self._process.kill()
            self._reap()

    def _ask_again_once(self, request: dict) -> dict:
        try:
            return self._ask(request)
        except WorkerDied as death:
            if death.exit_status == -signal.SIGALRM:
                raise
        # It may have been killed from outside between two comparisons; a second death is this one's.
        return self._ask(request)

    def _ask(self, request: dict) -> dict:
        process = self._process or self._start()
        with contextlib.suppress(BrokenPipeError):  # a dead worker shows as an empty reply
            assert process.stdin is not None
            process.stdin.write(json.dumps(request).encode() + b"\n")
            process.stdin.flush()
        return self._read_reply(process)

    def _start(self) -> subprocess.Popen[bytes]:
        paths = [str(_PACKAGE_PARENT), *filter(None, [os.environ.get("PYTHONPATH")])]
        self._process = subprocess.Popen(
            [sys.executable, "-m", "r1parallel.rewards.math_worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
            start_new_session=True,  # Ctrl-C is for the trainer, which ends the worker itself
        )
        try:
            self._read_reply(self._process)
        except WorkerDied as death:
            raise UserError(
                f"math-verify could not be started (exit status {death.exit_status}, its message stands above): "
                "install it with pip install math-verify"
            ) from None
        return self._process

    def _read_reply(self, process: subprocess.Popen[bytes]) -> dict:
        assert process.stdout is not None
        line = process.stdout.readline()
        if not line:
            raise WorkerDied(self._reap())
        return json.loads(line)

    def _reap(self) -> int:
        process, self._process = self._process, None
        assert process is not None
        with contextlib.suppress(BrokenPipeError), process:  # closes the pipes and waits
            pass
        return process.returncode


_WORKER = MathWorker()
atexit.register(_WORKER.close)
