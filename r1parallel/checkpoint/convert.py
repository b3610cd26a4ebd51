"""Hugging Face checkpoint ↔ ours: the same tensors under other names, each checked before and after."""

from collections.abc import Callable, Iterable
from math import prod
from pathlib import Path

import numpy as np
from tqdm import tqdm

from r1parallel.checkpoint.dtypes import CONFIG_DTYPES, DTYPES, WEIGHT_DTYPES, cast
from r1parallel.checkpoint.names import from_hf, to_hf
from r1parallel.checkpoint.side_files import CONFIG_FILE, copy_side_files, read_config, write_config
from r1parallel.checkpoint.source import SlicedSource, Source, open_source
from r1parallel.checkpoint.tensor_file import open_checkpoint
from r1parallel.checkpoint.tensor_writer import MAX_SHARD_SIZE, Tensor, weight_files, write_checkpoint
from r1parallel.config.model import ModelConfig, load_model_config
from r1parallel.errors import UserError

_HEAD = "lm_head.weight"
_EMBEDDING = "model.tok_embeddings.embedding_weight"
_ROTARY_BUFFER = "rotary_emb.inv_freq"  # old checkpoints store it; it follows from config.json


def convert_weight(
    input_path: str | Path,
    output_path: str | Path,
    dtype: str | None = None,
    reverse: bool = False,
    overwrite: bool = False,
    max_shard_size: int = MAX_SHARD_SIZE,
) -> Path:
    """Convert a Hugging Face checkpoint to ours, or back. One tensor at a time is in memory.

    config.json (with the new torch_dtype) and the tokenizer's files go along. Nothing is written before names
    and shapes were found to be exactly those of the model, and what was written is opened again and compared.

    Args:
        input_path: a folder, also one of rank_N with their strategy.ckpt, or a .safetensors file whose folder holds
            the config.json.
        output_path: a folder, made when missing.
        dtype: fp32, bf16 or fp16; None keeps what is stored.
        reverse: from ours to Hugging Face.
        overwrite: replace a checkpoint that is in the output folder.
        max_shard_size: bytes of tensors in one file.

    Returns:
        The output folder.

    Raises:
        UserError: a tensor is missing, extra, mis-shaped, or does not fit into the dtype; the output exists.
    """
    source, folder = open_source(input_path), Path(output_path)
    config = load_model_config(source.folder)
    wanted = _match(source, config, from_ours=reverse)
    _check_output(source, folder, overwrite)
    if isinstance(source, SlicedSource):
        source.check_copies()
    config_json = read_config(source.folder)
    plan: list[Tensor] = []
    with tqdm(total=len(wanted), unit="tensor", disable=None) as bar:  # no bar where there is no terminal
        for ours, name in wanted.items():
            stored = WEIGHT_DTYPES[dtype] if dtype else source.dtypes[name]
            read = _reader(source, name, stored, bar)
            plan.append((to_hf(ours) if reverse else ours, source.shapes[name], stored, read))
        # transformers refuses a file that does not name the framework it was written for.
        write_checkpoint(folder, plan, max_shard_size, {"format": "pt" if reverse else "ms"})
    copy_side_files(source.folder, folder)
    write_config(config_json, folder, {stored for _, _, stored, _ in plan})
    _verify(folder, plan)
    return folder


def _reader(source: Source, name: str, dtype: str, bar: tqdm) -> Callable[[], np.ndarray]:
    def read() -> np.ndarray:
        array = cast(source.read(name), dtype, name)
        bar.update()
        return array

    return read


def _match(source: Source, config: ModelConfig, from_ours: bool) -> dict[str, str]:
    """Our name → stored name, in the model's order, after everything was found to be there and to fit."""
    expected = config.parameter_shapes()
    found: dict[str, str] = {}
    for name, shape in source.shapes.items():
        if name.endswith(_ROTARY_BUFFER):
            continue
        ours = name if from_ours else _known(source, name)
        if ours == _HEAD and config.tie_word_embeddings and not from_ours:
            _check_tied(source)
            continue
        if ours not in expected:
            raise UserError(f"{source.path}: {name} {shape} is no parameter of the model in its {CONFIG_FILE}")
        _check_tensor(source, name, expected[ours])
        found[ours] = name
    for ours, shape in expected.items():
        if ours not in found:
            name = ours if from_ours else to_hf(ours)
            raise UserError(f"{source.path}: {name} {shape} is missing; copy or download the checkpoint again")
    return {ours: found[ours] for ours in expected}


def _known(source: Source, name: str) -> str:
    try:
        return from_hf(name)
    except UserError as error:
        raise UserError(f"{source.path}: {error}") from None


def _check_tensor(source: Source, name: str, shape: tuple[int, ...]) -> None:
    if source.shapes[name] != shape:
        raise UserError(f"{source.path}: {name} has shape {source.shapes[name]}; {CONFIG_FILE} asks for {shape}")
    if source.dtypes[name] not in CONFIG_DTYPES:
        raise UserError(f"{source.path}: {name} is stored as {source.dtypes[name]}; weights must be F32, F16 or BF16")


def _check_tied(source: Source) -> None:
    """A tied model may store its head too, as long as it is the embedding."""
    embedding = to_hf(_EMBEDDING)
    kinds = {name: (source.shapes[name], source.dtypes[name]) for name in (_HEAD, embedding) if name in source.shapes}
    same = kinds.get(embedding) == kinds[_HEAD]
    if not same or source.read(_HEAD).tobytes() != source.read(embedding).tobytes():
        raise UserError(
            f"{source.path}: {_HEAD} differs from {embedding}, but {CONFIG_FILE} says "
            "tie_word_embeddings; set it to false if the head was trained on its own"
        )


def _check_output(source: Source, folder: Path, overwrite: bool) -> None:
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder}: is a file; --output_path must be a folder")
    if folder.resolve() == source.folder.resolve():
        raise UserError(f"{folder}: output and input are the same folder; choose another --output_path")
    present = [*weight_files(folder), *folder.glob(CONFIG_FILE)]
    if present and not overwrite:
        raise UserError(f"{present[0]}: exists; choose another --output_path or give --overwrite")


def _verify(folder: Path, plan: Iterable[Tensor]) -> None:
    """Open what was written and compare it with what was meant."""
    meant = {name: (shape, dtype) for name, shape, dtype, _ in plan}
    written = open_checkpoint(folder)
    nbytes = sum(prod(shape) * DTYPES[dtype].itemsize for shape, dtype in meant.values())
    if {name: (entry.shape, entry.dtype) for name, entry in written.items()} != meant or written.nbytes != nbytes:
        raise UserError(f"{folder}: what was written is not what was meant; is another process writing there?")
