"""What a checkpoint to be written consists of: its files, and which part of which tensor each takes."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path

from tqdm import tqdm

from r1parallel.atomic import replacing
from r1parallel.checkpoint.formats.dtypes import DTYPES
from r1parallel.checkpoint.formats.manifest import manifest_path, write_manifest
from r1parallel.checkpoint.formats.tensor_entry import FilePlan
from r1parallel.checkpoint.formats.tensor_file import FORMATS, INDEX_FILE, NAME_MAP_FILE, SINGLE_FILES, read_file
from r1parallel.checkpoint.reading.tensor_rows import TensorRows
from r1parallel.checkpoint.tables.placement import cut_tensor, stage_tensors
from r1parallel.checkpoint.writing.copy_engine import Job, Part, create_file, flush_files, run_jobs
from r1parallel.errors import UserError
from r1parallel.parallel.layout.regions import Bounds, Region, bounds_of, shape_of, whole
from r1parallel.parallel.layout.tensor_layout import StageLayouts

MAX_SHARD_SIZE = 5 * 10**9  # bytes; what Hugging Face cuts at
Header = tuple[str, tuple[int, ...], str]  # name, shape, dtype of a tensor in a file


@dataclass(frozen=True)
class Output:
    """Files to be written.

    Attributes:
        files: path within the folder → what lies where in the file.
        headers: path → the tensors in the file.
        jobs: where the tensors' parts go, by paths within the folder.
        indexes: name → content of the files that say which shard holds a tensor; none for a single file.
    """

    files: Mapping[Path, FilePlan]
    headers: Mapping[Path, Sequence[Header]]
    jobs: Sequence[Job]
    indexes: Mapping[str, str]

    @property
    def nbytes(self) -> int:
        """Size of all files."""
        return sum(plan.size for plan in self.files.values())


def plan_full(
    tensors: Mapping[str, TensorRows],
    metadata: Mapping[str, str],
    kind: str = "safetensors",
    max_shard_size: int = MAX_SHARD_SIZE,
    file: str | None = None,
) -> Output:
    """A full checkpoint: one file, or shards and their index in Hugging Face's names.

    Args:
        tensors: by the names that they get.
        metadata: kept in the headers of safetensors.
        kind: "safetensors", or "ckpt", which is always one file.
        max_shard_size: bytes of tensors in one file; a larger tensor gets a file of its own.
        file: its name; None: model.safetensors, shards, or model.ckpt.
    """
    shards = [list(tensors)] if file is not None or kind == "ckpt" else _split(tensors, max_shard_size)
    names = [file or SINGLE_FILES[kind]]
    if len(shards) > 1:
        names = [f"model-{i + 1:05d}-of-{len(shards):05d}.safetensors" for i in range(len(shards))]
    places = {
        Path(name): [(tensor, whole(tensors[tensor].shape)) for tensor in shard]
        for name, shard in zip(names, shards, strict=True)
    }
    indexes = {}
    if len(shards) > 1:
        # MindSpore's loader of several files asks for its own name; what is in it may be the same.
        own = [NAME_MAP_FILE] if metadata.get("format") == "ms" else []
        indexes = dict.fromkeys([*own, INDEX_FILE], _index(names, shards, tensors))
    return _output(tensors, places, metadata, kind, indexes)


def plan_ranks(
    tensors: Mapping[str, TensorRows],
    layout: StageLayouts,
    ranks: Sequence[int],
    metadata: Mapping[str, str],
    kind: str = "safetensors",
    prefix: str = "checkpoint_",
) -> Output:
    """The files `rank_N/<prefix>N.<kind>` of some ranks of a layout.

    Raises:
        UserError: the layout cannot cut a tensor.
    """
    shapes = {name: rows.shape for name, rows in tensors.items()}
    held = [stage_tensors(layout, stage, shapes) for stage in range(len(layout.stages))]
    places: dict[Path, list[tuple[str, Region]]] = {}
    for rank in ranks:
        stage, device = divmod(rank, layout.stage_size)
        places[Path(f"rank_{rank}") / f"{prefix}{rank}.{kind}"] = [
            (name, cut_tensor(found, name, shapes[name], device)) for name, found in held[stage].items()
        ]
    return _output(tensors, places, metadata, kind, {})


def write_output(output: Output, folder: Path, workers: int, title: str | None = None, durable: bool = False) -> None:
    """Write all files with their manifests, and read their headers again.

    Args:
        output: what.
        folder: where; it holds none of the files yet.
        workers: how many tensors are moved at a time.
        title: stands before a progress bar; None: no bar.
        durable: flush to disk. Otherwise a power cut soon after may leave damage, which the manifests show.

    Raises:
        UserError: a source cannot be read or is damaged, or the folder cannot be written.
    """
    for file, plan in output.files.items():
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        create_file(folder / file, plan)
    jobs = [_into(folder, job) for job in output.jobs]
    total = sum(job.nbytes for job in jobs)
    hidden = True if title is None else None  # None: hidden where there is no terminal
    with tqdm(total=total, unit="B", unit_scale=True, desc=title, disable=hidden) as bar:
        digests = run_jobs(jobs, workers, bar.update)
    for file, headers in output.headers.items():
        entries = read_file(folder / file)[0]
        meant = {name: (shape, dtype) for name, shape, dtype in headers}
        if {name: (entry.shape, entry.dtype) for name, entry in entries.items()} != meant:
            raise UserError(f"{folder / file}: is not what was written there; is another process writing it?")
        write_manifest(folder / file, entries, digests.get(folder / file, {}))
    if durable:
        written = [folder / file for file in output.files]
        flush_files([*written, *map(manifest_path, written)], workers)
    for name, text in output.indexes.items():
        with replacing(folder / name) as temporary:
            temporary.write_text(text, encoding="utf-8")


def _output(
    tensors: Mapping[str, TensorRows],
    places: Mapping[Path, list[tuple[str, Region]]],
    metadata: Mapping[str, str],
    kind: str,
    indexes: Mapping[str, str],
) -> Output:
    headers: dict[Path, tuple[Header, ...]] = {}
    files: dict[Path, FilePlan] = {}
    plans: dict[tuple[Header, ...], FilePlan] = {}  # most ranks of a stage have files of the same form
    taken: dict[str, dict[Bounds, Part]] = {name: {} for name in tensors}
    for file, regions in places.items():
        header = tuple((name, shape_of(region), tensors[name].dtype) for name, region in regions)
        if header not in plans:
            plans[header] = FORMATS[kind].plan_file(header, dict(metadata))
        headers[file], files[file] = header, (plan := plans[header])
        for name, region in regions:
            part = taken[name].setdefault(bounds_of(region), Part(region, []))
            part.places.append((file, plan.extents[name]))
    jobs = [Job(name, tensors[name], list(parts.values())) for name, parts in taken.items() if parts]
    return Output(files, headers, jobs, indexes)


def _into(folder: Path, job: Job) -> Job:
    parts = [Part(part.region, [(folder / file, extents) for file, extents in part.places]) for part in job.parts]
    return Job(job.name, job.rows, parts)


def _split(tensors: Mapping[str, TensorRows], max_shard_size: int) -> list[list[str]]:
    shards: list[list[str]] = [[]]
    used = 0
    for name, rows in tensors.items():
        nbytes = _nbytes(rows)
        if shards[-1] and used + nbytes > max_shard_size:
            shards.append([])
            used = 0
        shards[-1].append(name)
        used += nbytes
    return shards


def _nbytes(rows: TensorRows) -> int:
    return prod(rows.shape) * DTYPES[rows.dtype].itemsize


def _index(names: list[str], shards: list[list[str]], tensors: Mapping[str, TensorRows]) -> str:
    weight_map = {tensor: name for name, shard in zip(names, shards, strict=True) for tensor in shard}
    total = sum(_nbytes(rows) for rows in tensors.values())
    return json.dumps({"metadata": {"total_size": total}, "weight_map": weight_map}, indent=2) + "\n"
