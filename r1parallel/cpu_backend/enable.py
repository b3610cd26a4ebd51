"""The two entry points: `enable` for semi_auto_parallel on the CPU, `enable_fused` for fused operators."""

import ctypes
from pathlib import Path

from r1parallel.cpu_backend.build import COLLECTIVES, FUSED, Kernels, build_kernels
from r1parallel.cpu_backend.comm_manager import (
    Groups,
    RunningGroups,
    SimulatedGroups,
    answer_python,
    register_comm_manager,
)
from r1parallel.cpu_backend.patch import patch_frontend
from r1parallel.cpu_backend.wheel import find_wheel
from r1parallel.errors import UserError

_enabled = False
_fused: str | None = "not asked for"  # why there are no fused kernels; None: there are
_simulated: SimulatedGroups | None = None


def enable(simulate: tuple[int, int] | None = None) -> str | None:
    """Make semi_auto_parallel work on the CPU, in this process.

    To be called once, after `mindspore.set_device("CPU")` and, under msrun, after `init()`, and before any graph is
    compiled. A compile-only process may call it again to act as another rank.

    Args:
        simulate: (rank, number of ranks) for a compile-only process, which compiles that rank's graph without msrun and
            `init()`; None for a job that runs.

    Returns:
        None, or one line for the user that says what does not work on this machine and what to install.

    Raises:
        UserError: the wheel is not one that was tested, or its kernels cannot be compiled.
        ValueError: `simulate` names no rank, the target is not the CPU, or this was called before.
    """
    global _enabled
    import mindspore as ms

    if simulate is not None and not 0 <= simulate[0] < simulate[1]:
        raise ValueError(f"simulate {simulate}: the rank must be at least 0 and less than the number of ranks")
    if simulate is not None and _simulated is not None:
        _simulated.become(*simulate)
        return None
    if _enabled:
        raise ValueError("the CPU backend is enabled already: once in a process is enough, and it cannot be taken back")
    if ms.get_context("device_target") != "CPU":
        raise ValueError("the CPU backend is for the target CPU: call mindspore.set_device first")
    wheel = find_wheel()
    library = build_kernels(wheel, COLLECTIVES)
    patch_frontend(wheel)
    _enabled = True
    register_comm_manager(_groups(simulate), wheel.folder / "lib")
    if library is None:
        return COLLECTIVES.missing
    _register(COLLECTIVES, library)
    return None


def enable_fused() -> str | None:
    """Register the CPU kernels of fused operators, in this process.

    To be called after `mindspore.set_device("CPU")` and before any graph is compiled; a further call does nothing.

    Returns:
        None, or one line for the user that says why there are none; models then use plain operators.
    """
    global _fused
    if _fused is None:
        return None
    try:
        library = build_kernels(find_wheel(), FUSED)
    except UserError as error:
        _fused = f"CPU backend: no fused kernels, models are made of slower, plain operators: {error}"
        return _fused
    if library is None:
        _fused = FUSED.missing
        return _fused
    _register(FUSED, library)
    _fused = None
    return None


def has_fused() -> bool:
    """Whether `enable_fused` has registered the kernels."""
    return _fused is None


def _register(kernels: Kernels, library: Path) -> None:
    getattr(ctypes.CDLL(str(library)), kernels.register)()


def _groups(simulate: tuple[int, int] | None) -> Groups:
    global _simulated
    if simulate is None:
        return RunningGroups()
    _simulated = SimulatedGroups(*simulate)
    answer_python(_simulated)
    return _simulated
