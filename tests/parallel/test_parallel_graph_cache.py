import os
import sys
from pathlib import Path

import pytest

from r1parallel.config.schema import ContextConfig
from r1parallel.parallel import graph_cache
from r1parallel.parallel.graph_cache import GraphCache, begin_single_run, keep_graphs
from r1parallel.parallel.launch.world import World

ENABLE, PATH = "MS_COMPILER_CACHE_ENABLE", "MS_COMPILER_CACHE_PATH"


@pytest.fixture(autouse=True)
def base(tmp_path, monkeypatch):
    """The folder of all caches; nothing of what a test sets stays."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(graph_cache, "_may_keep", False)
    monkeypatch.delitem(sys.modules, "mindspore", raising=False)
    for name in (ENABLE, PATH):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    return tmp_path / "r1parallel" / "graphs"


def folders(base):
    return sorted(path.parent.name for path in base.glob("*/lock"))


def test_a_finished_folder_is_found_again_and_only_by_the_same_program(base):
    first = GraphCache(["grpo", 1])
    assert not first.found
    assert os.environ[ENABLE] == "1" and Path(os.environ[PATH]).parent.parent == base
    first.complete()
    first._lock.close()
    assert GraphCache(["grpo", 1]).found
    assert not GraphCache(["grpo", 2]).found
    assert len(folders(base)) == 2


def test_what_a_killed_run_left_is_thrown_away(base):
    killed = GraphCache(["grpo"])
    graphs = Path(os.environ[PATH])
    graphs.mkdir()
    (graphs / "half").write_text("a graph that was never written to its end")
    killed._lock.close()
    assert not GraphCache(["grpo"]).found
    assert not graphs.exists()


def test_a_folder_that_another_run_is_writing_is_left_alone(base):
    other = GraphCache(["grpo"])
    del os.environ[ENABLE]
    graphs = Path(os.environ[PATH])
    graphs.mkdir()
    second = GraphCache(["grpo"])
    assert not second.found and ENABLE not in os.environ and graphs.is_dir()
    second.complete()
    assert not (base / folders(base)[0] / "complete").exists()
    other._lock.close()


def test_only_the_newest_folders_stay_and_never_one_in_use(base):
    caches = [GraphCache([number]) for number in range(4)]
    made = [cache._folder for cache in caches]
    for age, folder in enumerate(reversed(made)):
        os.utime(folder / "lock", (1e9 - age, 1e9 - age))
    for cache in caches[1:]:
        cache._lock.close()
    GraphCache(["new"])
    assert [folder.exists() for folder in made] == [True, True, True, True]  # the oldest is in use
    caches[0]._lock.close()
    GraphCache(["newer"])
    assert [folder.exists() for folder in made] == [False, False, True, True]


def test_a_changed_source_makes_another_folder(base, tmp_path, monkeypatch):
    package = tmp_path / "package"
    package.mkdir()
    (package / "model.py").write_text("one")
    monkeypatch.setattr(graph_cache, "_PACKAGE", package)
    before = GraphCache([])._folder
    (package / "model.py").write_text("two")
    assert GraphCache([])._folder != before


def test_only_the_first_run_of_a_process_made_for_one_keeps_graphs(base):
    config = ContextConfig()
    assert keep_graphs(config, World(), ["a"]) is None
    begin_single_run()
    assert keep_graphs(config, World(), ["a"]) is not None and os.environ[ENABLE] == "1"
    assert keep_graphs(config, World(), ["b"]) is None and ENABLE not in os.environ


def test_a_process_that_has_mindspore_already_keeps_none(base, monkeypatch):
    monkeypatch.setitem(sys.modules, "mindspore", object())
    begin_single_run()
    assert keep_graphs(ContextConfig(), World(), ["a"]) is None


@pytest.mark.parametrize(
    ("config", "world"),
    [
        (ContextConfig(compile_cache=False), World()),
        (ContextConfig(device_target="Ascend"), World()),
        (ContextConfig(), World(0, 2)),
    ],
    ids=["off", "Ascend", "two ranks"],
)
def test_where_nothing_is_kept(base, config, world):
    begin_single_run()
    assert keep_graphs(config, world, []) is None
    assert not base.exists()
