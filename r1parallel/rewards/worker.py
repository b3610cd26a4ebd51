"""The other side of `pool`: a process that runs rewards, whatever they do to it.

One JSON object a message. In: {"reward": name, "columns": {"prompts": [..], ..}, "time_limit": seconds}. Out:
{"timed": bool} when time begins and ceases to count, and in the end {"scores": [[number or null, error or null], ..]},
or {"error": text} when the call failed, or {"user_error": text} when the user has to mend something; "last" is set
when the worker goes.
"""

import contextlib
import ctypes
import json
import math
import numbers
import os
import resource
import signal
import sys
from collections.abc import Iterator
from functools import partial
from multiprocessing.connection import Connection

import psutil

from r1parallel.errors import UserError
from r1parallel.parallel.launch.msrun import die_with_parent
from r1parallel.rewards.registry import load_reward, one_line
from r1parallel.rewards.sandbox.call_limits import CALL_LIMITS

_PR_SET_CHILD_SUBREAPER = 36


def answer(request: dict) -> dict:
    """Run one reward on some rows; without rows it is only loaded."""
    name, columns = request["reward"], request["columns"]
    CALL_LIMITS.seconds = request["time_limit"]
    count = len(columns["completions"])
    try:
        function = load_reward(name)
        result = function(**columns) if count else []
        # mindrlhf's rewards may give the parsed answers beside the scores.
        values = list(result[0] if isinstance(result, tuple) else result)
    except UserError as error:
        return {"user_error": str(error)}
    except MemoryError as error:
        return {"error": one_line(error), "last": True}
    except BaseException as error:  # SystemExit too: a reward ends no run
        return {"error": one_line(error)}
    if len(values) != count:
        return {"user_error": f"reward {name!r} gave {len(values)} scores for {count} completions"}
    return {"scores": [_checked(value) for value in values]}


def _checked(value: object) -> tuple[float | None, str | None]:
    if value is None:
        return None, None
    if not isinstance(value, numbers.Real) or not math.isfinite(value):
        return None, f"it gave {value!r}, not a finite number (None skips a row)"
    return float(value), None


@contextlib.contextmanager
def _untimed(connection: Connection) -> Iterator[None]:
    _send(connection, {"timed": False})
    try:
        yield
    finally:
        _send(connection, {"timed": True})


def _send(connection: Connection, message: dict) -> None:
    connection.send_bytes(json.dumps(message).encode())


def _memory_bytes() -> int:
    """Of address space in use."""
    with open("/proc/self/statm", encoding="ascii") as statm:
        return int(statm.read().split()[0]) * os.sysconf("SC_PAGE_SIZE")


def _end_children() -> None:
    """Kill what the reward has started and left; orphans of its children are children of this process too."""
    while True:
        try:
            child, _ = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return
        if child == 0:
            for process in psutil.Process().children(recursive=True):
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.kill()
            os.waitpid(-1, 0)


def _main() -> None:
    descriptor, mebibytes, parent = (int(argument) for argument in sys.argv[1:])
    die_with_parent()
    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1)
    if os.getppid() != parent:
        return
    os.dup2(2, 1)  # what rewards print is for the log
    signal.pthread_sigmask(signal.SIG_SETMASK, set())  # a parent may have blocked some, and that is inherited
    limit = _memory_bytes() + (mebibytes << 20)
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    connection = Connection(descriptor)
    CALL_LIMITS.mebibytes = mebibytes
    CALL_LIMITS.untimed = partial(_untimed, connection)
    own_id = os.getpid()
    _send(connection, {"timed": True})
    while True:
        try:
            request = connection.recv_bytes()
        except EOFError:
            os._exit(0)
        reply = answer(json.loads(request))
        if os.getpid() != own_id:  # a reward forked, and this is the copy
            os._exit(0)
        _end_children()
        # What is not given back counts against the next sample, so go before it is much.
        if limit - _memory_bytes() < mebibytes << 19:
            reply["last"] = True
        _send(connection, reply)
        if reply.get("last"):
            os._exit(0)  # not by returning: a reward may have left threads


if __name__ == "__main__":
    _main()
