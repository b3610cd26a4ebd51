"""Full tensors of a checkpoint, stored whole or cut into ranks; any region of them can be read."""

from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np

from r1parallel.checkpoint.dtypes import DTYPES
from r1parallel.checkpoint.tensor_file import SINGLE_FILE, Checkpoint, open_checkpoint, open_rank, rank_folders
from r1parallel.checkpoint.tensor_header import TensorEntry
from r1parallel.errors import UserError
from r1parallel.parallel.strategy import read_strategy
from r1parallel.parallel.tensor_layout import Layout, Slices, TensorLayout

STRATEGY_FILE = "strategy.ckpt"  # beside the rank folders of a model that we saved: how it is cut
_Span = tuple[tuple[int, int], ...]


class FullSource:
    """A checkpoint stored whole. `shapes` and `dtypes` are the full tensors'; `folder` has config.json."""

    def __init__(self, path: str | Path) -> None:
        self._checkpoint = open_checkpoint(path)
        self.path = Path(path)
        self.folder = self._checkpoint.folder
        self.shapes = {name: entry.shape for name, entry in self._checkpoint.items()}
        self.dtypes = {name: entry.dtype for name, entry in self._checkpoint.items()}

    def read(self, name: str, region: Slices | None = None) -> np.ndarray:
        """Read a region of a tensor, or all of it."""
        return self._checkpoint[name].read(region)


class SlicedSource:
    """A checkpoint cut into rank_N folders by a layout, put together again region by region.

    Opening it reads headers only. Where several ranks hold the same part, the first one's is read.

    Args:
        path: the folder with the rank folders.
        layout: how it is cut.
        file: the file in each rank folder; None: the only .safetensors file there.

    Raises:
        UserError: ranks or tensors are missing, extra or of another shape than the layout says.
    """

    def __init__(self, path: str | Path, layout: Layout, file: str | None = None) -> None:
        self.path = self.folder = Path(path)
        ranks = _open_ranks(self.path, layout, file)
        for rank, checkpoint in enumerate(ranks):
            _check_names(checkpoint, layout.stages[rank // layout.stage_size])
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.dtypes: dict[str, str] = {}
        self._pieces: dict[str, dict[_Span, list[TensorEntry]]] = {}
        for name in {name: None for checkpoint in ranks for name in checkpoint}:
            self._add(
                name,
                [(rank, ranks[rank], tensor_layout) for rank, tensor_layout in layout.owners(name)],
                layout,
            )

    def read(self, name: str, region: Slices | None = None) -> np.ndarray:
        """Read a region of a full tensor, or all of it, from the pieces that overlap it."""
        if region is None:
            region = tuple(slice(0, size) for size in self.shapes[name])
        result = np.empty([part.stop - part.start for part in region], DTYPES[self.dtypes[name]])
        for span, entries in self._pieces[name].items():
            overlap = [
                (max(begin, part.start), min(end, part.stop)) for (begin, end), part in zip(span, region, strict=True)
            ]
            if all(low < high for low, high in overlap):
                target = tuple(
                    slice(low - part.start, high - part.start)
                    for (low, high), part in zip(overlap, region, strict=True)
                )
                inside = tuple(
                    slice(low - begin, high - begin) for (low, high), (begin, _) in zip(overlap, span, strict=True)
                )
                result[target] = entries[0].read(inside)
        return result

    def check_copies(self) -> None:
        """Compare, bit by bit, ranks that should hold the same numbers, of whichever stages.

        Raises:
            UserError: some differ.
        """
        for name, first, twin in self._copies():
            if first.read().tobytes() != twin.read().tobytes():
                raise UserError(f"{twin.file}: {name} differs from its copy in {first.file}; they must be equal")

    def _copies(self) -> Iterator[tuple[str, TensorEntry, TensorEntry]]:
        for name, pieces in self._pieces.items():
            for first, *twins in pieces.values():
                for twin in twins:
                    yield name, first, twin

    def _add(self, name: str, owners: list[tuple[int, Checkpoint, TensorLayout]], layout: Layout) -> None:
        """Note where the pieces of one tensor lie."""
        first = owners[0][1][name]
        shape = tuple(size * parts for size, parts in zip(first.shape, owners[0][2].parts, strict=True))
        pieces: dict[_Span, list[TensorEntry]] = {}
        for rank, checkpoint, _ in owners:
            entry = checkpoint[name]
            slices = cut_tensor(layout, name, shape, rank)
            if entry.dtype != first.dtype or entry.shape != tuple(part.stop - part.start for part in slices):
                raise UserError(
                    f"{entry.file}: {name} is {entry.dtype} {entry.shape}, which does not fit rank "
                    f"{owners[0][0]}'s {first.dtype} {first.shape} under this strategy; is it the right one?"
                )
            pieces.setdefault(tuple((part.start, part.stop) for part in slices), []).append(entry)
        self.shapes[name], self.dtypes[name], self._pieces[name] = shape, first.dtype, pieces


Source = FullSource | SlicedSource


def open_source(path: str | Path) -> Source:
    """Open a checkpoint of any form that needs no strategy from elsewhere.

    Args:
        path: what `open_checkpoint` opens, or a folder of rank_N with a strategy.ckpt beside them.

    Raises:
        UserError: nothing readable is there, or a file is damaged or missing.
    """
    path = Path(path)
    if (path / STRATEGY_FILE).is_file() and not (path / SINGLE_FILE).exists():
        return SlicedSource(path, read_strategy(path / STRATEGY_FILE))
    return FullSource(path)


def cut_tensor(layout: Layout, name: str, shape: tuple[int, ...], rank: int) -> Slices:
    """The part of a tensor that a rank, which owns it, holds.

    Raises:
        UserError: the layout cannot cut this shape.
    """
    try:
        slices = layout.cut(name, shape, rank)
    except ValueError as error:
        raise UserError(f"{name}: {error}; is it the right strategy?") from None
    assert slices is not None, f"rank {rank} does not own {name}"
    return slices


def required_names(table: Mapping[str, TensorLayout]) -> set[str]:
    """The tensors that a checkpoint must have: optimizer state (`adam_m.<parameter>`) may be left out."""
    return {
        name
        for name in table
        if not any(name[i + 1 :] in table for i, character in enumerate(name) if character == ".")
    }


def _open_ranks(path: Path, layout: Layout, file: str | None) -> list[Checkpoint]:
    if file is not None:
        return [open_checkpoint(path / f"rank_{rank}" / file) for rank in range(layout.world_size)]
    folders = rank_folders(path) if path.is_dir() else {}
    if list(folders) != list(range(layout.world_size)):
        raise UserError(
            f"{path}: has folders for ranks {list(folders)}; the strategy describes ranks 0 to {layout.world_size - 1}"
        )
    return [open_rank(folder) for folder in folders.values()]


def _check_names(checkpoint: Checkpoint, table: Mapping[str, TensorLayout]) -> None:
    for name in checkpoint:
        if name not in table:
            raise UserError(f"{checkpoint.path}: {name} is not in the strategy for this rank; is it the right one?")
    for name in sorted(required_names(table)):
        if name not in checkpoint:
            raise UserError(f"{checkpoint.path}: {name} is missing, which the strategy places on this rank")
