"""Compilation of the training graphs, timed: python -m benchmarks.speed.workers.compile JOB.json

The job is as in ours.py for a training step, with layers (instead of the model's own number of them), prompt and
completion (slots of a row). No weights are read and no graph is launched; compiled graphs are not kept.
"""

import os
import sys
import time
from dataclasses import replace
from typing import Any

from benchmarks.speed.workers.timing import read_job, timed
from r1parallel.config.loading.load import GRPO_SECTIONS, load_config
from r1parallel.config.model import load_model_config
from r1parallel.config.schema import ContextConfig
from r1parallel.parallel.device import setup_device
from r1parallel.parallel.launch.world import World
from r1parallel.rl.experience.rows import RowShape
from r1parallel.rl.models import Actor


def main() -> None:
    job = read_job(sys.argv[1])
    os.environ.pop("MS_COMPILER_CACHE_ENABLE", None)  # the graphs of another run
    config = load_config(job["config"], job["flags"], GRPO_SECTIONS)
    sizes = replace(load_model_config(job["model"]), num_layers=job["layers"])
    settings = config.rl_config
    shape = RowShape(job["prompt"], job["completion"], settings.pack_length, settings.num_generations)
    setup_device(ContextConfig())

    def build(number: int) -> dict[str, Any]:
        began = time.process_time()
        actor = Actor(config, sizes, shape, 1, World())
        return {"graphs": actor.train.graphs, "processor_seconds": time.process_time() - began}

    timed(build, job, ("mindspore", "numpy"))


if __name__ == "__main__":
    main()
