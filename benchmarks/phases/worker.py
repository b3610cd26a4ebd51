"""One phase of a GRPO step, timed and then profiled.

python -m benchmarks.phases.worker JOB.json

The job is as in speed/workers/ours.py; kind may also be reference. Writes seconds of each iteration, of the profiled
one, and what MindSpore's profiler says of the operators in it: type → number and seconds.
"""

import json
import sys
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from mindspore import Tensor

from benchmarks.common.machine import write
from benchmarks.phases.operators import profiled
from benchmarks.speed.workers import ours
from benchmarks.speed.workers.timing import Work, read_job
from r1parallel.checkpoint.load import open_model
from r1parallel.config.loading.load import GRPO_SECTIONS, load_config
from r1parallel.config.model import load_model_config
from r1parallel.config.schema import ContextConfig
from r1parallel.models.parameters import load_slices
from r1parallel.parallel.device import setup_device
from r1parallel.parallel.launch.world import World
from r1parallel.rl.models import Reference
from r1parallel.rl.trainer import row_shape


def reference(job: dict[str, Any]) -> Work:
    """Log-probs of all completions under the reference, a batch of rows after the other."""
    config, model_config = load_config(job["config"], job["flags"], GRPO_SECTIONS), load_model_config(job["model"])
    experience = ours.given_experience(job, config)
    shape = row_shape(config, ours.data_set(job))
    model = Reference(config, model_config, shape, World())
    load_slices(model.model, open_model(job["model"], model_config), model.layout, 0)
    samples = np.arange(len(job["completions"]))

    def logps(number: int) -> dict[str, Any]:
        for part in shape.rows(experience, samples, model.rows).parts(model.rows):
            part.put(model.logps(Tensor(part.tokens), Tensor(part.row_data)).asnumpy(), experience.ref_logps)
        return {}

    return logps


def main() -> None:
    job = read_job(sys.argv[1])
    setup_device(ContextConfig())
    work = {"rollout": ours.rollout, "reference": reference, "training": ours.training}[job["kind"]](job)
    seconds = []
    for number in range(job["warm_up"] + job["iterations"]):
        began = time.perf_counter()
        work(number)
        seconds.append(time.perf_counter() - began)
        print(json.dumps(seconds[-1]), flush=True)
    under, found = profiled(lambda: work(len(seconds)), Path("trace"))
    result = {
        "seconds": seconds[job["warm_up"] :],
        "profiled": under,
        "operators": found,
        "versions": {name: version(name) for name in ("mindspore", "numpy")},
    }
    write(Path(job["output"]), json.dumps(result))


if __name__ == "__main__":
    main()
