"""Several ranks in one process, a thread each: collectives that need no MindSpore."""

import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from r1parallel.parallel.launch.world import World

# Where the package's modules have imported the collectives to.
_USERS = {
    "all_gather": ("parallel.moving.collectives", "parallel.moving.transport", "parallel.moving.slice_checksums"),
    "broadcast": ("parallel.moving.collectives", "training.run_folder"),
}


class SimulatedWorld:
    """`run(action)` calls action(world) on every rank at once and gives the results in order of ranks.

    A rank that raises ends the others' waiting; its exception is raised.
    """

    def __init__(self, size: int, monkeypatch: pytest.MonkeyPatch) -> None:
        self.size = size
        self._slots: list[Any] = [None] * size
        self._barrier = threading.Barrier(size)
        for name, modules in _USERS.items():
            for module in modules:
                monkeypatch.setattr(f"r1parallel.{module}.{name}", getattr(self, name))

    def all_gather(self, world: World, array: np.ndarray, what: str) -> np.ndarray:
        if world.size == 1:
            return array[np.newaxis].copy()
        self._slots[world.rank] = (what, array.copy())
        self._barrier.wait(30)
        slots = list(self._slots)
        self._barrier.wait(30)
        assert {text for text, _ in slots} == {what}
        return np.stack([value for _, value in slots])

    def broadcast(self, world: World, array: np.ndarray, what: str) -> np.ndarray:
        return self.all_gather(world, array, what)[0]

    def run(self, action: Callable[[World], Any]) -> list[Any]:
        results: list[Any] = [None] * self.size
        errors: list[BaseException] = []

        def rank(number: int) -> None:
            try:
                results[number] = action(World(number, self.size))
            except BaseException as error:
                if not isinstance(error, threading.BrokenBarrierError):
                    errors.append(error)
                self._barrier.abort()

        threads = [threading.Thread(target=rank, args=(number,)) for number in range(self.size)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        if errors:
            self._barrier.reset()
            raise errors[0]
        return results
