from math import prod

import pytest

from benchmarks.phases import __main__ as phase_profile
from benchmarks.phases import floor
from benchmarks.phases import operators as phase_operators
from r1parallel.config.model import ModelConfig

CONFIG = ModelConfig(10, 8, 12, 3, 4, 2, tie_word_embeddings=True)
LAYER = 2 * 8 * 8 + 2 * 8 * 4 + 3 * 8 * 12  # elements of its matrices
HEAD = 8 * 10


def products(found) -> int:
    return sum(product.flops * count for product, count in found.products.items())


def test_the_weights_are_the_matrices_of_the_model():
    shapes = CONFIG.parameter_shapes()
    assert floor.weights(CONFIG) == sum(prod(shape) for shape in shapes.values() if len(shape) == 2)
    assert floor.weights(CONFIG) == 3 * LAYER + HEAD


@pytest.mark.parametrize(("prompt", "completion", "group"), [(3, 2, 1), (3, 2, 2), (1, 1, 1)])
def test_pairs_of_a_packed_row(prompt, completion, group):
    step = floor.Step(1, group, prompt, completion)
    expected = sum(place + 1 for place in range(prompt))
    expected += sum(prompt + place + 1 for _ in range(group) for place in range(completion))
    assert step.row_keys == expected
    assert step.row_tokens == prompt + group * completion


def test_forward_of_packed_rows():
    step = floor.Step(2, 2, 3, 4)  # a row of 11 tokens, 8 of them targets
    for rows, launches in ((1, 2), (2, 1)):
        found = floor.reference(CONFIG, step, rows)
        assert products(found) == 2 * 2 * (11 * 3 * LAYER + 8 * HEAD)
        assert found.attention_flops == 2 * 4 * 8 * 3 * step.row_keys
        assert found.weight_bytes == 4 * launches * (3 * LAYER + HEAD)
        assert found.flops == products(found) + found.attention_flops


def test_training_is_three_times_the_forward_pass():
    step = floor.Step(2, 2, 3, 4)
    forward, found = floor.reference(CONFIG, step, 1), floor.training(CONFIG, step, 1)
    assert found.flops == 3 * forward.flops
    numbers = sum(map(prod, CONFIG.parameter_shapes().values()))
    assert found.weight_bytes == 2 * forward.weight_bytes + 4 * numbers * (2 * 2 + 9)


def test_rollout():
    step = floor.Step(2, 3, 4, 5)  # three tokens of each prompt fill the cache
    found = floor.rollout(CONFIG, step)
    filled = 2 * 6 * (2 * LAYER + 2 * 8 * 4)  # of the last layer, keys and values only
    assert products(found) == filled + 5 * 2 * 6 * (3 * LAYER + HEAD)
    keys = 6 * sum(3 + drawn for drawn in range(1, 6))
    assert found.attention_flops == 4 * 8 * (3 * keys + 2 * 2 * (1 + 2 + 3))
    assert found.weight_bytes == 4 * (5 * (3 * LAYER + HEAD) + 3 * LAYER)
    assert found.cache_bytes == 4 * keys * 3 * 2 * 4
    assert {product.form for product in found.products} == {"forward", "few_rows"}


def test_the_profilers_table():
    """As MindSpore 2.9 writes it."""
    text = """op_type,type_occurrences,execution_frequency(per-step),total_compute_time,avg_time(ms),percent
ReduceSum,64,1,10.6263,0.166036,0.00249466
MatMul,13709,214,3081.16,0.224754,0.72334
"""
    columns = phase_operators.operators(text)
    assert columns == {"ReduceSum": (64, pytest.approx(0.0106263)), "MatMul": (13709, pytest.approx(3.08116))}


def test_a_row_of_the_table():
    benchmark, product = phase_profile, floor.Product
    slow, fast = product("forward", 2, 500, 500_000), product("few_rows", 1, 500, 1_000_000)  # one GFLOP each
    found = {"seconds": [4.0, 6.0, 5.0], "profiled": 10.0, "operators": {"A": (3, 2.0), "B": (1, 6.0)}}
    least = floor.Floor({slow: 2, fast: 1}, 4 * 10**9, 3 * 10**9, 10**9)
    rates = {slow: 1e9, fast: 4e9}
    cells = benchmark.cells(found, least, rates, 2e9)
    assert cells == ["5.00 (4.00–6.00)", "7", "3.25", "4.0", "2.00", "1.75", "1.54", "10.00", "2.00 s (20%)"]
    assert benchmark.operators_said(found) == "B 60.0% (1), A 20.0% (3)"


def test_the_table():
    benchmark = phase_profile
    product = benchmark.Product("forward", 2, 500, 500_000)
    results = {
        "date": "2001-02-03",
        "hardware": {"processor": "A processor", "cpus": 4, "cores": 2, "memory_bytes": 8e9},
        "versions": {"mindspore": "2"},
        "products": [["forward", 2, 500, 500_000]],
        "rates": {"rates": [2e9], "bandwidth": 5e9},
        "phases": {"rollout": {"seconds": [1.0], "profiled": 1.0, "operators": {"A": (3, 0.5)}}},
    }
    lines = benchmark.table(results, {"rollout": benchmark.Floor({product: 1}, 0, 10**9)}).splitlines()
    assert {line.count("|") for line in lines[:3]} == {lines[0].count("|")}
    assert "- rollout: A 50.0% (3)." in lines
    assert "GFLOP/s of our MatMul at these shapes: forward 2 to 2. Memory: 5.0 GB/s." in lines
    assert lines[-1] == "2001-02-03, A processor, 2 cores used of 4, 8 GB of memory; mindspore 2."
