"""A model's values from any checkpoint, however it is cut and under whichever names; also from memory."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from r1parallel.checkpoint.reading.match import match_model
from r1parallel.checkpoint.reading.source import open_source
from r1parallel.checkpoint.reading.tensor_rows import TensorRows, cast_rows
from r1parallel.checkpoint.reading.windows import read_rows
from r1parallel.config.model import ModelConfig, load_model_config
from r1parallel.parallel.layout.regions import Region


class ModelSource:
    """A model's parameters in a checkpoint, read as fp32 when asked, whole or in part. Made by `open_model`."""

    def __init__(self, path: Path, tensors: Mapping[str, TensorRows]) -> None:
        self.path = path
        self.shapes = {name: rows.shape for name, rows in tensors.items()}
        self._tensors = {name: cast_rows(rows, "F32", name) for name, rows in tensors.items()}

    def read(self, name: str, region: Region | None = None) -> np.ndarray:
        """A region of a full parameter, [out, in], or all of it; fp32."""
        return read_rows(self._tensors[name], region)


class ArraySource:
    """The same for parameters that are in memory already, such as random ones. `path` says what they are."""

    def __init__(self, values: Mapping[str, np.ndarray], path: str) -> None:
        self.path = path
        self.shapes = {name: value.shape for name, value in values.items()}
        self._values = values

    def read(self, name: str, region: Region | None = None) -> np.ndarray:
        """A region of a full parameter, or all of it."""
        return self._values[name] if region is None else self._values[name][region]


def open_model(path: str | Path, config: ModelConfig) -> ModelSource:
    """Open the checkpoint of a model. Nothing but headers is read, except to compare the two copies of a tied head.

    Args:
        path: what `open_source` opens: a folder, whole or cut with its strategy.ckpt, or a file.
        config: which names and shapes to expect.

    Raises:
        UserError: damaged file; a tensor is missing, extra or mis-shaped, or a tied model has a head of its own.
    """
    source = open_source(path)
    return ModelSource(source.path, match_model(source, source.firsts, config))


def read_model(path: str | Path, config: ModelConfig) -> dict[str, np.ndarray]:
    """Name → fp32 array of every parameter, whole. See `open_model`."""
    source = open_model(path, config)
    return {name: source.read(name) for name in config.parameter_shapes()}


def config_beside(path: str | Path) -> ModelConfig:
    """The config.json or model.yaml in a checkpoint's folder."""
    path = Path(path)
    return load_model_config(path if path.is_dir() else path.parent)
