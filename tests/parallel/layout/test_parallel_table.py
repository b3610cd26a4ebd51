from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from r1parallel.config.model import ModelConfig
from r1parallel.config.stages import even_stages, offset_stages
from r1parallel.errors import UserError
from r1parallel.parallel.layout.mesh import Mesh
from r1parallel.parallel.layout.table import ModelLayout, check_model_parallel, split_dim
from r1parallel.parallel.layout.tensor_layout import StageLayouts, TensorLayout

CONFIG = ModelConfig(vocab_size=48, hidden_size=32, intermediate_size=40, num_layers=5, num_heads=8, num_kv_heads=4)
TIED = ModelConfig(**{**CONFIG.__dict__, "tie_word_embeddings": True})


@settings(deadline=None, max_examples=40)
@given(
    st.sampled_from([1, 2, 3, 4]),
    st.integers(1, 5),
    st.sampled_from([1, 2, 4]),
    st.booleans(),
    st.booleans(),
)
def test_slices_tile_every_parameter(dp, pp, tp, opt_shard, tied):
    config = TIED if tied else CONFIG
    layout = ModelLayout(config, Mesh(dp=dp, pp=pp, tp=tp), opt_shard)
    for name, shape in config.parameter_shapes().items():
        counts = np.zeros(shape, int)
        owners = [rank for rank in range(layout.world_size) if layout.slices(name, rank) is not None]
        for rank in owners:
            slices = layout.slices(name, rank)
            counts[slices] += 1
            assert counts[slices].shape == layout.local_shape(name, rank)
        held = np.prod(layout.local_shape(name, owners[0])) * len(owners)
        assert counts.min() == counts.max() == held // np.prod(shape)


def test_which_rank_holds_what():
    layout = ModelLayout(CONFIG, Mesh(dp=2, pp=2, tp=4))
    assert layout.slices("model.layers.0.attention.wq.weight", 6) == (slice(16, 24), slice(0, 32))
    assert layout.slices("model.layers.0.attention.wo.weight", 6) == (slice(0, 32), slice(16, 24))
    assert layout.slices("model.layers.0.attention.wk.bias", 1) == (slice(4, 8),)
    assert layout.slices("model.layers.0.attention.wq.weight", 8) is None
    assert layout.local_shape("lm_head.weight", 8) == (12, 32)
    assert layout.local_shape("lm_head.weight", 0) is None
    assert layout.local_shape("model.norm_out.weight", 15) == (32,)


def test_optimizer_parallel_cuts_dim_0_once_more():
    layout = ModelLayout(CONFIG, Mesh(dp=2, tp=2), opt_shard=True)
    rows = [layout.slices("model.layers.0.attention.wq.weight", rank)[0] for rank in range(4)]
    assert [(part.start, part.stop) for part in rows] == [(0, 8), (16, 24), (8, 16), (24, 32)]
    assert layout.slices("model.layers.0.attention.wo.weight", 3) == (slice(16, 32), slice(16, 32))
    norm = [layout.slices("model.norm_out.weight", rank)[0].start for rank in range(4)]
    assert norm == [0, 8, 16, 24]


def test_optimizer_parallel_leaves_alone_what_it_cannot_cut():
    layout = ModelLayout(CONFIG, Mesh(dp=3, tp=2), opt_shard=True)  # 32 norm weights, 6 ranks
    assert layout.local_shape("model.norm_out.weight", 0) == (32,)
    assert layout.local_shape("lm_head.weight", 0) == (8, 32)  # 48 = 2 × 3 × 8


def test_stages():
    layout = ModelLayout(TIED, Mesh(pp=3))
    assert [param.stage for name, param in layout.parameters.items() if "ffn_norm" in name] == [0, 0, 1, 1, 2]
    assert layout.parameters["model.norm_out.weight"].stage == 2
    custom = ModelLayout(CONFIG, Mesh(pp=2), stage_layers=(1, 4))
    assert custom.parameters["model.layers.1.ffn_norm.weight"].stage == 1
    assert even_stages(7, 3) == (3, 2, 2)


def test_a_tied_embedding_over_stages_is_whole_on_the_first():
    name = "model.tok_embeddings.embedding_weight"
    layout = ModelLayout(TIED, Mesh(dp=2, pp=2, tp=2), opt_shard=True)
    assert [layout.local_shape(name, rank) for rank in range(8)] == [(24, 32)] * 4 + [None] * 4
    assert layout.copies(name) == 2
    assert ModelLayout(TIED, Mesh(dp=2, tp=2), opt_shard=True).local_shape(name, 0) == (12, 32)


@settings(deadline=None)
@given(st.integers(1, 100), st.integers(1, 20))
def test_even_stages_are_even(num_layers, pp):
    counts = even_stages(num_layers, pp)
    assert sum(counts) == num_layers
    assert all(0 <= before - after <= 1 for before, after in pairwise(counts))


@pytest.mark.parametrize(
    ("tp", "message"),
    [
        (3, "model_parallel is 3, which does not divide the model's num_heads 8, num_kv_heads 4, .*; 1, 2, 4 would do"),
        (8, "model_parallel is 8, which does not divide the model's num_kv_heads 4; 1, 2, 4 would do"),
    ],
)
def test_impossible_tensor_parallel_is_refused_with_what_works(tp, message):
    with pytest.raises(UserError, match=message):
        ModelLayout(CONFIG, Mesh(tp=tp))
    with pytest.raises(UserError, match=f"^a.key is {tp}"):
        check_model_parallel(CONFIG, tp, "a.key")


@pytest.mark.parametrize(("pp", "layers"), [(6, None), (2, (5, 0)), (2, (2, 2)), (2, (5,))])
def test_stages_must_add_up(pp, layers):
    with pytest.raises(ValueError, match="stage_layers"):
        ModelLayout(CONFIG, Mesh(pp=pp), stage_layers=layers)


def test_offsets_are_mindformers():
    """The example of mindformers' own page: 48 layers, 5 stages."""
    assert offset_stages(48, 5, [0, 1, 1, 1, 0]) == (9, 10, 10, 10, 9)
    assert offset_stages(28, 2, [-1, 1]) == (13, 15)


@settings(deadline=None)
@given(st.integers(1, 80), st.integers(1, 12), st.sampled_from([(), (0,)]))
def test_no_offset_means_even_stages(num_layers, pp, offset):
    if pp <= num_layers:
        assert offset_stages(num_layers, pp, offset) == even_stages(num_layers, pp)


@settings(deadline=None)
@given(st.lists(st.integers(1, 9), min_size=1, max_size=8))
def test_any_stages_can_be_asked_for(layers):
    each = sum(layers) // len(layers)
    assert offset_stages(sum(layers), len(layers), [count - each for count in layers]) == tuple(layers)


@pytest.mark.parametrize(
    ("num_layers", "pp", "offset", "message"),
    [
        (5, 6, (), "pipeline_stage is 6, more than the model's 5 layers; 1 to 5 would do"),
        (5, 6, (0,), "more than the model's 5 layers"),
        (8, 2, (1,), r"actor_config.offset is \[1\]; give 2 numbers"),
        (8, 2, (1, 1), r"sums to 2; 8 layers are 4 for each of 2 stages and 0 more, so it must sum to 0"),
        (9, 2, (0, 0), r"sums to 0; .* and 1 more, so it must sum to 1"),
        (4, 2, (-2, 2), r"makes stages of \[0, 4\] layers; each needs at least 1"),
    ],
)
def test_impossible_offsets_are_refused(num_layers, pp, offset, message):
    with pytest.raises(UserError, match=message):
        offset_stages(num_layers, pp, offset)


def test_unknown_parameter_has_no_row():
    with pytest.raises(KeyError):
        split_dim("model.layers.0.attention.w_qkv.weight")


def test_tensor_layout_refuses_a_shape_that_does_not_fit():
    layout = TensorLayout((2,), (0, -1))
    with pytest.raises(ValueError, match="2 dims"):
        layout.slices((4,), 0)
    with pytest.raises(ValueError, match="equal pieces"):
        layout.slices((3, 2), 0)


def test_optimizer_parallel_in_groups():
    layout = TensorLayout((4, 2), (0,), opt_shard_step=2, opt_shard_size=2)
    starts = [layout.slices((16,), device)[0].start for device in range(8)]
    assert starts == [0, 8, 4, 12, 0, 8, 4, 12]
    assert layout.stage_size == 8


def test_owners_of_a_tensor():
    layout = StageLayouts(2, ({"a": TensorLayout((2,), (0,))}, {"b": TensorLayout((2,), (-1,))}))
    assert [rank for rank, _ in layout.owners("b")] == [2, 3]
    assert layout.cut("b", (4,), 0) is None
    assert layout.cut("a", (4,), 1) == (slice(2, 4),)
