"""GSM8K as a data set of Hugging Face's, written or read, timed: python -m benchmarks.speed.workers.data_peer JOB.json

The job is as in data.py. Rows are encoded a thousand at a time, by a fast tokenizer on all cores, and kept in
Arrow files of this folder; reading gives lists of ids, 64 rows at a time.
"""

import shutil
import sys
from typing import Any

from datasets import Dataset, load_dataset
from transformers import PreTrainedTokenizerFast

from benchmarks.speed.workers.timing import Work, read_job, timed

BATCH = 64


def main() -> None:
    job = read_job(sys.argv[1])
    work = {"data_prepare": prepare, "data_read": read}[job["kind"]]
    timed(work(job), job, ("datasets", "transformers", "tokenizers"))


def prepare(job: dict[str, Any]) -> Work:
    """From text to a file, in each iteration anew."""
    tokenizer = PreTrainedTokenizerFast.from_pretrained(job["model"])
    return lambda number: {"examples": len(written(job, tokenizer))}


def written(job: dict[str, Any], tokenizer: PreTrainedTokenizerFast) -> Dataset:
    def encode(rows: dict[str, list[str]]) -> dict[str, list[Any]]:
        prompts = [f"{question}\n" for question in rows["question"]]
        answers = [f"{answer}{tokenizer.eos_token}" for answer in rows["answer"]]
        return {
            "prompt_ids": tokenizer(prompts, add_special_tokens=False)["input_ids"],
            "answer_ids": tokenizer(answers, add_special_tokens=False)["input_ids"],
            "solution": [answer.rpartition("####")[2].strip().replace(",", "") for answer in rows["answer"]],
        }

    shutil.rmtree("cache", ignore_errors=True)
    rows = load_dataset("json", data_files=job["gsm8k"], split="train", cache_dir="cache")
    return rows.map(encode, batched=True, remove_columns=rows.column_names)


def read(job: dict[str, Any]) -> Work:
    """From a file to lists."""
    rows = written(job, PreTrainedTokenizerFast.from_pretrained(job["model"]))

    def epoch(number: int) -> dict[str, Any]:
        examples = ids = 0
        for batch in rows.iter(batch_size=BATCH):
            examples += len(batch["solution"])
            ids += sum(map(len, batch["prompt_ids"])) + sum(map(len, batch["answer_ids"]))
        return {"examples": examples, "ids": ids}

    return epoch


if __name__ == "__main__":
    main()
