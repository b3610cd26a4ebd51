import pytest

from benchmarks.learning import table as module


@pytest.mark.parametrize(
    ("accuracies", "expected"),
    [
        ({"10": 0.5, "20": 0.8, "30": 0.7, "40": 0.9}, 20),  # the first, not the last
        ({"10": 0.6, "20": 0.6 + 0.1 + 0.1}, 20),  # equal, but for rounding
        ({"10": 0.79}, None),
    ],
)
def test_steps_to_a_target(accuracies, expected):
    assert module.steps_to(accuracies, 0.8) == expected


def test_the_table():
    runs = [
        {"seed": 0, "name": "a", "accuracies": {"10": 0.7, "20": 0.9}, "seconds": 10.0, "completions": 100},
        {"seed": 1, "name": "a", "accuracies": {"10": 0.6, "20": 0.6}, "seconds": 20.0, "completions": 300},
        {"seed": 0, "name": "b", "accuracies": {"10": 0.9, "20": 0.8}, "seconds": 5.0, "completions": 100},
    ]
    starts = [{"seed": 0, "accuracies": {"0": 0.6}}, {"seed": 1, "accuracies": {"0": 0.5}}]
    own = {"a": {"flags": {"section.key": 3}, "reason": "two are too few"}}
    results = {"settings": {"gain": 0.2}, "own": own, "starts": starts, "runs": runs}
    lines = module.table(results).splitlines()
    assert "a: `section.key: 3`, two are too few." in lines
    assert "| SFT, the start | 55.0% | 60.0, 50.0 | | | |" in lines
    assert "| a | 75.0% | 90.0, 60.0 | 20, – | 200 | 15 |" in lines
    assert "| b | 80.0% | 80.0, failed | 10, failed | 100 | 5 |" in lines
    assert lines[-4:] == [
        "| accuracy (%) after step | 0 | 10 | 20 |",
        "|---|---|---|---|",
        "| a | 55.0 | 65.0 | 75.0 |",
        "| b | 60.0 | 90.0 | 80.0 |",
    ]
