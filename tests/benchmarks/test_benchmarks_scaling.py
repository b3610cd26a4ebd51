import socket

import pytest

from benchmarks.processes import scaling, socket_bytes
from r1parallel.errors import UserError


@pytest.mark.parametrize("ranks", [1, 2, 3, 4, 8])
def test_gradients_over_a_ring(ranks):
    """Together 2·(n − 1) of all bytes, as evenly as the elements allow."""
    formula, elements = scaling.gradient_bytes, [24, 1, 48, 7]
    received = [formula(elements, ranks, rank) for rank in range(ranks)]
    assert sum(received) == 2 * (ranks - 1) * 4 * sum(elements)
    assert [formula([24], ranks, rank) for rank in range(ranks)] == [
        pytest.approx(2 * (ranks - 1) / ranks * 96)
    ] * ranks


def test_memory_of_two_ranks():
    """Without a model 100; a state of 16 · 10; what is left of 400 is halved, the state only where it is split."""
    ideal, alone = scaling.ideal_memory, {"peak": 400, "empty": 100, "held": 10}
    assert ideal(alone, {"empty": 100, "held": 10}, 2) == 100 + 160 + 70
    assert ideal(alone, {"empty": 110, "held": 5}, 2) == 110 + 80 + 70
    assert ideal(alone, alone, 1) == 400


def rank(seconds: list[float], processor: float, messages: int) -> dict:
    return {
        "seconds": seconds,
        "processor": [processor] * len(seconds),
        "messages": [messages] * len(seconds),
        "answers": [2 * messages] * len(seconds),
        "peak": 400e6,
        "empty": 100e6,
        "held": 1_000_000,
    }


def test_the_table():
    alone = [rank([4.0, 4.0, 9.0], 4.0, 0)]
    two = [rank([2.0, 1.0, 3.0], 2.5, 4_100_000), rank([1.0, 3.0, 2.0], 2.5, 4_200_000)]
    results = {
        "date": "2001-02-03",
        "hardware": {"processor": "A processor", "cpus": 4, "cores": 2, "memory_bytes": 8e9},
        "versions": {"mindspore": "2"},
        "elements": [1_000_000],
        "iterations": 3,
        "rounds": [{"dp1": alone, "dp2": two}, {"dp1": alone, "dp2": two}],
    }
    lines = scaling.table(results).splitlines()
    numbers = ("3.000 (3.000–3.000)", "2.000", "5.000 (5.000–5.000)", "1.25 (1.25–1.25)", "400", "258")
    assert lines[3] == f"| dp2 | {' | '.join((*numbers, '4.200', '4.000', '8.400'))} |"
    assert lines[2].startswith(
        "| dp1 | 4.000 (4.000–4.000) | 4.000 | 4.000 (4.000–4.000) | 1.00 (1.00–1.00) | 400 | 400 |"
    )
    assert {line.count("|") for line in lines[:4]} == {lines[0].count("|")}
    assert lines[-1] == "2001-02-03, A processor, 2 cores used of 4, 8 GB of memory; mindspore 2."


@pytest.mark.parametrize("processes", [["2", "4"], ["1", "3"], ["1", "0"]])
def test_processes_that_do_not_fit(processes):
    with pytest.raises(UserError, match="it must begin with 1, and each must divide 16 rows"):
        scaling.parsed(["--processes", *processes])


def test_bytes_of_messages_and_of_answers():
    """A client sends 1000 bytes, the one that listens answers with 300; both are counted before they are read."""
    count = socket_bytes.received_bytes
    with socket.create_server(("127.0.0.1", 0)) as server, socket.create_connection(server.getsockname()) as client:
        accepted, _ = server.accept()
        with accepted:
            before = count()
            client.sendall(bytes(1000))
            assert len(accepted.recv(1000, socket.MSG_WAITALL)) == 1000
            accepted.sendall(bytes(300))
            assert len(client.recv(300, socket.MSG_WAITALL)) == 300
            assert count().since(before) == (1000, 300)
        assert count().messages <= before.messages + 1000
