"""A model's values from any checkpoint, however it is cut and under whichever names; also from memory."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from r1parallel.checkpoint.dtypes import cast
from r1parallel.checkpoint.names import from_hf
from r1parallel.checkpoint.source import Source, open_source
from r1parallel.config.model import ModelConfig, load_model_config
from r1parallel.errors import UserError
from r1parallel.parallel.tensor_layout import Slices

_HF_EMBEDDING = "model.embed_tokens.weight"
_HEAD = "lm_head.weight"
_ROTARY_BUFFER = "rotary_emb.inv_freq"  # old checkpoints store it; it follows from the sizes


class ModelSource:
    """A model's parameters in a checkpoint, read as fp32 when asked, whole or in part. Made by `open_model`."""

    def __init__(self, source: Source, stored_names: Mapping[str, str]) -> None:
        self.path = source.path
        self.shapes = {name: source.shapes[stored] for name, stored in stored_names.items()}
        self._source, self._names = source, stored_names

    def read(self, name: str, region: Slices | None = None) -> np.ndarray:
        """A region of a full parameter, [out, in], or all of it; fp32."""
        return cast(self._source.read(self._names[name], region), "F32", name)


class ArraySource:
    """The same for parameters that are in memory already, such as random ones. `path` says what they are."""

    def __init__(self, values: Mapping[str, np.ndarray], path: str) -> None:
        self.path = path
        self.shapes = {name: value.shape for name, value in values.items()}
        self._values = values

    def read(self, name: str, region: Slices | None = None) -> np.ndarray:
        """A region of a full parameter, or all of it."""
        return self._values[name] if region is None else self._values[name][region]


def open_model(path: str | Path, config: ModelConfig) -> ModelSource:
    """Open the checkpoint of a model. Nothing but headers is read, except to compare the two copies of a tied head.

    Args:
        path: a Hugging Face folder, a folder of ours, a folder with rank_0 alone or with several rank_N and their
            strategy.ckpt, or one .safetensors file.
        config: which names and shapes to expect.

    Raises:
        UserError: damaged file; a tensor is missing, extra or mis-shaped, or a tied model has a head of its own.
    """
    source = open_source(path)
    names = {name: name for name in source.shapes}
    if _HF_EMBEDDING in names:
        names = {from_hf(name): name for name in names if not name.endswith(_ROTARY_BUFFER)}
        if config.tie_word_embeddings and _HEAD in names:
            _check_copy(source)
            del names[_HEAD]
    shapes = config.parameter_shapes()
    for name in sorted(set(shapes) ^ set(names)):
        kind = "is missing" if name in shapes else "does not belong to this model"
        raise UserError(f"{path}: tensor {names.get(name, name)} {kind}; does the model configuration fit?")
    for name, shape in shapes.items():
        found = source.shapes[names[name]]
        if found != shape:
            raise UserError(f"{path}: tensor {names[name]} has shape {found}, the model wants {shape}")
    return ModelSource(source, names)


def read_model(path: str | Path, config: ModelConfig) -> dict[str, np.ndarray]:
    """Name → fp32 array of every parameter, whole. See `open_model`."""
    source = open_model(path, config)
    return {name: source.read(name) for name in config.parameter_shapes()}


def _check_copy(source: Source) -> None:
    """A tied model may store its head too, as long as it is the embedding."""
    if not np.array_equal(source.read(_HEAD), source.read(_HF_EMBEDDING)):
        raise UserError(
            f"{source.path}: {_HEAD} differs from {_HF_EMBEDDING}, but the model configuration says "
            "tie_word_embeddings; set it to false if the head was trained on its own"
        )


def config_beside(path: str | Path) -> ModelConfig:
    """The config.json or model.yaml in a checkpoint's folder."""
    path = Path(path)
    return load_model_config(path if path.is_dir() else path.parent)
