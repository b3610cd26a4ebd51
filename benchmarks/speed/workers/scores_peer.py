"""TRL's accuracy_reward, timed: python benchmarks/speed_scores_peer.py JOB.json

The job is as in speed_scores.py, without reward.
"""

import sys
from typing import Any

from trl.rewards import accuracy_reward

from benchmarks.speed.timing import read_job, timed


def main() -> None:
    job = read_job(sys.argv[1])

    def judge(number: int) -> dict[str, Any]:
        batch = job["batches"][number]
        said = [[{"role": "assistant", "content": text}] for text in batch["completions"]]
        return {"completions": len(said), "scores": accuracy_reward(said, batch["solution"])}

    timed(judge, job, ("trl", "math-verify"))


if __name__ == "__main__":
    main()
