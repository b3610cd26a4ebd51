import json

import pytest

from r1parallel.config.model import ModelConfig, load_model_config, write_model_config
from r1parallel.errors import UserError

SIZES = {
    "vocab_size": 64,
    "hidden_size": 64,
    "intermediate_size": 192,
    "num_layers": 2,
    "num_heads": 4,
    "num_kv_heads": 2,
}
HF = {
    "model_type": "qwen2",
    "vocab_size": 64,
    "hidden_size": 64,
    "intermediate_size": 192,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "rms_norm_eps": 0.001,
    "rope_theta": 5000.0,
    "max_position_embeddings": 128,
    "tie_word_embeddings": True,
}


def write_json(folder, **changes):
    values = {key: value for key, value in {**HF, **changes}.items() if value is not ...}
    (folder / "config.json").write_text(json.dumps(values))
    return folder / "config.json"


def write_yaml(folder, text):
    (folder / "model.yaml").write_text(text)
    return folder / "model.yaml"


def yaml_text(**changes):
    values = {key: value for key, value in {**SIZES, **changes}.items() if value is not ...}
    return "".join(f"{key}: {value}\n" for key, value in values.items())


def test_config_json_gives_every_size(tmp_path):
    config = load_model_config(write_json(tmp_path, transformers_version="4.57.1", use_sliding_window=False))
    assert config == ModelConfig(
        **SIZES, rms_norm_eps=0.001, rope_theta=5000.0, max_position_embeddings=128, tie_word_embeddings=True
    )


def test_config_json_as_hugging_face_writes_it(tmp_path):
    """1e-06 is a number in JSON (and a string in YAML 1.1)."""
    path = write_json(tmp_path, rms_norm_eps=1e-6, rope_scaling=None, sliding_window=131072)
    assert '"rms_norm_eps": 1e-06' in path.read_text()
    assert load_model_config(path).rms_norm_eps == 1e-6


def test_config_json_may_be_indented_by_tabs(tmp_path):
    path = tmp_path / "config.json"
    path.write_text(json.dumps(HF, indent="\t"))
    assert load_model_config(path).num_kv_heads == 2


def test_folder_may_hold_either_file_and_config_json_comes_first(tmp_path):
    write_yaml(tmp_path, yaml_text(num_layers=5))
    assert load_model_config(tmp_path).num_layers == 5
    write_json(tmp_path, num_hidden_layers=7)
    assert load_model_config(tmp_path).num_layers == 7


def test_config_json_without_kv_heads_has_as_many_as_heads(tmp_path):
    assert load_model_config(write_json(tmp_path, num_key_value_heads=...)).num_kv_heads == 4


def test_rope_base_of_old_and_new_transformers(tmp_path):
    assert load_model_config(write_json(tmp_path, rope_theta=...)).rope_theta == 10000.0
    new = write_json(tmp_path, rope_theta=..., rope_parameters={"rope_theta": 7.0, "rope_type": "default"})
    assert load_model_config(new).rope_theta == 7.0


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"model_type": "llama"}, "model_type is 'llama'"),
        ({"hidden_act": "gelu"}, "hidden_act is 'gelu'"),
        ({"use_sliding_window": True}, "sliding-window"),
        ({"rope_scaling": {"type": "yarn", "factor": 4.0}}, "rope_scaling is set"),
        ({"hidden_size": "64"}, "hidden_size is '64'; expected int"),
        ({"hidden_size": True}, "hidden_size is True; expected int"),
        ({"rms_norm_eps": "small"}, "rms_norm_eps is 'small'; expected float"),
        ({"tie_word_embeddings": 1}, "tie_word_embeddings is 1; expected bool"),
        ({"vocab_size": ...}, "vocab_size"),
        ({"num_hidden_layers": 0}, "num_layers is 0"),
    ],
)
def test_config_json_that_we_cannot_run_is_refused(tmp_path, changes, words):
    path = write_json(tmp_path, **changes)
    with pytest.raises(UserError) as refusal:
        load_model_config(path)
    assert str(path) in str(refusal.value)
    assert words in str(refusal.value)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"num_heads": 5, "num_kv_heads": 5}, "hidden_size 64 is no multiple of num_heads 5"),
        ({"num_kv_heads": 3}, "num_heads 4 is no multiple of num_kv_heads 3"),
        ({"num_heads": 64, "num_kv_heads": 64}, "head size 1 is odd"),
        ({"intermediate_size": -1}, "intermediate_size is -1"),
        ({"hiden_size": 3}, "unknown key 'hiden_size'"),
        ({"num_layers": ...}, "num_layers"),
    ],
)
def test_model_yaml_with_impossible_sizes_is_refused(tmp_path, changes, words):
    path = write_yaml(tmp_path, yaml_text(**changes))
    with pytest.raises(UserError) as refusal:
        load_model_config(path)
    assert str(path) in str(refusal.value)
    assert words in str(refusal.value)


@pytest.mark.parametrize(
    ("content", "words"),
    [(b"- a\n- b\n", "expected keys and values"), (b"a: [1\n", "not readable"), (b"a: \xff\n", "not readable")],
)
def test_unreadable_file_is_refused(tmp_path, content, words):
    (tmp_path / "model.yaml").write_bytes(content)
    with pytest.raises(UserError, match=words):
        load_model_config(tmp_path / "model.yaml")


def test_missing_file_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"model\.yaml: no such model configuration"):
        load_model_config(tmp_path)


def test_int_is_taken_for_a_float(tmp_path):
    theta = load_model_config(write_yaml(tmp_path, yaml_text(rope_theta=10000))).rope_theta
    assert (theta, type(theta)) == (10000.0, float)


def test_written_config_json_reads_back_the_same(tmp_path):
    config = ModelConfig(**SIZES, rms_norm_eps=0.5, rope_theta=123.0, tie_word_embeddings=True)
    write_model_config(config, tmp_path / "config.json", dtype="bfloat16", eos_token_id=[1, 2], pad_token_id=0)
    written = json.loads((tmp_path / "config.json").read_text())
    assert load_model_config(tmp_path) == config
    assert written["torch_dtype"] == "bfloat16"
    assert written["eos_token_id"] == [1, 2]
    assert written["architectures"] == ["Qwen2ForCausalLM"]


def test_parameter_shapes_follow_the_sizes():
    shapes = ModelConfig(**SIZES).parameter_shapes()
    assert len(shapes) == 1 + 2 * 12 + 1 + 1
    assert shapes["model.layers.1.attention.wk.weight"] == (32, 64)
    assert shapes["model.layers.0.attention.wv.bias"] == (32,)
    assert shapes["model.layers.0.feed_forward.w2.weight"] == (64, 192)
    assert shapes["lm_head.weight"] == (64, 64)


def test_tied_head_has_no_parameter_of_its_own():
    tied = ModelConfig(**SIZES, tie_word_embeddings=True).parameter_shapes()
    assert "lm_head.weight" not in tied
    assert tied.keys() | {"lm_head.weight"} == ModelConfig(**SIZES).parameter_shapes().keys()


def mindformers(folder, **changes):
    """A mindformers file of SIZES; the changes are of its model_config."""
    values = {
        "type": "LlamaConfig",
        "qkv_has_bias": True,
        "theta": 5000.0,
        **SIZES,
        "n_kv_heads": SIZES["num_kv_heads"],
    }
    del values["num_kv_heads"]
    values = {key: value for key, value in {**values, **changes}.items() if value is not ...}
    return write_yaml(folder, json.dumps({"model": {"model_config": values, "arch": {"type": "LlamaForCausalLM"}}}))


def test_mindformers_file_gives_every_size(tmp_path):
    path = mindformers(
        tmp_path, rms_norm_eps=0.001, max_position_embedding=128, tie_word_embeddings=True, use_past=True
    )
    assert load_model_config(path) == ModelConfig(
        **SIZES, rms_norm_eps=0.001, rope_theta=5000.0, max_position_embeddings=128, tie_word_embeddings=True
    )


def test_mindformers_names_of_qwen2(tmp_path):
    changes = {"type": "Qwen2Config", "qkv_has_bias": ..., "n_kv_heads": ..., "theta": ...}
    path = mindformers(tmp_path, **changes, num_key_value_heads=2, rope_theta=7.0)
    assert load_model_config(path) == ModelConfig(**SIZES, rope_theta=7.0)
    assert load_model_config(mindformers(tmp_path, n_kv_heads=..., theta=...)).num_kv_heads == SIZES["num_heads"]
    assert load_model_config(mindformers(tmp_path, theta=...)).rope_theta == 10000.0


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"type": "GLM4Config"}, "model.model_config.type is 'GLM4Config'"),
        ({"qkv_has_bias": ...}, "model.model_config.qkv_has_bias is False; only True is supported"),
        ({"extend_method": "NTK"}, "extend_method is 'NTK'"),
        ({"emb_dropout_prob": 0.1}, "emb_dropout_prob is 0.1"),
        ({"theta": 1.0, "rotary_emb_base": 2}, "rotary_emb_base is 2, but another key says 1.0"),
        ({"intermediate_size": ...}, "intermediate_size"),
        ({"hidden_size": "64"}, "hidden_size is '64'; expected int"),
    ],
)
def test_mindformers_file_that_we_cannot_run_is_refused(tmp_path, changes, words):
    with pytest.raises(UserError) as refusal:
        load_model_config(mindformers(tmp_path, **changes))
    assert str(tmp_path) in str(refusal.value)
    assert words in str(refusal.value)


def test_mindformers_file_without_sizes_is_refused(tmp_path):
    with pytest.raises(UserError, match="model holds no model_config"):
        load_model_config(write_yaml(tmp_path, "model: {arch: {}}\n"))
