"""Checkpoints of a run: whatever training needs to go on bit for bit, written whole or not at all.

- `step_<n>/rank_<r>/<group>.safetensors`: the slices of each rank; groups are actor, optimizer, reference;
- `step_<n>/<group>_strategy.ckpt`: how the group is cut, as a merged strategy file;
- `step_<n>/state.json`: counters, and the size of every other file.
"""

import json
import os
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from r1parallel.checkpoint.formats.manifest import SUFFIX
from r1parallel.checkpoint.reading.source import CheckpointSource, open_sliced
from r1parallel.checkpoint.writing.folders import flush
from r1parallel.checkpoint.writing.shards import Shards
from r1parallel.checkpoint.writing.tensor_writer import write_tensor_file
from r1parallel.errors import UserError
from r1parallel.parallel.launch.world import World
from r1parallel.parallel.layout.strategy_files import read_strategy, write_merged_strategy
from r1parallel.parallel.moving.collectives import barrier

_STATE_FILE = "state.json"
_STEP = re.compile(r"step_(\d+)")


def save_run_state(
    folder: str | Path, step: int, groups: Mapping[str, Shards], state: dict[str, Any], keep: int, world: World
) -> Path:
    """Write the checkpoint of one step; every rank calls this and writes its own slices at the same time.

    It is written under a temporary name, flushed to disk and renamed by rank 0 when all ranks are done, so that a
    crash of any of them leaves the older ones. Then all but the `keep` newest are removed. One job writes a folder:
    what a killed one left is removed first.

    Args:
        folder: the run's checkpoints, which all ranks see; made when missing.
        step: optimizer steps done.
        groups: such as {"actor": …, "optimizer": …}. Ranks beyond a group's layout, which hold copies, write none.
        state: counters, random states and the like, as JSON can hold them; rank 0's is written.
        keep: how many checkpoints stay, at least 1.
        world: which rank this is.

    Returns:
        The folder of this step.

    Raises:
        UserError: this step is saved already, or rank 0 does not see the files of another rank.
        ValueError: `keep` is below 1, or the tensors are not those of their layout.
    """
    if keep < 1:
        raise ValueError(f"keep is {keep}; at least the newest checkpoint must stay")
    folder = Path(folder)
    final = folder / step_name(step)
    temporary = folder / f"{final.name}.tmp"
    if world.is_leader:
        _make_room(folder, final)
        temporary.mkdir()
    barrier(world, f"{final}: the folder is made")
    _write_rank(temporary / f"rank_{world.rank}", groups, world.rank)
    barrier(world, f"{final}: every rank has written")
    if world.is_leader:
        _finish(temporary, groups, {"step": step, "state": state})
        os.replace(temporary, final)
        flush(folder)
        _prune(folder, keep, newest=final)
    barrier(world, f"{final}: saved")
    return final


def step_name(step: int) -> str:
    """What the folder of a step's checkpoint is called."""
    return f"step_{step}"


def latest_run_state(folder: str | Path) -> Path | None:
    """The complete checkpoint of the highest step, or None. One that lacks a file or a byte is skipped."""
    for path in reversed(_steps(Path(folder))):
        if _complaint(path) is None:
            return path
    return None


def load_run_state(path: str | Path) -> tuple[dict[str, CheckpointSource], dict[str, Any]]:
    """Open what `save_run_state` wrote, under whatever layout that was.

    Returns:
        Group → full tensors, of which any region is read when asked, and the state.

    Raises:
        UserError: the checkpoint is missing, incomplete or damaged.
    """
    path = Path(path)
    complaint = _complaint(path)
    if complaint:
        raise UserError(f"{path}: {complaint}; resume from another step")
    record = json.loads((path / _STATE_FILE).read_text(encoding="utf-8"))
    sources = {
        group: open_sliced(path, read_strategy(path / _strategy_file(group)), f"{group}.") for group in record["groups"]
    }
    return sources, record["state"]


def _make_room(folder: Path, final: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for leftover in folder.glob("*.tmp*"):
        shutil.rmtree(leftover)
    if final.exists() and _complaint(final) is not None:  # damaged: resuming passed it over, this run makes it anew
        shutil.rmtree(final)
    if final.exists():
        raise UserError(f"{final}: this step is saved already; resume from it, or give the run another folder")


def _write_rank(folder: Path, groups: Mapping[str, Shards], rank: int) -> None:
    own = {group: shards for group, shards in groups.items() if rank < shards.layout.world_size}
    folder.mkdir(parents=True)
    for group, shards in own.items():
        write_tensor_file(folder / f"{group}.safetensors", shards.entries(rank))
    flush(folder)


def _finish(folder: Path, groups: Mapping[str, Shards], record: dict[str, Any]) -> None:
    files = []
    for group, shards in groups.items():
        write_merged_strategy(shards.full_layout(), folder / _strategy_file(group))
        flush(folder / _strategy_file(group))
        files.append(_strategy_file(group))
        weights = [f"rank_{rank}/{group}.safetensors" for rank in range(shards.layout.world_size)]
        files += [file + end for file in weights for end in ("", SUFFIX)]
    for name in files:
        if not (folder / name).is_file():
            raise UserError(
                f"{folder / name}: was written on another host, where this one does not see it; save to "
                "a folder that all hosts share"
            )
    sizes = {name: (folder / name).stat().st_size for name in files}
    with (folder / _STATE_FILE).open("w", encoding="utf-8") as stream:
        json.dump({**record, "groups": list(groups), "files": sizes}, stream, indent=1)
        stream.flush()
        os.fsync(stream.fileno())
    flush(folder)


def _strategy_file(group: str) -> str:
    return f"{group}_strategy.ckpt"


def _steps(folder: Path) -> list[Path]:
    """Folders named step_<number>, lowest first."""
    found = [(_STEP.fullmatch(path.name), path) for path in folder.glob("step_*")]
    return [path for _, path in sorted((int(match[1]), path) for match, path in found if match)]


def _prune(folder: Path, keep: int, newest: Path) -> None:
    """Remove the oldest checkpoints, but never the one just written, whatever its number."""
    others = [path for path in _steps(folder) if path != newest]
    for path in others[: max(0, len(others) - (keep - 1))]:
        doomed = path.with_name(f"{path.name}.tmp")
        os.replace(path, doomed)  # half removed, it must not look like a checkpoint
        shutil.rmtree(doomed)


def _complaint(path: Path) -> str | None:
    """What is wrong with a checkpoint, or None."""
    try:
        files = json.loads((path / _STATE_FILE).read_text(encoding="utf-8"))["files"]
    except (OSError, ValueError, KeyError, TypeError):
        return f"has no readable {_STATE_FILE}"
    for name, size in files.items():
        file = path / name
        if not file.is_file() or file.stat().st_size != size:
            return f"{name} is missing or is not the {size} bytes that were written"
    return None
