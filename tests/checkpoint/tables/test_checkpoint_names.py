from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from r1parallel.checkpoint.tables.names import (
    CONCATENATED,
    FAMILIES,
    NAME_TABLE,
    concatenated_tensors,
    family_of,
    from_hf,
    group_rows,
    separate_tensors,
    to_hf,
    translate,
)
from r1parallel.config.model import ModelConfig, load_model_config
from r1parallel.errors import UserError
from r1parallel.parallel.layout.table import split_dim

SHIPPED = sorted(path.name for path in (Path(__file__).parents[3] / "model_configs").iterdir())
PAIRS = [(source, target) for source in FAMILIES for target in FAMILIES]
UNKNOWN = [
    "model.layers.0.mlp.experts.0.gate_proj.weight",
    "model.layers.01.mlp.gate_proj.weight",
    "model.layers.{layer}.mlp.gate_proj.weight",
    "model.layers.x.mlp.gate_proj.weight",
    "model.layers.-1.mlp.gate_proj.weight",
    "model.layers.٣.mlp.gate_proj.weight",
    "model.layers.3.model.layers.4.mlp.gate_proj.weight",
    "layers.3.mlp.gate_proj.weight",
    "model.layers.01.attention.wq.weight",
    "model.layers.{layer}.attention.wq.weight",
    "model.layers.0.attention.w_qkv.weight",
    "decoder.layers.00.mlp.hidden.weight",
    "decoder.layers.{layer}.mlp.hidden.weight",
    "decoder.layers.0.self_attention.linear_qkv.weight",
    "model.norm.weight\n",
    "model.norm_out.weight ",
    "transformer.wte.weight",
    "{layer}",
    "",
]


def shipped(name: str) -> ModelConfig:
    return load_model_config(Path(__file__).parents[3] / "model_configs" / name)


@pytest.mark.parametrize("model", SHIPPED)
def test_every_shipped_parameter_has_one_name_in_each_family(model):
    parameters = list(shipped(model).parameter_shapes())
    for source, target in PAIRS:
        there = [translate(name, "ours", source) for name in parameters]
        across = [translate(name, source, target) for name in there]
        assert len(set(across)) == len(parameters)
        assert [translate(name, target, "ours") for name in across] == parameters
    assert [from_hf(to_hf(name)) for name in parameters] == parameters


def test_the_table_is_one_to_one_and_the_layout_knows_its_parameters():
    for column in zip(*NAME_TABLE, strict=True):
        assert len(set(column)) == len(NAME_TABLE)
    for row in NAME_TABLE:
        assert len({name.count("{layer}") for name in row}) == 1
        split_dim(row[1])


@given(row=st.sampled_from(NAME_TABLE), layer=st.integers(0, 10**6), pair=st.sampled_from(PAIRS))
def test_any_layer_goes_there_and_back(row, layer, pair):
    name = row[FAMILIES.index(pair[0])].replace("{layer}", str(layer))
    there = translate(name, *pair)
    assert there == row[FAMILIES.index(pair[1])].replace("{layer}", str(layer))
    assert translate(there, *reversed(pair)) == name


def test_some_names():
    assert from_hf("model.layers.12.mlp.gate_proj.weight") == "model.layers.12.feed_forward.w1.weight"
    assert to_hf("model.norm_out.weight") == "model.norm.weight"
    assert translate("model.layers.7.attention.wk.bias", "ours", "mcore") == (
        "decoder.layers.7.self_attention.linear_k.bias"
    )
    assert translate("decoder.layers.10.mlp.hidden.weight", "mcore", "hf") == "model.layers.10.mlp.up_proj.weight"
    assert translate("output_layer.weight", "mcore", "ours") == "lm_head.weight"


@pytest.mark.parametrize("name", UNKNOWN)
def test_unknown_names_are_refused(name):
    titles = {"hf": "Hugging Face Qwen2", "ours": "r1parallel", "mcore": "mindformers mcore"}
    for source, target in PAIRS:
        with pytest.raises(UserError, match=f"no {titles[source]}.* parameter has this name; see the table"):
            translate(name, source, target)


def test_a_name_of_another_family_is_unknown():
    for row in NAME_TABLE:
        for source, other in PAIRS:
            name = row[FAMILIES.index(other)].replace("{layer}", "3")
            if name != row[FAMILIES.index(source)].replace("{layer}", "3"):
                with pytest.raises(UserError):
                    translate(name, source, "ours")


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("model", ["tiny", "qwen2_5_7b"])
def test_the_family_of_a_checkpoint(family, model):
    parameters = shipped(model).parameter_shapes()
    assert family_of(translate(name, "ours", family) for name in parameters) == family
    if family == "ours":
        assert family_of(concatenated_tensors(parameters)) == "ours"


def test_no_family_and_several():
    embeddings = NAME_TABLE[0]
    for names in ([], ["lm_head.weight", "transformer.wte.weight"], ["model.tok_embeddings.weight"]):
        with pytest.raises(
            UserError, match=r"no embedding among the tensors, neither model\.embed_tokens\.weight, nor"
        ):
            family_of(names)
    with pytest.raises(UserError, match=r"^embeddings of Hugging Face Qwen2 and mindformers mcore Qwen2 side by side"):
        family_of([embeddings[0], "lm_head.weight", embeddings[2]])
    with pytest.raises(UserError, match="side by side"):
        family_of(embeddings)


def test_a_layer_concatenated():
    config = ModelConfig(16, 8, 12, 2, 4, 2)
    tensors = concatenated_tensors(config.parameter_shapes())
    layer = "model.layers.1."
    assert {name: parts for name, parts in tensors.items() if name.startswith(layer)} == {
        f"{layer}attention.w_qkv.weight": tuple(f"{layer}attention.{part}.weight" for part in ("wq", "wk", "wv")),
        f"{layer}attention.w_qkv.bias": tuple(f"{layer}attention.{part}.bias" for part in ("wq", "wk", "wv")),
        f"{layer}attention.wo.weight": (f"{layer}attention.wo.weight",),
        f"{layer}feed_forward.w_gate_hidden.weight": (
            f"{layer}feed_forward.w1.weight",
            f"{layer}feed_forward.w3.weight",
        ),
        f"{layer}feed_forward.w2.weight": (f"{layer}feed_forward.w2.weight",),
        f"{layer}attention_norm.weight": (f"{layer}attention_norm.weight",),
        f"{layer}ffn_norm.weight": (f"{layer}ffn_norm.weight",),
    }
    assert next(iter(tensors)) == "model.tok_embeddings.embedding_weight"
    assert list(tensors)[-2:] == ["model.norm_out.weight", "lm_head.weight"]


@pytest.mark.parametrize("model", SHIPPED)
def test_concatenated_and_separate_are_inverse(model):
    parameters = shipped(model).parameter_shapes()
    tensors = concatenated_tensors(parameters)
    places = separate_tensors(tensors)
    assert set(places) == set(parameters)
    for name, (tensor, index) in places.items():
        assert tensors[tensor][index or 0] == name
        assert (index is None) == (tensor == name)
    plain = separate_tensors(parameters)
    assert plain == {name: (name, None) for name in parameters}
    assert list(plain) == list(parameters)


def test_the_order_of_the_names_does_not_change_that_of_the_parts():
    parameters = list(ModelConfig(16, 8, 12, 1, 4, 2).parameter_shapes())
    assert concatenated_tensors(reversed(parameters)) == concatenated_tensors(parameters)


@pytest.mark.parametrize("gone", ["attention.wq.bias", "attention.wv.weight", "feed_forward.w1.weight"])
def test_a_missing_part_is_named(gone):
    parameters = dict(ModelConfig(16, 8, 12, 2, 4, 2).parameter_shapes())
    del parameters[f"model.layers.1.{gone}"]
    with pytest.raises(UserError, match=rf"^model\.layers\.1\.{gone}: is missing beside model\.layers\.1\."):
        concatenated_tensors(parameters)


def test_a_tensor_stored_twice_is_refused():
    whole, part = "model.layers.0.attention.w_qkv.weight", "model.layers.0.attention.wk.weight"
    for stored in ([whole, part], [part, whole]):
        with pytest.raises(UserError, match=f"^{part}: is stored twice, in {stored[0]} and in {stored[1]}; keep one"):
            separate_tensors(stored)


@pytest.mark.parametrize("model", SHIPPED)
def test_groups_of_rows_fill_the_concatenated_tensors(model):
    config = shipped(model)
    shapes = config.parameter_shapes()
    for name, parts in concatenated_tensors(shapes).items():
        if len(parts) == 1:
            continue
        rows = group_rows(config, name)
        groups = config.num_kv_heads if "w_qkv" in name else config.intermediate_size
        assert tuple(shapes[part][0] for part in parts) == tuple(count * groups for count in rows)


def test_group_rows_of_7b():
    config = shipped("qwen2_5_7b")  # 28 query heads, 4 key heads, each of 128
    assert group_rows(config, "model.layers.0.attention.w_qkv.bias") == (7 * 128, 128, 128)
    assert group_rows(config, "model.layers.27.feed_forward.w_gate_hidden.weight") == (1, 1)
    for name in ("model.layers.0.attention.wo.weight", "lm_head.weight", CONCATENATED[0][0]):
        with pytest.raises(ValueError, match="is no concatenated tensor"):
            group_rows(config, name)
