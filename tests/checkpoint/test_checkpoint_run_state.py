import json
import random
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from r1parallel.checkpoint.run_state import latest_run_state, load_run_state, save_run_state
from r1parallel.errors import UserError


def tensors(step):
    return {
        "actor": {"w": np.full((3, 4), step, np.float32)},
        "optimizer": {"w.m": np.full((3, 4), step / 2, np.float32), "step": np.array(step, np.int32)},
    }


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_what_is_saved_is_loaded(tmp_path):
    state = {"epoch": 1, "rng": [2**100, None, "x"], "lr": 0.1}
    path = save_run_state(tmp_path / "ckpt", 7, tensors(7), state, keep=2)
    assert latest_run_state(tmp_path / "ckpt") == path == tmp_path / "ckpt" / "step_7"
    groups, loaded = load_run_state(path)
    assert loaded == state
    assert {group: set(entries) for group, entries in groups.items()} == {
        "actor": {"w"},
        "optimizer": {"w.m", "step"},
    }
    assert groups["optimizer"]["step"].read() == 7
    assert groups["actor"]["w"].read().tolist() == [[7.0] * 4] * 3


def test_only_the_newest_are_kept_and_order_is_by_number(tmp_path):
    for step in (8, 9, 10, 11):
        save_run_state(tmp_path, step, tensors(step), {}, keep=3)
    assert names(tmp_path) == ["step_10", "step_11", "step_9"]
    assert latest_run_state(tmp_path).name == "step_11"


def test_the_one_just_written_always_stays(tmp_path):
    save_run_state(tmp_path, 10, tensors(10), {}, keep=1)
    save_run_state(tmp_path, 4, tensors(4), {}, keep=1)
    assert names(tmp_path) == ["step_4"]


def test_leftovers_go_at_the_next_save(tmp_path):
    (tmp_path / "step_3.tmp-123").mkdir()
    (tmp_path / "step_3.tmp-123" / "actor.safetensors").write_bytes(b"half")
    assert latest_run_state(tmp_path) is None
    save_run_state(tmp_path, 4, tensors(4), {}, keep=1)
    assert names(tmp_path) == ["step_4"]


def test_refusals(tmp_path):
    assert latest_run_state(tmp_path / "missing") is None
    save_run_state(tmp_path, 1, tensors(1), {}, keep=1)
    with pytest.raises(UserError, match="saved already"):
        save_run_state(tmp_path, 1, tensors(1), {}, keep=1)
    with pytest.raises(ValueError, match="keep is 0"):
        save_run_state(tmp_path, 2, tensors(2), {}, keep=0)
    with pytest.raises(UserError, match=r"no readable state.json"):
        load_run_state(tmp_path / "step_9")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda path: (path / "actor.safetensors").unlink(), "actor.safetensors is missing"),
        (lambda path: (path / "optimizer.safetensors").write_bytes(b"x"), "optimizer.safetensors is missing or"),
        (lambda path: (path / "state.json").write_text("{"), "no readable state.json"),
        (lambda path: (path / "state.json").write_text("{}"), "no readable state.json"),
        (lambda path: (path / "state.json").unlink(), "no readable state.json"),
    ],
)
def test_a_damaged_checkpoint_is_passed_over(tmp_path, damage, message):
    save_run_state(tmp_path, 1, tensors(1), {}, keep=2)
    damage(save_run_state(tmp_path, 2, tensors(2), {}, keep=2))
    assert latest_run_state(tmp_path).name == "step_1"
    with pytest.raises(UserError, match=message):
        load_run_state(tmp_path / "step_2")


WRITER = """
import sys
import numpy as np
from r1parallel.checkpoint.run_state import latest_run_state, save_run_state

latest = latest_run_state(sys.argv[1])
step = int(latest.name[5:]) if latest else 0
while True:
    step += 1
    values = {f"t{i}": np.full(2000, step, np.float32) for i in range(20)}
    save_run_state(sys.argv[1], step, {"actor": values, "optimizer": values}, {"step": step}, keep=2)
    print(step, flush=True)
"""


def test_a_damaged_checkpoint_is_made_anew(tmp_path):
    save_run_state(tmp_path, 1, tensors(1), {}, keep=5)
    damaged = save_run_state(tmp_path, 2, tensors(2), {}, keep=5)
    (damaged / "actor.safetensors").write_bytes(b"half")
    assert latest_run_state(tmp_path) == tmp_path / "step_1"
    assert save_run_state(tmp_path, 2, tensors(20), {}, keep=5) == damaged
    groups, _ = load_run_state(latest_run_state(tmp_path))
    assert groups["actor"]["w"].read()[0, 0] == 20
    assert names(tmp_path) == ["step_1", "step_2"]


def test_kill_at_any_moment_leaves_a_whole_checkpoint(tmp_path):
    chance = random.Random(0)
    for _ in range(8):
        writer = subprocess.Popen(
            [sys.executable, "-c", WRITER, str(tmp_path)],
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        try:
            reported = int(writer.stdout.readline())
            time.sleep(chance.uniform(0, 0.05))
        finally:
            writer.send_signal(signal.SIGKILL)
            rest, _ = writer.communicate(timeout=30)
        reported = max([reported, *(int(line) for line in rest.split("\n")[:-1] if line)])
        path = latest_run_state(tmp_path)
        groups, state = load_run_state(path)
        assert state["step"] == json.loads((path / "state.json").read_text())["step"] >= reported
        for entries in groups.values():
            assert len(entries) == 20
            assert all((entry.read() == state["step"]).all() for entry in entries.values())
