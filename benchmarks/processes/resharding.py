"""New weights for the generator under another layout: python -m benchmarks.processes.resharding

A model of 42 million parameters (168 MB in fp32) goes from the actor's layout to the generator's, on 2 and 4 processes
under msrun. Every round starts fresh processes. There is no peer; bytes are counted in the transport and compared with
the least that any transport must bring: what a rank needs and does not hold. Writes results.json and results.md into
--output_dir, anew after each round.
"""

from collections.abc import Sequence
from math import prod
from statistics import median
from typing import Any

from benchmarks.common.machine import said
from benchmarks.common.msrun_rounds import Ranks, over_ranks, parsed_rounds, round_parser, run_ranks, run_rounds
from benchmarks.speed.table import within
from r1parallel.config.model import ModelConfig
from r1parallel.errors import run_command

SIZES = {
    "vocab_size": 32768,
    "hidden_size": 512,
    "intermediate_size": 1536,
    "num_layers": 8,
    "num_heads": 8,
    "num_kv_heads": 4,
    "tie_word_embeddings": True,
}
TINY = SIZES | {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_layers": 2}
CASES: dict[int, dict[str, dict[str, Any]]] = {  # processes → name → layouts
    2: {
        "dp2 → tp2": {"actor": {"dp": 2}, "opt_shard": False, "generator": {"tp": 2}},
        "tp2 → dp2": {"actor": {"tp": 2}, "opt_shard": False, "generator": {"dp": 2}},
        "dp2, split optimizer → dp2": {"actor": {"dp": 2}, "opt_shard": True, "generator": {"dp": 2}},
    },
    4: {
        "dp2·tp2 → dp4": {"actor": {"dp": 2, "tp": 2}, "opt_shard": False, "generator": {"dp": 4}},
        "tp2·pp2 → dp2·tp2": {"actor": {"tp": 2, "pp": 2}, "opt_shard": False, "generator": {"dp": 2, "tp": 2}},
        "dp2·pp2, split optimizer → tp4": {
            "actor": {"dp": 2, "pp": 2},
            "opt_shard": True,
            "generator": {"tp": 4},
        },
    },
}
HEADER = "| | processes | seconds | and to check it | MB received | least | MB of one rank | least | GB/s |"


def main(argv: Sequence[str]) -> None:
    args = parsed_rounds(round_parser("resharding", __doc__.splitlines()[0], "one"), argv)
    work, sizes = args.output_dir.resolve() / "work", TINY if args.tiny else SIZES

    def one_round(number: str) -> dict[str, Ranks]:
        found: dict[str, Ranks] = {}
        for workers, cases in CASES.items():
            print(f"{number}, {workers} processes", flush=True)
            job = {"sizes": sizes, "cases": cases, "warm_up": 1, "iterations": args.iterations}
            ranks = run_ranks("resharding_worker", job, workers, work / str(workers))
            found |= {name: [rank[name] for rank in ranks] for name in cases}
        return found

    count = 4 * sum(map(prod, ModelConfig(**sizes).parameter_shapes().values()))
    run_rounds(args, {"bytes": count}, one_round, table)


def table(results: dict[str, Any]) -> str:
    """A row for each case. An iteration takes as long as its slowest rank; medians of a round, then over rounds."""
    rounds = results["rounds"]
    lines = [HEADER, "|" + "---|" * (HEADER.count("|") - 1)]
    lines += [f"| {name} | {' | '.join(cells([one[name] for one in rounds]))} |" for name in rounds[0]]
    kinds = sorted({rank["transport"] for one in rounds for ranks in one.values() for rank in ranks})
    about = [
        f"The model has {results['bytes'] / 1e6:.1f} MB. Transport: {', '.join(kinds)}. One thread a process.",
        f"{len(rounds)} rounds of {results['iterations']} iterations after one: median, lowest and highest round.",
    ]
    return "\n".join([*lines, "", *about, "", said(results)]) + "\n"


def cells(rounds: Sequence[Ranks]) -> list[str]:
    """Of one case; each round has a dictionary of every rank."""
    seconds, checks = ([over_ranks(ranks, key, max) for ranks in rounds] for key in ("seconds", "verified"))
    ranks = rounds[0]
    received, least = ([rank[key] for rank in ranks] for key in ("received", "least"))
    megabytes = [f"{total / 1e6:.3f}" for total in (sum(received), sum(least), max(received), max(least))]
    speed = f"{sum(received) / median(seconds) / 1e9:.2f}"
    return [str(len(ranks)), within(seconds, 3), within(checks, 3), *megabytes, speed]


if __name__ == "__main__":
    run_command(main)
