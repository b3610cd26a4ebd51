from types import SimpleNamespace

import numpy as np

from benchmarks.processes import resharding, resharding_worker
from r1parallel.parallel.moving.reshard import exchanged, reshard_plan


def test_the_least_by_hand():
    worker, sizes = resharding_worker, resharding.TINY
    case = {"actor": {"tp": 2}, "opt_shard": False, "generator": {"dp": 2}}
    source, target = worker.layouts(case, sizes)
    halves = [p for p in source.parameters.values() if p.split_dim is not None]
    half = sum(int(np.prod(p.shape)) for p in halves) // 2
    assert [worker.least_bytes(source, target, rank) for rank in (0, 1)] == [4 * half] * 2
    assert worker.least_bytes(target, source, 0) == 0  # who has everything needs nothing
    assert worker.least_bytes(source, source, 1) == 0


def test_our_plan_brings_no_more_than_the_least():
    """On every rank of every case of the benchmark; and stages bring more than halves do."""
    worker, benchmark = resharding_worker, resharding
    for ranks, cases in benchmark.CASES.items():
        for case in cases.values():
            source, target = worker.layouts(case, benchmark.TINY)
            received = [0] * ranks
            for pieces in reshard_plan(source, target, ranks).rounds:
                for (_, receiver), count in exchanged(pieces).items():
                    received[receiver] += 4 * count
            assert received == [worker.least_bytes(source, target, rank) for rank in range(ranks)]
    assert sum(received) > 0


def test_bytes_are_counted():
    inner = SimpleNamespace(exchange=lambda counts, outgoing: {2: np.zeros(5, np.float32)})
    counting = resharding_worker.Counting(inner)
    for _ in range(2):
        arrived = counting.exchange({}, {1: np.zeros(3, np.float32), 2: np.zeros(1, np.float32)})
    assert list(arrived) == [2]
    assert (counting.sent, counting.received) == (2 * 16, 2 * 20)


def rank(seconds: list[float], received: int, least: int) -> dict:
    verified = [0.5] * len(seconds)
    return {"transport": "T", "seconds": seconds, "verified": verified, "received": received, "least": least}


def test_the_table():
    fast = [rank([1.0, 2.0, 3.0], 4_000_000, 3_000_000), rank([2.0, 1.0, 1.0], 2_000_000, 2_000_000)]
    slow = [rank([4.0], 4_000_000, 3_000_000), rank([5.0], 2_000_000, 2_000_000)]
    results = {
        "date": "2001-02-03",
        "hardware": {"processor": "A processor", "cpus": 4, "cores": 2, "memory_bytes": 8e9},
        "versions": {"mindspore": "2"},
        "bytes": 7_000_000,
        "iterations": 3,
        "rounds": [{"a → b": fast}, {"a → b": slow}, {"a → b": fast}],
    }
    lines = resharding.table(results).splitlines()
    numbers = ("2", "2.000 (2.000–5.000)", "0.500 (0.500–0.500)", "6.000", "5.000", "4.000", "3.000", "0.00")
    assert lines[2] == f"| a → b | {' | '.join(numbers)} |"
    assert {line.count("|") for line in lines[:3]} == {lines[0].count("|")}
    assert lines[-1] == "2001-02-03, A processor, 2 cores used of 4, 8 GB of memory; mindspore 2."
