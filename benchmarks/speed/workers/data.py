"""GSM8K as MindRecord, written or read, timed: python -m benchmarks.speed.workers.data JOB.json

The job holds kind (data_prepare or data_read), model (folder of the tokenizer), gsm8k, warm_up, iterations and output
(JSON to write). Reading gives padded arrays of the whole data set, as training takes them. Files go to this folder.
"""

import sys
from pathlib import Path
from typing import Any

from benchmarks.speed.workers.timing import Work, read_job, timed
from r1parallel.data.mindrecord import read_mindrecord
from r1parallel.data.preprocess import preprocess

PROMPT, ROW = 256, 768  # tokens; no row of GSM8K is longer
FILE = Path("gsm8k.mindrecord")


def main() -> None:
    job = read_job(sys.argv[1])
    timed({"data_prepare": prepare, "data_read": read}[job["kind"]](job), job, ("mindspore", "tokenizers"))


def prepare(job: dict[str, Any]) -> Work:
    """From text to a file, in each iteration anew."""
    return lambda number: {"examples": write(job)}


def write(job: dict[str, Any]) -> int:
    return preprocess("gsm8k", job["gsm8k"], job["model"], FILE, PROMPT, ROW, "plain", overwrite=True).written


def read(job: dict[str, Any]) -> Work:
    """From a file to arrays."""
    write(job)

    def rows(number: int) -> dict[str, Any]:
        found = read_mindrecord(FILE)
        ids = int(found.prompt_lengths.sum() + found.answer_lengths.sum())
        return {"examples": len(found.solutions), "ids": ids}

    return rows


if __name__ == "__main__":
    main()
