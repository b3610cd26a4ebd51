"""Cutting a checkpoint into the parts of each rank, putting them together, going from one cut to another."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from r1parallel.checkpoint.formats.side_files import copy_side_files
from r1parallel.checkpoint.formats.tensor_file import rank_folders
from r1parallel.checkpoint.reading.source import STRATEGY_FILE, CheckpointSource, open_source
from r1parallel.checkpoint.tables.placement import check_all_placed
from r1parallel.checkpoint.writing.folders import (
    check_apart,
    check_new,
    check_space,
    locked,
    new_folder,
    refuse_link,
    temporary_folder,
)
from r1parallel.checkpoint.writing.output import MAX_SHARD_SIZE, Output, plan_full, plan_ranks, write_output
from r1parallel.checkpoint.writing.workers import default_workers
from r1parallel.errors import UserError
from r1parallel.parallel.layout.strategy_files import read_strategy, write_merged_strategy
from r1parallel.parallel.layout.tensor_layout import StageLayouts

_METADATA = {"format": "ms"}


def slice_checkpoint(src: str | Path, dst_dir: str | Path, layout: StageLayouts, prefix: str = "checkpoint_") -> None:
    """Cut a full checkpoint into `rank_N/<prefix>N.safetensors`; see `reshard_checkpoint`."""
    reshard_checkpoint(src, dst_dir, None, layout, prefix)


def merge_checkpoint(src_dir: str | Path, dst: str | Path, layout: StageLayouts) -> None:
    """Put a sliced checkpoint together into a folder with a full one; see `reshard_checkpoint`."""
    reshard_checkpoint(src_dir, dst, layout, None)


def plan_reshard(
    src: str | Path,
    src_layout: StageLayouts | None,
    dst_layout: StageLayouts | None,
    prefix: str = "checkpoint_",
    kind: str = "safetensors",
    ranks: Sequence[int] | None = None,
    max_shard_size: int = MAX_SHARD_SIZE,
    src_prefix: str = "",
) -> tuple[CheckpointSource, Output]:
    """What `reshard_checkpoint` would read and write; only headers are read. Same arguments, same errors."""
    source = open_source(src, src_layout, src_prefix)
    if dst_layout is None:
        return source, plan_full(source.tensors, _METADATA, kind, max_shard_size)
    ranks = range(dst_layout.world_size) if ranks is None else ranks
    for rank in ranks:
        if not 0 <= rank < dst_layout.world_size:
            raise UserError(f"--rank_id {rank}: --dst_strategy is for ranks 0 to {dst_layout.world_size - 1}")
    check_all_placed(source.path, source.shapes, dst_layout)
    return source, plan_ranks(source.tensors, dst_layout, ranks, _METADATA, kind, prefix)


def reshard_checkpoint(
    src: str | Path,
    dst_dir: str | Path,
    src_layout: StageLayouts | None,
    dst_layout: StageLayouts | None,
    prefix: str = "checkpoint_",
    kind: str = "safetensors",
    ranks: Sequence[int] | None = None,
    workers: int | None = None,
    max_shard_size: int = MAX_SHARD_SIZE,
    src_prefix: str = "",
) -> None:
    """Write a checkpoint in another cut. Each worker has one window of one tensor in memory.

    config.json and the tokenizer's files go to the top of the new folder, which appears only when whole. With `ranks`,
    the folder may be there, made for other ranks of the same layout, and each rank_N in it appears only when whole.

    Args:
        src: the checkpoint; a folder of rank_N when `src_layout` is given.
        dst_dir: a folder that does not exist yet, or is empty.
        src_layout: how `src` is cut; None: not at all, or as the strategy.ckpt in it says.
        dst_layout: how the new one is to be cut; None: not at all.
        prefix: what the files in the rank folders start with.
        kind: "safetensors" or "ckpt".
        ranks: of the new layout, which to write; None: all.
        workers: how many tensors are moved at a time; None: as many as there are processors, up to 8.
        max_shard_size: of a full checkpoint, bytes of tensors in one file.
        src_prefix: what the name of the one file to take in each rank folder of `src` starts with.

    Raises:
        UserError: checkpoint and layouts do not belong together, copies differ, a source is damaged, or `dst_dir` is
            not empty, cannot be written, or is being written by another process.
    """
    final, workers = Path(dst_dir), workers or default_workers()
    source, output = plan_reshard(src, src_layout, dst_layout, prefix, kind, ranks, max_shard_size, src_prefix)
    check_apart(source.folder, final)
    check_space(final, output.nbytes)
    if ranks is None or dst_layout is None:
        with new_folder(final) as folder:
            write_output(output, folder, workers, final.name)
            _write_beside(source, dst_layout, folder)
    else:
        _write_ranks(source, output, dst_layout, ranks, final, workers)


def _write_ranks(
    source: CheckpointSource, output: Output, layout: StageLayouts, ranks: Sequence[int], final: Path, workers: int
) -> None:
    """Write rank folders into a folder that other ranks may be in already, or are being written into."""
    refuse_link(final)
    folders = [final / f"rank_{rank}" for rank in sorted(ranks)]
    with ExitStack() as stack:
        for folder in folders:
            stack.enter_context(locked(folder))
        # It has the name of the rank that takes its place last: whoever writes that one after a kill removes it.
        whole = stack.enter_context(temporary_folder(folders[-1]))
        with _joining(final, folders, layout):
            pass  # refused before anything is written
        write_output(output, whole, workers, final.name)
        _write_beside(source, layout, whole)
        with _joining(final, folders, layout):
            for file in [path for path in whole.iterdir() if path.is_file()]:
                file.replace(final / file.name)
            for folder in folders:
                (whole / folder.name).replace(folder)


@contextmanager
def _joining(final: Path, folders: Sequence[Path], layout: StageLayouts) -> Iterator[None]:
    """While nobody else adds ranks: see that these can be added."""
    strategy = final / STRATEGY_FILE
    with locked(strategy, wait=True):
        ours = StageLayouts(layout.stage_size, layout.stages)
        if strategy.exists() and rank_folders(final) and read_strategy(strategy) != ours:
            raise UserError(f"{final}: holds ranks of another strategy; choose another folder")
        for folder in folders:
            check_new(folder)
        yield


def _write_beside(source: CheckpointSource, layout: StageLayouts | None, folder: Path) -> None:
    if layout is not None:
        write_merged_strategy(layout, folder / STRATEGY_FILE)  # the slices say how they are cut
    copy_side_files(source.folder, folder)
