"""What a conversion would read and write, and whether the disk has room, as text."""

import shutil
from itertools import groupby
from pathlib import Path

from r1parallel.checkpoint.reading.source import CheckpointSource
from r1parallel.checkpoint.writing.output import Output


def plan_text(source: CheckpointSource, output: Output, destination: str | Path) -> str:
    """Lines for `--dry_run`.

    Args:
        source: what would be read.
        output: what would be written.
        destination: the folder, or one weights file in it.
    """
    read = sum(entry.nbytes for rows in source.tensors.values() for copies in rows.pieces.values() for entry in copies)
    free = shutil.disk_usage(_existing(Path(destination).absolute())).free
    verdict = "enough" if output.nbytes <= free else "NOT ENOUGH"
    lines = [
        f"reads   {source.path}: {len(source.tensors)} tensors, {_size(read)} in {len(source.files)} files",
        f"writes  {destination}: {_size(output.nbytes)} in {len(output.files)} files",
        *_file_lines(output),
        f"disk    needs {_size(output.nbytes)}, has {_size(free)} left: {verdict}",
    ]
    return "\n".join(lines)


def _file_lines(output: Output) -> list[str]:
    """One line for each stretch of files of the same kind."""
    lines = []
    kinds = ((plan.size, len(output.headers[file]), file) for file, plan in output.files.items())
    for (size, tensors), group in groupby(kinds, key=lambda kind: kind[:2]):
        files = [str(file) for *_, file in group]
        names = files[0] if len(files) == 1 else f"{files[0]} … {files[-1]} ({len(files)} files), each"
        lines.append(f"        {names}: {tensors} tensors, {_size(size)}")
    return lines


def _existing(folder: Path) -> Path:
    while not folder.exists():
        folder = folder.parent
    return folder


def _size(nbytes: int) -> str:
    for unit, factor in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if nbytes >= factor:
            return f"{nbytes / factor:.2f} {unit}"
    return f"{nbytes} bytes"
