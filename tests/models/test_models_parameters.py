from dataclasses import replace

import numpy as np
import pytest
from mindspore import Tensor, ops

from r1parallel.checkpoint.load import ArraySource
from r1parallel.config.model import ModelConfig
from r1parallel.errors import UserError
from r1parallel.models.decoding.model import token_model
from r1parallel.models.parameters import (
    load_parameters,
    load_slices,
    load_state,
    model_parameters,
    parameter_values,
    random_source,
    random_values,
    set_slices,
    share_parameters,
    state_values,
    transposed_weights,
    unallocated,
)
from r1parallel.models.qwen2_5 import Qwen2ForCausalLM
from r1parallel.parallel.layout.mesh import Mesh
from r1parallel.parallel.layout.table import ModelLayout

UNTIED = ModelConfig(11, 8, 12, 2, 2, 1)
NORM = "model.norm_out.weight"
W1 = "model.layers.0.feed_forward.w1.weight"

pytestmark = pytest.mark.usefixtures("mindspore_cpu")


def make_model(cache_rows: int = 0, config: ModelConfig = UNTIED) -> Qwen2ForCausalLM:
    """A model with a cache keeps its weights the other way round."""
    return token_model(config, cache_rows, 4) if cache_rows else Qwen2ForCausalLM(config, 4)


def test_names_and_shapes_are_those_of_the_configuration(tiny_config):
    for config in (tiny_config, UNTIED):
        plain, cached = make_model(0, config), make_model(3, config)
        shapes = {name: tuple(p.shape) for name, p in model_parameters(plain).items()}
        assert shapes == config.parameter_shapes()
        turned = transposed_weights(cached)
        assert not transposed_weights(plain)
        assert "model.layers.1.feed_forward.w2.weight" in turned
        assert {name: tuple(p.shape) for name, p in model_parameters(cached).items()} == {
            name: shape[::-1] if name in turned else shape for name, shape in shapes.items()
        }
        for model in (plain, cached):
            assert {p.name for p in model.trainable_params()} == set(shapes)  # caches are not trained


@pytest.mark.parametrize("cache_rows", [0, 2])
def test_values_go_in_and_out_unchanged(noisy_values, cache_rows):
    values = noisy_values(UNTIED)
    model = make_model(cache_rows)
    load_parameters(model, values, "test")
    out = parameter_values(model)
    assert set(out) == set(values)
    for name, value in values.items():
        np.testing.assert_array_equal(out[name], value)
        assert out[name].dtype == np.float32
        assert out[name].flags.c_contiguous  # safetensors writes other arrays wrongly


def overwrite_in_place(model):
    """What an optimizer does, other than `load_parameters`: write into the buffers that are there."""
    for parameter in model_parameters(model).values():
        ops.Assign()(parameter, Tensor(np.full(parameter.shape, 7.0, np.float32)))
        assert (parameter.asnumpy() == 7.0).all()


@pytest.mark.parametrize("cache_rows", [0, 2])
def test_values_that_come_out_are_copies(noisy_values, cache_rows):
    model = make_model(cache_rows)
    load_parameters(model, noisy_values(UNTIED, seed=1), "test")
    before = parameter_values(model)
    overwrite_in_place(model)
    for name, value in noisy_values(UNTIED, seed=1).items():
        np.testing.assert_array_equal(before[name], value)


def test_values_that_are_not_copied_are_those_of_the_buffers(noisy_values):
    model, values = make_model(), noisy_values(UNTIED, seed=1)
    load_parameters(model, values, "test")
    live = parameter_values(model, copy=False)
    for name, value in values.items():
        np.testing.assert_array_equal(live[name], value)
        assert np.shares_memory(live[name], model_parameters(model)[name].asnumpy())
    overwrite_in_place(model)
    assert all((value == 7.0).all() for value in live.values())


def test_turned_values_are_written_as_safetensors_wants_them(noisy_values):
    model, values = make_model(2), noisy_values(UNTIED, seed=1)  # it keeps its weights as [in, out]
    load_parameters(model, values, "test")
    for name, value in parameter_values(model, copy=False).items():
        np.testing.assert_array_equal(value, values[name])
        assert value.flags.c_contiguous


def test_other_types_and_strides_are_computed_in_fp32(noisy_values):
    values = {name: value.astype(np.float64).T.copy().T for name, value in noisy_values(UNTIED).items()}
    model = make_model()
    load_parameters(model, values, "test")
    name = "model.layers.1.attention.wk.weight"
    np.testing.assert_array_equal(parameter_values(model)[name], values[name].astype(np.float32))


def without(values, name):
    return {key: value for key, value in values.items() if key != name}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda values: without(values, NORM), f"^here: no tensor {NORM}"),
        (lambda values: values | {"lm_head.bias": np.zeros(11)}, "^here: unexpected tensor lm_head.bias"),
        (lambda values: values | {NORM: np.ones((8, 1))}, rf"^here: {NORM} has shape \(8, 1\), .* \(8,\)"),
        (lambda values: values | {W1: values[W1].T}, f"^here: {W1} has shape"),
    ],
    ids=["missing", "extra", "mis-shaped", "transposed"],
)
@pytest.mark.parametrize("cache_rows", [0, 2])
def test_values_of_another_model_are_refused(noisy_values, change, message, cache_rows):
    with pytest.raises(UserError, match=message):
        load_parameters(make_model(cache_rows), change(noisy_values(UNTIED)), "here")


@pytest.mark.parametrize("source_rows", [0, 2])
@pytest.mark.parametrize("target_rows", [0, 3])
def test_a_model_takes_over_the_values_of_another(noisy_values, source_rows, target_rows):
    source, target = make_model(source_rows), make_model(target_rows)
    load_parameters(source, noisy_values(UNTIED, seed=1), "test")
    set_slices(target, parameter_values(source))
    overwrite_in_place(source)  # the copy must not follow
    for name, value in noisy_values(UNTIED, seed=1).items():
        np.testing.assert_array_equal(parameter_values(target)[name], value)


def test_parameters_made_without_memory_take_values(noisy_values):
    with unallocated():
        with unallocated():
            inner = make_model(2)
        model = make_model(2)
    after = make_model(2)
    assert not any(parameter.has_init for parameter in after.get_parameters())
    for made in (inner, model):
        assert all(parameter.has_init for parameter in made.get_parameters())
        load_parameters(made, noisy_values(UNTIED), "test")
        assert not any(parameter.has_init for parameter in model_parameters(made).values())
        for name, value in noisy_values(UNTIED).items():
            np.testing.assert_array_equal(parameter_values(made)[name], value)


@pytest.mark.parametrize("tied", [False, True])
def test_a_twin_has_the_very_parameters(noisy_values, tied):
    config = replace(UNTIED, tie_word_embeddings=tied)
    model, twin = Qwen2ForCausalLM(config, 4), Qwen2ForCausalLM(config, 4)
    names = [p.name for p in twin.get_parameters()]
    share_parameters(model, twin)
    assert [p.name for p in twin.get_parameters()] == names == [p.name for p in model.get_parameters()]
    ours = model_parameters(twin)
    assert all(ours[name] is parameter for name, parameter in model_parameters(model).items())
    for number, (source, target) in enumerate(((model, twin), (twin, model))):
        values = noisy_values(config, seed=number)
        load_parameters(source, values, "test")  # set_data on the one …
        for name, value in parameter_values(target).items():  # … is seen by the other
            np.testing.assert_array_equal(value, values[name])
    overwrite_in_place(model)
    assert all((value == 7.0).all() for value in parameter_values(twin).values())


def test_a_twin_computes_with_what_its_model_has_learned(noisy_values):
    """Also after both have been compiled."""
    model, twin, fresh = (Qwen2ForCausalLM(UNTIED, 4) for _ in range(3))
    share_parameters(model, twin)
    tokens, slots = Tensor(np.array([[3, 1, 2, 5]], np.int32)), Tensor(np.arange(4, dtype=np.int32))
    starts = Tensor(np.zeros(1, np.int32))
    for seed in (0, 1):
        for cell in (model, fresh):
            load_parameters(cell, noisy_values(UNTIED, seed), "test")
        logits = [cell(tokens, slots, starts).asnumpy() for cell in (model, twin, fresh)]
        np.testing.assert_array_equal(logits[0], logits[2])
        np.testing.assert_array_equal(logits[1], logits[2])


def test_a_shallower_model_is_no_twin():
    deeper = Qwen2ForCausalLM(replace(UNTIED, num_layers=3), 4)
    with pytest.raises(KeyError):
        share_parameters(deeper, make_model())


def test_a_twin_may_be_cut_into_other_runs(noisy_values):
    """The training program is cut into the stages' runs when it is compiled, its twin only later."""
    model, twin = make_model(), make_model()
    model.model.cut((1, 1))
    share_parameters(model, twin)
    load_parameters(model, noisy_values(UNTIED), "test")
    assert all((parameter_values(twin)[name] == value).all() for name, value in noisy_values(UNTIED).items())


def test_random_values():
    config = ModelConfig(400, 64, 64, 1, 2, 1)
    values = random_values(config, seed=3)
    assert {name: value.shape for name, value in values.items()} == config.parameter_shapes()
    for name, value in values.items():
        assert value.dtype == np.float32
        if name.endswith("bias"):
            assert not value.any()
        elif "norm" in name:
            assert (value == 1.0).all()
        else:
            assert value.std() == pytest.approx(0.02, rel=0.05)
            assert abs(value.mean()) < 0.002
    again, other = random_values(config, seed=3), random_values(config, seed=4, scale=0.5)
    assert all((again[name] == value).all() for name, value in values.items())
    assert other["lm_head.weight"].std() == pytest.approx(0.5, rel=0.05)


SPLIT = ModelConfig(16, 8, 12, 2, 4, 2, tie_word_embeddings=True)
LAYOUT = ModelLayout(SPLIT, Mesh(dp=2, pp=2, tp=2))
EMBEDDING = "model.tok_embeddings.embedding_weight"


def compiled_model(rank, cache_rows=0, layout=LAYOUT):
    """Parameters have the shapes that MindSpore gives them when it compiles a parallel graph."""
    model = make_model(cache_rows, SPLIT)
    turned = transposed_weights(model)
    for name, parameter in model_parameters(model).items():
        shape = layout.local_shape(name, rank % layout.world_size)
        if shape is not None:
            shape = shape[::-1] if name in turned else shape
            parameter.set_data(Tensor(np.zeros(shape, np.float32)), slice_shape=True)
    return model


@pytest.mark.parametrize("rank", [0, 3, 6, 9])
@pytest.mark.parametrize("cache_rows", [0, 2])
def test_a_rank_takes_its_slices_only(noisy_values, rank, cache_rows):
    full = noisy_values(SPLIT)
    expected = {n: full[n][r] for n in full if (r := LAYOUT.slices(n, rank % 8)) is not None}
    model = compiled_model(rank, cache_rows)
    load_slices(model, ArraySource(full, "test"), LAYOUT, rank)
    assert 0 < len(expected) < len(full)
    out = parameter_values(model, LAYOUT, rank)
    assert out.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_array_equal(out[name], value)
        assert out[name].flags.c_contiguous
    for name, parameter in model_parameters(model).items():
        if name not in expected:  # of another stage
            assert set(np.unique(parameter.asnumpy())) <= {0.0, 1.0}
    again = compiled_model(rank, cache_rows)
    set_slices(again, out)
    for name, value in parameter_values(again, LAYOUT, rank).items():
        np.testing.assert_array_equal(value, expected[name])


def test_a_model_that_is_not_compiled_is_refused(noisy_values):
    """MindSpore itself would accept the values, and compute with wrong ones."""
    full = noisy_values(SPLIT)
    with pytest.raises(
        ValueError, match=r"embedding_weight has shape \(16, 8\), its slice \(8, 8\); is the model compiled"
    ):
        load_slices(Qwen2ForCausalLM(SPLIT, 4), ArraySource(full, "test"), LAYOUT, 0)
    compiled = compiled_model(0)
    with pytest.raises(ValueError, match=r"embedding_weight has shape \(8, 8\), its slice \(16, 8\)"):
        load_slices(compiled, ArraySource(full, "test"), ModelLayout(SPLIT, Mesh()), 0)
    with pytest.raises(ValueError, match=r"embedding_weight has shape \(8, 8\), its slice \(16, 8\)"):
        set_slices(compiled, {EMBEDDING: full[EMBEDDING]})


def test_a_source_that_does_not_fit_is_refused(noisy_values):
    full = noisy_values(SPLIT)
    with pytest.raises(UserError, match=f"^here: no tensor {NORM}; is it of this model"):
        values = {name: value for name, value in full.items() if name != NORM}
        load_slices(compiled_model(0), ArraySource(values, "here"), LAYOUT, 0)
    with pytest.raises(UserError, match=rf"^here: {EMBEDDING} has shape \(32, 8\), the model wants \(16, 8\)"):
        values = full | {EMBEDDING: np.zeros((32, 8), np.float32)}
        load_slices(compiled_model(0), ArraySource(values, "here"), LAYOUT, 0)


def test_optimizer_state_follows_its_parameters(noisy_values):
    layout = ModelLayout(SPLIT, Mesh(dp=2, pp=2), opt_shard=True)
    model = compiled_model(1, layout=layout)
    state = {
        f"{prefix}.{name}": p.clone() for prefix in ("adam_m", "adam_v") for name, p in model_parameters(model).items()
    }
    full = {f"adam_m.{name}": value for name, value in noisy_values(SPLIT, seed=1).items()}
    full |= {f"adam_v.{name}": value for name, value in noisy_values(SPLIT, seed=2).items()}
    load_state(state, ArraySource(full, "test"), layout, 1)
    out = state_values(state, layout, 1)
    assert out.keys() == {name for name in full if layout.slices(name[7:], 1) is not None}
    for name, value in out.items():
        np.testing.assert_array_equal(value, full[name][layout.slices(name[7:], 1)])
        assert np.shares_memory(value, state[name].asnumpy())
    with pytest.raises(UserError, match=r"no tensor momentum.model.* and of this kind of optimizer"):
        load_state({f"momentum.{EMBEDDING}": state[f"adam_m.{EMBEDDING}"]}, ArraySource(full, "test"), layout, 1)


def test_random_values_are_a_source():
    source, values = random_source(SPLIT, 5), random_values(SPLIT, 5)
    assert all((source.read(name) == value).all() for name, value in values.items())
    assert source.path == "random weights"
