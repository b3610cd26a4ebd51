"""Start a job of several processes and say at its end which rank failed first, and why.

msrun starts and ends the ranks; this shows what rank 0 prints while they run, and keeps the first failure for last.
"""

import argparse
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import FrameType

from r1parallel.errors import UserError
from r1parallel.parallel.launch.failures import SETTLE_S, Failures
from r1parallel.parallel.launch.msrun import (
    die_with_parent,
    end_job,
    free_port,
    is_free,
    msrun_command,
    worker_environment,
)
from r1parallel.parallel.launch.rank_status import FOLDER, JobStatus

_LOOK_S = 0.2  # between two looks at the ranks and at what they printed
_CHATTER = re.compile(r"\[(DEBUG|INFO|WARNING)\] \w+\(\d+,")  # MindSpore's messages that are no errors
_LAST_LINES = 20  # of the failed rank's log, shown when it is not the one that was followed


def launch(script: Path, argv: Sequence[str]) -> int:
    """Run `script` in the processes that `argv` asks for, and pass on the arguments that are not the launcher's.

    Returns:
        0, or the exit code of the rank that failed first: its own, 128 + the signal that killed it, or 128 + the signal
        that ended this launcher.

    Raises:
        UserError: the options do not fit together.
    """
    options, rest = _parser().parse_known_args(argv)
    _check(options)
    command = [*_command(options), str(script), *rest]
    if options.print_only:
        print(f"{FOLDER}={shlex.quote(str(_status_folder(options)))} {shlex.join(command)}")
        return 0
    return _run(command, options)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="run_grpo.sh",
        description="GRPO in several processes, on one node or several. All other arguments go to run_grpo.py.",
        allow_abbrev=False,
        add_help=False,
    )
    number = os.environ.get
    add = parser.add_argument
    add("--worker_num", type=int, default=number("R1_WORKER_NUM"), help="processes on all nodes together")
    add("--num_nodes", type=int, default=number("R1_NUM_NODES", "1"), help="nodes; each runs this command")
    add("--node_rank", type=int, default=number("R1_NODE_RANK", "0"), help="which node this is: 0 … num_nodes - 1")
    add("--master_addr", default=number("R1_MASTER_ADDR"), help="address of node 0")
    add("--master_port", type=int, default=number("R1_MASTER_PORT"), help="a free port of node 0")
    add("--log_dir", default=number("R1_LOG_DIR"), help="where logs go; several nodes must share it")
    add("--print", action="store_true", dest="print_only", help="show the command and start nothing")
    return parser


def _check(options: argparse.Namespace) -> None:
    """Fill in what one node does not need to be told."""
    if options.worker_num is None:
        raise UserError("--worker_num is missing: how many processes, for example --worker_num 8, or R1_WORKER_NUM=8")
    if options.worker_num < 1:
        raise UserError(f"--worker_num {options.worker_num}: one process or more is needed")
    if options.num_nodes < 1 or options.worker_num % options.num_nodes:
        raise UserError(f"--worker_num {options.worker_num} cannot be shared evenly by --num_nodes {options.num_nodes}")
    if not 0 <= options.node_rank < options.num_nodes:
        raise UserError(f"--node_rank {options.node_rank}: must be 0 … {options.num_nodes - 1}")
    if options.num_nodes > 1:
        for key in ("master_addr", "master_port", "log_dir"):
            if vars(options)[key] is None:
                raise UserError(f"--{key} is missing: with several nodes it must be given, the same on all of them")
    if options.master_port is not None and options.node_rank == 0 and not is_free(options.master_port):
        raise UserError(f"--master_port {options.master_port}: another process of this host uses it; give another one")
    options.master_addr = options.master_addr or "127.0.0.1"
    options.master_port = options.master_port or free_port()
    options.log_dir = Path(options.log_dir or f"runs/logs/{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}").absolute()


def _command(options: argparse.Namespace) -> list[str]:
    """The words of msrun up to the script."""
    several = {"node_rank": options.node_rank} if options.num_nodes > 1 else {}
    return msrun_command(
        options.worker_num,
        options.master_port,
        options.log_dir,
        local_worker_num=options.worker_num // options.num_nodes,
        master_addr=options.master_addr,
        tail_worker_log=options.worker_num,  # no such rank: nobody but this launcher follows a log
        **several,
    )


def _local_ranks(options: argparse.Namespace) -> range:
    per_node = options.worker_num // options.num_nodes
    return range(options.node_rank * per_node, (options.node_rank + 1) * per_node)


def _status_folder(options: argparse.Namespace) -> Path:
    return options.log_dir / "notes"


class _Ended(Exception):
    """This launcher was told to end."""

    def __init__(self, signum: int) -> None:
        self.signum = signum


def _raise_ended(signum: int, _: FrameType | None) -> None:
    raise _Ended(signum)


def _run(command: Sequence[str], options: argparse.Namespace) -> int:
    local = _local_ranks(options)
    statuses = JobStatus(_status_folder(options))
    for rank in local:  # of an earlier job with the same logs
        statuses.remove(rank)
        _log_path(options, rank).unlink(missing_ok=True)
    options.log_dir.mkdir(parents=True, exist_ok=True)
    environment = worker_environment() | {FOLDER: str(_status_folder(options))}
    print(f"{options.worker_num} processes, logs: {options.log_dir}", flush=True)
    log = options.log_dir / f"msrun_{options.node_rank}.log"
    for signum in (signal.SIGINT, signal.SIGTERM):
        signal.signal(signum, _raise_ended)
    failures = Failures(statuses, options.worker_num)
    process = None
    try:
        with log.open("w") as stream:
            process = subprocess.Popen(
                command,
                env=environment,
                stdout=stream,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                preexec_fn=die_with_parent,
            )
        _follow(process, failures, _log_path(options, local[0]))
        returncode = process.poll()
    except _Ended as ended:
        print(f"error: ended by {signal.Signals(ended.signum).name}", file=sys.stderr, flush=True)
        return 128 + ended.signum
    finally:
        if process is not None:
            end_job(process)
    if returncode is not None and returncode < 0:
        raise UserError(f"msrun was killed by signal {-returncode}, and all ranks with it")
    return _report(returncode, failures, options, log)


def _follow(process: subprocess.Popen, failures: Failures, leader_log: Path) -> None:
    """Show the leader's log until the job has ended or a rank has failed."""
    shown, deadline = 0, float("inf")
    while process.poll() is None and time.monotonic() < deadline:
        failures.look(_LOOK_S)
        shown = _show(leader_log, shown)
        if failures.any() and deadline == float("inf"):
            deadline = time.monotonic() + SETTLE_S
    failures.look(0)
    _show(leader_log, shown)


def _show(log: Path, start: int) -> int:
    """Print what a log holds from byte `start` on, whole lines without MindSpore's; gives where the rest begins."""
    if not log.exists():
        return start
    with log.open("rb") as stream:
        stream.seek(start)
        text = stream.read()
    end = text.rfind(b"\n") + 1
    print("".join(f"{line}\n" for line in _lines(text[:end])), end="", flush=True)
    return start + end


def _lines(text: bytes) -> list[str]:
    """Lines of a log without MindSpore's chatter."""
    return [line for line in text.decode(errors="replace").splitlines() if not _CHATTER.match(line)]


def _report(returncode: int | None, failures: Failures, options: argparse.Namespace, msrun_log: Path) -> int:
    """Say what failed first as the last line on the screen; gives the exit code."""
    first = failures.first()
    if first is None:
        if returncode == 0:
            return 0
        raise UserError(f"msrun ended with exit code {returncode} and no rank said why; see {msrun_log}")
    path = _log_path(options, first.rank)
    lines = _lines(path.read_bytes())[-_LAST_LINES:] if path.exists() else []
    sys.stdout.flush()
    if first.rank != _local_ranks(options)[0]:
        print(*lines, sep="\n", file=sys.stderr)
    spoken = [line.strip() for line in lines if line.strip()]
    message = first.message or (spoken[-1] if spoken else f"exit code {first.exit_code}")
    print(f"log: {path}\nrank {first.rank}: {message}", file=sys.stderr, flush=True)
    return first.exit_code or 1


def _log_path(options: argparse.Namespace, rank: int) -> Path:
    return options.log_dir / f"worker_{rank}.log"
