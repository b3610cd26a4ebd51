"""One of our rewards, timed: python -m benchmarks.speed.workers.scores JOB.json

The job holds batches (of completions and solution), reward (its name), warm_up, iterations and output (JSON to write).
The pool starts in the first iteration and stays; its processes' memory is not in what is written.
"""

import sys
from typing import Any

from benchmarks.speed.workers.timing import read_job, timed
from r1parallel.config.schema import RewardConfig
from r1parallel.rewards import score


def main() -> None:
    job = read_job(sys.argv[1])
    settings = RewardConfig()

    def judge(number: int) -> dict[str, Any]:
        completions, solution = job["batches"][number]["completions"], job["batches"][number]["solution"]
        prompts = [""] * len(completions)  # no reward of these looks at them
        scores = score([job["reward"]], [1.0], prompts, completions, solution, settings.time_limit)
        return {"completions": len(completions), "scores": scores.total.tolist()}

    timed(judge, job, ("math-verify", "numpy"))


if __name__ == "__main__":
    main()
