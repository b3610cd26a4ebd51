"""Where the time of a GRPO step goes, and what it could be: python -m benchmarks.phases

Rollout, log-probs of the reference and the optimizer step of SmolLM2-135M, 2 prompts × 8 completions as in speed.py,
packed: each in a fresh process, timed alone and then once under MindSpore's profiler. On the spot our MatMul is
measured at the shapes of these phases, and how fast all cores read memory; both give a floor. Writes results.json and
results.md into --output_dir. docs/profile.md says how to read it. Needs scripts/build_smollm2.sh.
"""

import argparse
import json
import os
import shutil
import signal
import sys
from collections.abc import Mapping, Sequence
from dataclasses import astuple
from datetime import datetime, timezone
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.common.commands import Commands
from benchmarks.common.machine import hardware, said, write
from benchmarks.phases import floor as phase_floor
from benchmarks.phases.floor import Floor, Product, Step
from benchmarks.speed.bench import GRPO_YAML, ROOT, texts
from benchmarks.speed.cases import (
    COMPLETION,
    GROUP,
    PROMPT,
    PROMPTS,
    TRAINING_CASES,
    TRAINING_FLAGS,
    rollout_data,
    training_data,
    write_job,
)
from r1parallel.config.model import ModelConfig, load_model_config
from r1parallel.errors import UserError, run_command

LIMIT = 1800  # seconds, of one process
ROWS = 1  # packed rows of a launch, of training and of the reference
TOP = 6  # operators that are named
HEADER = (
    "| | seconds | GFLOP | floor of arithmetic, s | GB of weights and cache | floor of memory, s | gap, s "
    "| × the higher floor | under the profiler, s | not in operators |"
)


def main(argv: Sequence[str]) -> None:
    args = parsed(argv)
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: args.threads])  # what is started inherits it
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that what runs is ended too
    out, model = args.output_dir.resolve(), args.model.resolve()
    shutil.rmtree(out / "work", ignore_errors=True)
    own = {"OMP_NUM_THREADS": str(args.threads), "PYTHONPATH": str(ROOT), "OPENBLAS_NUM_THREADS": "1"}
    commands = Commands(LIMIT, os.environ | own)
    try:
        floors = floors_of(load_model_config(model))
        products = sorted({product for floor in floors.values() for product in floor.products}, key=astuple)
        results: dict[str, Any] = {
            "date": datetime.now(timezone.utc).date().isoformat(),
            "hardware": hardware(args.threads),
            "products": [astuple(product) for product in products],
            "rates": run(commands, out, "rates", "rates", {"products": products, "threads": args.threads}),
            "phases": {},
        }
        for phase, job in jobs(model).items():
            counts = {"model": model, "warm_up": args.warm_up, "iterations": args.iterations}
            results["phases"][phase] = run(commands, out, phase, "worker", job | counts)
    finally:
        commands.end()
    results["versions"] = results["phases"]["rollout"]["versions"]
    write(out / "results.json", json.dumps(results, indent=1))
    write(out / "results.md", table(results, floors))
    print(table(results, floors))


def parsed(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="benchmarks.phases", description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("--warm_up", type=int, default=2, help="iterations that do not count (default 2)")
    parser.add_argument("--iterations", type=int, default=5, help="that count (default 5)")
    parser.add_argument("--threads", type=int, default=2, help="cores that may be used (default 2)")
    parser.add_argument("--model", type=Path, default=ROOT / ".cache" / "smollm2", help="SmolLM2-135M's folder")
    parser.add_argument("--output_dir", type=Path, default=ROOT / "runs" / "profile")
    args = parser.parse_args(argv)
    if not (args.model / "model.safetensors").is_file():
        raise UserError(f"{args.model}: no model.safetensors; make the model with: bash scripts/build_smollm2.sh")
    for name, least in (("warm_up", 0), ("iterations", 1), ("threads", 1)):
        if getattr(args, name) < least:
            raise UserError(f"--{name} is {getattr(args, name)}; it must be at least {least}")
    return args


def floors_of(config: ModelConfig) -> dict[str, Floor]:
    step = Step(PROMPTS, GROUP, PROMPT, COMPLETION)
    return {
        "rollout": phase_floor.rollout(config, step),
        "reference": phase_floor.reference(config, step, ROWS),
        "training": phase_floor.training(config, step, ROWS),
    }


def jobs(model: Path) -> dict[str, dict[str, Any]]:
    """What each phase's process is given besides model and numbers of iterations."""
    flags = TRAINING_FLAGS | TRAINING_CASES["training_packed"] | {"ref_config.ref_model_batch_size": ROWS}
    packed = training_data(model) | {"config": GRPO_YAML, "flags": texts(flags)}
    drawn = rollout_data("rollout_grouped", model, Path())  # asks for no problems
    return {
        "rollout": drawn | {"kind": "rollout"},
        "reference": packed | {"kind": "reference"},
        "training": packed | {"kind": "training"},
    }


def run(commands: Commands, out: Path, name: str, worker: str, job: Mapping[str, Any]) -> dict[str, Any]:
    """What a fresh process found."""
    print(name, flush=True)
    folder = out / "work" / name
    folder.mkdir(parents=True)
    products = [astuple(product) for product in job.get("products", ())]
    write_job(folder / "job.json", dict(job) | {"products": products, "output": folder / "found.json"})
    words = ("-m", f"benchmarks.phases.{worker}", folder / "job.json")
    commands.run(folder / "log.txt", sys.executable, *words, cwd=folder)
    return json.loads((folder / "found.json").read_text(encoding="utf-8"))


def table(results: Mapping[str, Any], floors: Mapping[str, Floor]) -> str:
    """A row for each phase; then the operators of each, the rates, and what was run."""
    rates = {Product(*words): rate for words, rate in zip(results["products"], results["rates"]["rates"], strict=True)}
    bandwidth = results["rates"]["bandwidth"]
    lines = [HEADER, "|" + "---|" * (HEADER.count("|") - 1)]
    for phase, found in results["phases"].items():
        lines.append(f"| {phase} | {' | '.join(cells(found, floors[phase], rates, bandwidth))} |")
    names = [f"- {phase}: {operators_said(found)}." for phase, found in results["phases"].items()]
    lines += ["", f"The {TOP} operators that take most, in shares of the time under the profiler:", "", *names]
    fastest = {form: of_form(rates, form) for form in phase_floor.FORMS if of_form(rates, form)}
    spoken = "; ".join(f"{form} {min(found):.0f} to {max(found):.0f}" for form, found in fastest.items())
    lines += ["", f"GFLOP/s of our MatMul at these shapes: {spoken}. Memory: {bandwidth / 1e9:.1f} GB/s.", ""]
    return "\n".join([*lines, said(results)]) + "\n"


def cells(found: Mapping[str, Any], floor: Floor, rates: Mapping[Product, float], bandwidth: float) -> list[str]:
    seconds, under = median(found["seconds"]), found["profiled"]
    moved = floor.weight_bytes + floor.cache_bytes
    arithmetic, memory = arithmetic_seconds(floor, rates), moved / bandwidth
    highest, inside = max(arithmetic, memory), sum(taken for _, taken in found["operators"].values())
    return [
        f"{seconds:.2f} ({min(found['seconds']):.2f}–{max(found['seconds']):.2f})",
        f"{floor.flops / 1e9:.0f}",
        f"{arithmetic:.2f}",
        f"{moved / 1e9:.1f}",
        f"{memory:.2f}",
        f"{seconds - highest:.2f}",
        f"{seconds / highest:.2f}",
        f"{under:.2f}",
        f"{under - inside:.2f} s ({(under - inside) / under:.0%})",
    ]


def arithmetic_seconds(floor: Floor, rates: Mapping[Product, float]) -> float:
    """Every product at its own rate, attention at the best of all."""
    products = sum(count * product.flops / rates[product] for product, count in floor.products.items())
    return products + floor.attention_flops / max(rates.values())


def operators_said(found: Mapping[str, Any]) -> str:
    most = sorted(found["operators"].items(), key=lambda item: -item[1][1])[:TOP]
    return ", ".join(f"{name} {taken / found['profiled']:.1%} ({count})" for name, (count, taken) in most)


def of_form(rates: Mapping[Product, float], form: str) -> list[float]:
    """GFLOP/s of the products of one form."""
    return [rate / 1e9 for product, rate in rates.items() if product.form == form]


if __name__ == "__main__":
    run_command(main)
