"""One rank: packed rows under every named layout; what they give goes to FOLDER/<case>-<rank>.npz."""

import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from packing_cases import CASES, compute

from r1parallel.config.schema import ContextConfig
from r1parallel.parallel.device import setup_device
from r1parallel.parallel.worker import run_worker


def main(argv: Sequence[str]) -> None:
    folder = Path(argv[0])
    world = setup_device(ContextConfig(wait_limit=300.0))
    for name in argv[1:]:
        np.savez(folder / f"{name}-{world.rank}.npz", **compute(CASES[name], world))
        print(f"done {name}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    run_worker(main)
