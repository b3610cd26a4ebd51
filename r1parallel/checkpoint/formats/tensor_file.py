"""Opening a checkpoint: a weights file, or a folder of them, as a table of tensors read when asked."""

import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path

from r1parallel.checkpoint.formats import ckpt_format, safetensors_format
from r1parallel.checkpoint.formats.header_limits import no_duplicates, shown
from r1parallel.checkpoint.formats.manifest import with_digests
from r1parallel.checkpoint.formats.tensor_entry import TensorEntry
from r1parallel.errors import UserError

FORMATS = {"safetensors": safetensors_format, "ckpt": ckpt_format}  # the end of a file's name → what reads and plans it
SINGLE_FILES = {kind: f"model.{kind}" for kind in FORMATS}
INDEX_FILE = "model.safetensors.index.json"
NAME_MAP_FILE = "param_name_map.json"  # the same for MindSpore
_LONGEST_INDEX = 16 * 2**20  # bytes; a thousand shards of a thousand tensors have less


class Checkpoint(Mapping[str, TensorEntry]):
    """The tensors of a checkpoint by name. `folder` is where its config.json and tokenizer would lie."""

    def __init__(self, path: Path, folder: Path, entries: dict[str, TensorEntry], metadata: dict[str, str]) -> None:
        self.path = path
        self.folder = folder
        self.metadata = metadata
        self._entries = entries

    def __getitem__(self, name: str) -> TensorEntry:
        return self._entries[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors together."""
        return sum(entry.nbytes for entry in self.values())


def open_checkpoint(path: str | Path) -> Checkpoint:
    """Open a checkpoint and check every header and manifest; tensors are read later.

    Args:
        path: a .safetensors or .ckpt file; a folder with model.safetensors, model.ckpt, or
            model.safetensors.index.json and its shards; or a sliced checkpoint of one rank (rank_0 alone).

    Raises:
        UserError: nothing readable is there, a file is damaged or missing, or there are several ranks.
    """
    path = Path(path)
    if path.is_file():
        return Checkpoint(path, path.parent, *read_file(path))
    if not path.is_dir():
        raise UserError(f"{path}: no such checkpoint; give a .safetensors or .ckpt file or a folder that holds one")
    found = [name for name in (INDEX_FILE, *SINGLE_FILES.values()) if (path / name).is_file()]
    if len(found) > 1:
        raise UserError(f"{path}: holds both {found[0]} and {found[1]}; remove the one that is out of date")
    if found == [INDEX_FILE]:
        return Checkpoint(path, path, *_read_shards(path))
    if found:
        return Checkpoint(path, path, *read_file(path / found[0]))
    return _open_ranks(path)


def read_file(file: Path) -> tuple[dict[str, TensorEntry], dict[str, str]]:
    """The tensors of one weights file, with the hashes of its manifest, and its metadata.

    Raises:
        UserError: it is of another kind, damaged, or not what its manifest says.
    """
    kind = file.suffix.removeprefix(".")
    if kind not in FORMATS:
        raise UserError(f"{file}: is neither .safetensors nor .ckpt; save the checkpoint as safetensors first")
    try:
        entries, metadata = FORMATS[kind].read_header(file)
        return with_digests(file, entries), metadata
    except OSError as error:
        raise UserError(f"{file}: cannot be read: {error.strerror}") from None


def rank_folders(path: Path) -> dict[int, Path]:
    """The folders rank_0, rank_1 … of a sliced checkpoint, by rank."""
    found = {}
    for folder in path.glob("rank_*"):
        number = folder.name.removeprefix("rank_")
        if number.isascii() and number.isdigit() and folder.is_dir():
            found[int(number)] = folder
    return dict(sorted(found.items()))


def open_rank(folder: Path, prefix: str = "") -> Checkpoint:
    """Open the one weights file of a rank_N folder whose name starts with a prefix.

    Raises:
        UserError: there is no such file, or more than one.
    """
    files = sorted(
        file
        for file in folder.iterdir()
        if file.suffix.removeprefix(".") in FORMATS and file.name.startswith(prefix) and file.is_file()
    )
    if len(files) != 1:
        found = ", ".join(file.name for file in files[:3]) or "none"
        named = f" whose name starts with {prefix}" if prefix else ""
        raise UserError(
            f"{folder}: expected exactly one .safetensors or .ckpt file{named}, found {found}; "
            "keep one, or choose by a prefix flag"
        )
    return Checkpoint(files[0], folder.parent, *read_file(files[0]))


def _open_ranks(path: Path) -> Checkpoint:
    ranks = rank_folders(path)
    if not ranks:
        raise UserError(
            f"{path}: holds none of {', '.join(SINGLE_FILES.values())}, {INDEX_FILE} and rank_0; give the "
            "weights file, or the folder that holds one of these"
        )
    if list(ranks) != [0]:
        raise UserError(
            f"{path}: is cut into {len(ranks)} ranks, and no strategy.ckpt there says how; give the "
            "strategy that it was cut with"
        )
    return open_rank(ranks[0])


def _read_shards(folder: Path) -> tuple[dict[str, TensorEntry], dict[str, str]]:
    index = folder / INDEX_FILE
    weight_map = _read_index(index)
    entries: dict[str, TensorEntry] = {}
    metadata: dict[str, str] = {}
    for shard in sorted(set(weight_map.values())):
        if not (folder / shard).is_file():
            raise UserError(f"{index}: names {shown(shard)}, which is missing; copy or download it")
        tensors, metadata = read_file(folder / shard)
        for name, entry in tensors.items():
            if weight_map.get(name) != shard:
                raise UserError(f"{folder / shard}: holds {shown(name)}, which {INDEX_FILE} does not place there")
            entries[name] = entry
    for name, shard in weight_map.items():
        if name not in entries:
            raise UserError(f"{index}: places {shown(name)} in {shown(shard)}, which does not hold it")
    return {name: entries[name] for name in weight_map}, metadata


def _read_index(index: Path) -> dict[str, str]:
    try:
        if index.stat().st_size > _LONGEST_INDEX:
            raise ValueError
        weight_map = json.loads(index.read_text(encoding="utf-8"), object_pairs_hook=no_duplicates)["weight_map"]
    except (ValueError, KeyError, TypeError, RecursionError):
        raise UserError(f"{index}: is no index of shards (JSON with a weight_map); download it again") from None
    if not isinstance(weight_map, dict) or not weight_map:
        raise UserError(f"{index}: its weight_map is empty or no table; download it again")
    for name, shard in weight_map.items():
        if not isinstance(shard, str) or Path(shard).name != shard or "\0" in shard or len(os.fsencode(shard)) > 255:
            raise UserError(f"{index}: {shown(name)} is placed in {shown(shard)}, which is no file name in this folder")
    return weight_map
