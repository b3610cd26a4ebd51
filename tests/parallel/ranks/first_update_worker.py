"""One rank: the first step under every named case; metrics go to FOLDER/RANK.json."""

import json
import sys
from collections.abc import Sequence
from pathlib import Path

from first_update_cases import FOUR_RANKS, OTHERS, Runs

from r1parallel.config.schema import ContextConfig
from r1parallel.parallel.device import setup_device
from r1parallel.parallel.worker import run_worker


def main(argv: Sequence[str]) -> None:
    world = setup_device(ContextConfig(wait_limit=300.0))
    runs, metrics = Runs(world), {}
    known = {case.name: case for case in (*FOUR_RANKS, *OTHERS)}
    for case in (known[name] for name in argv[1:]):
        metrics[case.name] = runs.metrics(case)
        print(f"done {case.name}", file=sys.stderr, flush=True)
    (Path(argv[0]) / f"{world.rank}.json").write_text(json.dumps(metrics))


if __name__ == "__main__":
    run_worker(main)
