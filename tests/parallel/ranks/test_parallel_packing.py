"""Packed rows on four ranks give what they give in one process."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from helpers.layout_cases import Case
from helpers.msrun import run_workers
from mindspore.ops import Primitive
from packing_cases import CASES, compute, small

from r1parallel.models.fused.operators import choose_operators
from r1parallel.models.fused.packing import packed
from r1parallel.models.logps import PackedLogps
from r1parallel.models.qwen2_5 import Qwen2ForCausalLM
from r1parallel.parallel.launch.world import World
from r1parallel.parallel.layout.operators import UNSPLIT, strategies

WORKER = Path(__file__).with_name("packing_worker.py")
REPOSITORY = Path(__file__).parents[3]
WORLD_SIZE, LIMIT_S = 4, 600


@pytest.mark.parametrize("compute_dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("split_vocab", [False, True])
def test_every_operator_of_packed_rows_has_a_strategy(compute_dtype, split_vocab):
    config = replace(small(), hidden_size=64)
    model = Qwen2ForCausalLM(config, 8, operators=packed(choose_operators(compute_dtype, trained=True)))
    cells = [cell for _, cell in PackedLogps(model, 2, 8, 4, split_vocab, 0.5, True).cells_and_names()]
    found = {
        (type(cell).__name__, name): value.name
        for cell in cells
        for name, value in (vars(cell) | vars(cell)["_primitives"]).items()
        if isinstance(value, Primitive)
    }
    given = {(type(cell).__name__, name) for cell in cells for name in strategies(cell)}
    assert {kind for kind, _ in given} >= {"PackedLogps", "PackedRows"}
    assert {key for key, kind in found.items() if kind not in UNSPLIT} - given == set()
    assert given - set(found) == set()


@pytest.mark.usefixtures("mindspore_cpu")
def test_packed_rows_do_not_depend_on_the_layout(tmp_path):
    done = run_workers(WORKER, [str(tmp_path), *CASES], WORLD_SIZE, tmp_path / "job", LIMIT_S)
    assert done.returncode == 0, done.output[-2000:] + "".join(done.log(r)[-500:] for r in range(WORLD_SIZE))
    expected = compute(Case("one"), World())
    assert np.abs(expected["values"]).max() > 1
    worst = {}
    for case in CASES.values():
        layout = case.layout(small())
        for rank in range(WORLD_SIZE):
            with np.load(tmp_path / f"{case.name}-{rank}.npz") as found:
                said = {"values", "shares"} if case.pp > 1 else {"shares"}
                assert set(found) - said == set(layout.stages[rank // layout.stage_size])
                for name, value in found.items():
                    wanted = expected[name] if name in said else expected[name][layout.slices(name, rank)]
                    assert np.abs(wanted).max() > 0, name
                    error = np.abs(value - wanted).max() / max(1.0, np.abs(expected[name]).max())
                    worst[case.name] = max(worst.get(case.name, (0.0, "")), (float(error), name))
    print(worst)
    assert all(error < 1e-5 for error, _ in worst.values()), worst
