"""The two models that generation is made of; they share their weights and one cache. See `layers/kv_cache.py`."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial

from mindspore import nn

from r1parallel.config.model import ModelConfig
from r1parallel.models.decoding.chunk_block import WholeChunkBlock, WholeTokenBlock
from r1parallel.models.fused.operators import PLAIN, Operators
from r1parallel.models.layers.kv_cache import ChunkRows, TokenRows
from r1parallel.models.layers.layers import Linear, TiedHead
from r1parallel.models.parameters import share_parameters
from r1parallel.models.qwen2_5 import Block, Qwen2ForCausalLM


def token_model(
    config: ModelConfig, rows: int, slots: int, operators: Operators = PLAIN, split: bool = False
) -> Qwen2ForCausalLM:
    """Takes a token of every row of the cache: (tokens_B1, row_slots, positions_B); see `TokenRows` and `KVCache`.

    Args:
        config: sizes of the model.
        rows: of the cache.
        slots: of a row.
        operators: what it is made of.
        split: over ranks. A block that is one operator cannot be.
    """
    return _for_few_rows(
        Qwen2ForCausalLM(
            config,
            slots,
            _with_rows(operators, TokenRows),
            lambda sizes: operators.token_attention(sizes, rows, slots),
            WholeTokenBlock if operators.whole_kv_cache_blocks and not split else Block,
        )
    )


def prompt_model(tokens: Qwen2ForCausalLM, length: int, operators: Operators = PLAIN) -> Qwen2ForCausalLM:
    """Takes chunks of prompts: (tokens_QS, slots_QX, first_Q); see `ChunkRows` and `KVCache`.

    Args:
        tokens: the `token_model` whose weights and cache it shares.
        length: S, tokens of a chunk.
        operators: what that is made of.
    """
    cache = tokens.model.layers[0].attention.cache
    model = Qwen2ForCausalLM(
        tokens.config,
        cache.slots,
        _with_rows(operators, partial(ChunkRows, length)),
        lambda sizes: operators.prompt_attention(sizes, cache.rows, cache.slots),
        WholeChunkBlock if isinstance(tokens.model.layers[0], WholeTokenBlock) else Block,
    )
    share_parameters(tokens, model)
    return _for_few_rows(model)


def _with_rows(operators: Operators, rows: Callable[[int], nn.Cell]) -> Operators:
    return replace(operators, geometry=partial(operators.geometry, rows=rows))


def _for_few_rows(model: Qwen2ForCausalLM) -> Qwen2ForCausalLM:
    """Ask for the CPU backend's own products, see `cpu_backend/kernels/matmul.h`, which exist for weights [out, in]."""
    if not model.model.layers[0].attention.wo.transposed:
        for _, cell in model.cells_and_names():
            if isinstance(cell, Linear | TiedHead):
                cell.matmul.add_prim_attr("few_rows", True)
    return model
