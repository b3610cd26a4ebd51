"""The operator half of the layout table: complete, all ones on one rank, and derived from the weights."""

import pytest
from mindspore.ops import Primitive

from r1parallel.config.model import ModelConfig
from r1parallel.models.qwen2_5 import Qwen2ForCausalLM
from r1parallel.parallel.mesh import Mesh
from r1parallel.parallel.operators import UNSPLIT, parallelize, strategies

SIZES = ModelConfig(64, 32, 64, 2, 4, 2, tie_word_embeddings=False)


def operators(model):
    """(cell, attribute, operator) of every operator of the model."""
    for _, cell in model.cells_and_names():
        for name in vars(cell)["_primitives"]:
            if isinstance(getattr(cell, name), Primitive):
                yield cell, name, getattr(cell, name)


@pytest.mark.parametrize("tied", [False, True])
def test_every_operator_of_the_model_has_a_strategy(tied):
    model = Qwen2ForCausalLM(ModelConfig(64, 32, 64, 2, 4, 2, tie_word_embeddings=tied), 8)
    found = list(operators(model))
    assert len(found) > 50
    missing = {(type(cell).__name__, name) for cell, name, op in found if op.name not in UNSPLIT} - {
        (type(cell).__name__, name) for cell, _, _ in found for name in strategies(cell)
    }
    assert not missing


def test_one_rank_splits_nothing():
    model = Qwen2ForCausalLM(SIZES, 8)
    parallelize(model, Mesh(dp=1, pp=1, tp=1))
    seen = [op.in_strategy for _, _, op in operators(model) if op.attrs.get("in_strategy") is not None]
    assert len(seen) > 50
    assert {parts for strategy in seen for operand in strategy for parts in operand} == {1}


def test_projections_are_split_as_their_weights_are():
    model = Qwen2ForCausalLM(SIZES, 8)
    parallelize(model, Mesh(dp=2, pp=1, tp=4))
    block = model.model.layers[0]
    assert block.attention.wq.matmul.in_strategy == ((2, 1), (4, 1))
    assert block.attention.wq.add.in_strategy == ((2, 4), (4,))
    assert block.attention.wo.matmul.in_strategy == ((2, 4), (1, 4))
    assert block.feed_forward.w2.matmul.in_strategy == ((2, 4), (1, 4))
    assert block.attention.scores.in_strategy == ((2, 4, 1, 1), (2, 4, 1, 1))
    assert model.lm_head.matmul.in_strategy == ((2, 1), (4, 1))
    assert model.model.tok_embeddings.gather.in_strategy == ((4, 1), (2,))


def test_transposed_weights_turn_their_strategy():
    model = Qwen2ForCausalLM(SIZES, 8, cache_rows=2)
    parallelize(model, Mesh(dp=1, pp=1, tp=2))
    block = model.model.layers[0]
    assert block.attention.wq.matmul.in_strategy == ((1, 1), (1, 2))
    assert block.attention.wo.matmul.in_strategy == ((1, 2), (2, 1))
    assert model.lm_head.matmul.in_strategy == ((1, 1), (2, 1))
