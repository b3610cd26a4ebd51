"""Sizes and data of benchmarks.speed: the same token ids for both sides."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from r1parallel.config.model import load_model_config
from r1parallel.data.templates import render
from r1parallel.data.text.sources import ExampleSource
from r1parallel.data.text.tokenizer import load_tokenizer
from r1parallel.errors import UserError

PROMPT, COMPLETION = 50, 64  # tokens
PROMPTS, GROUP = 2, 8  # of a step, and completions of each
ROWS = PROMPTS * GROUP
SPREAD_PROMPTS, SPREAD_LONGEST = 64, 160  # of rollout_spread: prompts, and tokens of the longest
# Ends completions of full length: hardly any token is less likely, 1e-8 at most wherever in GSM8K it was looked at.
NEVER_DRAWN = "KeyNot"
STEP_FLAGS: dict[str, object] = {
    "rl_config.num_generations": GROUP,
    "rl_config.chunk_size": PROMPTS,
    "rl_config.num_rollouts": 1,
    "rl_config.num_iterations": 1,
    "generate_config.sampling_config.max_tokens": COMPLETION,
    "generate_config.infer_model_batch_size": ROWS,
    "rl_config.pack_length": PROMPT + GROUP * COMPLETION,  # a row has room for a prompt's whole group
}
# A loss that depends on the log-probs and has the gradient of GRPO's at its first update, to compare with the peer's.
TRAINING_FLAGS = STEP_FLAGS | {"rl_config.beta": 0.0, "rl_config.policy_loss": "reinforce"}
# Padded: two micro-batches of eight rows. Packed: as the YAML has it, a launch for each prompt.
TRAINING_CASES: dict[str, dict[str, object]] = {
    "training": {
        "rl_config.packing": "false",
        "rl_config.pack_length": 0,
        "rl_config.batch_size": ROWS // 2,
        "actor_config.parallel_config.micro_batch_num": 2,
    },
    "training_packed": {},
}
ROLLOUT_CASES = ("rollout", "rollout_grouped", "rollout_spread")


def rollout_data(case: str, model: Path, gsm8k: Path) -> dict[str, Any]:
    """Prompts, rows of a batch and stop ids; without stop ids every completion has the full length."""
    tokenizer = load_tokenizer(model)
    data: dict[str, Any] = {"max_tokens": COMPLETION, "rows": ROWS}
    data |= {"pad_id": tokenizer.pad_token_id, "stop_ids": []}
    if case == "rollout":
        return data | {"prompts": random_ids(model, ROWS, PROMPT)}
    if case == "rollout_grouped":
        prompts = [prompt for prompt in random_ids(model, PROMPTS, PROMPT) for _ in range(GROUP)]
        return data | {"prompts": prompts}
    rendered = gsm8k_prompts(model, gsm8k, "chat_gsm8k_shots")
    fitting = [ids for _, ids in rendered if len(ids) <= SPREAD_LONGEST]
    return data | {"prompts": fitting[:SPREAD_PROMPTS], "stop_ids": tokenizer.stop_ids}


def training_data(model: Path) -> dict[str, Any]:
    """Prompts and completions of a step, an advantage for each completion, and the learning rate."""
    prompts = [prompt for prompt in random_ids(model, PROMPTS, PROMPT) for _ in range(GROUP)]
    advantages = np.random.default_rng(2).normal(size=ROWS).round(3).tolist()
    completions = random_ids(model, ROWS, COMPLETION, seed=1)
    return {"prompts": prompts, "completions": completions, "advantages": advantages, "lr": 1e-6}


def random_ids(model: Path, rows: int, length: int, seed: int = 0) -> list[list[int]]:
    """Ordinary tokens: the first hundred ids hold the special ones."""
    return np.random.default_rng(seed).integers(100, load_model_config(model).vocab_size, (rows, length)).tolist()


def gsm8k_prompts(model: Path, gsm8k: Path, prompt_type: str) -> Iterator[tuple[str, list[int]]]:
    """(prompt, ids) of every problem."""
    tokenizer = load_tokenizer(model)
    for example in ExampleSource("gsm8k", gsm8k, False):
        prompt = render(prompt_type, example.question, tokenizer)
        yield prompt, tokenizer.encode(prompt)


def step_problems(model: Path, gsm8k: Path) -> list[tuple[str, str]]:
    """(line of the file, prompt) of the problems whose prompts have PROMPT tokens.

    Raises:
        UserError: there are too few.
    """
    lines = [line for line in gsm8k.read_text(encoding="utf-8").splitlines() if line.strip()]
    rendered = zip(lines, gsm8k_prompts(model, gsm8k, "plain"), strict=True)
    fitting = [(line, prompt) for line, (prompt, ids) in rendered if len(ids) == PROMPT]
    if len(fitting) < PROMPTS:
        raise UserError(f"{gsm8k}: has {len(fitting)} prompts of {PROMPT} tokens; give GSM8K's train.jsonl")
    return fitting


def write_job(path: Path, job: dict[str, Any]) -> None:
    path.write_text(json.dumps(job, default=str), encoding="utf-8")
