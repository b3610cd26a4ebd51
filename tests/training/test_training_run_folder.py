import json

import numpy as np
import pytest
from tiny_runs import folder_bytes

from r1parallel.config import RunConfig
from r1parallel.config.load import SFT_SECTIONS
from r1parallel.errors import UserError
from r1parallel.training.run_folder import RunFolder, check_steps_left

IDENTITY = {"data_set": "32 rows, sha256 0123", "seed": 0}
TENSORS = {
    "actor": {"weight": np.arange(6, dtype=np.float32).reshape(2, 3)},
    "optimizer": {"m": np.ones(2, np.float32)},
}


def folder_of(path, resume=False, identity=IDENTITY, **changes):
    settings = {"save_dir": "", "tensorboard_dir": None, **changes}
    return RunFolder(RunConfig(), SFT_SECTIONS, str(path), resume=resume, identity=identity, **settings)


@pytest.fixture
def used(tmp_path):
    """A run of 5 steps, killed; its checkpoints are of the steps 2 and 4."""
    folder = folder_of(tmp_path / "run")
    folder.open()
    for step in range(1, 6):
        folder.metrics.write(step, {"loss": 1 / step})
        folder.samples.write(step, [{"prompt": "1+1=", "reward": 1.0}])
        if step % 2 == 0:
            folder.save(step, TENSORS, {"updates": step * 2}, keep=2)
    folder.close()
    return tmp_path / "run"


def steps_in(file):
    return [json.loads(line)["step"] for line in file.read_text().splitlines()]


def test_a_fresh_folder_starts_at_step_0(tmp_path):
    folder = folder_of(tmp_path / "a" / "run")
    assert (folder.step, folder.tensors, folder.state) == (0, {}, {})
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
    np.testing.assert_array_equal(folder.tensors["actor"]["weight"], TENSORS["actor"]["weight"])
    assert steps_in(used / "metrics.jsonl") == [1, 2, 3, 4, 5]
    folder.open()
    folder.metrics.write(5, {"loss": 0.5})
    folder.close()
    assert steps_in(used / "metrics.jsonl") == [1, 2, 3, 4, 5]
    assert steps_in(used / "samples.jsonl") == [1, 2, 3, 4]


def test_resuming_before_the_first_checkpoint_starts_again(tmp_path, capsys):
    folder = folder_of(tmp_path)
    folder.open()
    folder.metrics.write(1, {"loss": 1.0})
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
    folder.metrics.write(1, {"loss": 1.0})
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
    folder.save(3, TENSORS, {}, keep=1)
    folder.close()
    assert [path.name for path in (tmp_path / "kept").iterdir()] == ["step_3"]
    assert not (tmp_path / "run" / "checkpoints").exists()
    assert folder_of(tmp_path / "run", resume=True, save_dir=str(tmp_path / "kept")).step == 3


def test_tensorboard_files_only_where_asked_for(tmp_path):
    folder = folder_of(tmp_path / "run", tensorboard_dir=tmp_path / "board")
    folder.open()
    folder.metrics.write(1, {"loss": 1.0})
    folder.close()
    assert len(list((tmp_path / "board").iterdir())) == 1


@pytest.mark.parametrize("done", [8, 9])
def test_a_complete_run_is_refused(done):
    with pytest.raises(UserError, match=rf"complete: {done} of 8 steps are done; raise sft_config.max_steps to go on"):
        check_steps_left(done, 8, "sft_config.max_steps")


def test_a_run_with_steps_left_is_not_refused():
    check_steps_left(7, 8, "sft_config.max_steps")
