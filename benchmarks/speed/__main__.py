"""Ours against transformers and TRL, on SmolLM2-135M in fp32: python -m benchmarks.speed [SUBJECT …]

rollout: completions of 16 prompts, of 2 prompts 8 times each, and of 64 prompts that end where the model ends them.
training: one optimizer step of GRPO on 16 completions. grpo: whole steps with run_grpo.py and with TRL's GRPOTrainer.
startup: from the start of a process to the end of its first GRPO step.
compile: the model's Cells and all graphs of its training, with 10 and with 30 layers; there is no peer.
reward: answers judged, by our pool of processes and by TRL's accuracy_reward in a loop. data: GSM8K to token ids, read.

Every number comes from a fresh process; ours and the peer take turns. The peer runs in an environment of its own.
Writes results.json and results.md into --output_dir, anew after each round. Needs scripts/build_smollm2.sh.
"""

import argparse
import json
import os
import shutil
import signal
import sys
from collections.abc import Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from benchmarks.common.commands import Commands
from benchmarks.common.machine import hardware, write
from benchmarks.common.peer_venv import TRL_PACKAGES, peer_python
from benchmarks.speed.answers import COMPLETIONS
from benchmarks.speed.bench import ROOT, Bench
from benchmarks.speed.cases import COMPLETION, GROUP, PROMPT, PROMPTS, SPREAD_LONGEST, SPREAD_PROMPTS
from benchmarks.speed.rounds import SUBJECTS
from benchmarks.speed.steps import STEP_WARM_UP
from benchmarks.speed.table import table
from r1parallel.errors import UserError, run_command

LIMIT = 3600  # seconds, of one command
SHARED = Path(os.environ.get("R1_SHARED", ROOT.parent / "shared"))


def main(argv: Sequence[str]) -> None:
    args = parsed(argv)
    model, gsm8k = checked(args)
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: args.threads])  # what is started inherits it
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that what runs is ended too
    out = args.output_dir.resolve()
    shutil.rmtree(out / "work", ignore_errors=True)
    (out / "work").mkdir(parents=True)
    setup = Commands(LIMIT, os.environ)
    own = {"OMP_NUM_THREADS": str(args.threads), "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}
    commands = Commands(LIMIT, os.environ | own | {"XDG_CACHE_HOME": str(out / "work" / "cache")})
    try:
        python = args.peer_python.absolute() if args.peer_python else peer_python("trl", TRL_PACKAGES, setup)
        bench = Bench(out, commands, python, model, gsm8k, args.warm_up, args.iterations, args.steps)
        results = results_of(args)
        for subject in args.subjects or SUBJECTS:
            for number in range(args.rounds):
                print(f"{subject}, round {number + 1} of {args.rounds}", flush=True)
                results["rounds"].append(SUBJECTS[subject](bench))
                write(out / "results.json", json.dumps(results, indent=1))
                write(out / "results.md", table(results))
    finally:
        setup.end()
        commands.end()
    print(table(results))


def parsed(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="benchmarks.speed", description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("subjects", nargs="*", metavar="SUBJECT", help=f"{', '.join(SUBJECTS)}; default: all")
    parser.add_argument("--rounds", type=int, default=5, help="of each subject: ours, the peer (default 5)")
    parser.add_argument("--warm_up", type=int, default=2, help="iterations of a process that do not count (default 2)")
    parser.add_argument("--iterations", type=int, default=3, help="of a process that count (default 3)")
    parser.add_argument("--steps", type=int, default=4, help=f"of grpo, after {STEP_WARM_UP} that do not count")
    parser.add_argument("--threads", type=int, default=2, help="cores that both sides may use (default 2)")
    parser.add_argument("--model", type=Path, default=ROOT / ".cache" / "smollm2", help="SmolLM2-135M's folder")
    parser.add_argument("--gsm8k", type=Path, default=SHARED / "data" / "gsm8k" / "train.jsonl", help="prompts")
    parser.add_argument("--peer_python", type=Path, help="with TRL; default: .cache/peer_trl, made when it is missing")
    parser.add_argument("--output_dir", type=Path, default=ROOT / "runs" / "speed")
    return parser.parse_args(argv)


def checked(args: argparse.Namespace) -> tuple[Path, Path]:
    """Model and problems.

    Raises:
        UserError: one of them is missing, or a subject or number does not fit.
    """
    for subject in args.subjects:
        if subject not in SUBJECTS:
            raise UserError(f"{subject!r} is no subject; known: {', '.join(SUBJECTS)}")
    if not (args.model / "model.safetensors").is_file():
        raise UserError(f"{args.model}: no model.safetensors; make the model with: bash scripts/build_smollm2.sh")
    if not args.gsm8k.is_file():
        raise UserError(f"{args.gsm8k}: no such file; give GSM8K's train.jsonl with --gsm8k")
    for name, least in (("rounds", 1), ("warm_up", 0), ("iterations", 1), ("steps", 1), ("threads", 1)):
        if getattr(args, name) < least:
            raise UserError(f"--{name} is {getattr(args, name)}; it must be at least {least}")
    cores = len(os.sched_getaffinity(0))
    if args.threads > cores:
        raise UserError(f"--threads is {args.threads}, but this process may use {cores} cores only")
    return args.model.resolve(), args.gsm8k.resolve()


def results_of(args: argparse.Namespace) -> dict[str, Any]:
    """Everything but the rounds."""
    settings = {
        "model": "SmolLM2-135M, fp32",
        "threads": args.threads,
        "tokens": f"{PROMPT} of a prompt, {COMPLETION} of a completion",
        "completions": f"{PROMPTS} prompts × {GROUP}",
        "rollout_spread": f"{SPREAD_PROMPTS} GSM8K prompts of at most {SPREAD_LONGEST} tokens, batches of 16",
        "rounds": args.rounds,
        "iterations": f"{args.iterations} after {args.warm_up}",
        "grpo steps": f"{args.steps} after {STEP_WARM_UP}",
        "reward": f"batches of {COMPLETIONS}, each another one",
    }
    return {
        "date": datetime.now(timezone.utc).date().isoformat(),
        "hardware": hardware(args.threads),
        "settings": settings,
        "rounds": [],
    }


if __name__ == "__main__":
    run_command(main)
