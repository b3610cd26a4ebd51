"""Checkpoints of a run: whatever training needs to go on bit for bit, written whole or not at all."""

import json
import os
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from r1parallel.checkpoint.dtypes import dtype_name
from r1parallel.checkpoint.tensor_file import Checkpoint, open_checkpoint
from r1parallel.checkpoint.tensor_writer import write_tensor_file
from r1parallel.errors import UserError

_STATE_FILE = "state.json"
_STEP = re.compile(r"step_(\d+)")


def save_run_state(
    folder: str | Path,
    step: int,
    tensors: Mapping[str, Mapping[str, np.ndarray]],
    state: dict[str, Any],
    keep: int,
) -> Path:
    """Write `<folder>/step_<step>/` with one `<group>.safetensors` a group and state.json.

    It is written under a temporary name, flushed to disk and renamed, so that a crash leaves the older ones.
    Then all but the `keep` newest are removed. One process writes a folder: what a killed one left is removed
    first.

    Args:
        folder: the run's checkpoints; made when missing.
        step: optimizer steps done.
        tensors: group → name → array, such as {"actor": …, "optimizer": …}.
        state: counters, random states and the like, as JSON can hold them.
        keep: how many checkpoints stay, at least 1.

    Returns:
        The folder of this step.

    Raises:
        UserError: this step is saved already.
        ValueError: `keep` is below 1.
    """
    if keep < 1:
        raise ValueError(f"keep is {keep}; at least the newest checkpoint must stay")
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    for leftover in folder.glob("*.tmp*"):
        shutil.rmtree(leftover)
    final = folder / f"step_{step}"
    if final.exists() and _complaint(final) is not None:  # damaged: resuming passed it over, this run makes it anew
        shutil.rmtree(final)
    if final.exists():
        raise UserError(f"{final}: this step is saved already; resume from it, or give the run another folder")
    temporary = folder / f"{final.name}.tmp-{os.getpid()}"
    temporary.mkdir()
    _write_groups(temporary, tensors, {"step": step, "state": state})
    os.replace(temporary, final)
    _flush_folder(folder)
    _prune(folder, keep, newest=final)
    return final


def latest_run_state(folder: str | Path) -> Path | None:
    """The complete checkpoint of the highest step, or None. One that lacks a file or a byte is skipped."""
    for path in reversed(_steps(Path(folder))):
        if _complaint(path) is None:
            return path
    return None


def load_run_state(path: str | Path) -> tuple[dict[str, Checkpoint], dict[str, Any]]:
    """Open what `save_run_state` wrote.

    Returns:
        Group → tensors, which are read one by one through `tensors[group][name].read()`, and the state.

    Raises:
        UserError: the checkpoint is missing, incomplete or damaged.
    """
    path = Path(path)
    complaint = _complaint(path)
    if complaint:
        raise UserError(f"{path}: {complaint}; resume from another step")
    record = json.loads((path / _STATE_FILE).read_text(encoding="utf-8"))
    return {group: open_checkpoint(path / f"{group}.safetensors") for group in record["groups"]}, record["state"]


def _write_groups(folder: Path, tensors: Mapping[str, Mapping[str, np.ndarray]], record: dict[str, Any]) -> None:
    sizes = {}
    for group, arrays in tensors.items():
        file = folder / f"{group}.safetensors"
        write_tensor_file(file, [(name, a.shape, dtype_name(a.dtype), a) for name, a in arrays.items()])
        sizes[group] = file.stat().st_size
    with (folder / _STATE_FILE).open("w", encoding="utf-8") as stream:
        json.dump({**record, "groups": sizes}, stream, indent=1)
        stream.flush()
        os.fsync(stream.fileno())
    _flush_folder(folder)


def _flush_folder(folder: Path) -> None:
    """Make the names in a folder durable: a rename can be lost in a power cut before this."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _steps(folder: Path) -> list[Path]:
    """Folders named step_<number>, lowest first."""
    found = [(_STEP.fullmatch(path.name), path) for path in folder.glob("step_*")]
    return [path for _, path in sorted((int(match[1]), path) for match, path in found if match)]


def _prune(folder: Path, keep: int, newest: Path) -> None:
    """Remove the oldest checkpoints, but never the one just written, whatever its number."""
    others = [path for path in _steps(folder) if path != newest]
    for path in others[: max(0, len(others) - (keep - 1))]:
        doomed = path.with_name(f"{path.name}.tmp-{os.getpid()}")
        os.replace(path, doomed)  # half removed, it must not look like a checkpoint
        shutil.rmtree(doomed)


def _complaint(path: Path) -> str | None:
    """What is wrong with a checkpoint, or None."""
    try:
        groups = json.loads((path / _STATE_FILE).read_text(encoding="utf-8"))["groups"]
    except (OSError, ValueError, KeyError, TypeError):
        return f"has no readable {_STATE_FILE}"
    for group, size in groups.items():
        file = path / f"{group}.safetensors"
        if not file.is_file() or file.stat().st_size != size:
            return f"{file.name} is missing or is not the {size} bytes that were written"
    return None
