"""Hugging Face checkpoint ↔ ours ↔ mindformers': the same tensors under other names, checked before and after."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from r1parallel.checkpoint.formats.dtypes import WEIGHT_DTYPES
from r1parallel.checkpoint.formats.side_files import copy_side_files, read_config, write_config
from r1parallel.checkpoint.reading.match import match_model
from r1parallel.checkpoint.reading.source import STRATEGY_FILE, CheckpointSource, open_source
from r1parallel.checkpoint.reading.tensor_rows import InterleavedRows, TensorRows, cast_rows
from r1parallel.checkpoint.tables.names import concatenated_tensors, group_rows, translate
from r1parallel.checkpoint.tables.placement import check_all_placed
from r1parallel.checkpoint.writing.folders import check_apart, check_space, new_folder
from r1parallel.checkpoint.writing.output import MAX_SHARD_SIZE, Output, plan_full, plan_ranks, write_output
from r1parallel.checkpoint.writing.replace import check_replaceable, is_file_name, replaced_checkpoint
from r1parallel.checkpoint.writing.workers import default_workers
from r1parallel.config.model import ModelConfig, load_model_config
from r1parallel.errors import UserError
from r1parallel.parallel.layout.strategy_files import write_merged_strategy
from r1parallel.parallel.layout.tensor_layout import StageLayouts


@dataclass(frozen=True)
class Target:
    """What a converted checkpoint shall be.

    Attributes:
        names: "hf", "ours" (mindformers') or "mcore".
        dtype: fp32, bf16 or fp16; None keeps what is stored.
        concatenate: queries, keys and values in one tensor, gate and up in one; only with the names "ours".
        kind: "safetensors" or "ckpt"; an output path that ends so decides.
        max_shard_size: bytes of tensors in one file of a full checkpoint.
        layout: cut for its ranks; None: full.
        prefix: what the files in the rank folders start with.
    """

    names: str = "ours"
    dtype: str | None = None
    concatenate: bool = False
    kind: str = "safetensors"
    max_shard_size: int = MAX_SHARD_SIZE
    layout: StageLayouts | None = None
    prefix: str = "checkpoint_"


def convert_weight(
    input_path: str | Path,
    output_path: str | Path,
    target: Target | None = None,
    config_path: str | Path | None = None,
    overwrite: bool = False,
    workers: int | None = None,
) -> Path:
    """Convert a checkpoint. Each worker has one window of one tensor in memory.

    config.json (with the new torch_dtype) and the tokenizer's files go along. Nothing is written before names
    and shapes were found to be exactly those of the model.

    Args:
        input_path: what `open_source` opens; which names it has is seen.
        output_path: a folder, made when missing; or a .safetensors or .ckpt file in one.
        target: what to make; None: our names, full.
        config_path: config.json or model.yaml; None: it lies beside the input.
        overwrite: replace a full checkpoint that is in the output folder, or the output file.
        workers: how many tensors are moved at a time; None: as many as there are processors, up to 8.

    Returns:
        `output_path`.

    Raises:
        UserError: a tensor is missing, extra, mis-shaped, or does not fit into the dtype; the output exists.
    """
    target, final, workers = target or Target(), Path(output_path), workers or default_workers()
    source, output = plan_conversion(input_path, final, target, config_path)
    folder = final.parent if is_file_name(final) else final
    config = read_config(Path(config_path or source.folder))
    check_apart(source.folder, folder)
    if target.layout is None:
        check_replaceable(final, overwrite)
    check_space(folder, output.nbytes)
    # A folder of ranks must be new: the context refuses any other.
    is_new = target.layout is not None or not folder.exists()
    with new_folder(folder) if is_new else replaced_checkpoint(final, list(output.files)) as temporary:
        if not is_new:
            check_replaceable(final, overwrite)  # again, now that nobody else writes there
        write_output(output, temporary, workers, final.name)
        if target.layout is not None:
            write_merged_strategy(target.layout, temporary / STRATEGY_FILE)
        copy_side_files(source.folder, temporary)
        write_config(config, temporary, {rows.dtype for rows in (job.rows for job in output.jobs)})
    return final


def plan_conversion(
    input_path: str | Path, output_path: str | Path, target: Target, config_path: str | Path | None = None
) -> tuple[CheckpointSource, Output]:
    """What `convert_weight` would read and write; only headers are read. Same arguments, same errors."""
    final = Path(output_path)
    source = open_source(input_path)
    config = load_model_config(config_path or source.folder)
    tensors = _named(source.path, match_model(source, source.tensors, config), config, target)
    # transformers refuses a file that does not name the framework it was written for.
    metadata = {"format": "pt" if target.names == "hf" else "ms"}
    if target.layout is None:
        name = final.name if is_file_name(final) else None
        kind = final.suffix.removeprefix(".") if name else target.kind
        return source, plan_full(tensors, metadata, kind, target.max_shard_size, name)
    if is_file_name(final):
        raise UserError(f"{final}: ranks cannot go into one file; give a folder")
    check_all_placed(source.path, {name: rows.shape for name, rows in tensors.items()}, target.layout)
    ranks = range(target.layout.world_size)
    return source, plan_ranks(tensors, target.layout, ranks, metadata, target.kind, target.prefix)


def _named(path: Path, found: Mapping[str, TensorRows], config: ModelConfig, target: Target) -> dict[str, TensorRows]:
    """Our tensors as the target calls, casts and concatenates them."""
    if target.concatenate and target.names != "ours":
        raise UserError("--qkv_concat: only mindformers' llama names have concatenated tensors; leave out the other")
    dtype = WEIGHT_DTYPES[target.dtype] if target.dtype else None
    cast = {name: cast_rows(rows, dtype or rows.dtype, f"{path}: {name}") for name, rows in found.items()}
    if not target.concatenate:
        return {translate(name, "ours", target.names): rows for name, rows in cast.items()}
    return {
        name: _together(name, [cast[part] for part in parts], config)
        for name, parts in concatenated_tensors(cast).items()
    }


def _together(name: str, parts: list[TensorRows], config: ModelConfig) -> TensorRows:
    if len(parts) == 1:
        return parts[0]
    if len({part.dtype for part in parts}) > 1:
        raise UserError(f"{name}: its parts are stored in several dtypes; give --dtype")
    return InterleavedRows(tuple(parts), group_rows(config, name))
