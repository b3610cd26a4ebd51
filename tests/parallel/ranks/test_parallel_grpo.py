"""GRPO on eight ranks, each model under its own layout, against one process; resumed under another layout."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from helpers.msrun import run_workers
from helpers.one_rank import save_model
from helpers.tiny_runs import SIZES, STOP_ID, grpo_flags, tiny_inputs

from r1parallel.checkpoint.load import read_model
from r1parallel.checkpoint.run_state import latest_run_state, load_run_state
from r1parallel.config.model import ModelConfig
from r1parallel.models.parameters import random_values

WORKER = Path(__file__).with_name("grpo_worker.py")
REWARDS = Path(__file__).parents[2] / "helpers" / "rewards_of_runs.py"
LIMIT_S = 900
TWO_LAYERS = {**SIZES, "num_layers": 2}
MODEL = ModelConfig(**TWO_LAYERS)
STEPS = 3
# Actor dp2 · tp2 · pp2 with sequence and optimizer parallelism, generator dp4 · tp2, reference dp8.
EIGHT_RANKS = {
    "actor_config__parallel_config__data_parallel": 2,
    "actor_config__parallel_config__model_parallel": 2,
    "actor_config__parallel_config__pipeline_stage": 2,
    "actor_config__parallel_config__use_seq_parallel": "true",
    "actor_config__enable_parallel_optimizer": "true",
    "generate_config__parallel_config__data_parallel": 4,
    "generate_config__parallel_config__model_parallel": 2,
    "ref_config__parallel_config__data_parallel": 8,
    "batch_size": 2,
    "chunk_size": 1,
    "ref_config__ref_model_batch_size": 2,
    "generate_config__infer_model_batch_size": 4,
}
ONE_RANK = {"batch_size": 4, "chunk_size": 4, "generate_config__infer_model_batch_size": 16}


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> Path:
    """Sizes, an actor, and a reference that differs from it, so that a KL term pulls from the first step on."""
    folder, inputs = tmp_path_factory.mktemp("models"), tiny_inputs()
    (folder / "model.yaml").write_text("".join(f"{key}: {json.dumps(value)}\n" for key, value in TWO_LAYERS.items()))
    for name, seed in (("actor", 0), ("reference", 1)):
        save_model(folder / name, random_values(MODEL, seed, 0.1), MODEL, inputs.tokenizer, [STOP_ID])
    return folder


def write_flags(file: Path, models: Path, output: Path, greedy: bool, layout: dict, **changes: object) -> Path:
    """A file that the worker reads: 16 completions a step, two updates of 8 rows in two micro-batches."""
    settings = {
        "actor_config__load": models / "actor",
        "actor_config__model_config": models / "model.yaml",
        "ref_config__load": models / "reference",
        "ref_config__sync_ref_model": "true",
        "ref_config__ref_model_sync_steps": 2,
        "num_rollouts": 1,
        "num_iterations": 1,
        "max_steps": STEPS,
        "save_ckpt_interval": 2,
        "beta": 0.1,
        # AdamW divides by gradients near zero: where rounding decides, an element moves by a part of lr.
        "actor_config__lr_schedule__lr": 0.0005,
        "reward_config__verifier_function": f"{REWARDS}:share_of_sevens",
        "reward_config__verifier_weight": "1",
    }
    flags = grpo_flags(tiny_inputs(), output, **(settings | layout | changes))
    file.write_text(json.dumps({"flags": flags, "greedy": greedy}))
    return file


def launch(workers: int, files: list[Path], folder: Path) -> None:
    done = run_workers(WORKER, [str(file) for file in files], workers, folder, LIMIT_S)
    assert done.returncode == 0, done.output[-2000:] + "".join(done.log(rank)[-800:] for rank in range(workers))


@pytest.fixture(scope="module")
def runs(models, tmp_path_factory) -> Path:
    """Folders one-greedy, one-sampled, eight-greedy, eight-sampled."""
    folder = tmp_path_factory.mktemp("grpo")
    for name, workers, layout in (("one", 1, ONE_RANK), ("eight", 8, EIGHT_RANKS)):
        files = [
            write_flags(folder / f"{name}-{kind}.json", models, folder / f"{name}-{kind}", kind == "greedy", layout)
            for kind in ("greedy", "sampled")
        ]
        launch(workers, files, folder / f"job-{name}")
    return folder


def lines(file: Path) -> list[dict]:
    return [json.loads(line) for line in file.read_text().splitlines()]


@pytest.mark.parametrize("kind", ["greedy", "sampled"])
def test_eight_ranks_equal_one_process(runs, kind):
    one, eight = (lines(runs / f"{name}-{kind}" / "metrics.jsonl") for name in ("one", "eight"))
    assert len(one) == len(eight) == STEPS
    for expected, found in zip(one, eight, strict=True):
        compared = [key for key in expected if not key.startswith(("seconds", "tokens_per_second", "time"))]
        assert {"loss", "reward_mean", "kl", "grad_norm", "rollout_logp_diff_max"} <= set(compared)
        differences = {key: abs(expected[key] - found[key]) for key in compared}
        assert max(differences.values()) <= 1e-5, {k: v for k, v in differences.items() if v > 1e-5}
    assert lines(runs / f"one-{kind}" / "samples.jsonl") == lines(runs / f"eight-{kind}" / "samples.jsonl")
    expected, found = (read_model(runs / f"{name}-{kind}" / "model", MODEL) for name in ("one", "eight"))
    start = random_values(MODEL, 0, 0.1)
    for name in expected:
        assert np.abs(expected[name] - found[name]).max() <= 1e-5, name
    assert max(np.abs(expected[name] - start[name]).max() for name in start) > 1e-3


def test_the_first_update_of_a_sampled_run_is_on_policy(runs):
    for name in ("one", "eight"):
        first = lines(runs / f"{name}-sampled" / "metrics.jsonl")[0]
        assert first["first_update_ratio_deviation"] == 0.0


def test_a_run_of_eight_ranks_goes_on_under_another_layout(runs, models, tmp_path):
    """Two ranks take up the checkpoint of step 2 and reach what eight ranks reached; optimizer state included."""
    output = tmp_path / "resumed"
    shutil.copytree(runs / "eight-sampled", output)
    shutil.rmtree(output / "checkpoints" / "step_3")
    two_ranks = {
        "actor_config__parallel_config__pipeline_stage": 2,
        "generate_config__parallel_config__data_parallel": 2,
        "ref_config__parallel_config__model_parallel": 2,
        "batch_size": 4,
        "chunk_size": 2,
        "ref_config__ref_model_batch_size": 16,
        "generate_config__infer_model_batch_size": 8,
        "resume_training": "true",
    }
    launch(2, [write_flags(tmp_path / "resume.json", models, output, False, two_ranks)], tmp_path / "job")
    (expected, _), (found, _) = (
        load_run_state(latest_run_state(folder / "checkpoints")) for folder in (runs / "one-sampled", output)
    )
    for group in ("actor", "optimizer", "reference"):
        assert set(expected[group].shapes) == set(found[group].shapes)
        for name in expected[group].shapes:
            assert np.abs(expected[group].read(name) - found[group].read(name)).max() <= 1e-5, (group, name)
    assert len(lines(output / "metrics.jsonl")) == STEPS
