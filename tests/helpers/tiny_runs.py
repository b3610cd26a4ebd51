"""A toy model with arithmetic data, and the command lines that train it: what several test folders share."""

import atexit
import json
import re
import runpy
import shutil
import sys
import tempfile
from dataclasses import dataclass
from functools import cache
from itertools import islice
from pathlib import Path
from unittest import mock

from helpers.one_rank import save_model
from r1parallel.config.checks import check_config
from r1parallel.config.loading.command_line import parse_command_line
from r1parallel.config.loading.load import GRPO_SECTIONS, SFT_SECTIONS
from r1parallel.config.model import ModelConfig
from r1parallel.config.schema import RunConfig
from r1parallel.data.preprocess import preprocess
from r1parallel.data.problems.arithmetic import generate_arithmetic, write_character_tokenizer
from r1parallel.data.problems.problem_files import write_problems
from r1parallel.models.parameters import random_values

REPOSITORY = Path(__file__).parents[2]
SIZES = {
    "vocab_size": 32,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_layers": 1,
    "num_heads": 4,
    "num_kv_heads": 2,
    "rope_theta": 10000.0,
    "max_position_embeddings": 64,
    "tie_word_embeddings": True,
}
MODEL = ModelConfig(**SIZES)
STOP_ID = 1  # <|im_end|> of the character tokenizer
PROMPT_SLOTS, ANSWER_SLOTS = 6, 24
GRPO_STEPS = 12  # of the run that tests/commands compares others with


@dataclass(frozen=True)
class TinyInputs:
    """Paths of everything that a run reads."""

    folder: Path
    train: Path
    other: Path  # as many rows as `train`, other problems
    held_out: Path
    tokenizer: Path
    model_config: Path
    checkpoint: Path


@cache
def tiny_inputs() -> TinyInputs:
    """Data sets of 32, 32 and 10 problems of one or two digits, the character tokenizer, and a random model.

    Written once a process (a MindRecord file takes 50 MB) and removed at its end; tests only read them.
    """
    folder = Path(tempfile.mkdtemp(prefix="r1parallel-tests-"))
    atexit.register(shutil.rmtree, folder)
    inputs = TinyInputs(
        folder,
        folder / "train.mindrecord",
        folder / "other.mindrecord",
        folder / "held_out.mindrecord",
        folder / "tokenizer",
        folder / "model.yaml",
        folder / "model",
    )
    write_character_tokenizer(inputs.tokenizer)
    problems = generate_arithmetic(74, seed=3, digits=(1, 2))
    for path, count in ((inputs.train, 32), (inputs.other, 32), (inputs.held_out, 10)):
        lines = path.with_suffix(".jsonl")
        write_problems(lines, islice(problems, count))
        size = PROMPT_SLOTS + ANSWER_SLOTS
        preprocess("arithmetic", lines, inputs.tokenizer, path, PROMPT_SLOTS, size, "raw")
    inputs.model_config.write_text("".join(f"{key}: {json.dumps(value)}\n" for key, value in SIZES.items()))
    save_model(inputs.checkpoint, random_values(MODEL, 0, 0.1), MODEL, inputs.tokenizer, [STOP_ID])
    return inputs


def grpo_flags(inputs: TinyInputs, output: Path, **changes: object) -> list[str]:
    """Flags of a GRPO run: 16 completions of at most 6 tokens a step, two updates of 8 rows in each of two passes.

    `changes`: rl_config keys as they are, other keys with `__` for the dot.
    """
    flags = {
        "rl_config.dataset_file": inputs.train,
        "rl_config.tokenizer_dir": inputs.tokenizer,
        "rl_config.output_dir": output,
        "rl_config.save_strategy_dir": output / "strategy",
        "rl_config.max_steps": 4,
        "rl_config.batch_size": 4,
        "rl_config.num_generations": 4,
        "rl_config.num_rollouts": 2,
        "rl_config.chunk_size": 2,
        "rl_config.num_iterations": 2,
        "rl_config.save_ckpt_interval": 2,
        "actor_config.load": inputs.checkpoint,
        "actor_config.model_config": inputs.model_config,
        "actor_config.parallel_config.micro_batch_num": 2,
        "actor_config.lr_schedule.lr": 0.002,
        "actor_config.lr_schedule.warmup_step": 2,
        "actor_config.lr_schedule.decay_steps": 100,
        "ref_config.ref_model_batch_size": 8,
        "reward_config.verifier_function": "format_reward,answer_reward",
        "reward_config.verifier_weight": "1,1",
        "generate_config.infer_model_batch_size": 8,
        "generate_config.max_prompt_length": PROMPT_SLOTS,
        "generate_config.sampling_config.max_tokens": 6,
        "monitor_config.progress_bar": "false",
    }
    return _merged(flags, "rl_config", changes)


def sft_flags(inputs: TinyInputs, output: Path, **changes: object) -> list[str]:
    """Flags of an SFT run from random weights: 8 rows an update in two micro-batches, evaluated every 2 updates."""
    flags = {
        "sft_config.dataset_file": inputs.train,
        "sft_config.eval_dataset_file": inputs.held_out,
        "sft_config.tokenizer_dir": inputs.tokenizer,
        "sft_config.output_dir": output,
        "sft_config.save_strategy_dir": output / "strategy",
        "sft_config.max_steps": 8,
        "sft_config.batch_size": 4,
        "sft_config.eval_batch_size": 4,
        "sft_config.eval_interval": 2,
        "actor_config.model_config": inputs.model_config,
        "actor_config.parallel_config.micro_batch_num": 2,
        "actor_config.lr_schedule.lr": 0.01,
        "actor_config.lr_schedule.warmup_step": 2,
        "actor_config.lr_schedule.decay_steps": 100,
        "monitor_config.progress_bar": "false",
    }
    return _merged(flags, "sft_config", changes)


def _merged(flags: dict[str, object], section: str, changes: dict[str, object]) -> list[str]:
    named = {key.replace("__", ".") if "__" in key else f"{section}.{key}": value for key, value in changes.items()}
    return [f"--{key}={value}" for key, value in (flags | named).items()]


def grpo_config(inputs: TinyInputs, output: Path, **changes: object) -> RunConfig:
    """The checked configuration of `grpo_flags`."""
    config = parse_command_line(grpo_flags(inputs, output, **changes), GRPO_SECTIONS, "run_grpo.py", "")
    check_config(config, GRPO_SECTIONS, world_size=1)
    return config


def sft_config(inputs: TinyInputs, output: Path, **changes: object) -> RunConfig:
    """The checked configuration of `sft_flags`."""
    config = parse_command_line(sft_flags(inputs, output, **changes), SFT_SECTIONS, "run_sft.py", "")
    check_config(config, SFT_SECTIONS, world_size=1)
    return config


def error_line(said: str) -> str:
    """Without "error: ", the line that ends what a refused command said on stderr; before it: what it compiled."""
    *before, last = said.splitlines()
    assert all(re.fullmatch(r"compiling [a-z -]+ … \d+\.\d s", line) for line in before), said
    assert last.startswith("error: ") and said.endswith("\n"), said
    return last.removeprefix("error: ")


def run_script(script: str, flags: list[str]) -> int:
    """Run `script` of the repository in this process, as `python script flags` would; returns its exit code."""
    path = REPOSITORY / script
    with mock.patch.object(sys, "argv", [str(path), *flags]):
        try:
            runpy.run_path(str(path), run_name="__main__")
        except SystemExit as stop:
            return int(stop.code or 0)
    return 0


def without_times(metrics: dict[str, float]) -> dict[str, float]:
    """One line of metrics.jsonl without what the clock decides."""
    return {k: v for k, v in metrics.items() if not k.startswith("seconds/") and k != "tokens_per_second"}


def folder_bytes(folder: Path) -> dict[str, bytes]:
    """Relative path → content of every file below `folder`."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}
