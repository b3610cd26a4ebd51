"""Benchmarks whose rounds are jobs of several processes: their flags, what they keep, what every rank found."""

import argparse
import json
import os
import shutil
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.common.machine import hardware, write
from r1parallel.errors import UserError
from r1parallel.parallel.launch.msrun import run_workers

ROOT = Path(__file__).resolve().parents[2]
LIMIT = 900  # seconds, of one job; also what a rank waits for the others
_LINES = 3  # of a failed job's output that the message repeats
Ranks = list[dict[str, Any]]  # what each rank of a job found


def round_parser(name: str, purpose: str, warm_up: str) -> argparse.ArgumentParser:
    """Flags of benchmarks/<name>.py; `warm_up` says how many iterations of a process do not count."""
    parser = argparse.ArgumentParser(prog=f"benchmarks.processes.{name}", description=purpose, allow_abbrev=False)
    parser.add_argument("--rounds", type=int, default=5, help="of fresh processes (default 5)")
    parser.add_argument("--iterations", type=int, default=3, help=f"of a process, after {warm_up} that do not count")
    parser.add_argument("--tiny", action="store_true", help="a model of no size, to try the benchmark itself")
    parser.add_argument("--output_dir", type=Path, default=ROOT / "runs" / name)
    return parser


def parsed_rounds(parser: argparse.ArgumentParser, argv: Sequence[str]) -> argparse.Namespace:
    """The flags.

    Raises:
        UserError: a number is too small.
    """
    args = parser.parse_args(argv)
    for name in ("rounds", "iterations"):
        if getattr(args, name) < 1:
            raise UserError(f"--{name} is {getattr(args, name)}; it must be at least 1")
    return args


def run_rounds(
    args: argparse.Namespace,
    about: Mapping[str, Any],
    one_round: Callable[[str], Any],
    table: Callable[[dict[str, Any]], str],
) -> None:
    """Do all rounds; write results.json and results.md anew after each, and print the table at the end.

    Args:
        args: see `parsed_rounds`.
        about: what is kept besides machine, versions and rounds.
        one_round: is given its number, in words; what it returns is kept.
        table: of all that is kept.
    """
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that what runs is ended too
    out = args.output_dir.resolve()
    results: dict[str, Any] = {
        "date": datetime.now(timezone.utc).date().isoformat(),
        "hardware": hardware(len(os.sched_getaffinity(0))),
        "versions": {name: version(name) for name in ("mindspore", "numpy")},
        **about,
        "iterations": args.iterations,
        "rounds": [],
    }
    for number in range(args.rounds):
        results["rounds"].append(one_round(f"round {number + 1} of {args.rounds}"))
        write(out / "results.json", json.dumps(results, indent=1))
        write(out / "results.md", table(results))
    print(table(results))


def run_ranks(worker: str, job: Mapping[str, Any], workers: int, folder: Path) -> Ranks:
    """Run a worker of benchmarks/processes in fresh processes under msrun; each writes into <output>/<rank>.json.

    The script gets a JSON file with `job`, wait_limit and output. Every rank has one thread.

    Raises:
        UserError: the job failed or took too long.
    """
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    given = folder / "job.json"
    given.write_text(json.dumps(dict(job) | {"output": str(folder), "wait_limit": LIMIT}), encoding="utf-8")
    done = run_workers(
        ROOT / "benchmarks" / "processes" / f"{worker}.py", [str(given)], workers, folder / "msrun", LIMIT
    )
    if done.returncode:
        last = " | ".join(done.output.splitlines()[-_LINES:])
        raise UserError(f"{worker} on {workers} processes ended with {done.returncode}; see {folder}: {last}")
    return [json.loads((folder / f"{rank}.json").read_text(encoding="utf-8")) for rank in range(workers)]


def over_ranks(ranks: Ranks, key: str, of_all: Callable[[Sequence[float]], float]) -> float:
    """Median over the iterations of what all ranks come to together, as the slowest's seconds: `max`."""
    return median(map(of_all, zip(*(rank[key] for rank in ranks), strict=True)))
