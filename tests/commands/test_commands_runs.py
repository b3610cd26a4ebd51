import json
import math
import re

import numpy as np
import pytest
from helpers.tiny_runs import GRPO_STEPS, MODEL, folder_bytes, run_script, sft_flags

from r1parallel.checkpoint.load import config_beside, read_model
from r1parallel.checkpoint.run_state import latest_run_state, load_run_state
from r1parallel.data.text.tokenizer import load_tokenizer
from r1parallel.monitor.metrics import read_metrics
from r1parallel.monitor.samples import read_samples
from r1parallel.parallel.layout.mesh import Mesh
from r1parallel.parallel.layout.strategy_files import read_strategy
from r1parallel.parallel.layout.table import ModelLayout

GRPO_METRICS = {
    "loss", "actor_loss", "kl_loss", "lr", "grad_norm", "ratio_mean", "clip_fraction", "kl",
    "first_update_ratio_deviation", "first_update_clip_fraction", "rollout_logp_diff_mean", "rollout_logp_diff_max",
    "reward_mean", "reward_std", "reward/format_reward", "reward/answer_reward", "accuracy", "frac_reward_zero_std",
    "advantage_mean", "completion_length_mean", "completion_clipped_fraction", "tokens", "tokens_per_second",
    "seconds/rollout", "seconds/reward", "seconds/old_logps", "seconds/reference", "seconds/update", "seconds/sync",
}  # fmt: skip


def test_grpo_leaves_a_whole_run_folder(grpo_run):
    names = {path.name for path in grpo_run.iterdir()}
    assert names == {
        "config.json", "metrics.jsonl", "samples.jsonl", "checkpoints", "strategy", "model", "report.html",
        "tensorboard",
    }  # fmt: skip
    settings = json.loads((grpo_run / "config.json").read_text())
    assert settings["rl_config"]["max_steps"] == GRPO_STEPS
    assert "sft_config" not in settings
    kept = sorted(path.name for path in (grpo_run / "checkpoints").iterdir())
    assert kept == sorted(f"step_{step}" for step in (4, 6, 8, 10, 12))  # the newest five
    assert list((grpo_run / "tensorboard").glob("events.out.tfevents.*"))
    assert "reward" in (grpo_run / "report.html").read_text()
    assert not [path for path in folder_bytes(grpo_run) if "tmp" in path]


def test_grpo_metrics_are_finite_and_complete(grpo_run):
    lines = read_metrics(grpo_run / "metrics.jsonl")
    assert [line["step"] for line in lines] == list(range(1, GRPO_STEPS + 1))
    for line in lines:
        assert line.keys() >= GRPO_METRICS
        assert all(math.isfinite(value) for value in line.values())
        assert line["first_update_ratio_deviation"] == line["first_update_clip_fraction"] == 0.0
        assert line["rollout_logp_diff_max"] < 1e-4
        assert line["reward_mean"] == pytest.approx(line["reward/format_reward"] + line["reward/answer_reward"])


def test_grpo_samples_belong_to_their_steps(grpo_run):
    samples = read_samples(grpo_run / "samples.jsonl")
    assert [sample["step"] for sample in samples] == [step for step in range(1, GRPO_STEPS + 1) for _ in range(4)]
    for sample in samples:
        left, sign, right = sample["prompt"].rstrip("=").partition("+" if "+" in sample["prompt"] else "-")
        gold = int(left) + int(right) if sign == "+" else int(left) - int(right)
        assert sample["solution"] == str(gold)
        assert sample["reward"] == sum(sample["parts"].values())
        assert 1 <= sample["length"] <= 6


def test_grpo_model_opens_everywhere_and_has_moved(grpo_run, inputs):
    assert config_beside(grpo_run / "model") == MODEL
    assert load_tokenizer(grpo_run / "model").decode([10]) == load_tokenizer(inputs.tokenizer).decode([10])
    start, end = read_model(inputs.checkpoint, MODEL), read_model(grpo_run / "model", MODEL)
    assert all((start[name] != value).any() for name, value in end.items())


def test_grpo_checkpoint_holds_actor_optimizer_and_the_untouched_reference(grpo_run, inputs):
    newest = latest_run_state(grpo_run / "checkpoints")
    tensors, state = load_run_state(newest)
    assert newest.name == "step_12"
    assert state["updates"] == GRPO_STEPS * 4
    assert set(tensors) == {"actor", "optimizer", "reference"}
    start, end = read_model(inputs.checkpoint, MODEL), read_model(grpo_run / "model", MODEL)
    for name in start:
        np.testing.assert_array_equal(tensors["reference"].read(name), start[name])
        np.testing.assert_array_equal(tensors["actor"].read(name), end[name])


def test_sft_leaves_a_whole_run_folder(sft_run):
    names = {path.name for path in sft_run.iterdir()}
    assert names >= {"config.json", "metrics.jsonl", "checkpoints", "model", "report.html", "tensorboard", "strategy"}
    assert [path.name for path in (sft_run / "checkpoints").iterdir()] == ["step_8"]  # only the last
    assert config_beside(sft_run / "model") == MODEL
    tensors, state = load_run_state(sft_run / "checkpoints" / "step_8")
    assert set(tensors) == {"actor", "optimizer"}
    assert state["updates"] == 8
    for name, value in read_model(sft_run / "model", MODEL).items():
        np.testing.assert_array_equal(tensors["actor"].read(name), value)


def test_sft_writes_the_actors_strategy_files(sft_run):
    expected = ModelLayout(MODEL, Mesh()).stages
    names = {str(path.relative_to(sft_run / "strategy")) for path in (sft_run / "strategy").rglob("*.ckpt")}
    merged = "merge_strategy/train_policy_merged_strategy.ckpt"
    assert names == {"train_policy_strategy/strategy_0.ckpt", merged}
    assert read_strategy(sft_run / "strategy" / "train_policy_strategy").stages == expected
    assert read_strategy(sft_run / "strategy" / merged).stages == expected


def test_sft_loss_falls_and_is_evaluated_when_due(sft_run):
    lines = read_metrics(sft_run / "metrics.jsonl")
    assert [line["step"] for line in lines] == list(range(1, 9))
    assert all(math.isfinite(value) for line in lines for value in line.values())
    assert lines[0]["loss"] == pytest.approx(math.log(MODEL.vocab_size), rel=0.02)  # random weights know nothing
    assert lines[-1]["loss"] < lines[0]["loss"] - 0.5
    evaluated = [line["step"] for line in lines if "eval_loss" in line]
    assert evaluated == [2, 4, 6, 8]
    assert lines[-1]["eval_loss"] < lines[1]["eval_loss"]
    assert lines[-1]["eval_token_probability"] > lines[1]["eval_token_probability"]


def test_sft_starts_from_a_checkpoint_and_can_do_without_extras(sft_run, inputs, tmp_path, capsys):
    """One update from the model of another run: no evaluation, TensorBoard or report; checkpoints elsewhere."""
    flags = sft_flags(
        inputs,
        tmp_path / "run",
        max_steps=1,
        eval_dataset_file="",
        tensorboard="false",
        save_strategy_dir=tmp_path / "strategy",
        actor_config__load=sft_run / "model",
        actor_config__save=tmp_path / "kept",
        monitor_config__report="false",
    )
    assert run_script("run_sft.py", flags) == 0
    said = capsys.readouterr()
    assert said.out == f"model: {tmp_path / 'run' / 'model'}\n"
    compiled = re.findall(r"^compiling (.*) … \d+\.\d s$", said.err, re.MULTILINE)
    assert compiled == ["the training graph", "the gradient norm", "the optimizer"]
    names = {path.name for path in (tmp_path / "run").iterdir()}
    assert names == {"config.json", "metrics.jsonl", "samples.jsonl", "model"}
    assert [path.name for path in (tmp_path / "kept").iterdir()] == ["step_1"]
    first = read_metrics(tmp_path / "run" / "metrics.jsonl")[0]
    last = read_metrics(sft_run / "metrics.jsonl")[-1]
    assert "eval_loss" not in first
    assert first["loss"] < last["loss"] + 0.3  # it knows what the other run has learned


@pytest.mark.parametrize("script", ["run_sft.py", "run_grpo.py"])
def test_help_names_every_section(script, capsys):
    assert run_script(script, ["--help"]) == 0
    output = capsys.readouterr().out
    assert output.startswith(f"usage: {script}")
    assert "--actor_config.lr_schedule.lr " in output
