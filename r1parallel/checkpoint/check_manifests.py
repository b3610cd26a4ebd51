"""Weights files and the manifests beside them: compared, and written where there are none."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from r1parallel.checkpoint.comparing.findings import Finding, Report
from r1parallel.checkpoint.comparing.hashing import byte_count, hash_rows, work_through
from r1parallel.checkpoint.formats.manifest import SUFFIX, manifest_path, write_manifest
from r1parallel.checkpoint.formats.tensor_entry import TensorEntry
from r1parallel.checkpoint.formats.tensor_file import FORMATS, INDEX_FILE, rank_folders
from r1parallel.checkpoint.reading.source import STRATEGY_FILE, CheckpointSource, open_source
from r1parallel.checkpoint.reading.tensor_rows import StoredRows
from r1parallel.checkpoint.run_state import load_run_state
from r1parallel.checkpoint.writing.copy_engine import Progress
from r1parallel.checkpoint.writing.folders import explained
from r1parallel.checkpoint.writing.workers import default_workers
from r1parallel.errors import UserError
from r1parallel.parallel.layout.tensor_layout import StageLayouts


def weights_files(path: Path) -> list[Path]:
    """A weights file itself; or those in a folder and in its rank_N. Strategy files are none.

    Raises:
        UserError: there is none.
    """
    if path.is_file():
        return [path]
    found = [file for folder in _folders(path) for kind in FORMATS for file in sorted(folder.glob(f"*.{kind}"))]
    files = [file for file in found if not file.name.endswith(STRATEGY_FILE)]
    if not files:
        raise UserError(f"{path}: holds no .safetensors or .ckpt file, nor do rank_N in it; give a checkpoint")
    return files


def check_manifests(
    path: str | Path, layout: StageLayouts | None = None, prefix: str = "", workers: int | None = None
) -> Report:
    """Read every weights file of a checkpoint whole and compare it with its manifest; look for what is missing too.

    Args:
        path: a weights file, or a folder of them, whole or cut into rank_N.
        layout: how it is cut; None: as the strategy.ckpt in it says. Without one, no rank is known to be missing.
        prefix: where a rank folder has several files, which of them the strategy is for; all are read.
        workers: how many tensors are read at a time; None: as many as there are processors, up to 8.

    Raises:
        UserError: there are no weights, or a file of them has no manifest.
    """
    path, workers = Path(path), workers or default_workers()
    files = weights_files(path)
    lacking = [file for file in files if not manifest_path(file).is_file()]
    if lacking:
        more = f" (nor have {len(lacking) - 1} more)" if len(lacking) > 1 else ""
        raise UserError(
            f"{lacking[0]}: has no manifest{more}; if the files are as they should be, write them by "
            f"tools/verify_ckpt.py {path} --manifest"
        )
    sources, findings = _open(files)
    tensors = [rows for source in sources for rows in source.tensors.values()]
    nbytes = sum(map(byte_count, tensors))
    damage = work_through(_damage, tensors, nbytes, workers, "verify")
    findings += [Finding("damaged", text) for text in damage if text is not None]
    findings += [Finding("missing", text) for text in _lost(path)]
    if not findings and path.is_dir():
        findings += _incomplete(path, layout, prefix)
    total = f"{len(tensors)} tensors in {len(files)} files, {tqdm.format_sizeof(nbytes, 'B')}"
    return Report((f"A  {path}: compared with its manifests",), tuple(findings), total)


@dataclass(frozen=True)
class Written:
    """How many manifests were written, and how many were there."""

    new: int
    kept: int


def write_missing_manifests(path: str | Path, workers: int | None = None) -> Written:
    """Hash every weights file that has no manifest, and write it; one that is there is left as it is.

    Raises:
        UserError: there are no weights, all have manifests, one is damaged, or the folder cannot be written.
    """
    path, workers = Path(path), workers or default_workers()
    files = weights_files(path)
    new = [file for file in files if not manifest_path(file).exists()]
    if not new:
        raise UserError(
            f"{path}: every weights file has a manifest; remove those that are out of date, or leave --manifest out"
        )
    sources = [open_source(file) for file in new]
    tensors = [rows for source in sources for rows in source.tensors.values()]
    digests = work_through(hash_rows, tensors, sum(map(byte_count, tensors)), workers, "manifest")
    for file, source in zip(new, sources, strict=True):  # each as soon as its tensors are hashed
        found = {name: next(digests) for name in source.tensors}
        with explained(manifest_path(file)):
            write_manifest(file, {name: _entry(rows) for name, rows in source.tensors.items()}, found)
    return Written(len(new), len(files) - len(new))


def _folders(path: Path) -> list[Path]:
    return [path, *rank_folders(path).values()]


def _open(files: Sequence[Path]) -> tuple[list[CheckpointSource], list[Finding]]:
    """The files that can be opened, and what is wrong with the headers, sizes or manifests of the others."""
    sources, findings = [], []
    for file in files:
        try:
            sources.append(open_source(file))
        except UserError as error:
            findings.append(Finding("damaged", str(error)))
    return sources, findings


def _damage(rows: StoredRows, progress: Progress) -> str | None:
    try:
        hash_rows(rows, progress)  # compares with the manifest
    except UserError as error:
        return str(error)
    return None


def _lost(path: Path) -> list[str]:
    """Manifests whose weights are gone."""
    manifests = [found for folder in _folders(path) for found in sorted(folder.glob(f"*{SUFFIX}"))]
    return [
        f"{found.name.removesuffix(SUFFIX)} is gone, {found} is there" for found in manifests if not _has_file(found)
    ]


def _has_file(manifest: Path) -> bool:
    return manifest.with_name(manifest.name.removesuffix(SUFFIX)).is_file()


def _incomplete(path: Path, layout: StageLayouts | None, prefix: str) -> list[Finding]:
    """What an index, a strategy or the state of a run says is there, and is not."""
    try:
        if (path / "state.json").is_file():
            load_run_state(path)
        elif layout is not None or any((path / name).is_file() for name in (INDEX_FILE, STRATEGY_FILE)):
            open_source(path, layout, prefix)
    except UserError as error:
        return [Finding("missing", str(error))]
    return []


def _entry(rows: StoredRows) -> TensorEntry:
    """How a file that is not cut stores a tensor."""
    return next(iter(rows.pieces.values()))[0]
