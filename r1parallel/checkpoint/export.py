"""A trained model as a folder that every tool here opens: weights, config.json, tokenizer."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from r1parallel.checkpoint.side_files import CONFIG_FILE, copy_side_files
from r1parallel.checkpoint.tensor_writer import write_checkpoint, write_tensor_file
from r1parallel.config.model import ModelConfig, write_model_config

Values = Mapping[str, np.ndarray]


def save_model_folder(
    folder: Path, values: Values, config: ModelConfig, tokenizer_dir: str | Path, stop_ids: list[int]
) -> Path:
    """Write model.safetensors in our names, config.json and the tokenizer's files; what is there is replaced."""
    folder.mkdir(parents=True, exist_ok=True)
    write_checkpoint(folder, _entries(values))
    _write_beside(folder, config, tokenizer_dir, stop_ids)
    return folder


def save_model_ranks(
    folder: Path, values: Values, config: ModelConfig, tokenizer_dir: str | Path, stop_ids: list[int]
) -> Path:
    """The same in the form of a sliced checkpoint: rank_0/checkpoint_0.safetensors."""
    (folder / "rank_0").mkdir(parents=True, exist_ok=True)
    write_tensor_file(folder / "rank_0" / "checkpoint_0.safetensors", _entries(values))
    _write_beside(folder, config, tokenizer_dir, stop_ids)
    return folder


def _entries(values: Values) -> list[tuple[str, tuple[int, ...], str, np.ndarray]]:
    return [(name, value.shape, "F32", value) for name, value in values.items()]


def _write_beside(folder: Path, config: ModelConfig, tokenizer_dir: str | Path, stop_ids: list[int]) -> None:
    copy_side_files(Path(tokenizer_dir), folder)
    write_model_config(config, folder / CONFIG_FILE, eos_token_id=stop_ids)
