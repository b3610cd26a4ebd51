"""Synthetic runs for the tests of the monitor, and for looking at the report."""

import json
import math
import random
from pathlib import Path

from r1parallel.monitor.metrics import MetricsWriter
from r1parallel.monitor.samples import SampleLog


def grpo_metrics(step: int, steps: int, dice: random.Random) -> dict[str, float]:
    done = 1 / (1 + math.exp(-10 * (step / steps - 0.45)))
    noise = dice.gauss(0, 0.05)
    accuracy = min(1.0, max(0.0, 0.08 + 0.7 * done + noise))
    form = min(1.0, max(0.0, 0.3 + 0.68 * done + noise))
    length = 180 - 70 * done + dice.gauss(0, 8)
    seconds = {"rollout": 6.1, "reward": 0.4, "reference": 1.2, "old_logps": 1.1, "update": 4.0, "sync": 0.3}
    spent = {f"seconds/{name}": value * (1 + dice.random() / 4) for name, value in seconds.items()}
    if step % 5 == 0:
        spent["seconds/checkpoint"] = 2.5
    return {
        "loss": 0.0005 * dice.gauss(0, 1) + 0.0004 * step / steps,
        "actor_loss": 0.0005 * dice.gauss(0, 1),
        "kl_loss": 0.0004 * step / steps,
        "lr": 5e-7 * min(1.0, step / 10),
        "grad_norm": 0.6 + 0.2 * dice.random(),
        "ratio_mean": 1.0,
        "clip_fraction": 0.01 * dice.random(),
        "kl": 0.04 * done + 0.002 * dice.random(),
        "reward_mean": accuracy + form,
        "reward_min": 0.0,
        "reward_max": 2.0 if step > steps / 8 else 1.0,
        "reward_std": 0.4,
        "reward/accuracy_reward": accuracy,
        "reward/format_reward": form,
        "accuracy": accuracy,
        "frac_reward_zero_std": 0.2 + 0.3 * abs(done - 0.5),
        "completion_length_mean": length,
        "completion_length_min": length * 0.4,
        "completion_length_max": 256.0,
        "completion_clipped_fraction": 0.2 * (1 - done),
        "rollout_logp_diff_mean": 2e-6 * (1 + dice.random()),
        "rollout_logp_diff_max": 4e-5 * (1 + dice.random()),
        "tokens": 64 * length,
        "tokens_per_second": 700 + 40 * dice.random(),
        **spent,
        "seconds/step": sum(spent.values()) - spent.get("seconds/checkpoint", 0.0) + 0.3,
    }


def write_grpo_run(run_dir: Path, steps: int) -> Path:
    dice = random.Random(7)
    metrics, samples = MetricsWriter(run_dir, None, None), SampleLog(run_dir, None)
    for step in range(1, steps + 1):
        metrics.write(step, grpo_metrics(step, steps, dice))
        samples.write(step, [sample(step, steps, number) for number in range(4)])
    metrics.close()
    samples.close()
    config = {"rl_config": {"beta": 0.01, "resume_training": False}, "reward_config": {"verifier_weight": [1.0, 0.5]}}
    (run_dir / "config.json").write_text(json.dumps(config))
    return run_dir


def sample(step: int, steps: int, number: int) -> dict[str, object]:
    right = step > steps / 2 and number < 3
    asked = f"Tom has {number + 3} boxes of 12 eggs and gives 5 eggs away. How many are left?"
    answer = (number + 3) * 12 - 5
    good = (
        f"<think>\n{number + 3} × 12 = {answer + 5}; {answer + 5} − 5 = {answer}.\n</think>\n<answer>{answer}</answer>"
    )
    bad = "Eggs & boxes <b>many</b> boxes of eggs and boxes of eggs " * 6
    return {
        "prompt": f"<|im_start|>user\n{asked}<|im_end|>\n<|im_start|>assistant\n",
        "completion": good if right else bad,
        "solution": str(answer),
        "reward": 2.0 if right else 0.0,
        "parts": {"accuracy_reward": float(right), "format_reward": float(right)},
    }


def write_sft_run(run_dir: Path, steps: int) -> Path:
    dice = random.Random(3)
    metrics = MetricsWriter(run_dir, None, None)
    for step in range(1, steps + 1):
        loss = 0.5 + 1.8 * math.exp(-4 * step / steps) + dice.gauss(0, 0.05)
        seconds = {"seconds/update": 1.1}
        values = {"loss": loss, "lr": 1e-5, "grad_norm": 1.0 + dice.random(), "tokens_per_second": 900.0, **seconds}
        if step % 10 == 0:
            values |= {"eval_loss": loss + 0.05, "eval_token_probability": 0.9 - loss / 5, "seconds/eval": 0.8}
        metrics.write(step, values)
    metrics.close()
    return run_dir
