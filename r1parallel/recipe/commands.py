"""Run the commands of a recipe or of the quickstart, one after the other."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from r1parallel.errors import UserError
from r1parallel.parallel.launch.msrun import die_with_parent

_LOOK_S = 0.2  # between two looks for a signal


class Stages:
    """Runs commands, each in a process group of its own, and keeps their seconds.

    What a command prints goes to the log while it runs; its errors and its progress bars stay on the screen.

    Attributes:
        seconds: stage → seconds of its commands together.

    Args:
        root: folder that the scripts' paths start at.
        log: file that gets every command and what it printed.
        limit_s: seconds that one command may take.
    """

    def __init__(self, root: Path, log: Path, limit_s: float):
        self.seconds: dict[str, float] = {}
        self._root, self._log, self._limit_s = root, log, limit_s

    def run(self, stage: str, script: str, *flags: object) -> str:
        """Run one command and return the last line that it printed.

        Raises:
            UserError: it failed or took longer than the limit; the screen and the log say more.
        """
        line = " ".join([script, *map(str, flags)])
        print(f"[{stage}] python {line}", flush=True)
        began = time.perf_counter()
        with _noted_signals() as signals, self._log.open("ab+") as log:
            log.write(f"$ {line}\n".encode())
            log.flush()
            start = log.tell()
            code = self._wait(stage, self._start(script, flags, log), signals)
            log.seek(start)
            printed = log.read().decode(errors="replace").strip().splitlines()
        self.seconds[stage] = round(self.seconds.get(stage, 0.0) + time.perf_counter() - began, 1)
        if code:
            raise UserError(f"{stage}: {script} ended with exit code {code}; see above and {self._log}")
        return printed[-1] if printed else ""

    def _start(self, script: str, flags: Sequence[object], log: BinaryIO) -> subprocess.Popen:
        """Even when this process is killed, the command ends with it, and so do a launcher's ranks."""
        words = [sys.executable, str(self._root / script), *map(str, flags)]
        return subprocess.Popen(words, stdout=log, start_new_session=True, preexec_fn=die_with_parent)

    def _wait(self, stage: str, process: subprocess.Popen, signals: list[int]) -> int:
        deadline = time.monotonic() + self._limit_s
        while not signals and time.monotonic() < deadline:
            try:
                return process.wait(_LOOK_S)
            except subprocess.TimeoutExpired:
                continue
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        if not signals:
            raise UserError(f"{stage}: no end after {self._limit_s:g} seconds")
        if signals[0] == signal.SIGINT:
            raise KeyboardInterrupt
        sys.exit(128 + signals[0])


@contextmanager
def _noted_signals() -> Iterator[list[int]]:
    """The signals, of those that end a program, that come in this block.

    An exception in the place of a note would be lost where Python swallows it: in the hooks of a fork, for example.
    """
    noted: list[int] = []
    before = {
        signum: signal.signal(signum, lambda number, _: noted.append(number))
        for signum in (signal.SIGINT, signal.SIGTERM)
        if signal.getsignal(signum) != signal.SIG_IGN
    }
    try:
        yield noted
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)
