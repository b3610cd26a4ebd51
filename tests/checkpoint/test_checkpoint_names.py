import pytest

from r1parallel.checkpoint.names import NAME_TABLE, from_hf, to_hf
from r1parallel.errors import UserError
from r1parallel.parallel.layout import split_dim


def test_every_parameter_has_a_name_on_both_sides(config):
    for ours in config.parameter_shapes():
        assert from_hf(to_hf(ours)) == ours
    assert len({to_hf(ours) for ours in config.parameter_shapes()}) == len(config.parameter_shapes())


def test_table_and_layout_know_the_same_parameters():
    for _, ours in NAME_TABLE:
        split_dim(ours)
    assert len({hf for hf, _ in NAME_TABLE}) == len({ours for _, ours in NAME_TABLE}) == len(NAME_TABLE)


def test_some_names():
    assert from_hf("model.layers.12.mlp.gate_proj.weight") == "model.layers.12.feed_forward.w1.weight"
    assert to_hf("model.norm_out.weight") == "model.norm.weight"


@pytest.mark.parametrize(
    "name",
    [
        "model.layers.0.mlp.experts.0.gate_proj.weight",
        "model.layers.01.mlp.gate_proj.weight",
        "model.layers.{layer}.mlp.gate_proj.weight",
        "model.layers.x.mlp.gate_proj.weight",
        "transformer.wte.weight",
        "",
    ],
)
def test_unknown_names_are_refused(name):
    with pytest.raises(UserError, match="no Hugging Face Qwen2 parameter"):
        from_hf(name)
    with pytest.raises(UserError, match="no r1parallel"):
        to_hf(name)
