"""At the first update of a fresh run the ratio is exactly 1 and the KL exactly 0, under every preset and layout."""

import json
import os
from pathlib import Path

import pytest
from first_update_cases import FOUR_RANKS, ONE_RANK, OTHERS, Case, Runs, faults
from helpers.msrun import run_workers

from r1parallel.config.presets import PRESETS
from r1parallel.parallel.launch.world import World

WORKER = Path(__file__).with_name("first_update_worker.py")
REPOSITORY = Path(__file__).parents[3]
WORLD_SIZE, LIMIT_S = 4, 600


@pytest.fixture(scope="module")
def alone(mindspore_cpu) -> dict[str, dict[str, float]]:
    """Metrics of the first step on one rank."""
    runs = Runs(World())
    return {case.name: runs.metrics(case) for case in ONE_RANK}


@pytest.mark.parametrize("case", ONE_RANK, ids=lambda case: case.name)
def test_on_one_rank(alone, case):
    assert faults(alone[case.name]) == {}


@pytest.mark.slow
@pytest.mark.parametrize("cases", [FOUR_RANKS, OTHERS] if os.environ.get("R1_ALL_RANKS") else [FOUR_RANKS], ids=len)
def test_on_four_ranks(alone, cases, tmp_path):
    names = [case.name for case in cases]
    done = run_workers(WORKER, [str(tmp_path), *names], WORLD_SIZE, tmp_path / "job", LIMIT_S)
    assert done.returncode == 0, done.output[-2000:] + "".join(done.log(r)[-800:] for r in range(WORLD_SIZE))
    metrics = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(WORLD_SIZE)]
    assert all(other == metrics[0] for other in metrics[1:])
    assert list(metrics[0]) == names
    wrong = {name: faults(values) for name, values in metrics[0].items()}
    assert not {name: found for name, found in wrong.items() if found}
    for case in (case for case in cases if case.layout == "dp2-tp2"):  # of as many layers as one rank has
        ours, theirs = metrics[0][case.name], alone[Case(case.preset, case.packing, "one").name]
        assert ours["first_loss"] == pytest.approx(theirs["first_loss"], rel=1e-6, abs=1e-6), case.name
        assert ours["first_norm"] == pytest.approx(theirs["first_norm"], rel=1e-5), case.name


def test_no_preset_is_forgotten():
    every = {(preset, packing) for preset in PRESETS for packing in (False, True)}
    assert {(case.preset, case.packing) for case in ONE_RANK} == every
    assert {(case.preset, case.packing) for case in (*FOUR_RANKS, *OTHERS)} == every
