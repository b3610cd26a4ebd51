import json

import numpy as np
import pytest
from helpers.simulated_world import SimulatedWorld
from helpers.tiny_runs import folder_bytes

from r1parallel.checkpoint.writing.shards import Shards
from r1parallel.config.loading.load import SFT_SECTIONS
from r1parallel.config.model import ModelConfig
from r1parallel.config.schema import RunConfig
from r1parallel.errors import UserError
from r1parallel.parallel.launch.world import World
from r1parallel.parallel.layout.mesh import Mesh
from r1parallel.parallel.layout.table import ModelLayout
from r1parallel.training.run_folder import RunFolder, check_steps_left

IDENTITY = {"data_set": "32 rows, sha256 0123", "seed": 0}
MODEL = ModelConfig(16, 8, 12, 2, 4, 2)
HEAD = "lm_head.weight"
FULL = {
    name: np.arange(np.prod(shape), dtype=np.float32).reshape(shape) for name, shape in MODEL.parameter_shapes().items()
}


def tensors(layout=None, rank=0):
    """What a rank holds of an actor and an optimizer."""
    layout = layout or ModelLayout(MODEL, Mesh())
    own = {name: FULL[name][region] for name in FULL if (region := layout.slices(name, rank)) is not None}
    return {"actor": Shards(layout, own), "optimizer": Shards(layout, {f"momentum.{n}": -v for n, v in own.items()})}


def folder_of(path, resume=False, identity=IDENTITY, **changes):
    settings = {"save_dir": "", "tensorboard_dir": None, "world": World(), **changes}
    folder = RunFolder(RunConfig(), SFT_SECTIONS, str(path), resume=resume, **settings)
    folder.restore(identity)
    return folder


@pytest.fixture
def used(tmp_path):
    """A run of 5 steps, killed; its checkpoints are of the steps 2 and 4."""
    folder = folder_of(tmp_path / "run")
    folder.open()
    for step in range(1, 6):
        folder.log(step, {"loss": 1 / step})
        folder.log_samples(step, [{"prompt": "1+1=", "reward": 1.0}])
        if step % 2 == 0:
            folder.save(step, tensors(), {"updates": step * 2}, keep=2)
    folder.close()
    return tmp_path / "run"


def steps_in(file):
    return [json.loads(line)["step"] for line in file.read_text().splitlines()]


def test_a_fresh_folder_starts_at_step_0(tmp_path):
    folder = folder_of(tmp_path / "a" / "run")
    assert (folder.step, folder.sources, folder.state) == (0, {}, {})
    assert not (tmp_path / "a").exists()  # making it only reads
    folder.open()
    folder.close()
    settings = json.loads((tmp_path / "a" / "run" / "config.json").read_text())
    assert set(settings) == set(SFT_SECTIONS)
    assert settings["actor_config"]["lr_schedule"]["lr_decay_style"] == "cosine"


def test_resuming_goes_on_from_the_newest_checkpoint(used):
    folder = folder_of(used, resume=True)
    assert folder.step == 4
    assert folder.state["updates"] == 8
    np.testing.assert_array_equal(folder.sources["actor"].read(HEAD), FULL[HEAD])
    assert steps_in(used / "metrics.jsonl") == [1, 2, 3, 4, 5]
    folder.open()
    folder.log(5, {"loss": 0.5})
    folder.close()
    assert steps_in(used / "metrics.jsonl") == [1, 2, 3, 4, 5]
    assert steps_in(used / "samples.jsonl") == [1, 2, 3, 4]


def test_resuming_before_the_first_checkpoint_starts_again(tmp_path, capsys):
    folder = folder_of(tmp_path)
    folder.open()
    folder.log(1, {"loss": 1.0})
    folder.close()
    again = folder_of(tmp_path, resume=True)
    assert again.step == 0
    assert "no checkpoint" in capsys.readouterr().out
    again.open()
    again.close()
    assert steps_in(tmp_path / "metrics.jsonl") == []


def test_a_fresh_run_in_a_used_folder_is_refused(used):
    before = folder_bytes(used)
    with pytest.raises(UserError, match="holds checkpoints of a run; go on with --resume_training or choose another"):
        folder_of(used)
    assert folder_bytes(used) == before


def test_a_fresh_run_in_a_folder_with_metrics_only_is_refused(tmp_path):
    folder = folder_of(tmp_path)
    folder.open()
    folder.log(1, {"loss": 1.0})
    folder.close()
    before = folder_bytes(tmp_path)
    with pytest.raises(UserError, match="holds an earlier run"):
        folder_of(tmp_path).open()
    assert folder_bytes(tmp_path) == before


@pytest.mark.parametrize(("key", "value"), [("seed", 1), ("data_set", "32 rows, sha256 4567"), ("num_generations", 4)])
def test_resuming_with_other_settings_is_refused(used, key, value):
    before = folder_bytes(used)
    message = rf"step_4: {key} was {IDENTITY.get(key)!r}, now it is {value!r}; a run is resumed with the settings"
    with pytest.raises(UserError, match=message):
        folder_of(used, resume=True, identity={**IDENTITY, key: value})
    assert folder_bytes(used) == before


def test_checkpoints_in_a_folder_of_their_own(tmp_path):
    folder = folder_of(tmp_path / "run", save_dir=str(tmp_path / "kept"))
    folder.open()
    folder.save(3, tensors(), {}, keep=1)
    folder.close()
    assert [path.name for path in (tmp_path / "kept").iterdir()] == ["step_3"]
    assert not (tmp_path / "run" / "checkpoints").exists()
    assert folder_of(tmp_path / "run", resume=True, save_dir=str(tmp_path / "kept")).step == 3


def test_tensorboard_files_only_where_asked_for(tmp_path):
    folder = folder_of(tmp_path / "run", tensorboard_dir=tmp_path / "board")
    folder.open()
    folder.log(1, {"loss": 1.0})
    folder.close()
    assert len(list((tmp_path / "board").iterdir())) == 1


@pytest.mark.parametrize("done", [8, 9])
def test_a_complete_run_is_refused(tmp_path, done):
    with pytest.raises(UserError, match=rf"complete: {done} of 8 steps are done; raise sft_config.max_steps to go on"):
        check_steps_left(done, 8, tmp_path, "sft_config.max_steps")


def test_a_run_with_something_left_is_not_refused(tmp_path):
    check_steps_left(7, 8, tmp_path, "sft_config.max_steps")
    check_steps_left(8, 8, tmp_path / "model", "sft_config.max_steps")


MANY = ModelLayout(MODEL, Mesh(dp=2, tp=2), opt_shard=True)


def test_four_ranks_write_one_folder_and_two_go_on(tmp_path, monkeypatch, capsys):
    def first(world):
        folder = folder_of(tmp_path, world=world)
        folder.open()
        for step in (1, 2):
            folder.log(step, {"loss": world.rank})
            folder.log_samples(step, [{"prompt": str(world.rank)}])
        folder.save(2, tensors(MANY, world.rank), {"updates": 2}, keep=1)
        folder.close()

    SimulatedWorld(4, monkeypatch).run(first)
    assert [json.loads(line)["loss"] for line in (tmp_path / "metrics.jsonl").read_text().splitlines()] == [0.0, 0.0]
    assert steps_in(tmp_path / "samples.jsonl") == [1, 2]
    assert len(list((tmp_path / "checkpoints" / "step_2").glob("rank_*"))) == 4

    def resumed(world):
        folder = folder_of(tmp_path, resume=True, world=world)
        layout = ModelLayout(MODEL, Mesh(pp=2))
        region = layout.slices(HEAD, world.rank)
        state = None if region is None else folder.sources["optimizer"].read(f"momentum.{HEAD}", region)
        return folder.step, folder.state["updates"], state

    (step, updates, first_stage), (_, _, last_stage) = SimulatedWorld(2, monkeypatch).run(resumed)
    assert (step, updates, first_stage) == (2, 2, None)
    np.testing.assert_array_equal(last_stage, -FULL[HEAD])
    assert capsys.readouterr().out.count("resumed from") == 1


def test_rank_0_decides_which_checkpoint_it_is(used, monkeypatch):
    """The others may not see the newest one yet, or see it whole when rank 0 did not."""
    from r1parallel.training import run_folder

    found = run_folder.latest_run_state
    seen = []

    def only_the_leader_looks(folder):
        seen.append(folder)
        return found(folder)

    monkeypatch.setattr(run_folder, "latest_run_state", only_the_leader_looks)
    steps = SimulatedWorld(3, monkeypatch).run(lambda world: folder_of(used, resume=True, world=world).step)
    assert steps == [4, 4, 4]
    assert len(seen) == 1


def test_every_rank_refuses_a_used_folder(used, monkeypatch):
    def job(world):
        with pytest.raises(UserError, match="holds checkpoints of a run"):
            folder_of(used, world=world)
        return True

    assert SimulatedWorld(3, monkeypatch).run(job) == [True] * 3
