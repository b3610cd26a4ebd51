"""Whole GRPO runs of benchmarks.speed: run_grpo.py, and TRL on prompts and completions of the same length."""

import json
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.speed.bench import GRPO_YAML, ROOT, Bench, Found, step_config
from benchmarks.speed.cases import COMPLETION, GROUP, NEVER_DRAWN, PROMPT, ROWS, STEP_FLAGS, step_problems
from r1parallel.data.text.tokenizer import load_tokenizer
from r1parallel.errors import UserError

STEP_WARM_UP = 2  # steps of a run that are not counted


def our_run(bench: Bench, name: str, steps: int) -> Found:
    """run_grpo.py. When its first step was done is known of a run of one step only, whose metrics are one line."""
    folder = bench.fresh(name, "ours")
    log, run, peak = folder / "log.txt", folder / "run", folder / "found.json"
    words: list[object] = ["--config", GRPO_YAML, "--dataset_file", problems(bench), "--output_dir", run]
    words += ["--tokenizer_dir", bench.model, "--actor_checkpoint_path", bench.model]
    words += [word for key, value in our_flags(bench, steps).items() for word in (f"--{key}", value)]
    measured = ("-m", "benchmarks.speed.workers.run", peak)
    bench.commands.run(log, sys.executable, *measured, ROOT / "run_grpo.py", *words, cwd=folder)
    for gigabytes in (run / "checkpoints", run / "model"):
        shutil.rmtree(gigabytes)
    metrics, found = run / "metrics.jsonl", json.loads(peak.read_text(encoding="utf-8"))
    logged = metrics.stat().st_mtime - found.pop("started")
    lines = [json.loads(line) for line in metrics.read_text(encoding="utf-8").splitlines()]
    return bench.said(name, "ours", found | {"first": logged if steps == 1 else None} | our_iterations(name, lines))


def problems(bench: Bench) -> Path:
    """The data set as MindRecord, made by the first run that needs it."""
    data = bench.work / "data" / "problems.mindrecord"
    if data.is_file():
        return data
    data.parent.mkdir()
    source = data.with_suffix(".jsonl")
    lines = [line for line, _ in step_problems(bench.model, bench.gsm8k)]
    source.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    words: list[object] = ["--dataset_type", "gsm8k", "--file_path", source, "--tokenizer_dir", bench.model]
    words += ["--prompt_type", "plain", "--max_prompt_length", PROMPT, "--seq_length", PROMPT + COMPLETION]
    words += ["--prompts_only", "--output_path", data]
    bench.commands.run(data.with_suffix(".txt"), sys.executable, ROOT / "tools" / "preprocess_data.py", *words)
    return data


def our_flags(bench: Bench, steps: int) -> dict[str, object]:
    """Keys that differ from grpo.yaml's, the same in each run, as they decide whether it finds compiled graphs.

    Nothing is written but metrics and, after the last step, the model.
    """
    return STEP_FLAGS | {
        "rl_config.max_steps": steps,
        "rl_config.save_ckpt_interval": 0,
        "reward_config.verifier_function": f"{ROOT / 'benchmarks' / 'speed' / 'workers' / 'reward.py'}:share_of_spaces",
        "reward_config.verifier_weight": 1.0,
        "rl_config.save_strategy_dir": bench.work / "strategy",
        "rl_config.tensorboard": "false",
        "monitor_config.report": "false",
        "generate_config.sampling_config.eos_token_id": load_tokenizer(bench.model).id_of(NEVER_DRAWN),
    }


def our_iterations(name: str, lines: Sequence[dict[str, float]]) -> dict[str, Any]:
    """Seconds of every step, and of its phases; those to warm up apart.

    Raises:
        UserError: a completion is not of full length.
    """
    if any(line["completion_length_min"] != COMPLETION for line in lines):
        raise UserError(f"{name}: not every completion has {COMPLETION} tokens; the two cannot be compared")
    iterations = [
        {
            "seconds": line["seconds/step"],
            "tokens": ROWS * COMPLETION,
            "phases": {key.partition("/")[2]: value for key, value in line.items() if key.startswith("seconds/")},
        }
        for line in lines
    ]
    counted = warm_up(len(lines))
    return {"warm_up": iterations[:counted], "iterations": iterations[counted:]}


def warm_up(steps: int) -> int:
    """Steps that do not count."""
    return STEP_WARM_UP if steps > STEP_WARM_UP else 0


def trl_run(bench: Bench, name: str, steps: int) -> Found:
    """TRL's GRPOTrainer on prompts of the same length."""
    job = {
        "prompts": [prompt for _, prompt in step_problems(bench.model, bench.gsm8k)],
        "config": trl_config(steps) | {"output_dir": "run"},
        "stop_token": NEVER_DRAWN,
        "length": COMPLETION,
        "warm_up": warm_up(steps),
    }
    return bench.peer(name, job, "trl_peer")


def trl_config(steps: int) -> dict[str, Any]:
    """Keys of TRL's GRPOConfig that make it do what grpo.yaml tells ours: one update of all completions a step."""
    config = step_config(STEP_FLAGS)
    actor, settings = config.actor_config, config.rl_config
    return {
        "num_generations": GROUP,
        "per_device_train_batch_size": ROWS,
        "gradient_accumulation_steps": 1,
        "num_iterations": settings.num_iterations,
        "max_steps": steps,
        "max_completion_length": COMPLETION,
        "temperature": config.generate_config.sampling_config.temperature,
        "top_p": 1.0,
        "top_k": 0,
        "beta": settings.beta,
        "loss_type": "grpo",
        "learning_rate": actor.lr_schedule.lr,
        "lr_scheduler_type": "constant",
        "adam_beta1": actor.optimizer.adam_beta1,
        "adam_beta2": actor.optimizer.adam_beta2,
        "adam_epsilon": actor.optimizer.eps,
        "weight_decay": actor.optimizer.weight_decay,
        "max_grad_norm": actor.optimizer.max_grad_norm,
        "shuffle_dataset": False,
        "use_cpu": True,
        "bf16": False,
        "gradient_checkpointing": False,
        "save_strategy": "no",
        "logging_steps": 1,
        "report_to": "none",
        "disable_tqdm": True,
    }
