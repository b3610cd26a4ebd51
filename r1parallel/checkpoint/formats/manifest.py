"""What was written into a weights file: its size, and each tensor's hash. It lies beside the file.

`<file>.manifest.json` is written after the file is whole, so a file without one may be somebody else's, but a file that
differs from its manifest is damaged or was replaced. Hashes are xxh3_128 of a tensor's bytes in row order: they find
accidents, not forgeries.
"""

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import xxhash

from r1parallel.atomic import replacing
from r1parallel.checkpoint.formats.header_limits import shown
from r1parallel.checkpoint.formats.tensor_entry import TensorEntry
from r1parallel.errors import UserError

SUFFIX = ".manifest.json"
_ALGORITHM = "xxh3_128"
_LONGEST = 64 * 2**20  # bytes; 100,000 tensors take 30 MB


def new_hash() -> xxhash.xxh3_128:
    """An empty hash of the kind that manifests have; `update` and `hexdigest` as in hashlib."""
    return xxhash.xxh3_128()


def manifest_path(file: Path) -> Path:
    """Where the manifest of a weights file lies."""
    return file.with_name(file.name + SUFFIX)


def write_manifest(file: Path, entries: Mapping[str, TensorEntry], digests: Mapping[str, str]) -> None:
    """Write the manifest of a weights file that is whole.

    Args:
        file: the weights.
        entries: what its header says.
        digests: name → hash of each of its tensors.
    """
    tensors = {
        name: {"dtype": entry.dtype, "shape": list(entry.shape), "hash": digests[name]}
        for name, entry in entries.items()
    }
    head = json.dumps({"size": file.stat().st_size, "algorithm": _ALGORITHM})
    lines = ",\n".join(f"{json.dumps(name)}: {json.dumps(tensor)}" for name, tensor in tensors.items())
    with replacing(manifest_path(file)) as temporary:
        temporary.write_text(f'{head[:-1]}, "tensors": {{\n{lines}\n}}}}\n', encoding="utf-8")


def with_digests(file: Path, entries: Mapping[str, TensorEntry]) -> dict[str, TensorEntry]:
    """The tensors of a file with the hashes of its manifest, where it has one.

    Raises:
        UserError: the manifest is not readable, or the file has another size or other tensors than it says.
    """
    path = manifest_path(file)
    if not path.is_file():
        return dict(entries)
    size, tensors = _read(path)
    if size != file.stat().st_size:
        _differs(file, f"has {file.stat().st_size} bytes, not {size}")
    for name in sorted(set(tensors) ^ set(entries)):
        _differs(file, f"{'lacks' if name in tensors else 'has'} {shown(name)}")
    for name, entry in entries.items():
        if (tensors[name]["dtype"], tensors[name]["shape"]) != (entry.dtype, list(entry.shape)):
            _differs(file, f"has {shown(name)} as {entry.dtype} {list(entry.shape)}")
    return {name: replace(entry, digest=tensors[name]["hash"]) for name, entry in entries.items()}


def _read(path: Path) -> tuple[int, dict[str, dict[str, Any]]]:
    try:
        if path.stat().st_size > _LONGEST:
            raise ValueError
        content = json.loads(path.read_text(encoding="utf-8"))
        size, algorithm, tensors = content["size"], content["algorithm"], content["tensors"]
        complete = all(
            {"dtype", "shape"} <= set(tensor) and isinstance(tensor["hash"], str) for tensor in tensors.values()
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        complete = False
    if not complete or algorithm != _ALGORITHM:
        raise UserError(f"{path}: is no readable manifest; remove it to read the weights unchecked")
    return size, tensors


def _differs(file: Path, what: str) -> None:
    raise UserError(
        f"{file}: {what}, which {manifest_path(file).name} does not say; the file is damaged, "
        "or was replaced: then remove the manifest"
    )
