"""One rank of the resharding benchmark: new weights under other layouts, timed and counted.

Started by msrun with a JSON file: sizes (of the model), cases, warm_up, iterations, output (folder). Writes
<output>/<rank>.json: case → seconds of each iteration, bytes sent and received in one, least that it had to receive.
"""

import json
import sys
import time
from collections.abc import Mapping, Sequence
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from r1parallel.config.model import ModelConfig
from r1parallel.config.schema import ContextConfig
from r1parallel.parallel.launch.world import World
from r1parallel.parallel.layout.mesh import Mesh
from r1parallel.parallel.layout.regions import overlap, shape_of
from r1parallel.parallel.layout.table import ModelLayout
from r1parallel.parallel.moving.reshard import Pair, Transport, reshard, reshard_plan
from r1parallel.parallel.worker import run_worker

ITEM = 4  # bytes of fp32


class Counting:
    """A transport that counts what goes through it."""

    def __init__(self, inner: Transport) -> None:
        self._inner, self.sent, self.received = inner, 0, 0

    def exchange(self, counts: Mapping[Pair, int], outgoing: Mapping[int, np.ndarray]) -> dict[int, np.ndarray]:
        """See `Transport`."""
        incoming = self._inner.exchange(counts, outgoing)
        self.sent += sum(array.nbytes for array in outgoing.values())
        self.received += sum(array.nbytes for array in incoming.values())
        return incoming


def layouts(case: Mapping[str, Any], sizes: Mapping[str, Any]) -> tuple[ModelLayout, ModelLayout]:
    """Of the actor and of the generator."""
    config = ModelConfig(**sizes)
    return ModelLayout(config, Mesh(**case["actor"]), case["opt_shard"]), ModelLayout(config, Mesh(**case["generator"]))


def least_bytes(source: ModelLayout, target: ModelLayout, rank: int) -> int:
    """What a rank needs and does not hold itself, of all tensors: however they travel, no less comes in."""
    return sum(missing(source, target, name, rank) for name in source.parameters) * ITEM


def missing(source: ModelLayout, target: ModelLayout, name: str, rank: int) -> int:
    """Elements."""
    need, held = (layout.slices(name, rank % layout.world_size) for layout in (target, source))
    if need is None:
        return 0
    both = None if held is None else overlap(need, held)
    return prod(shape_of(need)) - (0 if both is None else prod(shape_of(both)))


def measured(case: Mapping[str, Any], job: Mapping[str, Any], world: World) -> dict[str, Any]:
    from r1parallel.parallel.moving.collectives import barrier
    from r1parallel.parallel.moving.slice_checksums import check_resharded_slices
    from r1parallel.parallel.moving.transport import choose_transport

    source, target = layouts(case, job["sizes"])
    random = np.random.default_rng(0)  # copies of a slice are alike on all ranks that hold one
    values = {}
    for name, param in source.parameters.items():
        full, region = random.random(param.shape, np.float32), source.slices(name, world.rank)
        if region is not None:
            values[name] = full[region].copy()
    plan = reshard_plan(source, target, world.size)
    transport = choose_transport(plan, world)
    seconds, verified = [], []
    for number in range(job["warm_up"] + job["iterations"]):
        counting = Counting(transport)
        barrier(world, f"iteration {number}")
        began = time.perf_counter()
        arrived = reshard(plan, world.rank, values, counting)
        seconds.append(time.perf_counter() - began)
        began = time.perf_counter()
        check_resharded_slices(source, target, world, values, arrived)
        verified.append(time.perf_counter() - began)
    return {
        "transport": type(transport).__name__,
        "seconds": seconds[job["warm_up"] :],
        "verified": verified[job["warm_up"] :],
        "sent": counting.sent,
        "received": counting.received,
        "least": least_bytes(source, target, world.rank),
    }


def main(argv: Sequence[str]) -> None:
    from r1parallel.parallel.device import setup_device

    job = json.loads(Path(argv[0]).read_text(encoding="utf-8"))
    world = setup_device(ContextConfig(wait_limit=job["wait_limit"]))
    found = {}
    for name, case in job["cases"].items():
        found[name] = measured(case, job, world)
        print(f"done {name}", file=sys.stderr, flush=True)
    (Path(job["output"]) / f"{world.rank}.json").write_text(json.dumps(found), encoding="utf-8")


if __name__ == "__main__":
    run_worker(main)
