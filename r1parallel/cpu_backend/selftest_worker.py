"""One process of the self-test: runs each collective in a graph and compares it with NumPy."""

import json
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import mindspore as ms
import numpy as np
from mindspore import Parameter, Tensor, nn, ops
from mindspore.communication import create_group, get_group_size, get_rank, init
from mindspore.parallel.auto_parallel import AutoParallel

from r1parallel.cpu_backend.comm_manager import WORLD
from r1parallel.cpu_backend.enable import enable

MOVED = ("float32", "float16", "int32", "bfloat16")
REDUCED = ("float32", "float16", "int32")
REDUCTIONS: dict[str, Callable[..., np.ndarray]] = {"sum": np.sum, "max": np.max, "min": np.min}
COLUMNS = 3
Expected = Callable[[list[np.ndarray]], np.ndarray]  # every rank's values → this rank's result
_WAIT_S = 60


class _Call(nn.Cell):
    """One collective of one tensor."""

    def __init__(self, primitive: Any) -> None:
        super().__init__()
        self.primitive = primitive

    def construct(self, x: Tensor) -> Tensor:
        return self.primitive(x)


class _CallTuple(nn.Cell):
    """One collective that takes and gives tuples."""

    def __init__(self, primitive: Any) -> None:
        super().__init__()
        self.primitive = primitive

    def construct(self, x: Tensor) -> Tensor:
        return self.primitive((x,))[0]


class _Shift(nn.Cell):
    """Every rank of the group sends to the next one."""

    def __init__(self, group: str, rank: int, size: int, shape: tuple[int, ...], dtype: Any) -> None:
        super().__init__()
        self.send = ops.Send(sr_tag=0, dest_rank=(rank + 1) % size, group=group)
        self.receive = ops.Receive(sr_tag=0, src_rank=(rank - 1) % size, shape=list(shape), dtype=dtype, group=group)

    def construct(self, x: Tensor) -> Tensor:
        return self.receive(ops.depend(x, self.send(x)))


class _Product(nn.Cell):
    """x [rows, inner] times a weight [inner, columns] that is split over its rows, as in a row-parallel layer."""

    def __init__(self, weight: np.ndarray, data: int, tensor: int) -> None:
        super().__init__()
        self.weight = Parameter(Tensor(weight), name="weight")
        self.product = ops.MatMul().shard(((data, tensor), (tensor, 1)))

    def construct(self, x: Tensor) -> Tensor:
        return self.product(x, self.weight)


def run(folder: str) -> None:
    """Leave rank_<rank>.json in a folder: check → what is wrong, or an empty text."""
    ms.set_context(mode=ms.GRAPH_MODE)
    ms.set_device("CPU")
    init()
    missing = enable()
    if missing:
        raise RuntimeError(missing)
    rank, size = get_rank(), get_group_size()
    faults = {f"{name}, {size} ranks": _fault(check) for name, check in _checks(WORLD, list(range(size)))}
    if size >= 4:
        ranks = [other for other in range(size) if other % 2 == rank % 2]  # so that ranks in the group differ
        group = f"parity_{rank % 2}"
        create_group(group, ranks)
        faults |= {f"{name}, {len(ranks)} of {size} ranks": _fault(check) for name, check in _checks(group, ranks)}
    faults["semi_auto_parallel"] = _fault(lambda: _check_product(size))
    _leave(Path(folder), rank, size, faults)


def _leave(folder: Path, rank: int, size: int, faults: dict[str, str]) -> None:
    """Write the result and wait for the others: who leaves first may break a peer's last collective."""
    part = folder / f"rank_{rank}.part"
    part.write_text(json.dumps(faults))
    part.rename(folder / f"rank_{rank}.json")
    for _ in range(_WAIT_S * 10):
        if all((folder / f"rank_{other}.json").exists() for other in range(size)):
            return
        time.sleep(0.1)


def _fault(check: Callable[[], None]) -> str:
    try:
        check()
    except Exception as error:  # every kind of failure is a result here
        return " ".join(f"{type(error).__name__}: {error}".split())[:300]
    return ""


def _checks(group: str, ranks: list[int]) -> Iterator[tuple[str, Callable[[], None]]]:
    """Name and check of each collective in one group; `ranks` are its ranks in the world."""
    size, own = len(ranks), ranks.index(get_rank())
    root = ranks[-1]

    def check(make: Callable[[str], nn.Cell], expect: Expected, types: Sequence[str], rows: int) -> None:
        for dtype in types:
            values = [_values(rank, rows) for rank in ranks]
            found = make(dtype)(_tensor(values[own], dtype))
            np.testing.assert_array_equal(_array(found), expect(values), err_msg=dtype)

    def reductions(op: str, reduce: Callable[..., np.ndarray]) -> Iterator[tuple[str, Callable[[], None]]]:
        def scattered(values: list[np.ndarray]) -> np.ndarray:
            return np.split(reduce(values, axis=0), size)[own]

        # One row more than the ranks can share evenly.
        yield (
            f"AllReduce {op}",
            lambda: check(
                lambda _: _Call(ops.AllReduce(op, group)), lambda values: reduce(values, axis=0), REDUCED, 2 * size + 1
            ),
        )
        yield (
            f"ReduceScatter {op}",
            lambda: check(lambda _: _Call(ops.ReduceScatter(op, group)), scattered, REDUCED, 2 * size),
        )

    for op, reduce in REDUCTIONS.items():
        yield from reductions(op, reduce)
    yield "AllGather", lambda: check(lambda _: _Call(ops.AllGather(group)), np.concatenate, MOVED, 2)
    yield (
        "Broadcast",
        lambda: check(lambda _: _CallTuple(ops.Broadcast(root, group)), lambda values: values[-1], MOVED, 2),
    )
    yield (
        "AlltoAll",
        lambda: check(
            lambda _: _Call(ops.AlltoAll(size, 0, 1, group)),
            lambda values: np.concatenate([np.split(value, size)[own] for value in values], axis=1),
            MOVED,
            2 * size,
        ),
    )
    yield (
        "Send, Receive",
        lambda: check(
            lambda dtype: _Shift(group, own, size, (2, COLUMNS), getattr(ms, dtype)),
            lambda values: values[own - 1],
            MOVED,
            2,
        ),
    )


def _check_product(size: int) -> None:
    """A product of matrices with strategies: needs the patched frontend and the groups that it creates."""
    data = 2 if size >= 4 else 1
    rng = np.random.default_rng(0)
    x, weight = (rng.integers(-8, 9, shape).astype(np.float32) for shape in ((4, 2 * size), (2 * size, COLUMNS)))
    net = AutoParallel(_Product(weight, data, size // data), parallel_mode="semi_auto")
    net.dataset_strategy("full_batch")
    np.testing.assert_array_equal(net(Tensor(x)).asnumpy(), x @ weight)


def _values(rank: int, rows: int) -> np.ndarray:
    """What a rank brings: [rows, COLUMNS], whole numbers that every type holds exactly, as do their sums."""
    return np.random.default_rng(rank).integers(-8, 9, (rows, COLUMNS))


def _tensor(values: np.ndarray, dtype: str) -> Tensor:
    if dtype == "bfloat16":
        return Tensor(values.astype(np.float32)).astype(ms.bfloat16)
    return Tensor(values.astype(dtype))


def _array(tensor: Tensor) -> np.ndarray:
    return (tensor.astype(ms.float32) if tensor.dtype == ms.bfloat16 else tensor).asnumpy()
