"""Accuracy and pass@k of a checkpoint on held-out problems."""

import math
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from r1parallel.data.templates import render
from r1parallel.data.text.sources import ExampleSource
from r1parallel.errors import UserError
from r1parallel.generation.answer import Answerer
from r1parallel.rewards import score

# What counts as right for each data set.
DEFAULT_VERIFIERS = {
    "gsm8k": "accuracy_reward",
    "arithmetic": "answer_reward",
    "countdown": "countdown_reward",
    "openr1_math": "qwen_accuracy_reward",
    "deepscaler": "qwen_accuracy_reward",
    "math_17k": "math_17k_acc",
}


def pass_at_k(num_samples: int, num_right: int, k: int) -> float:
    """Chance that k of the samples, drawn without replacement, hold a right one (Chen et al. 2021, eq. 1)."""
    return 1.0 - math.comb(num_samples - num_right, k) / math.comb(num_samples, k)


def evaluate(
    answerer: Answerer,
    dataset_type: str,
    file_path: str | Path,
    num_samples: int,
    prompt_type: str,
    verifier: str | None,
    seed: int,
    num_rows: int | None = None,
    time_limit: float = 5.0,
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Answer every problem `num_samples` times and score the answers.

    Returns:
        A summary: accuracy (mean over all answers), pass@k for k = 1, 2, 4 … num_samples, num_problems, num_samples,
        skipped (problems whose gold answer cannot be read), completion_length_mean; and one row a problem.

    Raises:
        UserError: unknown verifier, unreadable file, nothing left to score.
    """
    verifier = verifier or DEFAULT_VERIFIERS.get(dataset_type)
    if verifier is None:
        raise UserError(f"dataset_type {dataset_type} has no verifier of its own; name one with --verifier_function")
    tokenizer = answerer.tokenizer
    examples = list(islice(ExampleSource(dataset_type, file_path, answers_required=False), num_rows))
    prompts = [render(prompt_type, example.question, tokenizer) for example in examples for _ in range(num_samples)]
    drawn = answerer.answer([tokenizer.encode(prompt) for prompt in prompts], seed)
    completions = [tokenizer.decode(drawn.ids(row)) for row in range(len(prompts))]
    solutions = [example.solution for example in examples for _ in range(num_samples)]
    scores = score([verifier], [1.0], prompts, completions, solutions, time_limit)
    right = scores.total.reshape(-1, num_samples) >= 1.0  # kk_reward gives 3 to what is right
    scored = ~scores.skipped.reshape(-1, num_samples).any(axis=1)
    if not scored.any():
        raise UserError(f"{file_path}: no gold answer can be read by {verifier}; choose another --verifier_function")
    counts = right[scored].sum(axis=1)
    ks = [1 << i for i in range(num_samples.bit_length()) if 1 << i <= num_samples]
    summary: dict[str, Any] = {"accuracy": float(right[scored].mean())}
    for k in sorted({*ks, num_samples}):
        summary[f"pass@{k}"] = float(np.mean([pass_at_k(num_samples, int(count), k) for count in counts]))
    summary |= {
        "num_problems": int(scored.sum()),
        "num_samples": num_samples,
        "skipped": int((~scored).sum()),
        "completion_length_mean": float(drawn.lengths.mean()),
        "verifier": verifier,
    }
    rows = [
        {
            "question": example.question,
            "solution": example.solution,
            "completions": completions[i * num_samples : (i + 1) * num_samples],
            "right": right[i].tolist(),
        }
        for i, example in enumerate(examples)
    ]
    return summary, rows
