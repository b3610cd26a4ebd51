"""Writing a full checkpoint into a folder that has other files, or an older checkpoint, in it."""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from r1parallel.checkpoint.formats.manifest import SUFFIX, manifest_path
from r1parallel.checkpoint.formats.side_files import CONFIG_FILE
from r1parallel.checkpoint.formats.tensor_file import FORMATS, INDEX_FILE, NAME_MAP_FILE, SINGLE_FILES, rank_folders
from r1parallel.checkpoint.reading.source import STRATEGY_FILE
from r1parallel.checkpoint.writing.folders import explained, locked, refuse_link, temporary_folder
from r1parallel.config.model import load_model_config
from r1parallel.errors import UserError


def check_replaceable(final: Path, overwrite: bool) -> None:
    """See that a full checkpoint can go to a path.

    Args:
        final: a folder, or a weights file in one.
        overwrite: an older full checkpoint, or that file, may be there.

    Raises:
        UserError: something is there that would be lost or mixed up.
    """
    is_file = is_file_name(final)
    folder = final.parent if is_file else final
    refuse_link(final)
    refuse_link(folder)
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder}: is a file; --output_path must be a folder, or end in .safetensors or .ckpt")
    if folder.is_dir() and ((folder / STRATEGY_FILE).exists() or rank_folders(folder)):
        raise UserError(f"{folder}: holds a checkpoint that is cut into ranks; choose another --output_path")
    older = [final] if is_file else [*weight_files(folder), folder / CONFIG_FILE]
    for file in older:
        if file.is_dir():
            raise UserError(f"{file}: is a folder, where a file goes; move it away, or choose another --output_path")
    if is_file and final.name in SINGLE_FILES.values():
        for other in (INDEX_FILE, *SINGLE_FILES.values()):
            if other != final.name and (folder / other).exists():
                raise UserError(f"{folder}: holds {other}, beside which {final.name} cannot be; give another name")
    present = [file for file in older if file.exists()]
    if present and not overwrite:
        raise UserError(f"{present[0]}: exists; choose another --output_path or give --overwrite")


def is_file_name(path: Path) -> bool:
    """Whether a path is meant to be one weights file, and not a folder."""
    return path.suffix.removeprefix(".") in FORMATS and not path.is_dir()


def weight_files(folder: Path) -> list[Path]:
    """The files of a full checkpoint that a folder holds, its index first."""
    files = [file for kind in FORMATS for file in sorted(folder.glob(f"model*.{kind}"))]
    return [*folder.glob(INDEX_FILE), *folder.glob(NAME_MAP_FILE), *files]


@contextmanager
def replaced_checkpoint(final: Path, files: Sequence[Path]) -> Iterator[Path]:
    """A temporary folder, whose files take their places in the folder of `final` when the block ends well.

    The older weights go first and the new ones come last, their index after them: whoever looks in between finds no
    checkpoint, or a whole one, and never the configuration of one with the weights of the other.

    Args:
        final: a folder, whose weights are all replaced, or one weights file.
        files: the new weights files, within the folder.

    Raises:
        UserError: the folder cannot be written, or another process is writing it.
    """
    is_file = is_file_name(final)
    folder = final.parent if is_file else final
    inside = folder / "model"  # in the folder: only there it is sure that files can take their places by a rename
    with locked(inside), temporary_folder(inside) as temporary:
        yield temporary
        with explained(folder):
            if is_file:
                _check_same_model(temporary, folder)
            for file in [final] if is_file else weight_files(folder):
                manifest_path(file).unlink(missing_ok=True)
                file.unlink(missing_ok=True)
            for file in sorted(temporary.iterdir(), key=lambda file: (_turn(file, files), file.name)):
                os.replace(file, folder / file.name)


def _turn(file: Path, weights: Sequence[Path]) -> int:
    """What lies beside the weights, manifests, weights, the index."""
    if file.name in (INDEX_FILE, NAME_MAP_FILE):
        return 3
    return 2 if Path(file.name) in weights else 1 if file.name.endswith(SUFFIX) else 0


def _check_same_model(temporary: Path, folder: Path) -> None:
    """A config.json serves all weights in its folder."""
    if (folder / CONFIG_FILE).exists() and load_model_config(folder) != load_model_config(temporary):
        raise UserError(f"{folder / CONFIG_FILE}: is of another model; choose another folder for --output_path")
