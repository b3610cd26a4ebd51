import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from helpers.tiny_runs import (
    GRPO_STEPS,
    REPOSITORY,
    error_line,
    folder_bytes,
    grpo_flags,
    run_script,
    sft_flags,
    without_times,
)

from r1parallel.monitor.metrics import read_metrics
from r1parallel.monitor.samples import read_samples


def killed_run(flags: list[str], checkpoint: Path) -> None:
    """Start run_grpo.py and kill it as soon as `checkpoint` is there."""
    command = [sys.executable, str(REPOSITORY / "run_grpo.py"), *flags]
    child = subprocess.Popen(command, start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    try:
        deadline = time.monotonic() + 300
        while not checkpoint.exists():
            assert child.poll() is None, child.stderr.read().decode()
            assert time.monotonic() < deadline, f"{checkpoint} never came"
            time.sleep(0.002)
    finally:
        if child.poll() is None:
            os.killpg(child.pid, signal.SIGKILL)
        child.communicate()
    assert child.returncode == -signal.SIGKILL


def assert_same_run(left: Path, right: Path) -> None:
    """Equal to the last bit: metrics but for the clock, samples, final model, and the last checkpoint."""
    lines = [[without_times(line) for line in read_metrics(run / "metrics.jsonl")] for run in (left, right)]
    for mine, theirs in zip(*lines, strict=True):
        assert mine == theirs
    assert read_samples(left / "samples.jsonl") == read_samples(right / "samples.jsonl")
    assert folder_bytes(left / "model") == folder_bytes(right / "model")
    newest = Path("checkpoints") / f"step_{lines[0][-1]['step']}"
    assert folder_bytes(left / newest) == folder_bytes(right / newest)


def test_a_killed_grpo_run_goes_on_bit_for_bit(inputs, grpo_run, tmp_path, capsys):
    flags = grpo_flags(inputs, tmp_path, max_steps=GRPO_STEPS)
    killed_run(flags, tmp_path / "checkpoints" / "step_4")
    assert not (tmp_path / "model").exists()
    assert not (tmp_path / "checkpoints" / f"step_{GRPO_STEPS}").exists()
    assert run_script("run_grpo.py", [*flags, "--resume_training"]) == 0
    resumed_at = capsys.readouterr().out.splitlines()[0]
    assert resumed_at.startswith(f"resumed from {tmp_path / 'checkpoints' / 'step_'}")
    assert_same_run(tmp_path, grpo_run)


def test_a_longer_sft_run_goes_on_bit_for_bit(inputs, sft_run, tmp_path):
    assert run_script("run_sft.py", sft_flags(inputs, tmp_path, max_steps=4)) == 0
    assert run_script("run_sft.py", sft_flags(inputs, tmp_path, max_steps=8, resume_training="true")) == 0
    assert_same_run(tmp_path, sft_run)


@pytest.mark.parametrize("script", ["run_grpo.py", "run_sft.py"])
def test_a_run_killed_before_its_model_was_written_writes_it(inputs, grpo_run, sft_run, tmp_path, script):
    done, make_flags = (grpo_run, grpo_flags) if script == "run_grpo.py" else (sft_run, sft_flags)
    steps = {"max_steps": GRPO_STEPS} if script == "run_grpo.py" else {}
    shutil.copytree(done, tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "model")
    assert run_script(script, make_flags(inputs, tmp_path / "run", resume_training="true", **steps)) == 0
    assert_same_run(tmp_path / "run", done)


def refused(script, flags, run, capfd) -> str:
    """The error line of a command that must fail and leave `run` as it was."""
    before = folder_bytes(run)
    capfd.readouterr()
    assert run_script(script, flags) == 2
    error = error_line(capfd.readouterr().err)
    assert folder_bytes(run) == before
    return error


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"seed": 5}, "seed was 0, now it is 5"),
        ({"num_generations": 2, "num_rollouts": 4}, "prompts_per_step was 4, now it is 8"),
        ({"beta": 0}, "beta was 0.01, now it is 0.0"),
    ],
)
def test_grpo_with_other_settings_is_no_continuation(inputs, grpo_run, capfd, changes, words):
    flags = grpo_flags(inputs, grpo_run, max_steps=20, resume_training="true", **changes)
    assert words in refused("run_grpo.py", flags, grpo_run, capfd)


def test_grpo_with_another_data_set_is_no_continuation(inputs, grpo_run, capfd):
    flags = grpo_flags(inputs, grpo_run, max_steps=20, resume_training="true", dataset_file=inputs.other)
    assert "data_set was '32 rows, sha256 " in refused("run_grpo.py", flags, grpo_run, capfd)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"seed": 5}, "seed was 0, now it is 5"),
        ({"dataset_file": "OTHER"}, "data_set was '32 rows, sha256 "),
        ({"batch_size": 2}, "update_rows was 8, now it is 4"),
    ],
)
def test_sft_with_other_settings_is_no_continuation(inputs, sft_run, capfd, changes, words):
    changes = {key: inputs.other if value == "OTHER" else value for key, value in changes.items()}
    flags = sft_flags(inputs, sft_run, max_steps=20, resume_training="true", **changes)
    assert words in refused("run_sft.py", flags, sft_run, capfd)


def test_a_complete_run_has_nothing_to_resume(inputs, grpo_run, sft_run, capfd):
    flags = grpo_flags(inputs, grpo_run, max_steps=GRPO_STEPS, resume_training="true")
    error = refused("run_grpo.py", flags, grpo_run, capfd)
    assert "the run is complete: 12 of 12 steps are done; raise rl_config.max_steps or rl_config.epochs" in error
    error = refused("run_sft.py", sft_flags(inputs, sft_run, resume_training="true"), sft_run, capfd)
    assert "the run is complete: 8 of 8 steps are done; raise sft_config.max_steps or sft_config.epochs" in error


def test_a_fresh_run_does_not_overwrite_another(inputs, grpo_run, sft_run, capfd):
    words = "holds checkpoints of a run; go on with --resume_training or choose another folder"
    assert words in refused("run_grpo.py", grpo_flags(inputs, grpo_run), grpo_run, capfd)
    assert words in refused("run_sft.py", sft_flags(inputs, sft_run), sft_run, capfd)
