"""Every layout trains as one process does: losses and every merged parameter, after three updates.

With plain operators, which every device has, and with the fused ones, which runs on the CPU use.
"""

from functools import cache
from itertools import product
from pathlib import Path

import numpy as np
import pytest
from helpers.layout_cases import CASES, OPERATORS, OPTIMIZERS, Case, make_step, model_config, start_values, train
from helpers.msrun import run_workers

from r1parallel.models.parameters import load_parameters, parameter_values
from r1parallel.parallel.launch.world import World

WORKER = Path(__file__).with_name("layout_worker.py")
LIMIT_S = 1500
PROGRAMS = list(product((False, True), OPERATORS, OPTIMIZERS))  # tied, operators, optimizer


@cache
def one_process(layers: int, tied: bool, operators: str, kind: str) -> tuple[list[float], dict[str, np.ndarray]]:
    """Losses and final parameters of the program that knows of no ranks."""
    model, _, step = make_step(Case("one", layers=layers), tied, OPERATORS[operators], World())
    load_parameters(model, start_values(model_config(tied, layers)), "start values")
    return train(step, kind), parameter_values(model)


@pytest.fixture(scope="module", params=[2, 4, 8])
def job(request, tmp_path_factory) -> tuple[list[Case], Path]:
    """The cases of one number of ranks, all trained in one launch, and the folder of the results."""
    cases = [case for case in CASES.values() if case.world_size == request.param]
    folder = tmp_path_factory.mktemp(f"ranks{request.param}")
    done = run_workers(WORKER, [str(folder), *(case.name for case in cases)], request.param, folder / "job", LIMIT_S)
    assert done.returncode == 0, done.output[-2000:] + "".join(done.log(r)[-500:] for r in range(request.param))
    return cases, folder


def merged(case: Case, program: str, tied: bool, folder: Path) -> tuple[list[float], dict[str, np.ndarray]]:
    """Losses of rank 0, and full parameters put together from the slices of all ranks.

    `program` is TIED-OPERATORS-OPTIMIZER, as the files are named.
    """
    config = model_config(tied, case.layers)
    layout = case.layout(config)
    full = {name: np.full(shape, np.nan, np.float32) for name, shape in config.parameter_shapes().items()}
    for rank in range(case.world_size):
        with np.load(folder / f"{case.name}-{program}-{rank}.npz") as saved:
            losses = saved["losses"]
            assert set(saved) - {"losses"} == set(layout.stages[rank // layout.stage_size])
            for name in set(saved) - {"losses"}:
                part = full[name][layout.slices(name, rank)]
                assert part.shape == saved[name].shape, (rank, name)
                assert np.isnan(part).all() or np.array_equal(part, saved[name]), f"rank {rank} differs in {name}"
                part[...] = saved[name]
    return losses.tolist(), full


@pytest.mark.usefixtures("fused_kernels")
def test_training_equals_one_process(job):
    cases, folder = job
    worst = {}
    for case, (tied, operators, kind) in product(cases, PROGRAMS):
        losses, values = merged(case, f"{tied}-{operators}-{kind}", tied, folder)
        expected_losses, expected = one_process(case.layers, tied, operators, kind)
        errors = {name: float(np.abs(values[name] - expected[name]).max()) for name in expected}
        errors["loss"] = float(np.abs(np.array(losses) - expected_losses).max())
        name = max(errors, key=lambda name: errors[name] if errors[name] == errors[name] else np.inf)
        described = f"{case.name}, {'tied' if tied else 'untied'}, {operators}, {kind}"
        worst[described] = (errors[name], OPTIMIZERS[kind], name)
    print("\n".join(f"{case}: {error:.1e} in {name}" for case, (error, _, name) in worst.items()))
    assert not {case: found for case, found in worst.items() if not found[0] <= found[1]}


@pytest.mark.usefixtures("fused_kernels")
def test_the_steps_change_every_parameter():
    """By more than the tolerance, else the comparison would say nothing."""
    for layers, (tied, operators, kind) in product((2, 4), PROGRAMS):
        start = start_values(model_config(tied, layers))
        losses, values = one_process(layers, tied, operators, kind)
        assert losses[0] != losses[-1]
        assert min(float(np.abs(values[name] - start[name]).max()) for name in start) > OPTIMIZERS[kind]
