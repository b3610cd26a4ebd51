"""A model's values from any checkpoint that holds them whole, under whichever names."""

from pathlib import Path

import numpy as np

from r1parallel.checkpoint.dtypes import cast
from r1parallel.checkpoint.names import from_hf
from r1parallel.checkpoint.tensor_file import Checkpoint, open_checkpoint
from r1parallel.config.model import ModelConfig, load_model_config
from r1parallel.errors import UserError

_HF_EMBEDDING = "model.embed_tokens.weight"
_HEAD = "lm_head.weight"
_ROTARY_BUFFER = "rotary_emb.inv_freq"  # old checkpoints store it; it follows from the sizes


def read_model(path: str | Path, config: ModelConfig) -> dict[str, np.ndarray]:
    """Name → fp32 array of every parameter.

    Args:
        path: a Hugging Face folder, a folder of ours, a folder with rank_0 alone, or one .safetensors file.
        config: which names and shapes to expect.

    Raises:
        UserError: damaged file; a tensor is missing, extra or mis-shaped, or a tied model has a head of its own.
    """
    checkpoint = open_checkpoint(path)
    names = {name: name for name in checkpoint}
    if _HF_EMBEDDING in checkpoint:
        names = {from_hf(name): name for name in checkpoint if not name.endswith(_ROTARY_BUFFER)}
        if config.tie_word_embeddings and _HEAD in names:
            _check_copy(path, checkpoint)
            del names[_HEAD]
    shapes = config.parameter_shapes()
    for name in sorted(set(shapes) ^ set(names)):
        kind = "is missing" if name in shapes else "does not belong to this model"
        raise UserError(f"{path}: tensor {names.get(name, name)} {kind}; does the model configuration fit?")
    for name, shape in shapes.items():
        if checkpoint[names[name]].shape != shape:
            found = checkpoint[names[name]].shape
            raise UserError(f"{path}: tensor {names[name]} has shape {found}, the model wants {shape}")
    return {name: cast(checkpoint[names[name]].read(), "F32", name) for name in shapes}


def _check_copy(path: str | Path, checkpoint: Checkpoint) -> None:
    """A tied model may store its head too, as long as it is the embedding."""
    if not np.array_equal(checkpoint[_HEAD].read(), checkpoint[_HF_EMBEDDING].read()):
        raise UserError(
            f"{path}: {_HEAD} differs from {_HF_EMBEDDING}, but the model configuration says tie_word_embeddings; "
            "set it to false if the head was trained on its own"
        )


def config_beside(path: str | Path) -> ModelConfig:
    """The config.json or model.yaml in a checkpoint's folder."""
    path = Path(path)
    return load_model_config(path if path.is_dir() else path.parent)
