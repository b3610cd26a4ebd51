"""TRL's accuracy_reward, timed: python -m benchmarks.speed.workers.scores_peer JOB.json

The job is as in scores.py, without reward.
"""

import sys
from typing import Any

from trl.rewards import accuracy_reward

from benchmarks.speed.workers.timing import read_job, timed


def main() -> None:
    job = read_job(sys.argv[1])

    def judge(number: int) -> dict[str, Any]:
        batch = job["batches"][number]
        said = [[{"role": "assistant", "content": text}] for text in batch["completions"]]
        return {"completions": len(said), "scores": accuracy_reward(said, batch["solution"])}

    timed(judge, job, ("trl", "math-verify"))


if __name__ == "__main__":
    main()
