"""Full tensors of a checkpoint, stored whole or cut into ranks; any region of them can be read."""

import glob
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from r1parallel.checkpoint.formats.tensor_entry import TensorEntry
from r1parallel.checkpoint.formats.tensor_file import (
    INDEX_FILE,
    SINGLE_FILES,
    Checkpoint,
    open_checkpoint,
    open_rank,
    rank_folders,
)
from r1parallel.checkpoint.reading.tensor_rows import StoredRows
from r1parallel.checkpoint.reading.windows import read_rows
from r1parallel.checkpoint.tables.placement import cut_tensor, find_layout, is_everywhere, missing_names, stage_tensors
from r1parallel.errors import UserError
from r1parallel.parallel.layout.regions import Bounds, Region, bounds_of, shape_of, whole
from r1parallel.parallel.layout.strategy_files import read_strategy
from r1parallel.parallel.layout.tensor_layout import StageLayouts

STRATEGY_FILE = "strategy.ckpt"  # beside the rank folders of a model that we saved: how it is cut


class CheckpointSource:
    """A checkpoint as full tensors, however it is stored. Opening it read headers only.

    Attributes:
        path: what was opened.
        folder: where its config.json and tokenizer would lie.
        tensors: name → full tensor, from which regions can be read; copies of a piece are read too and compared.
        firsts: the same, but only the first of several copies is ever read.
    """

    def __init__(self, path: Path, folder: Path, tensors: Mapping[str, StoredRows]) -> None:
        self.path, self.folder, self.tensors = path, folder, tensors
        self.firsts = {name: tensor.first_copies() for name, tensor in tensors.items()}
        self.shapes = {name: tensor.shape for name, tensor in tensors.items()}
        self.dtypes = {name: tensor.dtype for name, tensor in tensors.items()}

    @property
    def files(self) -> list[Path]:
        """The weights files, each once."""
        found = (
            entry.file for tensor in self.tensors.values() for copies in tensor.pieces.values() for entry in copies
        )
        return list(dict.fromkeys(found))

    def read(self, name: str, region: Region | None = None) -> np.ndarray:
        """Read a region of a tensor, or all of it. Where ranks hold copies of a piece, the first one is read.

        Raises:
            UserError: a file cannot be read, or, where a stored tensor is read whole, is not what its manifest says.
        """
        return read_rows(self.firsts[name], region)


def open_source(path: str | Path, layout: StageLayouts | None = None, prefix: str = "") -> CheckpointSource:
    """Open a checkpoint of any form.

    Args:
        path: what `open_checkpoint` opens, or a folder of rank_N.
        layout: how the folder is cut into ranks; None: as the strategy.ckpt in it says, or not at all.
        prefix: what the name of the one file to take in each rank folder starts with.

    Raises:
        UserError: nothing readable is there, a file is damaged or missing, or the ranks are not those of the layout.
    """
    path = Path(path)
    if layout is not None:
        source = open_sliced(path, layout, prefix)
        if not prefix:  # with several models side by side the file is not about each of them
            _check_recorded_cut(source, layout)
        return source
    is_full = any((path / name).exists() for name in (*SINGLE_FILES.values(), INDEX_FILE))
    if (path / STRATEGY_FILE).is_file() and not is_full:
        return open_sliced(path, read_strategy(path / STRATEGY_FILE), prefix)
    checkpoint = open_checkpoint(path)
    tensors = {
        name: StoredRows(entry.shape, entry.dtype, {bounds_of(whole(entry.shape)): [entry]})
        for name, entry in checkpoint.items()
    }
    return CheckpointSource(path, checkpoint.folder, tensors)


def open_sliced(path: str | Path, layout: StageLayouts, prefix: str = "") -> CheckpointSource:
    """Open a checkpoint that is cut into rank_N folders.

    Args:
        path: the folder with the rank folders.
        layout: how it is cut.
        prefix: what the name of the one file to take in each rank folder starts with.

    Raises:
        UserError: ranks or tensors are missing, extra or of another shape than the layout says.
    """
    path = Path(path)
    ranks = _open_ranks(path, layout, prefix)
    for rank, checkpoint in enumerate(ranks):
        _check_names(checkpoint, layout, rank)
    names = {name: None for checkpoint in ranks for name in checkpoint}
    return CheckpointSource(path, path, {name: _put_together(name, ranks, layout) for name in names})


def _check_recorded_cut(source: CheckpointSource, layout: StageLayouts) -> None:
    """Strategies of other meshes can ask for pieces of the same shapes, and would put them in other places."""
    file = source.path / STRATEGY_FILE
    if not file.is_file():
        return
    recorded = read_strategy(file)
    same = recorded == StageLayouts(layout.stage_size, layout.stages)
    if not same and open_sliced(source.path, recorded).tensors != source.tensors:
        raise UserError(f"{file}: says that the ranks are cut in another way than the given strategy; leave it out")


def _open_ranks(path: Path, layout: StageLayouts, prefix: str) -> list[Checkpoint]:
    if not path.is_dir():
        raise UserError(f"{path}: no such folder; a checkpoint that is cut is a folder of rank_N")
    folders = rank_folders(path)
    if prefix:  # of several models side by side, one may be cut for fewer ranks
        folders = {rank: folder for rank, folder in folders.items() if any(folder.glob(f"{glob.escape(prefix)}*"))}
    if list(folders) != list(range(layout.world_size)):
        present = ", ".join(map(str, list(folders)[:20])) or "none"
        raise UserError(
            f"{path}: has folders for ranks {present}; the strategy describes ranks 0 to {layout.world_size - 1}"
        )
    return [open_rank(folder, prefix) for folder in folders.values()]


def _check_names(checkpoint: Checkpoint, layout: StageLayouts, rank: int) -> None:
    table = layout.stages[rank // layout.stage_size]
    for name, entry in checkpoint.items():
        if find_layout(table, name) is None and not is_everywhere(name, entry.shape):
            raise UserError(f"{checkpoint.path}: {name} is not in the strategy for this rank; is it the right one?")
    for name in missing_names(table, checkpoint):
        raise UserError(f"{checkpoint.path}: {name} is missing, which the strategy places on this rank")


def _put_together(name: str, ranks: list[Checkpoint], layout: StageLayouts) -> StoredRows:
    """Where the pieces of one tensor lie."""
    owners = [rank for rank, checkpoint in enumerate(ranks) if name in checkpoint]
    first = ranks[owners[0]][name]
    shape = _full_shape(layout, first, owners[0])
    pieces: dict[Bounds, list[TensorEntry]] = {}
    held = [stage_tensors(layout, stage, {name: shape}) for stage in range(len(layout.stages))]
    for rank, checkpoint in enumerate(ranks):
        stage, device = divmod(rank, layout.stage_size)
        if name not in held[stage]:
            continue
        if name not in checkpoint:
            raise UserError(f"{checkpoint.path}: {name} is missing, which the strategy places on this rank")
        entry, slices = checkpoint[name], cut_tensor(held[stage][name], name, shape, device)
        if entry.dtype != first.dtype or entry.shape != shape_of(slices):
            raise UserError(
                f"{entry.file}: {name} is {entry.dtype} {entry.shape}, which does not fit rank "
                f"{owners[0]}'s {first.dtype} {first.shape} under this strategy; is it the right one?"
            )
        pieces.setdefault(bounds_of(slices), []).append(entry)
    return StoredRows(shape, first.dtype, pieces)


def _full_shape(layout: StageLayouts, entry: TensorEntry, rank: int) -> tuple[int, ...]:
    found = find_layout(layout.stages[rank // layout.stage_size], entry.name)
    if found is None:
        return entry.shape
    if len(found.parts) != len(entry.shape):
        raise UserError(
            f"{entry.file}: {entry.name} has shape {entry.shape}, the strategy is for {len(found.parts)} dims; "
            "is it the right one?"
        )
    return tuple(size * count for size, count in zip(entry.shape, found.parts, strict=True))
