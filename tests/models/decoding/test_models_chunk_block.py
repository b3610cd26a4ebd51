"""Blocks of one operator, against the blocks of many that they stand in for."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from mindspore import Tensor, nn

from r1parallel.config.model import ModelConfig
from r1parallel.models.decoding.chunk_block import WholeChunkBlock, WholeTokenBlock
from r1parallel.models.decoding.model import prompt_model, token_model
from r1parallel.models.fused.operators import FUSED, PLAIN
from r1parallel.models.parameters import load_parameters
from r1parallel.models.qwen2_5 import Block, Qwen2ForCausalLM

SLOTS = 40
SIZES = ModelConfig(29, 48, 50, 2, 6, 2, tie_word_embeddings=False)

pytestmark = pytest.mark.usefixtures("fused_kernels")


def made(config: ModelConfig, rows: int, values: dict[str, np.ndarray], split: bool) -> Qwen2ForCausalLM:
    """A model that has been at work: its cache is full."""
    model = token_model(config, rows, SLOTS, FUSED, split)
    load_parameters(model, values, "test")
    rng = np.random.default_rng(1)
    for parameter in model.get_parameters():
        if parameter.name.endswith("_cache"):
            parameter.set_data(Tensor(rng.normal(size=parameter.shape).astype(np.float32)))
    return model.set_train(False)


def caches(model: nn.Cell) -> dict[str, np.ndarray]:
    return {p.name: p.asnumpy().copy() for p in model.get_parameters() if p.name.endswith("_cache")}


@pytest.mark.parametrize(
    ("changes", "rows"),
    [
        ({}, 1),
        ({}, 7),
        ({}, 19),
        ({}, 35),  # more than are multiplied at once
        ({"num_kv_heads": 6}, 5),
        ({"num_kv_heads": 1}, 16),
        ({"hidden_size": 44, "num_heads": 2, "num_kv_heads": 1}, 3),  # a head that no vector divides, and no line
        ({"hidden_size": 64, "num_heads": 2, "num_kv_heads": 1, "intermediate_size": 200}, 4),  # shared by two threads
    ],
    ids=lambda value: "-".join(f"{v}" for v in value.values()) if isinstance(value, dict) else f"{value} rows",
)
def test_one_operator_does_what_many_do(noisy_values: Callable, changes: dict[str, int], rows: int):
    """Logits of rows that are taken, and everything that is kept, over three tokens."""
    config = replace(SIZES, **changes)
    values = noisy_values(config, seed=3)
    whole, many = (made(config, rows, values, split) for split in (False, True))
    assert {type(layer) for layer in whole.model.layers} == {WholeTokenBlock}
    assert {type(layer) for layer in many.model.layers} == {Block}
    rng = np.random.default_rng(2)
    taken = np.arange(rows) % 5 != 4
    drawn = rng.integers(0, SLOTS - 4, rows).astype(np.int32)
    for _ in range(3):
        tokens = Tensor(rng.integers(0, config.vocab_size, (rows, 1)).astype(np.int32))
        row_slots = Tensor(np.stack([np.arange(rows), np.where(taken, drawn, SLOTS - 1)], axis=1).astype(np.int32))
        positions = Tensor(np.where(taken, drawn, 0).astype(np.int32))
        ours, theirs = (model(tokens, row_slots, positions).asnumpy() for model in (whole, many))
        assert np.abs(theirs[taken]).max() > 0.5
        np.testing.assert_allclose(ours[taken], theirs[taken], rtol=0, atol=2e-5)
        assert np.isfinite(ours).all()
        for (name, kept), wanted in zip(caches(whole).items(), caches(many).values(), strict=True):
            np.testing.assert_allclose(kept[:, :-1], wanted[:, :-1], rtol=0, atol=2e-5, err_msg=name)
        drawn += 1


@pytest.mark.parametrize("row_slot", [(0, SLOTS), (2, 0), (-1, 0), (0, -1)])
def test_a_place_outside_of_the_cache_is_refused(noisy_values: Callable, row_slot: tuple[int, int]):
    model = made(SIZES, 2, noisy_values(SIZES, seed=3), split=False)
    row_slots = Tensor(np.array([row_slot, (1, 0)], np.int32))
    with pytest.raises(RuntimeError, match="TokenBlock on CPU was given a place outside of the cache"):
        model(Tensor(np.zeros((2, 1), np.int32)), row_slots, Tensor(np.zeros(2, np.int32))).asnumpy()


CHUNK = 6


class Hidden(nn.Cell):
    def __init__(self, model: Qwen2ForCausalLM):
        super().__init__(auto_prefix=False)
        self.model = model

    def construct(self, *inputs: Tensor) -> Tensor:
        return self.model.hidden(*inputs)


def chunks_of(rows: int, *chunks: tuple[list[int], int, int]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(rows that keep it, first slot, length) of every chunk → random tokens, slots_QX, first_Q; see `Filling`."""
    tokens = np.random.default_rng(7).integers(0, SIZES.vocab_size, (len(chunks), CHUNK)).astype(np.int32)
    slots = np.zeros((len(chunks), 1 + 3 * rows * CHUNK), np.int32)
    for chunk, (keep, first, length) in enumerate(chunks):
        row_slots = np.full((rows, CHUNK, 2), SLOTS - 1, np.int32)
        row_slots[:, :, 0] = np.arange(rows)[:, None]
        row_slots[keep, :length, 1] = np.arange(first, first + length)
        slots[chunk] = [keep[0], *np.tile(chunk * CHUNK + np.arange(CHUNK), rows), *row_slots.reshape(-1)]
    return tokens, slots, np.array([first for _, first, _ in chunks], np.int32)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"num_kv_heads": 6},
        {"hidden_size": 44, "num_heads": 2, "num_kv_heads": 1},
        {"hidden_size": 64, "num_heads": 2, "num_kv_heads": 1, "intermediate_size": 200},
    ],
    ids=lambda changes: "-".join(f"{v}" for v in changes.values()),
)
def test_of_chunks_one_operator_computes_what_is_kept(noisy_values: Callable, changes: dict[str, int]):
    """Two chunks of one prompt behind what its row holds, one of three rows, one of one token, two of nobody."""
    config, rows = replace(SIZES, **changes), 5
    chunks = [([1], 9, CHUNK), ([0, 3, 4], 0, 4), ([0], 0, 0), ([1], 9 + CHUNK, 5), ([2], 30, 1), ([3], 4, 0)]
    inputs, found = [Tensor(x) for x in chunks_of(rows, *chunks)], []
    for split in (False, True):
        tokens = made(config, rows, noisy_values(config, seed=3), split)
        prompts = prompt_model(tokens, CHUNK, FUSED)
        assert {type(layer) for layer in prompts.model.layers} == {Block if split else WholeChunkBlock}
        before = caches(tokens)
        hidden = Hidden(prompts)(*inputs).asnumpy().reshape(len(chunks), CHUNK, -1)
        found.append((hidden, caches(tokens)))
        changed = [np.any(before[name] != kept, axis=(2, 3)) for name, kept in found[-1][1].items()]
        assert [each[:, :-1].sum() for each in changed] == [CHUNK + 3 * 4 + 5 + 1] * 4
    (ours, our_caches), (theirs, their_caches) = found
    for chunk, (_, _, length) in enumerate(chunks):
        np.testing.assert_allclose(ours[chunk, :length], theirs[chunk, :length], rtol=0, atol=2e-5)
        assert not ours[chunk, length:].any()
    assert np.abs(theirs).max() > 0.5
    for name, kept in our_caches.items():
        np.testing.assert_allclose(kept[:, :-1], their_caches[name][:, :-1], rtol=0, atol=2e-5, err_msg=name)


def test_chunks_of_nobody_change_nothing(noisy_values: Callable):
    tokens = made(SIZES, 3, noisy_values(SIZES, seed=3), split=False)
    before = caches(tokens)
    Hidden(prompt_model(tokens, CHUNK, FUSED))(*(Tensor(x) for x in chunks_of(3, ([0], 0, 0), ([2], 5, 0)))).asnumpy()
    for name, kept in caches(tokens).items():
        np.testing.assert_array_equal(kept, before[name])


@pytest.mark.parametrize(
    ("place", "value"), [(0, 3), (0, -1), (1, 2 * CHUNK), (1 + 3 * CHUNK, 3), (2 + 3 * CHUNK, SLOTS)]
)
def test_a_chunk_at_a_place_outside_of_the_cache_is_refused(noisy_values: Callable, place: int, value: int):
    tokens = made(SIZES, 3, noisy_values(SIZES, seed=3), split=False)
    filling, slots, first = chunks_of(3, ([0], 0, 2), ([1], 0, 3))
    slots[1, place] = value
    with pytest.raises(RuntimeError, match="ChunkBlock on CPU was given a place outside of the cache"):
        Hidden(prompt_model(tokens, CHUNK, FUSED))(Tensor(filling), Tensor(slots), Tensor(first)).asnumpy()


def test_plain_models_and_split_ones_have_blocks_of_many_operators():
    for operators, split in ((PLAIN, False), (PLAIN, True), (FUSED, True)):
        tokens = token_model(SIZES, 2, SLOTS, operators, split)
        for model in (tokens, prompt_model(tokens, CHUNK, operators)):
            assert {type(layer) for layer in model.model.layers} == {Block}
