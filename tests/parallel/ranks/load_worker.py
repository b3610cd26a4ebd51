"""One rank: MindSpore itself loads this rank's file of every named cut into the compiled program; log-probs are left.

python load_worker.py FOLDER CUT …: the cut lies in FOLDER/<cut>, the log-probs go to FOLDER/<cut>-<rank>.npy.
"""

from collections.abc import Sequence
from pathlib import Path

import mindspore as ms
import numpy as np
from load_cases import CUTS, batch, logps_program

from r1parallel.config.schema import ContextConfig
from r1parallel.parallel.device import setup_device
from r1parallel.parallel.worker import run_worker


def main(argv: Sequence[str]) -> None:
    folder = Path(argv[0])
    world = setup_device(ContextConfig(wait_limit=300.0))
    for name in argv[1:]:
        cut = CUTS[name]
        model, program = logps_program(cut.layout, world)
        file = folder / name / f"rank_{world.rank}" / f"checkpoint_{world.rank}.{cut.kind}"
        parameters = ms.load_checkpoint(str(file), format=cut.kind)
        missing, unused = ms.load_param_into_net(model, parameters, strict_load=True)
        own = set(cut.layout.stages[world.rank // cut.layout.stage_size])
        assert set(parameters) == own, set(parameters) ^ own
        assert not unused, unused
        assert not set(missing) & own, missing
        np.save(folder / f"{name}-{world.rank}.npy", program(*batch()).asnumpy())


if __name__ == "__main__":
    run_worker(main)
