"""A block of one operator and its gradient, against the block of many that it stands in for."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from helpers.one_rank import LossGradient
from helpers.packed_texts import pack, random_texts
from mindspore import ParameterTuple, Tensor, nn, ops

from r1parallel.config.model import ModelConfig
from r1parallel.config.schema import RecomputeConfig
from r1parallel.models.decoding.model import prompt_model, token_model
from r1parallel.models.fused.operators import FUSED, PLAIN, Operators
from r1parallel.models.fused.packing import packed
from r1parallel.models.logps import CompletionLogps, PackedLogps
from r1parallel.models.parameters import load_parameters
from r1parallel.models.qwen2_5 import Block, Qwen2ForCausalLM
from r1parallel.parallel.layout.mesh import Mesh
from r1parallel.parallel.parallelize import parallelize

SIZES = ModelConfig(29, 48, 50, 2, 6, 2, tie_word_embeddings=False)

pytestmark = pytest.mark.usefixtures("fused_kernels")


class Weighted(nn.Cell):
    """Σ weight · log-prob."""

    def __init__(self, logps: nn.Cell):
        super().__init__(auto_prefix=False)
        self.logps, self.mul = logps, ops.Mul()

    def construct(self, weights: Tensor, *inputs: Tensor) -> Tensor:
        return self.mul(self.logps(*inputs), weights)


def fused_blocks(program: nn.Cell) -> set[bool]:
    return {cell.is_fused for _, cell in program.cells_and_names() if isinstance(cell, Block)}


def both(config: ModelConfig, slots: int, values: dict[str, np.ndarray], operators: Operators = FUSED) -> list:
    """The model with blocks of one operator, and with those of many."""
    models = [Qwen2ForCausalLM(config, slots, operators) for _ in range(2)]
    for model in models:
        load_parameters(model, values, "test")
    parallelize(models[0], Mesh(), (config.num_layers,))
    assert [fused_blocks(model) for model in models] == [{True}, {False}]
    return models


def compare(models: list, logps: Callable[[Qwen2ForCausalLM], nn.Cell], seed: int, *inputs: np.ndarray) -> None:
    """The same log-probs to the last bit, and gradients that differ as sums in another order do."""
    tensors = [Tensor(x) for x in inputs]
    whole, many = (logps(model)(*tensors).asnumpy() for model in models)
    assert np.abs(many).max() > 1.0
    np.testing.assert_array_equal(whole, many)
    weights = np.random.default_rng(seed).normal(size=many.shape).astype(np.float32)
    found = []
    for model in models:
        cell = LossGradient(Weighted(logps(model)), ParameterTuple(model.trainable_params()))
        losses, gradients = cell(Tensor(weights), *tensors)
        np.testing.assert_array_equal(losses.asnumpy(), weights * many)
        names = [parameter.name for parameter in model.trainable_params()]
        found.append(dict(zip(names, (x.asnumpy() for x in gradients), strict=True)))
    for name, gradient in found[0].items():
        wanted = found[1][name]
        assert gradient.shape == wanted.shape
        scale = np.abs(wanted).max()
        assert scale > 0.0, name
        np.testing.assert_allclose(gradient / scale, wanted / scale, rtol=0, atol=1e-5, err_msg=name)


@pytest.mark.parametrize(
    ("changes", "rows", "length"),
    [
        ({}, 1, 7),
        ({}, 5, 40),
        ({}, 2, 130),  # queries that threads have halves of
        ({"num_kv_heads": 6}, 3, 9),
        ({"num_kv_heads": 1}, 3, 9),
        ({"hidden_size": 44, "num_heads": 2, "num_kv_heads": 1}, 3, 9),  # a head that no vector divides
        ({"hidden_size": 64, "num_heads": 2, "intermediate_size": 203}, 9, 33),  # shared by two threads
        ({"tie_word_embeddings": True}, 2, 9),
    ],
    ids=lambda value: "-".join(f"{v}" for v in value.values()) if isinstance(value, dict) else f"{value}",
)
def test_one_operator_does_what_many_do(noisy_values: Callable, changes: dict[str, int], rows: int, length: int):
    config = replace(SIZES, **changes)
    models = both(config, length, noisy_values(config, seed=3))
    rng = np.random.default_rng(4)
    tokens = rng.integers(0, config.vocab_size, (rows, length)).astype(np.int32)
    starts = (np.arange(rows) % 3).astype(np.int32)
    compare(models, lambda model: CompletionLogps(model, rows, 4, length - 4), 5, tokens, starts)


def test_packed_rows(noisy_values: Callable):
    models = both(SIZES, 24, noisy_values(SIZES, seed=3), packed(FUSED))
    texts = random_texts(np.random.default_rng(3), SIZES.vocab_size, [(6, 5), (3, 1), (4, 3), (2, 2), (5, 4)])
    rows = pack(texts, [[[0], [3]], [[1], [2]], [[4]]], 24, 12, 0)
    compare(models, lambda model: PackedLogps(model, 3, 24, 12), 6, rows.tokens, rows.segment_map.concatenated())


def test_what_is_split_recomputed_or_cached_has_many_operators():
    def made(mesh: Mesh, recompute: RecomputeConfig | None = None, operators: Operators = FUSED) -> set[bool]:
        model = Qwen2ForCausalLM(SIZES, 8, operators)
        parallelize(model, mesh, (1, 1) if mesh.pp == 2 else (2,), recompute=recompute)
        return fused_blocks(model)

    assert made(Mesh()) == made(Mesh(), RecomputeConfig()) == {True}
    assert {*made(Mesh(dp=2)), *made(Mesh(tp=2)), *made(Mesh(pp=2)), *made(Mesh(), operators=PLAIN)} == {False}
    assert (
        made(Mesh(), RecomputeConfig(recompute=True)) == made(Mesh(), RecomputeConfig(select_recompute=True)) == {False}
    )
    tokens = token_model(SIZES, 2, 16, FUSED)
    for model in (tokens, prompt_model(tokens, 4, FUSED)):
        parallelize(model, Mesh(), (2,))
        assert fused_blocks(model) == {False}


def test_the_mask_of_another_batch_is_refused(noisy_values: Callable):
    """Of the kernel's own checks the one that a wrong program could meet."""
    model = both(SIZES, 8, noisy_values(SIZES, seed=3))[0]
    block = model.model.layers[0]

    class Wrong(nn.Cell):
        def __init__(self):
            super().__init__(auto_prefix=False)
            self.block = block

        def construct(self, x: Tensor, cos: Tensor, hidden: Tensor) -> Tensor:
            return self.block(x, (cos, cos, cos, cos, hidden), x)

    x, cos = Tensor(np.ones((16, 48), np.float32)), Tensor(np.ones((2, 8, 1, 8), np.float32))
    assert Wrong()(x, cos, Tensor(np.zeros((2, 1, 8, 8), bool))).shape == (16, 48)
    with pytest.raises(RuntimeError, match="BlockForward on CPU takes one mask for all heads"):
        Wrong()(x, cos, Tensor(np.zeros((3, 1, 8, 8), bool))).asnumpy()
    with pytest.raises(RuntimeError, match="BlockForward on CPU takes as many tokens as angles"):
        Wrong()(x, cos[:1], Tensor(np.zeros((1, 1, 8, 8), bool))).asnumpy()
