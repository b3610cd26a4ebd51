"""What this machine can do: python -m benchmarks.phases.rates JOB.json

The job holds products (lists of form, rows, ins, outs), threads and output (JSON to write: flops a second of each
product with our MatMul, in that order, and bytes a second that all threads together read from memory).
"""

import json
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from mindspore import Tensor, nn, ops

from benchmarks.common.machine import write
from benchmarks.phases.floor import ITEM, Product
from benchmarks.speed.workers.timing import read_job
from r1parallel.config.schema import ContextConfig
from r1parallel.parallel.device import setup_device

LEAST = 0.3  # seconds that a product is repeated for
# Right operands of a launch, so that its own cost counts little; what they have together, and their products.
COPIES, COPIES_BYTES, COPIES_FLOPS = 64, 32 * 2**20, 2 * 10**9
READ = 256 * 2**20  # bytes that each thread reads at a time
READS = 5


class Products(nn.Cell):
    """One left operand and several right ones."""

    def __init__(self, form: str):
        super().__init__()
        turned = {"input_gradient": (False, False), "weight_gradient": (True, False)}.get(form, (False, True))
        self.matmul = ops.MatMul(*turned)
        if form == "few_rows":
            self.matmul.add_prim_attr("few_rows", True)

    def construct(self, left: Tensor, *rights: Tensor) -> tuple[Tensor, ...]:
        results: tuple[Tensor, ...] = ()
        for right in rights:
            results = (*results, self.matmul(left, right))
        return results


def operands(product: Product) -> tuple[tuple[int, int], tuple[int, int]]:
    """Shapes of the left and the right one."""
    rows, ins, outs = product.rows, product.ins, product.outs
    if product.form == "input_gradient":
        return (rows, outs), (outs, ins)
    if product.form == "weight_gradient":
        return (rows, outs), (rows, ins)
    return (rows, ins), (outs, ins)


def rate(product: Product) -> float:
    """Flops a second, of the median launch."""
    random, (left, right) = np.random.default_rng(0), operands(product)
    most = (COPIES, COPIES_BYTES // (right[0] * right[1] * ITEM), COPIES_FLOPS // product.flops)
    copies = max(1, min(most))
    given = [Tensor(random.random(shape, np.float32)) for shape in (left, *[right] * copies)]
    cell, seconds = Products(product.form), []
    for _ in range(3):  # MindSpore's kernels try out how their work is best shared out
        cell(*given)[0].asnumpy()
    while sum(seconds) < LEAST or len(seconds) < 3:
        began = time.perf_counter()
        cell(*given)[-1].asnumpy()
        seconds.append(time.perf_counter() - began)
    return product.flops * copies / float(np.median(seconds))


def bandwidth(threads: int) -> float:
    """Bytes a second, the best of some: NumPy's product of a vector with itself, which lets go of Python's lock."""
    vectors = [np.ones(READ // ITEM, np.float32) for _ in range(threads)]
    best = 0.0
    with ThreadPoolExecutor(threads) as pool:
        for _ in range(READS):
            began = time.perf_counter()
            list(pool.map(lambda vector: np.dot(vector, vector), vectors))
            best = max(best, threads * READ / (time.perf_counter() - began))
    return best


def main() -> None:
    job: dict[str, Any] = read_job(sys.argv[1])
    found = {"bandwidth": bandwidth(job["threads"])}
    setup_device(ContextConfig())
    rates = []
    for words in job["products"]:
        product = Product(*words)
        rates.append(rate(product))
        print(f"{product}: {rates[-1] / 1e9:.1f} GFLOP/s", flush=True)
    write(Path(job["output"]), json.dumps(found | {"rates": rates}))


if __name__ == "__main__":
    main()
