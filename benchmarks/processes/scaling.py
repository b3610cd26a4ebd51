"""A training step on 1, 2, 4 and 8 data parallel processes: python -m benchmarks.processes.scaling

A model of 12.9 million parameters learns from 16 rows of 128 tokens an update, whatever the number of processes; each
has one thread on one core. More processes than cores cannot be faster, so the ideal time is that of one process,
divided by the cores that are used. Memory and bytes need no core for each process. With a split optimizer the weights,
their gradients and the optimizer's state are shared out too. Every round starts fresh processes under msrun. Writes
results.json and results.md into --output_dir, anew after each round.
"""

import argparse
from collections.abc import Sequence
from math import prod
from statistics import median
from typing import Any

from benchmarks.common.machine import said
from benchmarks.common.msrun_rounds import Ranks, over_ranks, parsed_rounds, round_parser, run_ranks, run_rounds
from benchmarks.speed.table import within
from r1parallel.config.model import ModelConfig
from r1parallel.errors import UserError, run_command

PROCESSES = (1, 2, 4, 8)
ROWS, TOKENS = 16, 128  # of an update; of a row
SIZES = {
    "vocab_size": 8192,
    "hidden_size": 384,
    "intermediate_size": 1024,
    "num_layers": 6,
    "num_heads": 8,
    "num_kv_heads": 4,
    "tie_word_embeddings": True,
}
TINY = SIZES | {"vocab_size": 64, "hidden_size": 64, "intermediate_size": 96, "num_layers": 2}
STATE = 16  # bytes for each parameter that a rank holds: weight, sum of gradients, two moments, in fp32
HEADER = (
    "| | s a step | ideal | processor s, all ranks | × one process | peak MB of a rank | ideal "
    "| MB received by a rank | formula | MB of answers |"
)


def main(argv: Sequence[str]) -> None:
    args = parsed(argv)
    work, sizes = args.output_dir.resolve() / "work", TINY if args.tiny else SIZES
    job = {"sizes": sizes, "rows": ROWS, "tokens": TOKENS, "warm_up": 2, "iterations": args.iterations}

    def one_round(number: str) -> dict[str, Ranks]:
        found: dict[str, Ranks] = {}
        for workers in args.processes:
            for split in (False, True)[: min(workers, 2)]:
                name = f"dp{workers}, split optimizer" if split else f"dp{workers}"
                print(f"{number}, {name}", flush=True)
                folder = work / f"{workers}{'_split' if split else ''}"
                found[name] = run_ranks("scaling_worker", job | {"opt_shard": split}, workers, folder)
        return found

    elements = [prod(shape) for shape in ModelConfig(**sizes).parameter_shapes().values()]
    run_rounds(args, {"elements": elements}, one_round, table)


def parsed(argv: Sequence[str]) -> argparse.Namespace:
    parser = round_parser("scaling", __doc__.splitlines()[0], "two")
    parser.add_argument("--processes", type=int, nargs="+", default=PROCESSES, help="1 first (default 1 2 4 8)")
    args = parsed_rounds(parser, argv)
    if args.processes[0] != 1 or any(number < 1 or ROWS % number for number in args.processes):
        raise UserError(f"--processes is {args.processes}; it must begin with 1, and each must divide {ROWS} rows")
    return args


def gradient_bytes(elements: Sequence[int], ranks: int, rank: int) -> int:
    """What a rank receives to have every gradient summed: 2·(n − 1)/n of their bytes, exactly.

    First the others' values of its own share of each tensor, then the shares that the others have summed. With a split
    optimizer the second half is the weights before the forward pass.
    """
    total = 0
    for count in elements:
        own = count * (rank + 1) // ranks - count * rank // ranks
        total += (ranks - 1) * own + count - own
    return 4 * total


def ideal_memory(alone: dict[str, Any], one: dict[str, Any], ranks: int) -> float:
    """Bytes: those of a process without a model, the state that the rank holds, and its rows' part of all the rest."""
    rest = alone["peak"] - alone["empty"] - STATE * alone["held"]
    return one["empty"] + STATE * one["held"] + rest / ranks


def table(results: dict[str, Any]) -> str:
    """A row for each number of processes; each round is compared with its own single process."""
    rounds, cores = results["rounds"], results["hardware"]["cores"]
    lines = [HEADER, "|" + "---|" * (HEADER.count("|") - 1)]
    for name in rounds[0]:
        jobs, alone = [one[name] for one in rounds], [one["dp1"] for one in rounds]
        lines.append(f"| {name} | {' | '.join(cells(jobs, alone, cores, results['elements']))} |")
    millions = sum(results["elements"]) / 1e6
    about = [
        f"{millions:.2f} million parameters, {4 * millions:.1f} MB; {ROWS} rows × {TOKENS} tokens a step.",
        "Received: messages of a step as the kernel counts them, of the rank with the most: gradients (formula), "
        "headers, what each row's loss is and the gradient's norm. MCCL sends every message back: the answers.",
        f"{len(rounds)} rounds of {results['iterations']} steps after two: median, lowest and highest round.",
    ]
    return "\n".join([*lines, "", *about, "", said(results)]) + "\n"


def cells(jobs: Sequence[Ranks], alone: Sequence[Ranks], cores: int, elements: Sequence[int]) -> list[str]:
    """Of one number of processes, over the rounds."""
    ranks = len(jobs[0])
    ideal = [over_ranks(one, "seconds", max) / min(ranks, cores) for one in alone]
    work = [over_ranks(job, "processor", sum) for job in jobs]
    more = [mine / over_ranks(one, "processor", sum) for mine, one in zip(work, alone, strict=True)]
    peak = max(rank["peak"] for job in jobs for rank in job)
    least = max(ideal_memory(one[0], rank, ranks) for job, one in zip(jobs, alone, strict=True) for rank in job)
    traffic = [max(median(rank[key]) for job in jobs for rank in job) for key in ("messages", "answers")]
    formula = max(gradient_bytes(elements, ranks, rank) for rank in range(ranks))
    return [
        within([over_ranks(job, "seconds", max) for job in jobs], 3),
        f"{median(ideal):.3f}",
        within(work, 3),
        within(more, 2),
        f"{peak / 1e6:.0f}",
        f"{least / 1e6:.0f}",
        *(f"{count / 1e6:.3f}" for count in (traffic[0], formula, traffic[1])),
    ]


if __name__ == "__main__":
    run_command(main)
