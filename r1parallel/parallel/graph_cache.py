"""Compiled graphs, kept between runs of one process on the CPU.

MindSpore numbers the graphs of a process in the order of their compilation and takes whatever lies under a number. So a
folder belongs to one program on one kind of input: its name is a digest of everything that decides what is compiled,
and in which order. Only a process that was started for a single run may use one, and in it only the first run. A folder
that a run did not finish, or that another run is writing, is not used.
"""

import hashlib
import os
import shutil
import sys
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

from r1parallel.atomic import lock
from r1parallel.config.schema import ContextConfig
from r1parallel.parallel.launch.world import World

_PACKAGE = Path(__file__).resolve().parents[1]
_KEPT = 4  # folders; the oldest go first
_COMPLETE, _LOCK_FILE = "complete", "lock"
_ENABLE, _PATH = "MS_COMPILER_CACHE_ENABLE", "MS_COMPILER_CACHE_PATH"
_may_keep = False


class GraphCache:
    """Where this process keeps its graphs; made before the first one is compiled.

    Args:
        parts: what decides the graphs, besides the versions of MindSpore and of this package; anything with a repr that
            says all of it.

    Attributes:
        found: the graphs are there already.
    """

    def __init__(self, parts: Sequence[object]):
        base, self._folder = _base(), _base() / _digest(parts)
        base.mkdir(parents=True, exist_ok=True)
        self.found = self._used = False
        with (base / _LOCK_FILE).open("w") as everything:
            lock(everything)  # nobody makes or removes a folder meanwhile
            self._folder.mkdir(exist_ok=True)
            self._lock = (self._folder / _LOCK_FILE).open("w")
            if not lock(self._lock, wait=False):  # by another run of the same kind; this one compiles for itself
                return
            self._used, self.found = True, (self._folder / _COMPLETE).exists()
            _forget_oldest(base, keep=self._folder)
        graphs = self._folder / "graphs"
        if not self.found:
            shutil.rmtree(graphs, ignore_errors=True)
        # MindSpore asks for these when it compiles; the options of its context are on their way out.
        os.environ |= {_ENABLE: "1", _PATH: str(graphs)}

    def complete(self) -> None:
        """All graphs of the program were compiled: from now on the folder may be used."""
        if self._used:
            (self._folder / _COMPLETE).touch()


def begin_single_run() -> None:
    """Say that this process was started for one run. Has it MindSpore already, it may have compiled something."""
    global _may_keep
    _may_keep = "mindspore" not in sys.modules


def keep_graphs(config: ContextConfig, world: World, parts: Sequence[object]) -> GraphCache | None:
    """The cache of a run, or None where there is none: on several processes and Ascend, where it was not tried, too."""
    global _may_keep
    may_keep, _may_keep = _may_keep, False
    if not may_keep or not config.compile_cache or config.device_target != "CPU" or world.size > 1:
        os.environ.pop(_ENABLE, None)
        return None
    return GraphCache(parts)


def _base() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "r1parallel" / "graphs"


def _digest(parts: Sequence[object]) -> str:
    digest = hashlib.sha256(repr((version("mindspore"), [repr(part) for part in parts])).encode())
    for source in sorted(_PACKAGE.rglob("*.py")):
        digest.update(source.read_bytes())
    return digest.hexdigest()[:16]


def _forget_oldest(base: Path, keep: Path) -> None:
    """Remove what was not used for the longest time, unless a run is using it."""
    others = [path for path in base.glob(f"*/{_LOCK_FILE}") if path.parent != keep]
    for path in sorted(others, key=lambda path: path.stat().st_mtime)[: max(0, len(others) + 1 - _KEPT)]:
        with path.open() as file:
            if lock(file, wait=False):
                shutil.rmtree(path.parent)
