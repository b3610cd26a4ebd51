"""tools/verify_ckpt.py with one checkpoint: its manifests, written and compared."""

import json
import re
from concurrent.futures import CancelledError
from functools import partial
from threading import Event

import numpy as np
import pytest
from helpers.verifying import drop_manifests, flip, run_verify

from r1parallel.checkpoint.comparing.hashing import work_through
from r1parallel.checkpoint.formats.manifest import manifest_path
from r1parallel.checkpoint.run_state import save_run_state
from r1parallel.checkpoint.slice import reshard_checkpoint
from r1parallel.checkpoint.writing.shards import Shards
from r1parallel.parallel.launch.world import World
from r1parallel.parallel.layout.mesh import Mesh
from r1parallel.parallel.layout.strategy_files import write_merged_strategy
from r1parallel.parallel.layout.table import ModelLayout

EMBEDDING = "model.tok_embeddings.embedding_weight"
TENSORS = 27  # of the configurations in conftest, the head included


@pytest.fixture
def verify(capsys):
    return partial(run_verify, capsys)


def test_manifests_are_written_once(tmp_path, make_folder, config, verify):
    folder = make_folder("hf", config, max_shard_size=700)
    files = sorted(folder.glob("*.safetensors"))
    written = {file: manifest_path(file).read_text() for file in files}
    drop_manifests(folder)
    alone = verify(folder)
    assert alone.code == 2
    assert re.search(r"has no manifest \(nor have \d+ more\); .* tools/verify_ckpt.py .*hf --manifest", alone.last)
    manifest_path(files[0]).write_text(written[files[0]])
    done = verify(folder, "--manifest", "--transform_process_num", 1)
    assert (done.code, done.last) == (0, f"wrote {len(files) - 1} manifests in {folder}, left 1 as they were")
    assert {file: json.loads(manifest_path(file).read_text()) for file in files} == {
        file: json.loads(text) for file, text in written.items()
    }
    assert verify(folder).last.startswith(f"equal: {TENSORS} tensors in {len(files)} files")
    again = verify(folder, "--manifest")
    assert (again.code, "every weights file has a manifest" in again.last) == (2, True)


def test_a_checkpoint_alone_that_is_not_whole(tmp_path, make_folder, config, verify):
    folder = make_folder("hf", config, max_shard_size=700)
    files = sorted(folder.glob("*.safetensors"))
    files[1].unlink()
    done = verify(folder)
    assert (done.code, f"missing {files[1].name} is gone" in done.lines[1]) == (1, True)
    manifest_path(files[1]).unlink()
    done = verify(folder)
    assert (done.code, f"names {files[1].name}, which is missing" in done.lines[1]) == (1, True)
    files[0].write_bytes(files[0].read_bytes()[:-1])
    done = verify(folder)
    assert (done.code, done.last[:21]) == (1, "DIFFERENT: 1 damaged;")


@pytest.mark.parametrize("kind", ["safetensors", "ckpt"])
def test_a_sliced_checkpoint_alone(tmp_path, make_folder, config, verify, kind):
    layout = ModelLayout(config, Mesh(tp=2, pp=2))
    cut = tmp_path / "cut"
    reshard_checkpoint(make_folder("full", config, hf=False), cut, None, layout, kind=kind)
    assert verify(cut).code == 0
    assert verify(cut / "rank_3" / f"checkpoint_3.{kind}").code == 0
    write_merged_strategy(ModelLayout(config, Mesh(tp=2, pp=2, dp=2)), tmp_path / "s.ckpt")
    done = verify(cut, "--strategy_a", tmp_path / "s.ckpt")
    assert (done.code, "ranks 0 to 7" in done.lines[1]) == (1, True)
    flip(cut / "rank_0" / f"checkpoint_0.{kind}", EMBEDDING)
    assert verify(cut).code == 1


def test_a_step_of_a_run(tmp_path, make_folder, config, verify):
    """All groups of all ranks; what state.json lists must be there."""
    values = {name: np.ones(shape, np.float32) for name, shape in config.parameter_shapes().items()}
    layout = ModelLayout(config, Mesh())
    groups = {
        "actor": Shards(layout, values),
        "optimizer": Shards(layout, {f"adam_m.{n}": v for n, v in values.items()}),
    }
    step = save_run_state(tmp_path, 1, groups, {}, 1, World())
    assert verify(step).last.startswith(f"equal: {2 * TENSORS} tensors in 2 files")
    full = make_folder("full", config, hf=False, change=lambda arrays: arrays.update(values))
    of_actor = ("--strategy_a", step / "actor_strategy.ckpt", "--prefix_a", "actor")
    assert verify(step, full, *of_actor).last.startswith(f"equal: {TENSORS} tensors,")
    flip(step / "rank_0" / "optimizer.safetensors", f"adam_m.{EMBEDDING}")
    assert verify(step).last.startswith("DIFFERENT: 1 damaged;")
    for file in (step / "rank_0").glob("optimizer.*"):
        file.unlink()
    done = verify(step)
    assert (done.code, "rank_0/optimizer.safetensors is missing" in done.lines[1]) == (1, True)


def test_work_ends_when_its_results_are_not_wanted():
    """As when a user presses Ctrl-C."""
    started, seen = Event(), []

    def work(item, progress):
        if item == 0:
            return item
        started.set()
        with pytest.raises(CancelledError):
            while True:
                progress(1)
        seen.append(item)

    results = work_through(work, range(100), 0, 2, "work")
    assert next(results) == 0
    assert started.wait(60)
    results.close()
    assert 1 <= len(seen) <= 3


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["A", "B", "--manifest"], "--manifest: is for one checkpoint"),
        (["A", "--dtype", "bf16"], "--dtype: is for two checkpoints"),
        (["A", "--logits"], "--logits: is for two checkpoints"),
        (["A", "--strategy_b", "s"], "--strategy_b: is for two checkpoints"),
        (["A", "--transform_process_num", "0"], "must be a whole number, at least 1"),
        (["nowhere"], "nowhere: holds no .safetensors"),
        (["nowhere", "nowhere"], "nowhere: no such checkpoint"),
    ],
)
def test_mistakes_are_one_line(verify, arguments, message):
    done = verify(*arguments)
    assert (done.code, message in done.last) == (2, True), done.last


def test_a_folder_that_cannot_be_written(make_folder, config, verify, monkeypatch):
    folder = make_folder("hf", config)
    drop_manifests(folder)

    def refuse(*_):
        raise PermissionError(13, "Permission denied", str(folder))

    monkeypatch.setattr("r1parallel.checkpoint.formats.manifest.replacing", refuse)
    assert "cannot be written: Permission denied" in verify(folder, "--manifest").last
