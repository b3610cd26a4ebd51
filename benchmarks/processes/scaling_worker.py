"""One rank of the scaling benchmark: training steps under data parallelism on one core, timed, their bytes counted.

Started by msrun with a JSON file: sizes (of the model), rows (of an update), tokens (of a row), opt_shard, warm_up,
iterations, output (folder). Writes <output>/<rank>.json.
"""

import json
import os
import time
from collections.abc import Sequence
from math import prod
from pathlib import Path

import numpy as np

from benchmarks.processes.socket_bytes import received_bytes
from r1parallel.config.model import ModelConfig
from r1parallel.config.schema import ActorConfig, ContextConfig, ParallelConfig
from r1parallel.monitor.memory import peak_resident_bytes
from r1parallel.parallel.layout.mesh import Mesh
from r1parallel.parallel.layout.table import ModelLayout
from r1parallel.parallel.worker import run_worker

LR = 1e-6


def batch(rows: int, tokens: int, vocab: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Inputs of SFTLoss: tokens [N, S] with a prompt of one token, starts [N], weights [N, S − 1]."""
    ids = np.random.default_rng(0).integers(0, vocab, (rows, tokens)).astype(np.int32)
    return ids, np.zeros(rows, np.int32), np.full((rows, tokens - 1), 1 / (rows * (tokens - 1)), np.float32)


def main(argv: Sequence[str]) -> None:
    job = json.loads(Path(argv[0]).read_text(encoding="utf-8"))
    cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, [cores[int(os.environ["RANK_ID"]) % len(cores)]])
    from r1parallel.models.fused.operators import choose_operators
    from r1parallel.models.logps import CompletionLogps
    from r1parallel.models.parameters import load_slices, random_source, unallocated
    from r1parallel.models.qwen2_5 import Qwen2ForCausalLM
    from r1parallel.parallel.device import setup_device
    from r1parallel.parallel.moving.collectives import barrier
    from r1parallel.training.sft import SFTLoss
    from r1parallel.training.step import TrainStep

    world = setup_device(ContextConfig(wait_limit=job["wait_limit"]))
    config, rows, tokens = ModelConfig(**job["sizes"]), job["rows"], job["tokens"]
    layout = ModelLayout(config, Mesh(dp=world.size), job["opt_shard"])
    barrier(world, "all are there")
    empty = peak_resident_bytes()
    with unallocated():
        model = Qwen2ForCausalLM(config, tokens, operators=choose_operators("float32", trained=True))
    loss = SFTLoss(CompletionLogps(model, rows, 1, tokens - 1, split_vocab=False))
    actor = ActorConfig(
        parallel_config=ParallelConfig(data_parallel=world.size), enable_parallel_optimizer=job["opt_shard"]
    )
    given = batch(rows, tokens, config.vocab_size)
    step = TrainStep(loss, model.trainable_params(), layout, world, actor, given)
    load_slices(model, random_source(config, 0), layout, world.rank)
    seconds, processor, messages, answers, losses = [], [], [], [], []
    for number in range(job["warm_up"] + job["iterations"]):
        barrier(world, f"step {number}")
        before, began, worked = received_bytes(), time.perf_counter(), time.process_time()
        losses.append(float(step.accumulate(*given).sum(dtype=np.float64)))
        step.apply(LR, losses[-1], f"step {number}")
        seconds.append(time.perf_counter() - began)
        processor.append(time.process_time() - worked)
        received = received_bytes().since(before)
        messages.append(received.messages)
        answers.append(received.answers)
    counted = slice(job["warm_up"], None)
    local = [layout.local_shape(name, world.rank) for name in layout.parameters]
    found = {
        "seconds": seconds[counted],
        "processor": processor[counted],
        "messages": messages[counted],
        "answers": answers[counted],
        "losses": losses,
        "empty": empty,
        "peak": peak_resident_bytes(),
        "held": sum(prod(shape) for shape in local if shape is not None),
    }
    (Path(job["output"]) / f"{world.rank}.json").write_text(json.dumps(found), encoding="utf-8")


if __name__ == "__main__":
    run_worker(main)
