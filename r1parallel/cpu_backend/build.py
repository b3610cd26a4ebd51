"""Compile kernels against the installed wheel, once, into the user's cache."""

import hashlib
import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from dataclasses import dataclass
from pathlib import Path

from r1parallel.atomic import lock
from r1parallel.cpu_backend.wheel import Wheel
from r1parallel.errors import UserError

COMPILER = "g++"
_NO_COMPILER = "CPU backend: g++ is missing, install it (Debian, Ubuntu: apt-get install g++). Without it "


@dataclass(frozen=True)
class Kernels:
    """A library of kernels.

    Attributes:
        name: of the library, and of the function that registers its kernels.
        sources: the first is compiled, it includes the others. All of them decide the library's name in the cache.
        flags: of optimization.
        missing: the message for a machine that has neither the compiled library nor g++.
    """

    name: str
    sources: tuple[Path, ...]
    flags: tuple[str, ...]
    missing: str

    @property
    def register(self) -> str:
        """Name of the C function that registers the kernels with MindSpore."""
        return f"r1parallel_register_{self.name}"


KERNELS = Path(__file__).with_name("kernels")


def _sources(first: str, *folders: str) -> tuple[Path, ...]:
    """The source that is compiled, then all headers of `folders`, which it includes."""
    headers = (path for folder in folders for path in sorted((KERNELS / folder).glob("*.h")))
    return (KERNELS / first, *headers)


COLLECTIVES = Kernels(
    "collectives",
    _sources("collectives/collectives.cc", "collectives"),
    ("-O2",),
    f"{_NO_COMPILER}tensor and data parallel run; sequence, optimizer and pipeline parallel, reductions other than a "
    "sum, AllGather and Broadcast in a part of the ranks, AlltoAll and bfloat16 do not.",
)
FUSED = Kernels(
    "fused",
    _sources("fused.cc", ".", "blocks", "common", "optimizer"),
    ("-O3", "-march=native", "-fno-math-errno"),  # a root that might set errno is not made of vectors
    f"{_NO_COMPILER}models are made of plain operators, which take longer and several times the memory.",
)
_NATIVE = "-march=native"
# The wheel's libraries use the layouts of std::string before C++11 and of its own hash tables.
_FLAGS = ["-std=c++17", "-w", "-shared", "-fPIC", "-D_GLIBCXX_USE_CXX11_ABI=0", "-DENABLE_FAST_HASH_TABLE=1"]
_LIBRARIES = (
    *(f"libmindspore_{name}.so" for name in ("core", "common", "hardware_abstract")),
    *(f"libmindspore_{name}.so" for name in ("backend_common", "ops_host", "runtime_utils")),
    "libdnnl.so.3",
)
_HEADERS = (
    "",
    "include",
    "include/mindspore",
    "include/mindspore/ccsrc",
    "include/mindspore/ccsrc/include",
    "include/mindspore/ccsrc/minddata/mindrecord/include",
    "include/mindspore/core",
    "include/mindspore/core/include",
    "include/mindspore/core/include/mindrt/include",
    "include/mindspore/core/mindrt",
    "include/mindspore/core/mindrt/include",
    "include/mindspore/include",
    "include/mindspore/ops",
    "include/mindspore/ops/include",
    "include/mindspore/ops/kernel/include",
    "include/third_party",
    "include/third_party/include",
    "include/third_party/pybind11",
    "include/third_party/robin_hood_hashing",
    "include/third_party/securec/include",
)


def build_kernels(wheel: Wheel, kernels: Kernels) -> Path | None:
    """The compiled library, made now if the cache has none. Any number of processes may call this at once.

    Returns:
        Its path, or None where it would have to be compiled and there is no g++.

    Raises:
        UserError: g++ failed, or the cache cannot be written.
    """
    target = cached_library(wheel, kernels)
    if target.exists():
        return target
    if shutil.which(COMPILER) is None:
        return None
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with target.with_suffix(".lock").open("w") as file:
            lock(file)
            if not target.exists():  # another process may have been first
                _compile(wheel, kernels, target)
    except OSError as error:
        raise UserError(f"{target.parent}: {error.strerror}; set XDG_CACHE_HOME to a writable folder") from None
    return target


def cached_library(wheel: Wheel, kernels: Kernels) -> Path:
    """Where the library for this wheel, this Python and these sources belongs; for this processor, if that matters."""
    base = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    digest = hashlib.sha256(repr((_FLAGS, kernels.flags, _LIBRARIES, _HEADERS)).encode())
    if _NATIVE in kernels.flags:
        digest.update(_processor())
    for source in kernels.sources:
        digest.update(source.read_bytes())
    name = f"{kernels.name}-{wheel.version}-{sys.implementation.cache_tag}-{digest.hexdigest()[:16]}.so"
    return Path(base) / "r1parallel" / "cpu_backend" / name


def _processor() -> bytes:
    """What this machine's processor can do: another may share the home folder."""
    lines = Path("/proc/cpuinfo").read_bytes().splitlines()
    return next(line for line in lines if line.startswith(b"flags"))


def _compile(wheel: Wheel, kernels: Kernels, target: Path) -> None:
    with tempfile.TemporaryDirectory(dir=target.parent) as folder:
        made = Path(folder) / target.name
        result = subprocess.run(_command(wheel, kernels, made), capture_output=True, text=True, start_new_session=True)
        if result.returncode:
            errors = (line for line in result.stderr.splitlines() if "error" in line)
            reason = next(errors, f"exit code {result.returncode}")
            raise UserError(f"{COMPILER} cannot compile {kernels.sources[0]} for mindspore {wheel.version}: {reason}")
        os.replace(made, target)


def _command(wheel: Wheel, kernels: Kernels, made: Path) -> list[str]:
    folders = [KERNELS, *(wheel.folder / folder for folder in _HEADERS), sysconfig.get_path("include")]
    libraries = [f"-l:{name}" for name in _LIBRARIES]
    flags = [*_FLAGS, *kernels.flags, *(f"-I{folder}" for folder in folders)]
    return [COMPILER, *flags, str(kernels.sources[0]), "-o", str(made), f"-L{wheel.folder / 'lib'}", *libraries]
