"""A recipe from beginning to end: which stages run, which are finished, what is left behind."""

import json
import os
import runpy
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from helpers.tiny_runs import REPOSITORY, run_script
from toy_recipes import StandIn, changed, toy_recipe, write_recipe

from r1parallel.checkpoint.load import config_beside
from r1parallel.errors import UserError
from r1parallel.monitor.metrics import read_metrics
from r1parallel.recipe import run

STAGES = [
    *("problems_test", "problems_train", "data_sft", "data_grpo", "sft", "evaluate_sft", "grpo", "export"),
    "evaluate_grpo",
]


@pytest.fixture
def stand_in(monkeypatch):
    """Commands that only leave traces; gives the calls."""
    monkeypatch.setattr(StandIn, "calls", [])
    monkeypatch.setattr(StandIn, "fails_at", "")
    monkeypatch.setattr(run, "Stages", StandIn)
    return StandIn


def go(folder: Path, resume=False, **changes):
    values = toy_recipe(folder)
    for key, value in changes.items():
        changed(values, key.replace("__", "."), value)
    StandIn.calls.clear()
    run.run_recipe(REPOSITORY, write_recipe(folder, values), None, resume)
    return [stage for stage, _, _ in StandIn.calls]


def test_every_stage_runs_once_and_is_told(stand_in, tmp_path, capsys):
    assert go(tmp_path) == STAGES
    assert not any("--resume_training" in flags for _, _, flags in StandIn.calls)
    folder = tmp_path / "run"
    summary = json.loads((folder / "summary.json").read_text())
    assert summary == {
        "accuracy": {"sft": 0.5, "grpo": 0.25},
        "num_problems": {"sft": 10, "grpo": 10},
        "model": f"{folder}/model",
        "seconds": dict.fromkeys(STAGES, 1.5) | {"total": 13.5},
    }
    page = (folder / "report.html").read_text()
    assert "R1 recipe run" in page and "accuracy.grpo" in page
    assert "accuracy of sft: 50.0% of 10 problems\naccuracy of grpo: 25.0% of 10" in capsys.readouterr().out
    assert {path.stem for path in (folder / "stages").iterdir()} == set(STAGES)


def test_finished_stages_are_left_out_and_runs_go_on(stand_in, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(StandIn, "fails_at", "grpo")
    with pytest.raises(RuntimeError):
        go(tmp_path)
    monkeypatch.setattr(StandIn, "fails_at", "")
    with pytest.raises(UserError, match=r"run: holds files already; go on with --resume, or give another --output_dir"):
        go(tmp_path)
    assert go(tmp_path, resume=True) == ["grpo", "export", "evaluate_grpo"]
    assert StandIn.calls[0][2][-1] == "--resume_training"
    assert "--resume_training" not in StandIn.calls[1][2]
    assert "[sft] finished before\n" in capsys.readouterr().out
    total = json.loads((tmp_path / "run" / "summary.json").read_text())["seconds"]["total"]
    assert total == 13.5
    assert go(tmp_path, resume=True) == []


def test_resume_may_be_the_beginning(stand_in, tmp_path):
    assert go(tmp_path, resume=True) == STAGES


def test_another_setting_of_a_finished_stage_is_refused(stand_in, tmp_path):
    go(tmp_path)
    words = (
        rf"^sft is finished; its sft_config.max_steps was 2, now it is 3; undo that, give another --output_dir, or "
        rf"remove {tmp_path}/run/sft to do it again$"
    )
    with pytest.raises(UserError, match=words):
        go(tmp_path, resume=True, sft__sft_config__max_steps=3)
    with pytest.raises(UserError, match=r"^problems_train is finished; its num was 32, now it is 33"):
        go(tmp_path, resume=True, problems__train__num=33)
    with pytest.raises(UserError, match=r"^problems_train is finished; its slip was None, now it is 0.5"):
        go(tmp_path, resume=True, problems__train__slip=0.5)
    assert StandIn.calls == []


def test_a_comment_in_a_configuration_changes_nothing(stand_in, tmp_path):
    go(tmp_path)
    grpo = tmp_path / "grpo.yaml"
    values = toy_recipe(tmp_path)
    recipe = write_recipe(tmp_path, values)
    grpo.write_text("# a comment\n" + grpo.read_text())
    run.run_recipe(REPOSITORY, recipe, None, resume=True)


def test_what_was_removed_is_done_again_and_what_was_made_from_it_is_refused(stand_in, tmp_path):
    go(tmp_path)
    (tmp_path / "run" / "evaluate_sft.jsonl").unlink()
    assert go(tmp_path, resume=True) == ["evaluate_sft"]
    (tmp_path / "run" / "sft" / "metrics.jsonl").unlink()
    (tmp_path / "run" / "sft").rmdir()
    words = (
        r"evaluate_sft.jsonl: made from sft as it was before its settings changed; .* or remove .*evaluate_sft.jsonl"
    )
    with pytest.raises(UserError, match=words):
        go(tmp_path, resume=True, sft__sft_config__max_steps=3)
    (tmp_path / "run" / "evaluate_sft.jsonl").unlink()
    with pytest.raises(UserError, match=r"run/grpo: made from sft as it was"):
        go(tmp_path, resume=True, sft__sft_config__max_steps=3)
    assert go(tmp_path, resume=True) == ["sft", "evaluate_sft"]  # the same settings make the same


def test_a_run_that_was_begun_may_change_but_not_what_it_was_made_from(stand_in, tmp_path, monkeypatch):
    monkeypatch.setattr(StandIn, "fails_at", "grpo")
    with pytest.raises(RuntimeError):
        go(tmp_path)
    (tmp_path / "run" / "grpo").mkdir()
    monkeypatch.setattr(StandIn, "fails_at", "")
    for name in ("sft/metrics.jsonl", "evaluate_sft.jsonl"):
        (tmp_path / "run" / name).unlink()
    (tmp_path / "run" / "sft").rmdir()
    with pytest.raises(UserError, match=r"run/grpo: made from sft as it was"):
        go(tmp_path, resume=True, sft__sft_config__max_steps=3)
    assert go(tmp_path, resume=True, grpo__rl_config__max_steps=5) == STAGES[4:]


def test_a_folder_of_somebody_else_is_left_alone(stand_in, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "thesis.tex").write_text("years of work")
    with pytest.raises(UserError, match="run: holds files that are no recipe's; give another --output_dir"):
        go(tmp_path, resume=True)
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["thesis.tex"]


def test_a_marker_that_cannot_be_read(stand_in, tmp_path):
    go(tmp_path)
    (tmp_path / "run" / "stages" / "sft.json").write_text("{")
    with pytest.raises(UserError, match=r"stages/sft.json: not readable as JSON.*; remove it and .*run/sft"):
        go(tmp_path, resume=True)


def test_the_command_says_what_is_wrong_in_one_line(tmp_path, capsys):
    values = changed(toy_recipe(tmp_path), "evaluate.problems", "tset")
    assert run_script("scripts/run_r1.py", ["--config", str(write_recipe(tmp_path, values))]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and "evaluate.problems: 'tset' is unknown" in error and error.count("\n") == 1
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("script", ["run_r1.py", "run_sft.py"])
def test_the_scripts_answer(script, capsys, monkeypatch):
    main = runpy.run_path(str(REPOSITORY / "scripts" / script), run_name="script")["main"]
    if script == "run_sft.py":
        with pytest.raises(SystemExit) as end:
            main(["--worker_num", "2", "--print", "--config", "x"])
        assert end.value.code == 0
        assert f"{REPOSITORY}/run_sft.py --config x" in capsys.readouterr().out
        return
    with pytest.raises(SystemExit):
        main(["--help"])
    assert "--resume" in capsys.readouterr().out


@pytest.mark.slow
def test_a_whole_recipe_that_was_ended_half_way(tmp_path):
    """Ended by SIGTERM when SFT begins, then resumed: every command for real, in a folder with a space."""
    folder = tmp_path / "an r1 recipe"
    folder.mkdir()
    recipe, out = write_recipe(folder, toy_recipe(folder)), folder / "run"
    words = [sys.executable, str(REPOSITORY / "scripts" / "run_r1.py"), "--config", str(recipe)]
    log_of_stages = out / "stages.log"
    with (tmp_path / "first").open("w") as log:
        first = subprocess.Popen(words, stdout=log, stderr=log, start_new_session=True)
        try:
            deadline = time.monotonic() + 300
            while not (log_of_stages.exists() and "$ run_sft.py" in log_of_stages.read_text()):
                assert first.poll() is None and time.monotonic() < deadline, (tmp_path / "first").read_text()
                time.sleep(0.05)
            os.kill(first.pid, signal.SIGTERM)
            assert first.wait(60) == 143
        finally:
            if first.poll() is None:
                os.killpg(first.pid, signal.SIGKILL)
                first.wait()
    assert not (out / "sft" / "model").exists()
    second = subprocess.run([*words, "--resume"], capture_output=True, text=True, timeout=600, start_new_session=True)
    assert second.returncode == 0, second.stderr
    assert "[data_grpo] finished before\n" in second.stdout
    summary = json.loads((out / "summary.json").read_text())
    assert set(summary["accuracy"]) == {"sft", "grpo"} and summary["num_problems"] == {"sft": 10, "grpo": 10}
    for run_name in ("sft", "grpo"):
        assert [line["step"] for line in read_metrics(out / run_name / "metrics.jsonl")] == [1, 2]
    assert config_beside(out / "model").hidden_size == 32
    for made in ("model/model.safetensors", "model/tokenizer.json", "report.html", "evaluate_grpo.jsonl"):
        assert (out / made).exists(), made
