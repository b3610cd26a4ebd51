"""Whole GRPO steps with TRL, timed: python -m benchmarks.speed.workers.trl_peer JOB.json

In an environment with TRL, PYTHONPATH the project root. The job holds model (Hugging Face folder with tokenizer),
prompts, config (of GRPOConfig), stop_token (ends a completion), length (that every completion must have), warm_up and
output (JSON to write).
"""

import sys
import time
from typing import Any

import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, GenerationConfig, PreTrainedTokenizerFast, TrainerCallback
from trl import GRPOConfig, GRPOTrainer

from benchmarks.speed.workers.reward import share_of_spaces
from benchmarks.speed.workers.timing import read_job, seconds_since_start, write_found


class StepClock(TrainerCallback):
    """Seconds of every step: rollout, rewards, log-probs and update; and when the first was done."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self.first = 0.0

    def on_step_begin(self, *_: Any, **__: Any) -> None:
        self._began = time.perf_counter()

    def on_step_end(self, *_: Any, **__: Any) -> None:
        self.seconds.append(time.perf_counter() - self._began)
        self.first = self.first or seconds_since_start()


def main() -> None:
    job = read_job(sys.argv[1])
    tokenizer = PreTrainedTokenizerFast.from_pretrained(job["model"])
    tokenizer.eos_token = job["stop_token"]
    model = AutoModelForCausalLM.from_pretrained(job["model"], dtype=torch.float32)
    model.generation_config = GenerationConfig(eos_token_id=tokenizer.eos_token_id)
    clock = StepClock()
    trainer = GRPOTrainer(
        model=model,
        reward_funcs=[share_of_spaces],
        args=GRPOConfig(**job["config"]),
        train_dataset=Dataset.from_dict({"prompt": job["prompts"]}),
        processing_class=tokenizer,
        callbacks=[clock],
    )
    if trainer.eos_token_ids != [tokenizer.eos_token_id]:
        raise RuntimeError(f"TRL stops at {trainer.eos_token_ids}")
    trainer.train()
    steps = [line for line in trainer.state.log_history if "completions/mean_length" in line]
    if [line["completions/mean_length"] for line in steps] != [job["length"]] * len(clock.seconds):
        raise RuntimeError(f"not every completion has {job['length']} tokens: {steps}")
    tokens = job["config"]["per_device_train_batch_size"] * job["length"]
    iterations = [{"seconds": seconds, "tokens": tokens} for seconds in clock.seconds]
    write_found(job, iterations, clock.first, ("torch", "transformers", "trl", "accelerate"))


if __name__ == "__main__":
    main()
