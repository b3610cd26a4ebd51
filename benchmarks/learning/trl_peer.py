"""The peer of benchmarks.learning: TRL's GRPOTrainer on our prompts, in their order, with our rewards.

python -m benchmarks.learning.trl_peer JOB.json, in an environment with TRL, PYTHONPATH the project root. The job holds:
model and tokenizer_dir (Hugging Face folders), rows (JSON lines: prompt, prompt_ids, solution; in the order of the
run), config (of GRPOConfig), optimizer (of AdamW), lrs (learning rate of every update), stop_id, versions and metrics
(JSON to write).
"""

import json
import sys
from importlib.metadata import version
from pathlib import Path

import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast
from trl import GRPOConfig, GRPOTrainer

from r1parallel.rewards.functions.accuracy import answer_reward
from r1parallel.rewards.functions.formats import format_reward


class Rewards:
    """Our rewards as TRL calls them. Stops the run where prompts or ends of completions are not those that are meant.

    Args:
        rows: of the whole run, in order.
        group: completions of one prompt.
        max_tokens: longest completion.
        stop_id: ends a completion.
    """

    def __init__(self, rows: list[dict], group: int, max_tokens: int, stop_id: int) -> None:
        self.rows, self.group, self.max_tokens, self.stop_id = rows, group, max_tokens, stop_id
        self.seen = 0

    def answer(self, prompts, completions, completion_ids, solution, **_):
        count = len(prompts) // self.group
        expected = self.rows[self.seen : self.seen + count]
        if list(prompts) != [row["prompt"] for row in expected for _ in range(self.group)]:
            raise RuntimeError(f"prompts {self.seen} to {self.seen + count} are not the run's")
        self.seen += count
        for ids in completion_ids:
            if self.stop_id in ids[:-1] or (ids[-1] != self.stop_id and len(ids) != self.max_tokens):
                raise RuntimeError(
                    f"a completion does not end with id {self.stop_id} or after {self.max_tokens}: {ids}"
                )
        return answer_reward(prompts=prompts, completions=completions, solution=solution)

    def form(self, prompts, completions, solution, **_):
        return format_reward(prompts=prompts, completions=completions, solution=solution)


def main() -> None:
    job = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    rows = [json.loads(line) for line in Path(job["rows"]).read_text(encoding="utf-8").splitlines()]
    tokenizer = PreTrainedTokenizerFast.from_pretrained(job["tokenizer_dir"])
    for row in rows:  # as TRL encodes a prompt that is no conversation
        if tokenizer(text=row["prompt"])["input_ids"] != row["prompt_ids"]:
            raise RuntimeError(f"{row['prompt']!r}: TRL would see other ids than {row['prompt_ids']}")
    config = GRPOConfig(**job["config"])
    rewards = Rewards(rows, config.num_generations, config.max_completion_length, job["stop_id"])
    model = AutoModelForCausalLM.from_pretrained(job["model"], torch_dtype=torch.float32)
    # The multiplier of a learning rate of 1, so that the schedule is ours to the last digit.
    optimizer = torch.optim.AdamW(model.parameters(), lr=1.0, **job["optimizer"])
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda update: [*job["lrs"], 0.0][update])
    trainer = GRPOTrainer(
        model=model,
        reward_funcs=[rewards.answer, rewards.form],
        args=config,
        train_dataset=Dataset.from_list([{"prompt": row["prompt"], "solution": row["solution"]} for row in rows]),
        processing_class=tokenizer,
        optimizers=(optimizer, schedule),
    )
    if trainer.eos_token_ids != [job["stop_id"]]:
        raise RuntimeError(f"TRL stops at {trainer.eos_token_ids}")
    trainer.train()
    if rewards.seen != len(rows):
        raise RuntimeError(f"TRL took {rewards.seen} of {len(rows)} prompts")
    Path(job["metrics"]).write_text(json.dumps(trainer.state.log_history), encoding="utf-8")
    versions = {name: version(name) for name in ("trl", "torch", "transformers", "accelerate")}
    Path(job["versions"]).write_text(json.dumps(versions), encoding="utf-8")


if __name__ == "__main__":
    main()
