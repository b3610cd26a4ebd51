"""Commands that a benchmark starts: each in a process group of its own, with a time limit, and ended with it."""

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path

from r1parallel.errors import UserError

_LINES = 3  # of a failed command's output that the message repeats


class Commands:
    """Runs commands, from several threads at once; `end` stops those that run and refuses any further one.

    Args:
        limit: seconds that one command may take.
        env: its whole environment.
    """

    def __init__(self, limit: float, env: Mapping[str, str]) -> None:
        self._limit, self._env = limit, dict(env)
        self._running: set[int] = set()
        self._ended = False

    def run(self, log: Path, *words: object, cwd: Path | None = None) -> float:
        """Run a command, its output appended to `log`; returns the seconds that it took.

        Raises:
            UserError: it failed or took too long; ends with the last lines of its output.
        """
        name = words[2] if words[1] == "-m" else words[1]
        if self._ended:
            raise UserError(f"{name}: not started, the benchmark is ending")
        began = time.perf_counter()
        with log.open("a", encoding="utf-8") as stream:
            process = subprocess.Popen(
                [str(word) for word in words],
                cwd=cwd,
                env=self._env,
                stdin=subprocess.DEVNULL,
                stdout=stream,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
            self._running.add(process.pid)
            try:
                code = process.wait(self._limit)
            except subprocess.TimeoutExpired:
                raise UserError(f"{name}: no end after {self._limit} seconds; see {log}") from None
            finally:
                self._running.discard(process.pid)
                if process.poll() is None:
                    os.killpg(process.pid, signal.SIGKILL)
                    process.wait()
        if code:
            last = " | ".join(log.read_text(encoding="utf-8", errors="replace").splitlines()[-_LINES:])
            raise UserError(f"{name} ended with exit code {code}; see {log}: {last}")
        return time.perf_counter() - began

    def end(self) -> None:
        """Kill what runs."""
        self._ended = True
        for pid in list(self._running):
            with contextlib.suppress(ProcessLookupError):  # it ended in this moment
                os.killpg(pid, signal.SIGKILL)
