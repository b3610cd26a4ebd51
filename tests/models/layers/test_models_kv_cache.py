"""The static cache, and the two models that share it."""

from dataclasses import replace

import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor, nn

from r1parallel.models.decoding.model import prompt_model, token_model
from r1parallel.models.fused.operators import FUSED, PLAIN
from r1parallel.models.layers.kv_cache import ChunkRows, KVCache, TokenRows
from r1parallel.models.parameters import load_parameters, parameter_values
from r1parallel.models.qwen2_5 import Qwen2ForCausalLM

ROWS, SLOTS, HEADS, SIZE, CHUNK = 4, 7, 2, 3, 4
SCRATCH = SLOTS - 1

pytestmark = pytest.mark.usefixtures("mindspore_cpu")


class Put(nn.Cell):
    def __init__(self, cache):
        super().__init__(auto_prefix=False)
        self.cache = cache

    def construct(self, k, v, row_slots):
        return self.cache.put_tokens(k, v, row_slots)


class Fill(nn.Cell):
    def __init__(self, cache):
        super().__init__(auto_prefix=False)
        self.cache = cache

    def construct(self, k, v, chunk_slots):
        return self.cache.put_chunks(k, v, chunk_slots)


def numbers(*shape):
    """Every number once, none of them zero."""
    return np.arange(1, 1 + np.prod(shape), dtype=np.float32).reshape(shape)


def contents(cache):
    return cache.key_cache.asnumpy().copy(), cache.value_cache.asnumpy().copy()


def slots_of(chunks):
    """(rows, first slot, length) of every chunk → slots_QX; what no token is for goes to the row's last slot."""
    chunk_slots = np.zeros((len(chunks), 1 + 3 * ROWS * CHUNK), np.int32)
    for chunk, (rows, first, length) in enumerate(chunks):
        row_slots = np.full((ROWS, CHUNK, 2), SCRATCH, np.int32)
        row_slots[:, :, 0] = np.arange(ROWS)[:, None]
        row_slots[rows, :length, 1] = np.arange(first, first + length)
        chunk_slots[chunk] = [rows[0], *np.tile(chunk * CHUNK + np.arange(CHUNK), ROWS), *row_slots.reshape(-1)]
    return chunk_slots


def test_a_token_of_every_row_is_added():
    cache = KVCache(ROWS, SLOTS, HEADS, SIZE, ms.float32)
    k = numbers(ROWS, 1, HEADS, SIZE)
    expected = np.zeros((2, ROWS, SLOTS, HEADS, SIZE), np.float32)
    put = Put(cache)
    for slots in ([0, 3, SCRATCH, 2], [1, 4, 0, 2]):
        row_slots = np.stack([np.arange(ROWS), slots], axis=1).astype(np.int32)
        given = put(Tensor(k), Tensor(-k), Tensor(row_slots))
        expected[:, np.arange(ROWS), slots] = k[:, 0], -k[:, 0]
        for ours, kept, wanted in zip(given, contents(cache), expected, strict=True):
            np.testing.assert_array_equal(ours.asnumpy(), wanted)
            np.testing.assert_array_equal(kept, wanted)
        k = k + 1000


def test_rows_may_take_the_same_chunk_or_none():
    """Rows 0 and 2 take three tokens of chunk 1 from slot 2 on, row 3 all of chunk 0; row 1 keeps what it has."""
    cache = KVCache(ROWS, SLOTS, HEADS, SIZE, ms.float32)
    old = 0.5 + numbers(ROWS, SLOTS, HEADS, SIZE)
    cache.key_cache.set_data(Tensor(old))
    cache.value_cache.set_data(Tensor(2 * old))
    k = numbers(2 * CHUNK, HEADS * SIZE)
    seen = Fill(cache)(Tensor(k), Tensor(-k), Tensor(slots_of([([3], 0, CHUNK), ([2, 0], 2, 3)])))
    chunks = k.reshape(2, CHUNK, HEADS, SIZE)
    for kept, looked, before, given in zip(contents(cache), seen, (old, 2 * old), (chunks, -chunks), strict=True):
        expected = before.copy()
        expected[[0, 2], 2:5], expected[3, :CHUNK] = given[1, :3], given[0]
        np.testing.assert_array_equal(kept[:, :SCRATCH], expected[:, :SCRATCH])
        np.testing.assert_array_equal(looked.asnumpy()[:, :SCRATCH], expected[[3, 2], :SCRATCH])  # after writing


def test_a_token_sees_the_slots_up_to_its_own():
    positions = np.array([0, 2, 5], np.int32)
    row_slots = np.stack([np.arange(3), [0, 2, SCRATCH]], axis=1).astype(np.int32)
    found, seen = TokenRows(SLOTS)(Tensor(row_slots), Tensor(positions))
    assert found.asnumpy().tolist() == [[0], [2], [5]]
    assert seen.asnumpy().tolist() == [[[slot <= position for slot in range(SLOTS)]] for position in positions]


def test_a_token_of_a_chunk_sees_what_its_row_holds_up_to_itself():
    first = np.array([0, 3], np.int32)
    positions, seen = ChunkRows(CHUNK, SLOTS)(Tensor(np.zeros((2, 1), np.int32)), Tensor(first))
    assert positions.asnumpy().tolist() == [[0, 1, 2, 3], [3, 4, 5, 6]]
    for begin, seen_SK in zip(first, seen.asnumpy(), strict=True):
        for query in range(CHUNK):
            assert seen_SK[query].tolist() == [key <= begin + query for key in range(SLOTS)]


@pytest.mark.parametrize("operators", [PLAIN, FUSED], ids=["plain", "fused"])
def test_both_models_hold_the_same_weights_and_cache(tiny_config, operators):
    tokens = token_model(tiny_config, ROWS, SLOTS, operators)
    prompts = prompt_model(tokens, CHUNK, operators)
    ours = {p.name: p for p in tokens.get_parameters()}
    theirs = {p.name: p for p in prompts.get_parameters()}
    assert ours.keys() == theirs.keys() and all(ours[name] is theirs[name] for name in ours)
    for layer in (0, 1):
        cache = prompts.model.layers[layer].attention.cache
        assert cache.key_cache is tokens.model.layers[layer].attention.cache.key_cache
        assert tuple(cache.key_cache.shape) == (ROWS, SLOTS, tiny_config.num_kv_heads, tiny_config.head_dim)
    assert len({p.name for p in tokens.get_parameters() if p.name.endswith("_cache")}) == 4


def asked_for_few_rows(model):
    return {bool(cell.matmul.attrs.get("few_rows")) for _, cell in model.cells_and_names() if hasattr(cell, "matmul")}


@pytest.mark.parametrize(("operators", "asked"), [(PLAIN, {False}), (FUSED, {True})], ids=["plain", "fused"])
def test_products_of_few_rows_are_asked_for_where_weights_lie_right(tiny_config, operators, asked):
    tokens = token_model(tiny_config, ROWS, SLOTS, operators)
    assert asked_for_few_rows(tokens) == asked_for_few_rows(prompt_model(tokens, CHUNK, operators)) == asked
    assert asked_for_few_rows(Qwen2ForCausalLM(tiny_config, SLOTS, operators)) == {False}  # rounds alike for all rows


@pytest.mark.parametrize("operators", [PLAIN, FUSED], ids=["plain", "fused"])
@pytest.mark.parametrize("tied", [True, False])
def test_logits_are_those_of_the_model_without_a_cache(request, tiny_config, noisy_values, operators, tied):
    """Prompts into rows that held others before, then tokens one after the other, each row at its own place.

    Row 1's prompt takes two chunks of one call; row 3's only token is put in by the second call, beside nothing.
    """
    if operators is FUSED:
        request.getfixturevalue("fused_kernels")
    config = replace(tiny_config, tie_word_embeddings=tied)
    rng = np.random.default_rng(8)
    texts = rng.integers(0, config.vocab_size, (ROWS, SCRATCH)).astype(np.int32)
    texts[2] = texts[0, [0, 1, 2, 5, 5, 5]]  # shares the prompt of the first
    lengths = [3, CHUNK + 1, 3, 1]  # of the prompts; those of row 0 and 2 are computed once
    values = noisy_values(config, seed=6)
    whole = Qwen2ForCausalLM(config, SCRATCH, operators)
    load_parameters(whole, values, "test")
    slots, starts = Tensor(np.arange(SCRATCH, dtype=np.int32)), Tensor(np.zeros(ROWS, np.int32))
    expected = whole(Tensor(texts), slots, starts).asnumpy().reshape(ROWS, SCRATCH, -1)

    tokens = token_model(config, ROWS, SLOTS, operators)
    prompts = prompt_model(tokens, CHUNK, operators)
    load_parameters(tokens, values, "test")
    for parameter in tokens.get_parameters():
        if parameter.name.endswith("_cache"):
            parameter.set_data(Tensor(rng.normal(size=parameter.shape).astype(np.float32)))
    padded = np.pad(texts, ((0, 0), (0, 2 * CHUNK)))
    for chunks in ([([0, 2], 0, 3), ([1], 0, CHUNK), ([1], CHUNK, 1)], [([3], 0, 1), ([0], 0, 0), ([0], 0, 0)]):
        filling = np.stack([padded[rows[0], first : first + CHUNK] for rows, first, _ in chunks])
        first = np.array([first for _, first, _ in chunks], np.int32)
        prompts(Tensor(filling), Tensor(slots_of(chunks)), Tensor(first)).asnumpy()
    at = np.array(lengths, np.int32)
    while (at < SCRATCH).any():
        busy = at < SCRATCH
        row_slots = np.stack([np.arange(ROWS), np.where(busy, at, SCRATCH)], axis=1).astype(np.int32)
        positions = np.where(busy, at, 0).astype(np.int32)
        given = np.where(busy, texts[np.arange(ROWS), np.minimum(at, SCRATCH - 1)], 0)[:, None].astype(np.int32)
        logits = tokens(Tensor(given), Tensor(row_slots), Tensor(positions)).asnumpy()
        for row in np.flatnonzero(busy):
            np.testing.assert_allclose(logits[row], expected[row, at[row]], rtol=0, atol=5e-5)
        at = np.where(busy, at + 1, at)
    assert parameter_values(tokens).keys() == values.keys()
