"""One process of a job in the tests of launching; the first argument says what it does."""

import os
import signal
import time
from collections.abc import Sequence

import numpy as np

from r1parallel.config.schema import ContextConfig
from r1parallel.errors import UserError
from r1parallel.parallel.launch.waiting import waiting
from r1parallel.parallel.moving.collectives import all_gather, all_reduce, barrier, broadcast
from r1parallel.parallel.worker import run_worker

TYPES = (np.float16, np.float32, np.float64, np.int8, np.int64, np.uint16, np.bool_)


def main(argv: Sequence[str]) -> None:
    case = argv[0]
    if case == "refuse" and os.environ["RANK_ID"] == "1":
        raise UserError("rank 1 knows\nbetter")
    from r1parallel.parallel.device import current_world, setup_device

    world = setup_device(ContextConfig(wait_limit=120))
    assert current_world() == world
    if case == "collectives":
        check_collectives(world)
    barrier(world, "all are here")
    print(f"rank {world.rank} of {world.size} is ready", flush=True)
    if case == "hang":
        assert setup_device(ContextConfig(wait_limit=3)) == world
        if world.rank == 1:
            with waiting("rollout, step 3"):
                pass
            time.sleep(600)
    if case == "killed" and world.rank == world.size - 1:
        os.kill(os.getpid(), signal.SIGKILL)
    if case == "fault" and world.rank == 1:
        raise ValueError("a fault\nof its own")
    if case != "collectives":
        barrier(world, "weights, step 3")
        time.sleep(600)


def check_collectives(world) -> None:
    """Bits arrive unchanged, sums are in order, and calls that do not fit together are found."""
    nan = np.array([0x7FC00001, 0xFF812345, 0x80000000], np.uint32).view(np.float32)
    for size in (0, 1, 3, 1000):
        for dtype in TYPES:
            arrays = [np.random.default_rng([rank, size]).bytes(8 * size) for rank in range(world.size)]
            values = [np.frombuffer(raw, np.uint8).reshape(size, 8).view(np.uint8) for raw in arrays]
            values = [(value % 2).astype(dtype) if dtype is np.bool_ else value.view(dtype) for value in values]
            gathered = all_gather(world, values[world.rank], f"{size} {dtype}")
            assert gathered.dtype == dtype and gathered.tobytes() == np.stack(values).tobytes()
            assert broadcast(world, values[world.rank], "broadcast").tobytes() == values[0].tobytes()
    assert all_gather(world, nan, "nan").tobytes() == nan.tobytes() * world.size
    assert all_gather(world, np.array(1.5), "a number").shape == (world.size,)
    terms = np.array([1e16, 1.0])[: world.size]
    total = all_reduce(world, terms[world.rank], "sum")
    assert total.dtype == np.float64 and total.shape == () and total == terms[0] + terms[1]
    check_faults(world)


def check_faults(world) -> None:
    for what, array, fault in (
        (f"call of rank {world.rank}", np.zeros(2), "is in another call"),
        ("shapes", np.zeros((2, 1) if world.rank else (1, 2)), "another shape or type"),
        ("types", np.zeros(2, np.float32 if world.rank else np.int32), "another shape or type"),
    ):
        try:
            all_gather(world, array, what)
        except RuntimeError as error:
            assert fault in str(error), error
        else:
            raise AssertionError(f"{what}: nothing was found")


if __name__ == "__main__":
    run_worker(main)
