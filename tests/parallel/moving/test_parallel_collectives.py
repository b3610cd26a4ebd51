import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from helpers.msrun import LAUNCH_WORKER, run_workers

from r1parallel.cpu_backend.build import COLLECTIVES, FUSED
from r1parallel.parallel.launch.world import World
from r1parallel.parallel.moving.collectives import _check, _pack, _unpack, all_gather, all_reduce, barrier, broadcast

ONE = World()


@pytest.fixture
def no_compiler(tmp_path):
    """Variables with which python is found and g++ is not."""
    path = str(Path(sys.executable).parent)
    if shutil.which("g++", path=path):
        pytest.skip("A COMPILER: g++ lies beside python and cannot be hidden")
    return {"PATH": path, "XDG_CACHE_HOME": str(tmp_path / "cache")}


@pytest.mark.slow
def test_two_ranks_exchange_bits_without_a_compiler(tmp_path, no_compiler):
    job = run_workers(LAUNCH_WORKER, ["collectives"], 2, tmp_path / "job", 200, no_compiler)
    assert job.returncode == 0, job.log(0) + job.log(1)
    assert "rank 1 of 2 is ready" in job.log(1)
    for said in (COLLECTIVES.missing, FUSED.missing):
        assert job.log(0).count(said) == 1 and said not in job.log(1)


def test_one_rank_keeps_its_values():
    values = np.array([[np.nan, -0.0]], np.float32)
    assert all_gather(ONE, values, "x").tobytes() == values.tobytes()
    assert all_gather(ONE, values, "x").shape == (1, 1, 2)
    assert broadcast(ONE, values, "x").tobytes() == values.tobytes()
    assert all_reduce(ONE, np.array([3], np.int32), "x").tolist() == [3.0]
    assert all_reduce(ONE, np.array([3], np.int32), "x").dtype == np.float64
    barrier(ONE, "x")


def test_results_are_not_views():
    values = np.zeros(2)
    all_gather(ONE, values, "x")[:] = 1
    broadcast(ONE, values, "x")[:] = 1
    all_reduce(ONE, values, "x")[:] = 1
    assert values.tolist() == [0, 0]


@pytest.mark.parametrize("array", [np.arange(5, dtype=np.int8), np.array(2.5), np.zeros((0, 3)), np.eye(3).T[::2]])
def test_words_hold_any_array(array):
    words = _pack(array, "x")
    assert words.dtype == np.int32
    np.testing.assert_array_equal(_unpack(words, array), array)


def test_words_tell_their_call_shape_and_type():
    own = _pack(np.zeros(2), "a")
    _check(_pack(np.ones(2), "a"), own, 3, "a")
    with pytest.raises(RuntimeError, match="'a': rank 3 is in another call"):
        _check(_pack(np.zeros(2), "b"), own, 3, "a")
    for other in (np.zeros(4, np.float32), np.zeros((2, 1))):
        with pytest.raises(RuntimeError, match="'a': the array of rank 3 has another shape or type"):
            _check(_pack(other, "a"), own, 3, "a")
