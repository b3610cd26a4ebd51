"""The same rollout and optimizer step with transformers, as TRL does them.

python -m benchmarks.speed.workers.transformers_peer JOB.json

The job is as in ours.py, with adamw (of torch.optim.AdamW) and max_grad_norm instead of config and flags.
"""

import sys
from typing import Any

import torch
from transformers import AutoModelForCausalLM, GenerationConfig, PreTrainedModel
from trl.trainer.utils import selective_log_softmax

from benchmarks.speed.workers.timing import Work, counted, read_job, timed


def main() -> None:
    job = read_job(sys.argv[1])
    work = {"rollout": rollout, "training": training}[job["kind"]]
    timed(work(job), job, ("torch", "transformers", "trl"))


def load_model(job: dict[str, Any]) -> PreTrainedModel:
    return AutoModelForCausalLM.from_pretrained(job["model"], dtype=torch.float32)


def rollout(job: dict[str, Any]) -> Work:
    """Draw completions of all prompts, `rows` at a time, each batch until its last completion has ended."""
    model = load_model(job).eval()
    model.generation_config = GenerationConfig(
        do_sample=True,
        temperature=1.0,
        top_k=0,
        top_p=1.0,
        max_new_tokens=job["max_tokens"],
        eos_token_id=job["stop_ids"] or None,
        pad_token_id=job["pad_id"],
        disable_compile=True,
    )
    batches = [
        left_padded(job["prompts"][first : first + job["rows"]], job["pad_id"])
        for first in range(0, len(job["prompts"]), job["rows"])
    ]

    def draw(number: int) -> dict[str, Any]:
        torch.manual_seed(number)
        lengths: list[int] = []
        for ids, mask in batches:
            drawn = model.generate(input_ids=ids, attention_mask=mask)[:, ids.shape[1] :]
            lengths += ended(drawn, job["stop_ids"]).tolist()
        return counted(lengths)

    return draw


def left_padded(prompts: list[list[int]], pad_id: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Ids and attention mask, as long as the longest prompt."""
    longest = max(map(len, prompts))
    ids = torch.tensor([[pad_id] * (longest - len(prompt)) + prompt for prompt in prompts])
    mask = torch.tensor([[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts])
    return ids, mask


def ended(drawn: torch.Tensor, stop_ids: list[int]) -> torch.Tensor:
    """Tokens of each completion, its first stop id included."""
    stops = torch.isin(drawn, torch.tensor(stop_ids, dtype=drawn.dtype))
    return torch.where(stops.any(1), stops.int().argmax(1) + 1, drawn.shape[1])


def training(job: dict[str, Any]) -> Work:
    """One update on the same completions again and again: all rows at once, logits of the completions only."""
    model = load_model(job).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=job["lr"], fused=True, **job["adamw"])
    completions, advantages = torch.tensor(job["completions"]), torch.tensor(job["advantages"])
    ids = torch.cat([torch.tensor(job["prompts"]), completions], 1)
    mask, slots = torch.ones_like(ids), completions.shape[1]

    def update(number: int) -> dict[str, Any]:
        logits = model(input_ids=ids, attention_mask=mask, logits_to_keep=slots + 1, use_cache=False).logits[:, :-1]
        logps = selective_log_softmax(logits, completions)
        loss = -(advantages[:, None] * logps).mean()
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), job["max_grad_norm"])
        optimizer.step()
        optimizer.zero_grad()
        return {"tokens": ids.numel(), "loss": loss.item(), "norm": norm.item()}

    return update


if __name__ == "__main__":
    main()
