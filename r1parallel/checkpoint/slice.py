"""Cutting a checkpoint into the parts of each rank, putting them together, going from one cut to another."""

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from r1parallel.checkpoint.side_files import copy_side_files
from r1parallel.checkpoint.source import STRATEGY_FILE, SlicedSource, Source, cut_tensor, open_source, required_names
from r1parallel.checkpoint.tensor_file import open_checkpoint, open_rank, rank_folders
from r1parallel.checkpoint.tensor_writer import Tensor, write_checkpoint, write_tensor_file
from r1parallel.errors import UserError
from r1parallel.parallel.strategy import write_merged_strategy
from r1parallel.parallel.tensor_layout import Layout, Slices

_METADATA = {"format": "ms"}


def slice_checkpoint(src: str | Path, dst_dir: str | Path, layout: Layout, prefix: str = "checkpoint_") -> None:
    """Cut a full checkpoint into `rank_N/<prefix>N.safetensors`; see `reshard_checkpoint`."""
    reshard_checkpoint(src, dst_dir, None, layout, prefix)


def merge_checkpoint(src_dir: str | Path, dst: str | Path, layout: Layout) -> None:
    """Put a sliced checkpoint together into a folder with a full one; see `reshard_checkpoint`."""
    reshard_checkpoint(src_dir, dst, layout, None)


def reshard_checkpoint(
    src: str | Path,
    dst_dir: str | Path,
    src_layout: Layout | None,
    dst_layout: Layout | None,
    prefix: str = "checkpoint_",
) -> None:
    """Write a checkpoint in another cut. No more than one piece of one tensor is in memory.

    config.json and the tokenizer's files go to the top of the new folder, which appears only when whole.

    Args:
        src: the checkpoint; a folder of rank_N when `src_layout` is given.
        dst_dir: a folder that does not exist yet, or is empty.
        src_layout: how `src` is cut; None: not at all, or as the strategy.ckpt in it says.
        dst_layout: how the new one is to be cut; None: not at all.
        prefix: what the files in the rank folders start with.

    Raises:
        UserError: checkpoint and layouts do not belong together, copies differ, or `dst_dir` is not empty.
    """
    source = open_source(src) if src_layout is None else SlicedSource(src, src_layout)
    if isinstance(source, SlicedSource):
        source.check_copies()
    plans = [] if dst_layout is None else [_rank_plan(source, dst_layout, n) for n in range(dst_layout.world_size)]
    if dst_layout is not None:
        _check_all_placed(source, dst_layout)
    with _new_folder(Path(dst_dir)) as folder:
        if dst_layout is None:
            write_checkpoint(folder, _full_plan(source), metadata=_METADATA)
            open_checkpoint(folder)
        for rank, plan in enumerate(plans):
            (folder / f"rank_{rank}").mkdir()
            write_tensor_file(folder / f"rank_{rank}" / f"{prefix}{rank}.safetensors", plan, _METADATA)
            open_rank(rank_folders(folder)[rank])  # checks that it is whole
        if dst_layout is not None:
            write_merged_strategy(dst_layout, folder / STRATEGY_FILE)  # the slices say how they are cut
        copy_side_files(source.folder, folder)


def _full_plan(source: Source) -> list[Tensor]:
    plan: list[Tensor] = []
    for name, shape in source.shapes.items():
        everything = tuple(slice(0, size) for size in shape)
        plan.append((name, shape, source.dtypes[name], _reader(source, name, everything)))
    return plan


def _rank_plan(source: Source, layout: Layout, rank: int) -> list[Tensor]:
    table = layout.stages[rank // layout.stage_size]
    for name in sorted(required_names(table)):
        if name not in source.shapes:
            raise UserError(f"{source.path}: has no {name}, which --dst_strategy asks for; is it the right one?")
    plan: list[Tensor] = []
    for name, shape in source.shapes.items():
        if name in table:
            region = cut_tensor(layout, name, shape, rank)
            local = tuple(part.stop - part.start for part in region)
            plan.append((name, local, source.dtypes[name], _reader(source, name, region)))
    return plan


def _reader(source: Source, name: str, region: Slices) -> Callable[[], np.ndarray]:
    return lambda: source.read(name, region)


def _check_all_placed(source: Source, layout: Layout) -> None:
    """No tensor may get lost."""
    for name in source.shapes:
        if not any(name in table for table in layout.stages):
            raise UserError(
                f"{source.path}: {name} is in no stage of --dst_strategy; "
                "a Hugging Face checkpoint goes through tools/convert_weight.py first"
            )


@contextmanager
def _new_folder(final: Path) -> Iterator[Path]:
    """A temporary folder that becomes `final` when the block ends well, and goes when it does not."""
    if final.exists() and (not final.is_dir() or any(final.iterdir())):
        raise UserError(f"{final}: is there already and not empty; give another --dst_checkpoint_dir or remove it")
    final.parent.mkdir(parents=True, exist_ok=True)
    temporary = final.with_name(f"{final.name}.tmp-{os.getpid()}")
    temporary.mkdir()
    try:
        yield temporary
        os.replace(temporary, final)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)  # gone already when all went well
