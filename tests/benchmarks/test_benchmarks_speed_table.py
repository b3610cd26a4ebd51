import pytest

from benchmarks.speed import table as module


def found(*iterations: dict, first: float | None = 3.0, peak: float = 1e9, **versions: str) -> dict:
    return {
        "warm_up": [],
        "iterations": list(iterations),
        "first": first,
        "peak_bytes": peak,
        "versions": versions or {"tool": "1.0"},
    }


def drawn(seconds: float, tokens: int, mean: float = 8, longest: int = 8) -> dict:
    return {"seconds": seconds, "tokens": tokens, "mean_length": mean, "longest": longest}


def updated(loss: float, norm: float) -> dict:
    return {"seconds": 1.0, "tokens": 10, "loss": loss, "norm": norm}


def table(*rounds: dict) -> list[str]:
    results = {
        "date": "2001-02-03",
        "hardware": {"processor": "A processor", "cpus": 4, "cores": 2, "memory_bytes": 8e9},
        "settings": {"threads": 2, "rounds": len(rounds)},
        "rounds": list(rounds),
    }
    return module.table(results).splitlines()


@pytest.mark.parametrize(
    ("ours", "peer", "expected"),
    [
        ([{"seconds": 2.0}], [{"seconds": 3.0}], 1.5),  # nothing is counted but time
        ([{"seconds": 2.0, "tokens": 10}], [{"seconds": 3.0, "tokens": 10}], 1.5),
        ([{"seconds": 2.0, "tokens": 10}], [{"seconds": 2.0, "tokens": 40}], 0.25),  # the peer drew more in that time
        ([{"seconds": s} for s in (1.0, 2.0, 90.0)], [{"seconds": 3.0}], 1.5),  # the median of a process
    ],
)
def test_how_many_times_as_fast(ours, peer, expected):
    assert module.ratio({"ours": found(*ours), "peer": found(*peer)}) == pytest.approx(expected)


def test_ratios_are_taken_within_each_round():
    rounds = [
        {"rollout": {"ours": found(drawn(s, 80)), "peer": found(drawn(2 * s, 80), first=None, peak=2.5e9)}}
        for s in (4.0, 1.0, 2.0)  # a machine that is slow at times
    ]
    line = table(*rounds)[2]
    seconds, rates = ("2.00 (1.00–4.00)", "4.00 (2.00–8.00)"), ("40.0 (20.0–80.0) tokens", "20.0 (10.0–40.0) tokens")
    assert (
        line == f"| rollout | {' | '.join((*seconds, *rates))} | 2.00 (2.00–2.00) | 3.0 (3.0–3.0) | – | 1.00 | 2.50 |"
    )


def test_every_line_has_the_columns_of_the_header():
    lines = table({"startup": {"ours": found({"seconds": 3.0}), "peer": found({"seconds": 4.5})}})
    assert {line.count("|") for line in lines[:3]} == {lines[0].count("|")}
    assert lines[2].startswith("| startup | 3.00 (3.00–3.00) | 4.50 (4.50–4.50) | – | – | 1.50 (1.50–1.50) |")


def test_what_is_said_below():
    done = {
        "rollout_spread": {
            "ours": found(drawn(1.0, 80, mean=5.5), mindspore="2"),
            "peer": found(drawn(1.0, 80, mean=6.5, longest=7), torch="3"),
        },
        "training": {"ours": found(updated(0.25, 1.0)), "peer": found(updated(0.25001, 2.0))},
        "grpo": {"ours": found({"seconds": 1.0, "tokens": 5, "phases": {"step": 1.0}}), "peer": found(drawn(1.0, 5))},
    }
    lines = table(done)
    assert "- rollout_spread: tokens of a completion, mean and longest: ours 5.5 and 8, peer 6.5 and 7." in lines
    assert "- training: the first update differs by at most 1e-05 in the loss, 5e-01 of the gradient norm." in lines
    assert "- grpo: seconds of our phases: step 1.00." in lines
    assert (
        "2001-02-03, A processor, 2 cores used of 4, 8 GB of memory. ours: mindspore 2, tool 1.0; peer: torch 3, "
        in ("\n".join(lines))
    )
    assert lines[-1] == "threads: 2. rounds: 1."


def test_lengths_that_do_not_differ_are_not_mentioned():
    lines = table({"rollout": {side: found(drawn(1.0, 80)) for side in ("ours", "peer")}})
    assert not [line for line in lines if line.startswith("- ")]


def test_what_is_counted_stands_behind_the_rate():
    lines = table({"reward": {side: found({"seconds": 2.0, "completions": 10}) for side in ("ours", "peer")}})
    assert "| 5.0 (5.0–5.0) completions | 5.0 (5.0–5.0) completions | 1.00 (1.00–1.00) |" in lines[2]


def test_compilation_has_no_peer_but_a_ratio():
    cases = {10: [2.0, 3.0, 2.0], 30: [3.0, 6.0, 5.0]}

    def compiled(layers: int, number: int) -> dict:
        iteration = {"seconds": cases[layers][number], "processor_seconds": float(layers)}
        return {f"compile_{layers}_layers": {"ours": found(iteration)}}

    rounds = [compiled(10, number) | compiled(30, number) for number in range(3)]
    lines = table(*rounds)
    assert lines[2].startswith(
        "| compile_10_layers | 2.00 (2.00–3.00) | – | – | – | – | 3.0 (3.0–3.0) | – | 1.00 | – |"
    )
    ratio = "30 layers take 2.00 (1.50–2.50) times as long as 10; of processor time 3.00 (3.00–3.00)."
    assert f"- compile: {ratio}" in lines
    assert "peer: none." in "\n".join(lines)
    assert not [line for line in table(compiled(10, 0)) if "times as long" in line]
