"""Reading a checkpoint: a safetensors file, or a folder of them, as a table of tensors read when asked."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path

from r1parallel.checkpoint.tensor_header import TensorEntry, read_header
from r1parallel.errors import UserError

SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"


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
    """Open a checkpoint and check every header; tensors are read later, through `TensorEntry.read`.

    Args:
        path: a .safetensors file, a folder with model.safetensors or with model.safetensors.index.json and
            its shards, or a sliced checkpoint of one rank (a folder with rank_0 alone).

    Raises:
        UserError: nothing readable is there, a file is damaged or missing, or there are several ranks.
    """
    path = Path(path)
    if path.is_file():
        if path.suffix != ".safetensors":
            raise UserError(f"{path}: is no .safetensors file; save the checkpoint as safetensors first")
        entries, metadata = read_header(path)
        return Checkpoint(path, path.parent, entries, metadata)
    if not path.is_dir():
        raise UserError(f"{path}: no such checkpoint; give a .safetensors file or a folder that holds one")
    single, index = (path / SINGLE_FILE).is_file(), (path / INDEX_FILE).is_file()
    if single and index:
        raise UserError(f"{path}: holds both {SINGLE_FILE} and {INDEX_FILE}; remove the one that is out of date")
    if index:
        return Checkpoint(path, path, *_read_shards(path))
    if single:
        return Checkpoint(path, path, *read_header(path / SINGLE_FILE))
    return _open_ranks(path)


def rank_folders(path: Path) -> dict[int, Path]:
    """The folders rank_0, rank_1 … of a sliced checkpoint, by rank."""
    found = {}
    for folder in path.glob("rank_*"):
        number = folder.name.removeprefix("rank_")
        if number.isdigit() and folder.is_dir():
            found[int(number)] = folder
    return dict(sorted(found.items()))


def open_rank(folder: Path) -> Checkpoint:
    """Open the one .safetensors file of a rank_N folder.

    Raises:
        UserError: there is no such file, or more than one.
    """
    files = sorted(folder.glob("*.safetensors"))
    if len(files) != 1:
        raise UserError(f"{folder}: expected exactly one .safetensors file, found {len(files)}")
    return Checkpoint(files[0], folder.parent, *read_header(files[0]))


def _open_ranks(path: Path) -> Checkpoint:
    ranks = rank_folders(path)
    if not ranks:
        raise UserError(
            f"{path}: holds neither {SINGLE_FILE} nor {INDEX_FILE} nor rank_0; was it made by convert_weight?"
        )
    if list(ranks) != [0]:
        raise UserError(
            f"{path}: is cut into {len(ranks)} ranks; merge it first: python tools/slice_ckpt.py "
            f"--src_checkpoint {path} --src_strategy STRATEGY --dst_checkpoint_dir MERGED"
        )
    return open_rank(ranks[0])


def _read_shards(folder: Path) -> tuple[dict[str, TensorEntry], dict[str, str]]:
    index = folder / INDEX_FILE
    weight_map = _read_index(index)
    entries: dict[str, TensorEntry] = {}
    metadata: dict[str, str] = {}
    for shard in sorted(set(weight_map.values())):
        if not (folder / shard).is_file():
            raise UserError(f"{index}: names {shard}, which is missing; copy or download it")
        tensors, metadata = read_header(folder / shard)
        for name, entry in tensors.items():
            if weight_map.get(name) != shard:
                raise UserError(f"{folder / shard}: holds {name}, which {INDEX_FILE} does not place there")
            entries[name] = entry
    for name, shard in weight_map.items():
        if name not in entries:
            raise UserError(f"{index}: places {name} in {shard}, which does not hold it")
    return {name: entries[name] for name in weight_map}, metadata


def _read_index(index: Path) -> dict[str, str]:
    try:
        weight_map = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
    except (ValueError, KeyError, TypeError):
        raise UserError(f"{index}: is no index of shards (JSON with a weight_map); download it again") from None
    if not isinstance(weight_map, dict) or not weight_map:
        raise UserError(f"{index}: its weight_map is empty or no table; download it again")
    for name, shard in weight_map.items():
        if not isinstance(shard, str) or Path(shard).name != shard:
            raise UserError(f"{index}: {name} is placed in {shard!r}, which is no file name in this folder")
    return weight_map
