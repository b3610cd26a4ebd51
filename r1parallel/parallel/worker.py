"""How a command runs as one process of a job: `run_worker(main)` takes the place of `run_command(main)`."""

import itertools
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path

from r1parallel.errors import UserError, run_command
from r1parallel.parallel.graph_cache import begin_single_run
from r1parallel.parallel.launch.failures import SETTLE_S, Failures
from r1parallel.parallel.launch.msrun import die_with_parent
from r1parallel.parallel.launch.rank_status import FOLDER, job_status, new_status
from r1parallel.parallel.launch.world import is_scheduler, is_worker, launched_world_size

_SIGN_OFF_S = 5  # for ranks of other nodes, which the scheduler cannot see end
# How long MCCL's receives wait. It cannot be told apart from a rank that compiles, so `waiting` has the real limit.
_NODE_TIMEOUT_S = "86400"
_LOOK_S = 0.5  # between two looks at the ranks


def run_worker(main: Callable[[Sequence[str]], None]) -> None:
    """Run a command's `main(argv)` as what msrun started: a rank, the scheduler, or, without msrun, the only process.

    Call it before MindSpore is imported. The process ends with msrun if msrun waits for it (`--join=True`). A rank that
    fails writes its error down for the launcher and ends at once, with the exit code of `run_command` or 1. One that
    succeeds waits for the others, since leaving early may break another rank's last exchange.
    """
    if not (is_worker() or is_scheduler()):
        begin_single_run()
        run_command(main)
        return
    os.environ.setdefault("MS_NODE_TIMEOUT", _NODE_TIMEOUT_S)
    _end_with_launcher()
    if is_scheduler():
        _schedule()
        return
    code = _run_rank(main)
    if code or _is_on_cpu():
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)  # MindSpore's own way out waits for others that may be gone, and on the CPU it may crash


def _schedule() -> None:
    """Let the ranks find each other until they have left, or until one of this host has failed.

    MindSpore's `init` does not return in a scheduler, lets no other thread run, and waits for failed ranks: for those
    that never came for minutes. So a process of its own calls it.
    """
    child = os.fork()
    if child == 0:
        die_with_parent()
        from mindspore.communication import init

        init()
        return
    size = launched_world_size()
    failures = Failures(job_status(), size)
    while not failures.any():
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            sys.exit(1 if status else 0)
        if failures.num_ended:  # and none failed, so every rank has passed the last barrier
            time.sleep(0 if failures.num_ended == size else _SIGN_OFF_S)
            os.kill(child, signal.SIGKILL)
            sys.exit(0)
        failures.look(_LOOK_S)
    time.sleep(SETTLE_S)
    os.kill(child, signal.SIGKILL)
    first = failures.first()
    if first is not None:  # msrun shows at its end those lines of the scheduler that say ERROR
        print(f"ERROR: rank {first.rank}: {first.message or f'exit code {first.exit_code}'}", flush=True)
    sys.exit(1)


def _run_rank(main: Callable[[Sequence[str]], None]) -> int:
    """Exit code of one rank; a failure is noted and printed."""
    message = ""

    def keep_message(argv: Sequence[str]) -> None:
        nonlocal message
        try:
            main(argv)
            _leave_together()
        except UserError as error:
            message = f"error: {' '.join(str(error).split())}"
            raise
        except KeyboardInterrupt:
            message = "error: interrupted"
            raise
        except Exception as error:
            message = f"{type(error).__name__}: {' '.join(str(error).split())}"
            raise

    _write_status("start")
    try:
        run_command(keep_message)
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
        code = 1
    _write_end(code, message)
    return code


def _leave_together() -> None:
    """Wait for the other ranks, if this one has joined them."""
    if "mindspore" not in sys.modules:
        return
    from r1parallel.parallel.device import current_world
    from r1parallel.parallel.moving.collectives import barrier

    barrier(current_world(), "the end of the job")


def _is_on_cpu() -> bool:
    if "mindspore" not in sys.modules:
        return False
    import mindspore as ms

    return ms.get_context("device_target") == "CPU"


def _rank() -> int | None:
    """None before init where msrun leaves the numbering to it."""
    rank = os.environ.get("RANK_ID")
    return None if rank is None else int(rank)


def _write_status(what: str) -> None:
    rank = _rank()
    if rank is not None:
        job_status().write(new_status(rank, what, inside=True))


def _write_end(code: int, message: str) -> None:
    rank = _rank()
    if rank is None:
        return
    statuses = job_status()
    if code == 0:
        statuses.remove(rank)
    else:
        statuses.write((statuses.read(rank) or new_status(rank, "start", inside=True)).failed(code, message))


def _end_with_launcher() -> None:
    """Let the kernel kill this process when msrun ends, however msrun ends; without --join it is meant to end first."""
    parent = os.getppid()
    words = Path(f"/proc/{parent}/cmdline").read_bytes().decode(errors="replace").split("\0")
    launched = FOLDER in os.environ
    joins = "--join=True" in words or ("--join", "True") in itertools.pairwise(words)
    if not joins and not launched:
        return
    die_with_parent()
    if os.getppid() != parent or not joins:  # it ended while we started
        os._exit(1)
