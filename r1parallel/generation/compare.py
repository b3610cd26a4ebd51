"""Compare the fp32 logits of two checkpoints on one prompt."""

import gc
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from mindspore import Tensor

from r1parallel.checkpoint.comparing.pairing import beside_config
from r1parallel.checkpoint.formats.dtypes import WEIGHT_DTYPES
from r1parallel.checkpoint.load import ModelSource
from r1parallel.checkpoint.reading.match import match_model
from r1parallel.checkpoint.reading.source import CheckpointSource
from r1parallel.checkpoint.reading.tensor_rows import cast_rows
from r1parallel.config.model import ModelConfig
from r1parallel.config.schema import ContextConfig
from r1parallel.data.text.tokenizer import check_tokenizer, load_tokenizer
from r1parallel.errors import UserError
from r1parallel.models.parameters import load_slices
from r1parallel.models.qwen2_5 import Qwen2ForCausalLM
from r1parallel.parallel.device import setup_device
from r1parallel.parallel.layout.mesh import Mesh
from r1parallel.parallel.layout.table import ModelLayout

LARGEST_DIFFERENCE = 1e-4  # of two logits, when the weights are the same
_PROMPT = "12+3="
_TOKENIZERS = ("tokenizer.json", "vocab.json", "tokenizer.model")


def compare_logits(
    first: CheckpointSource, second: CheckpointSource, prompt: str, dtype: str | None = None
) -> tuple[str, bool]:
    """Run a prompt through two checkpoints, one after the other, on the CPU.

    Args:
        first: A; its tokenizer is used, or fixed ids where it has none.
        second: B.
        prompt: empty: a short one.
        dtype: fp32, bf16 or fp16: A's weights are rounded to it first, as B's were. The computation is fp32 all the
            same, so that equal weights give equal logits.

    Returns:
        A line for the user, and whether the logits agree: no two differ by more than LARGEST_DIFFERENCE.

    Raises:
        UserError: a checkpoint is no whole model, its config.json is missing, or the prompt cannot be encoded.
    """
    configs = [_config(first, second), _config(second, first)]
    ids = _ids(first, configs[0], prompt)
    for source, config in zip((first, second), configs, strict=True):
        if len(ids) > config.max_position_embeddings:
            raise UserError(
                f"{source.path}: {len(ids)} tokens are more than its {config.max_position_embeddings} positions; "
                "give --logits a shorter prompt"
            )
    setup_device(ContextConfig())
    one = _logits(first, configs[0], ids, dtype)
    other = _logits(second, configs[1], ids, None)
    largest = float(np.abs(one - other).max())
    same = int((one.argmax(-1) == other.argmax(-1)).sum())
    line = f"{len(ids)} tokens: largest difference {largest:.3g}, highest logit at the same id in {same} of {len(ids)}"
    return line, largest <= LARGEST_DIFFERENCE  # no for NaN


def _config(source: CheckpointSource, other: CheckpointSource) -> ModelConfig:
    config = beside_config(source) or beside_config(other)
    if config is None:
        raise UserError(f"{source.path}: --logits needs the model's config.json beside the weights")
    return config


def _ids(source: CheckpointSource, config: ModelConfig, prompt: str) -> Sequence[int]:
    folder = Path(source.folder)
    if any((folder / name).is_file() for name in _TOKENIZERS):
        tokenizer = load_tokenizer(folder)
        check_tokenizer(tokenizer, config, str(folder))
        return tokenizer.encode(prompt or _PROMPT)
    if prompt:
        raise UserError(f"{folder}: has no tokenizer for the prompt; give --logits none, or put tokenizer.json there")
    return [(7 * position + 1) % config.vocab_size for position in range(min(8, config.max_position_embeddings))]


def _logits(source: CheckpointSource, config: ModelConfig, ids: Sequence[int], dtype: str | None) -> np.ndarray:
    """Logits of every position, [T, V]."""
    tensors = match_model(source, source.firsts, config)
    if dtype is not None:
        tensors = {name: cast_rows(rows, WEIGHT_DTYPES[dtype], name) for name, rows in tensors.items()}
    model = Qwen2ForCausalLM(config, len(ids))
    model.set_train(False)
    load_slices(model, ModelSource(source.path, tensors), ModelLayout(config, Mesh()), 0)
    inputs = (np.array([ids]), np.arange(len(ids)), np.zeros(1))  # ids, slots, where the row starts
    logits = np.array(model(*(Tensor(value.astype(np.int32)) for value in inputs)).asnumpy())
    del model
    gc.collect()  # Cells refer to each other: the next model needs the memory now
    return logits
