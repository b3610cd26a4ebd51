"""A run that takes its graphs from the cache is the run that compiles them."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from helpers.tiny_runs import REPOSITORY, folder_bytes, grpo_flags, sft_flags, without_times

from r1parallel.cpu_backend.build import FUSED, cached_library
from r1parallel.cpu_backend.wheel import find_wheel
from r1parallel.monitor.metrics import read_metrics


@pytest.fixture
def cache(tmp_path) -> Path:
    """An empty cache of graphs beside the kernels that were made already."""
    folder = tmp_path / "cache" / "r1parallel"
    folder.mkdir(parents=True)
    (folder / "cpu_backend").symlink_to(cached_library(find_wheel(), FUSED).parent)
    return folder


def run(script: str, flags: list[str], cache: Path) -> None:
    ended = subprocess.run(
        [sys.executable, str(REPOSITORY / script), *flags],
        env=os.environ | {"XDG_CACHE_HOME": str(cache.parent)},
        capture_output=True,
        text=True,
        timeout=400,
        start_new_session=True,
    )
    assert ended.returncode == 0, ended.stderr[-3000:]
    assert "correctness risks" not in ended.stdout + ended.stderr  # what MindSpore says of every graph from a cache


def outcome(folder: Path) -> tuple[list[dict], dict]:
    return [without_times(line) for line in read_metrics(folder / "metrics.jsonl")], folder_bytes(folder / "model")


@pytest.mark.slow
@pytest.mark.parametrize("script", ["run_grpo.py", "run_sft.py"])
def test_the_same_run_with_and_without_a_cache(script, inputs, tmp_path, cache):
    make_flags = grpo_flags if script == "run_grpo.py" else sft_flags
    folders = [tmp_path / name for name in ("off", "first", "second")]
    run(script, [*make_flags(inputs, folders[0], max_steps=2), "--context.compile_cache", "false"], cache)
    assert not (cache / "graphs").exists()
    run(script, make_flags(inputs, folders[1], max_steps=2), cache)
    (kept,) = (path.parent for path in (cache / "graphs").glob("*/complete"))
    graphs = {path: path.stat().st_mtime_ns for path in kept.rglob("*.mindir")}
    assert len(graphs) >= 3
    run(script, make_flags(inputs, folders[2], max_steps=2), cache)
    assert {path: path.stat().st_mtime_ns for path in kept.rglob("*.mindir")} == graphs  # nothing was compiled
    assert outcome(folders[0]) == outcome(folders[1]) == outcome(folders[2])
