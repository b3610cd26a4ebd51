"""What each preset of the GRPO family learns on the quickstart's task, and TRL beside it: python -m benchmarks.learning

For each seed the quickstart's data and SFT model are made once. From that same start every preset of
r1parallel/config/presets.py trains in one process with model_configs/tiny/grpo.yaml, and so does TRL's GRPOTrainer in
an environment of its own, on the same prompts in the same order. Checkpoints are evaluated on 500 held-out problems.
What has been run stays in --output_dir and is not run again. Writes results.json and results.md there.
"""

import argparse
import json
import os
import platform
import shutil
import signal
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from importlib.metadata import version
from pathlib import Path

from benchmarks.common.commands import Commands
from benchmarks.common.machine import write
from benchmarks.common.peer_venv import TRL_PACKAGES, peer_python
from benchmarks.learning.runs import OURS, OWN, PEERS, ROOT, Bench, perform, settings_of
from benchmarks.learning.table import table
from r1parallel.errors import UserError, run_command

LIMIT = 7200  # seconds, of one command
GAIN = 0.2  # what a run has to add to the SFT model's accuracy


def main(argv: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(
        prog="benchmarks.learning", description=__doc__.splitlines()[0], allow_abbrev=False
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--algorithms", nargs="*", default=list(OURS), choices=OURS, metavar="PRESET")
    parser.add_argument("--peers", nargs="+", default=list(PEERS), choices=PEERS, metavar="PEER", help=", ".join(PEERS))
    parser.add_argument("--no_peer", action="store_true", help="ours only")
    parser.add_argument("--peer_python", type=Path, help="with TRL; default: .cache/peer_trl, made when it is missing")
    parser.add_argument("--steps", type=int, default=80, help="of each run (default 80)")
    parser.add_argument("--jobs", type=int, default=2, help="runs side by side, which share the cores (default 2)")
    parser.add_argument("--output_dir", type=Path, default=ROOT / "runs" / "learning")
    args = parser.parse_args(argv)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that what runs is ended too
    threads = str(max(1, len(os.sched_getaffinity(0)) // args.jobs))
    commands = Commands(LIMIT, os.environ | {"OMP_NUM_THREADS": threads, "PYTHONPATH": str(ROOT)})
    peers = [] if args.no_peer else args.peers
    try:
        python = (args.peer_python or peer_python("trl", TRL_PACKAGES, commands)) if peers else None
        bench = Bench(args.output_dir.resolve(), args.steps, commands, python)
        starts = side_by_side(bench, args.jobs, [(seed, "start") for seed in args.seeds])
        tasks = [(seed, name) for seed, _ in starts for name in [*args.algorithms, *peers]]
        runs = side_by_side(bench, args.jobs, tasks)
    finally:
        commands.end()
    results = {
        "hardware": {"processor": platform.processor() or platform.machine(), "cpus": len(os.sched_getaffinity(0))},
        "versions": {name: version(name) for name in ("mindspore", "numpy")},
        "settings": {"jobs": args.jobs, "threads": int(threads), "steps": args.steps, "gain": GAIN},
        "own": {name: {"flags": flags, "reason": reason} for name, (flags, reason) in OWN.items()},
        "starts": list(starts.values()),
        "runs": list(runs.values()),
    }
    write(bench.out / "results.json", json.dumps(results, indent=1))
    write(bench.out / "results.md", table(results))
    print(table(results))
    if len(runs) < len(tasks) or len(starts) < len(args.seeds):
        raise UserError("some runs failed, see above; mend the cause and run this again, which repeats only those")


def side_by_side(bench: Bench, jobs: int, tasks: list[tuple[int, str]]) -> dict[tuple[int, str], dict]:
    """Task → what it found, of those that did not fail; in the order of the tasks."""
    found = {}
    with ThreadPoolExecutor(jobs) as pool:
        futures = {pool.submit(once, bench, *task): task for task in tasks}
        try:
            for future in as_completed(futures):
                seed, name = futures[future]
                try:
                    found[seed, name] = future.result()
                    print(f"seed {seed}, {name}: {summary(found[seed, name])}", flush=True)
                except UserError as error:
                    print(f"seed {seed}, {name}: failed: {error}", flush=True)
        except BaseException:
            bench.commands.end()
            pool.shutdown(cancel_futures=True)
            raise
    return {task: found[task] for task in tasks if task in found}


def summary(result: dict) -> str:
    last = list(result["accuracies"].values())[-1]
    return f"accuracy {last:.1%}, {result['seconds']:.0f} s"


def once(bench: Bench, seed: int, name: str) -> dict:
    """Run a task, or read what it found the last time; a run that was broken off starts anew.

    Raises:
        UserError: it failed, or what lies there was made with other settings.
    """
    folder = bench.out / f"seed_{seed}" / name
    settings = settings_of(bench, name)
    done = folder / "result.json"
    if done.is_file():
        result = json.loads(done.read_text(encoding="utf-8"))
        if result["settings"] != settings:
            raise UserError(f"{folder}: was run with other settings; remove it or choose another --output_dir")
        return result
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    result = {"seed": seed, "name": name, "settings": settings, **perform(bench, seed, name, folder)}
    write(done, json.dumps(result, indent=1))
    return result


if __name__ == "__main__":
    run_command(main)
