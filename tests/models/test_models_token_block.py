"""A block of one operator, against the block of many that it stands in for."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from mindspore import Tensor, nn

from r1parallel.config.model import ModelConfig
from r1parallel.models.cached import token_model
from r1parallel.models.fused import FUSED, PLAIN
from r1parallel.models.parameters import load_parameters
from r1parallel.models.qwen2_5 import Block, Qwen2ForCausalLM
from r1parallel.models.token_block import WholeTokenBlock

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
    places = rng.integers(0, SLOTS - 4, rows).astype(np.int32)
    for _ in range(3):
        tokens = Tensor(rng.integers(0, config.vocab_size, (rows, 1)).astype(np.int32))
        spots = Tensor(np.stack([np.arange(rows), np.where(taken, places, SLOTS - 1)], axis=1).astype(np.int32))
        positions = Tensor(np.where(taken, places, 0).astype(np.int32))
        ours, theirs = (model(tokens, spots, positions).asnumpy() for model in (whole, many))
        assert np.abs(theirs[taken]).max() > 0.5
        np.testing.assert_allclose(ours[taken], theirs[taken], rtol=0, atol=2e-5)
        assert np.isfinite(ours).all()
        for (name, kept), wanted in zip(caches(whole).items(), caches(many).values(), strict=True):
            np.testing.assert_allclose(kept[:, :-1], wanted[:, :-1], rtol=0, atol=2e-5, err_msg=name)
        places += 1


@pytest.mark.parametrize("spot", [(0, SLOTS), (2, 0), (-1, 0), (0, -1)])
def test_a_place_outside_of_the_cache_is_refused(noisy_values: Callable, spot: tuple[int, int]):
    model = made(SIZES, 2, noisy_values(SIZES, seed=3), split=False)
    spots = Tensor(np.array([spot, (1, 0)], np.int32))
    with pytest.raises(RuntimeError, match="TokenBlock on CPU was given a place outside of the cache"):
        model(Tensor(np.zeros((2, 1), np.int32)), spots, Tensor(np.zeros(2, np.int32))).asnumpy()


def test_plain_models_and_split_ones_have_blocks_of_many_operators():
    for operators, split in ((PLAIN, False), (PLAIN, True), (FUSED, True)):
        assert {type(layer) for layer in token_model(SIZES, 2, SLOTS, operators, split).model.layers} == {Block}
