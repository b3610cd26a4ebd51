import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from r1parallel.cpu_backend import enable as module
from r1parallel.cpu_backend.build import COLLECTIVES, FUSED
from r1parallel.cpu_backend.enable import enable, enable_fused, has_fused
from r1parallel.cpu_backend.wheel import find_wheel
from r1parallel.errors import UserError

REPOSITORY = Path(__file__).parents[2]
# Rank 3 of a job of 4 that splits a weight of eight rows; without kernels, groups have to be the whole job.
COMPILE_ONLY = """\
import json, sys
import mindspore as ms, numpy as np
from mindspore.communication import get_group_size, get_rank
from mindspore.parallel.auto_parallel import AutoParallel
from r1parallel.cpu_backend.enable import enable
from r1parallel.cpu_backend.wheel import find_wheel
from r1parallel.cpu_backend.selftest_worker import _Product

ms.set_context(mode=ms.GRAPH_MODE)
ms.set_device("CPU")
message = enable(simulate=(3, 4))
product = _Product(np.ones((8, 3), np.float32), 1, 4)
net = AutoParallel(product, parallel_mode="semi_auto")
net.dataset_strategy("full_batch")
net.save_param_strategy_file(sys.argv[1])
net.compile(ms.Tensor(np.ones((4, 8), np.float32)))
slices = list(product.weight.shape)
print(json.dumps({"message": message, "rank": get_rank(), "size": get_group_size(), "slice": slices}))
"""


@pytest.mark.slow
def test_a_compile_only_process_compiles_one_rank_of_many_without_a_compiler(tmp_path):
    strategy = tmp_path / "strategy.ckpt"
    result = subprocess.run(
        [sys.executable, "-c", COMPILE_ONLY, str(strategy)],
        cwd=tmp_path,
        env=os.environ | {"PATH": str(tmp_path), "XDG_CACHE_HOME": str(tmp_path), "PYTHONPATH": str(REPOSITORY)},
        capture_output=True,
        text=True,
        timeout=120,
        start_new_session=True,
    )
    assert result.returncode == 0, result.stderr[-2000:]
    answer = {"message": COLLECTIVES.missing, "rank": 3, "size": 4, "slice": [2, 3]}
    assert json.loads(result.stdout.splitlines()[-1]) == answer
    assert strategy.is_file()


def test_only_ranks_of_the_job_can_be_simulated(mindspore_cpu):
    for simulate in [(4, 4), (-1, 4)]:
        with pytest.raises(ValueError, match="less than the number of ranks"):
            enable(simulate)


def test_another_target_is_refused(mindspore_cpu, monkeypatch):
    import mindspore as ms

    monkeypatch.setattr(ms, "get_context", lambda key: "Ascend")
    with pytest.raises(ValueError, match="for the target CPU"):
        enable()


@pytest.mark.parametrize("simulate", [None, (1, 2)])
def test_without_kernels_the_rest_is_done_and_the_message_given(mindspore_cpu, monkeypatch, simulate):
    done = []
    monkeypatch.setattr(module, "_enabled", False)
    monkeypatch.setattr(module, "_simulated", None)
    monkeypatch.setattr(module, "build_kernels", lambda wheel, kernels: None)
    monkeypatch.setattr(module, "patch_frontend", lambda wheel: done.append(wheel.sites))
    monkeypatch.setattr(module, "answer_python", lambda groups: done.append(groups.rank("mccl_world_group")))
    monkeypatch.setattr(module, "register_comm_manager", lambda groups, folder: done.append(type(groups).__name__))
    assert enable(simulate) == COLLECTIVES.missing
    sites = find_wheel().sites
    assert done == ([sites, "RunningGroups"] if simulate is None else [sites, 1, "SimulatedGroups"])
    if simulate is not None:
        assert enable((0, 4)) is None  # the same process goes on as another rank
        assert (module._simulated.rank("mccl_world_group"), module._simulated.size("mccl_world_group")) == (0, 4)
    with pytest.raises(ValueError, match="enabled already"):
        enable()


@pytest.fixture
def fused(monkeypatch):
    """As in a process that has not asked for fused kernels; what is asked for and registered."""
    calls = []
    monkeypatch.setattr(module, "_fused", "not asked for")
    monkeypatch.setattr(module, "_register", lambda kernels, library: calls.append((kernels, library)))
    return calls


def test_fused_kernels_are_registered_once(fused, monkeypatch):
    built = []
    monkeypatch.setattr(module, "build_kernels", lambda wheel, kernels: built.append((wheel, kernels)) or "library")
    assert not has_fused()
    for _ in range(2):
        assert enable_fused() is None
        assert has_fused()
    assert built == [(find_wheel(), FUSED)]
    assert fused == [(FUSED, "library")]


def fail(wheel, kernels):
    raise UserError("g++ cannot compile fused.cc")


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda wheel, kernels: None, FUSED.missing),
        (
            fail,
            "CPU backend: no fused kernels, models are made of slower, plain operators: g++ cannot compile fused.cc",
        ),
    ],
    ids=["no compiler", "not compiled"],
)
def test_without_fused_kernels_it_says_why_and_goes_on(fused, monkeypatch, build, message):
    monkeypatch.setattr(module, "build_kernels", build)
    assert enable_fused() == message
    assert not has_fused() and fused == []


def test_a_library_is_registered_by_its_own_function(monkeypatch):
    class Library:
        def __init__(self, path):
            self.path = path

        def __getattr__(self, name):
            return lambda: called.append((self.path, name))

    called = []
    monkeypatch.setattr(module.ctypes, "CDLL", Library)
    module._register(FUSED, REPOSITORY / "a.so")
    module._register(COLLECTIVES, REPOSITORY / "b.so")
    assert called == [
        (str(REPOSITORY / "a.so"), "r1parallel_register_fused"),
        (str(REPOSITORY / "b.so"), "r1parallel_register_collectives"),
    ]
