"""How slices travel between the ranks of a job: through shared memory on one host, by Send and Receive otherwise."""

import contextlib
import hashlib
import mmap
import os
from collections.abc import Mapping
from typing import Any

import numpy as np

from r1parallel.errors import UserError
from r1parallel.parallel.launch.host import this_host
from r1parallel.parallel.launch.waiting import waiting
from r1parallel.parallel.launch.world import World
from r1parallel.parallel.moving.collectives import all_gather, barrier
from r1parallel.parallel.moving.reshard import Pair, ReshardPlan, Transport, exchanged

_ITEM = np.dtype(np.float32).itemsize


def choose_transport(plan: ReshardPlan, world: World) -> Transport:
    """Shared memory where all ranks see the same processes (one host), Send and Receive where they do not.

    Every rank calls this, once for each plan.

    Raises:
        UserError: the host has not enough memory for what a rank sends in one round.
    """
    own = np.frombuffer(hashlib.sha256(this_host().encode()).digest(), np.uint8)
    hosts = all_gather(world, own, "which host each rank is on")
    if (hosts == hosts[0]).all():
        return SharedMemory(plan, world)
    return SendReceive(world)


class SharedMemory:
    """Each rank writes what it sends into memory of its own, from which the others copy.

    The memory has no name: it is reached through the process that made it, and goes with the last process that has
    it, also when they are killed.
    """

    def __init__(self, plan: ReshardPlan, world: World) -> None:
        self._world = world
        counts = [exchanged(pieces) for pieces in plan.rounds]
        size = max(_sent(c, world.rank) for c in counts) * _ITEM
        descriptor = _make_memory(size)
        own = np.array([os.getpid(), descriptor], np.int64)
        others = all_gather(world, own, "where the others' memory for weights is")
        senders = {sender for c in counts for sender, receiver in c if receiver == world.rank}
        self._own = _map(descriptor, writable=True)
        self._theirs = {sender: _open(*others[sender]) for sender in sorted(senders)}
        barrier(world, "memory for weights is open")
        os.close(descriptor)

    def exchange(self, counts: Mapping[Pair, int], outgoing: Mapping[int, np.ndarray]) -> dict[int, np.ndarray]:
        """See `Transport`. The arrays returned are copies."""
        rank = self._world.rank
        for receiver, array in outgoing.items():
            begin = _offset(counts, (rank, receiver))
            self._own[begin : begin + array.size] = array
        barrier(self._world, "every rank has put down the weights it sends")
        incoming = {}
        for pair, count in counts.items():
            if pair[1] == rank:
                begin = _offset(counts, pair)
                incoming[pair[0]] = self._theirs[pair[0]][begin : begin + count].copy()
        barrier(self._world, "every rank has taken the weights it needs")
        return incoming


class SendReceive:
    """MindSpore's Send and Receive between two ranks, pair by pair in the plan's order.

    All earlier pairs are done when a pair's turn comes, so that both sides are there: nobody waits in a circle.
    """

    def __init__(self, world: World) -> None:
        self._world = world
        self._cells: dict[tuple[int, int, int], Any] = {}  # compiled once for each pair and size

    def exchange(self, counts: Mapping[Pair, int], outgoing: Mapping[int, np.ndarray]) -> dict[int, np.ndarray]:
        """See `Transport`."""
        from mindspore import Tensor

        incoming = {}
        for (sender, receiver), count in counts.items():
            with waiting(f"weights from rank {sender} to rank {receiver}"):
                if sender == self._world.rank:
                    self._cell(sender, receiver, count)(Tensor(outgoing[receiver])).asnumpy()
                elif receiver == self._world.rank:
                    start = Tensor(np.zeros(1, np.float32))
                    incoming[sender] = self._cell(sender, receiver, count)(start).asnumpy()
        return incoming

    def _cell(self, sender: int, receiver: int, count: int) -> Any:
        from r1parallel.parallel.moving.send_receive import ReceiveCell, SendCell

        key = (sender, receiver, count)
        if key not in self._cells:
            own = sender == self._world.rank
            self._cells[key] = SendCell(receiver) if own else ReceiveCell(sender, count)
        return self._cells[key]


def _make_memory(size: int) -> int:
    """A descriptor of memory that is there: writing to it later cannot fail."""
    descriptor = os.memfd_create("r1parallel weights")
    if size:
        try:
            os.posix_fallocate(descriptor, 0, size)
        except OSError as error:
            os.close(descriptor)
            raise UserError(
                f"no {size / 2**20:.0f} MiB of memory to pass weights on in: {error.strerror}; "
                "start fewer ranks on this host"
            ) from None
    return descriptor


def _open(process: int, descriptor: int) -> np.ndarray:
    path = f"/proc/{process}/fd/{descriptor}"
    with contextlib.closing(os.fdopen(os.open(path, os.O_RDONLY), "rb")) as file:
        return _map(file.fileno(), writable=False)


def _map(descriptor: int, writable: bool) -> np.ndarray:
    size = os.fstat(descriptor).st_size
    if size == 0:
        return np.zeros(0, np.float32)
    access = mmap.ACCESS_WRITE if writable else mmap.ACCESS_READ
    return np.frombuffer(mmap.mmap(descriptor, size, access=access), np.float32)


def _sent(counts: Mapping[Pair, int], rank: int) -> int:
    return sum(count for (sender, _), count in counts.items() if sender == rank)


def _offset(counts: Mapping[Pair, int], pair: Pair) -> int:
    """Where in its sender's memory the array of a pair begins: after those for lower receivers."""
    return sum(count for (sender, receiver), count in counts.items() if sender == pair[0] and receiver < pair[1])
