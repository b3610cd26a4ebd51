"""read_model: a model's values from every form a checkpoint may have."""

import json
from pathlib import Path

import numpy as np
import pytest

from r1parallel.checkpoint.formats.dtypes import CONFIG_DTYPES, DTYPES
from r1parallel.checkpoint.formats.tensor_entry import TensorEntry
from r1parallel.checkpoint.load import ArraySource, config_beside, open_model, read_model
from r1parallel.checkpoint.reading.source import STRATEGY_FILE
from r1parallel.checkpoint.slice import slice_checkpoint
from r1parallel.checkpoint.tables.names import to_hf
from r1parallel.checkpoint.writing.tensor_writer import write_checkpoint, write_tensor_file
from r1parallel.config.model import ModelConfig
from r1parallel.errors import UserError
from r1parallel.parallel.layout.mesh import Mesh
from r1parallel.parallel.layout.strategy_files import write_merged_strategy
from r1parallel.parallel.layout.table import ModelLayout

UNTIED = ModelConfig(11, 8, 12, 2, 2, 1)
TIED = ModelConfig(11, 8, 12, 2, 2, 1, tie_word_embeddings=True)
EMBEDDING = "model.tok_embeddings.embedding_weight"


def entries(values: dict[str, np.ndarray], dtype: str = "F32"):
    return [(name, value.shape, dtype, value.astype(DTYPES[dtype])) for name, value in values.items()]


def write_folder(folder: Path, values, config=UNTIED, dtype="F32", max_shard_size=10**9) -> Path:
    folder.mkdir()
    write_checkpoint(folder, entries(values, dtype), max_shard_size, {"format": "pt"})
    (folder / "config.json").write_text(json.dumps({**config.to_hf(), "torch_dtype": CONFIG_DTYPES[dtype]}))
    return folder


def hf_names(values: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {to_hf(name): value for name, value in values.items()}


def check(path: Path, config: ModelConfig, expected: dict[str, np.ndarray]) -> None:
    values = read_model(path, config)
    assert list(values) == list(config.parameter_shapes())
    for name, value in expected.items():
        assert values[name].dtype == np.float32
        np.testing.assert_array_equal(values[name], value, err_msg=name)


@pytest.mark.parametrize("config", [UNTIED, TIED], ids=["untied", "tied"])
def test_a_hugging_face_folder_and_one_of_ours(tmp_path, noisy_values, config):
    values = noisy_values(config)
    check(write_folder(tmp_path / "hf", hf_names(values), config), config, values)
    check(write_folder(tmp_path / "ours", values, config), config, values)


def test_shards_and_a_single_file(tmp_path, noisy_values):
    values = noisy_values(UNTIED)
    folder = write_folder(tmp_path / "shards", hf_names(values), max_shard_size=500)
    assert len(list(folder.glob("*.safetensors"))) > 2
    check(folder, UNTIED, values)
    single = write_folder(tmp_path / "one", values) / "model.safetensors"
    check(single, UNTIED, values)
    assert config_beside(single) == config_beside(single.parent) == UNTIED


def test_a_folder_with_rank_0(tmp_path, noisy_values):
    values = noisy_values(TIED)
    (tmp_path / "sliced" / "rank_0").mkdir(parents=True)
    write_tensor_file(tmp_path / "sliced" / "rank_0" / "checkpoint_0.safetensors", entries(values))
    check(tmp_path / "sliced", TIED, values)


@pytest.mark.parametrize("dtype", ["BF16", "F16"])
def test_half_precision_is_widened_exactly(tmp_path, noisy_values, dtype):
    values = noisy_values(UNTIED)
    folder = write_folder(tmp_path / "half", hf_names(values), dtype=dtype)
    check(folder, UNTIED, {name: value.astype(DTYPES[dtype]).astype(np.float32) for name, value in values.items()})


def test_a_tied_head_may_be_stored_twice(tmp_path, noisy_values):
    values = noisy_values(TIED)
    stored = {**hf_names(values), "lm_head.weight": values[EMBEDDING]}
    check(write_folder(tmp_path / "hf", stored, TIED), TIED, values)


def test_a_head_of_its_own_in_a_tied_model_is_refused(tmp_path, noisy_values):
    """Dropping it would give another model than the one that was trained."""
    values = noisy_values(TIED)
    stored = {**hf_names(values), "lm_head.weight": values[EMBEDDING] + np.float32(0.001)}
    folder = write_folder(tmp_path / "hf", stored, TIED)
    with pytest.raises(UserError, match=f"{folder}: lm_head.weight differs from .*tie_word_embeddings"):
        read_model(folder, TIED)


def test_rotary_buffers_of_old_checkpoints_are_left_out(tmp_path, noisy_values):
    values = noisy_values(UNTIED)
    stored = hf_names(values) | {"model.layers.0.self_attn.rotary_emb.inv_freq": np.ones(2, np.float32)}
    check(write_folder(tmp_path / "hf", stored), UNTIED, values)


def missing(values):
    return {name: value for name, value in values.items() if name != "model.norm_out.weight"}


def extra(values):
    return values | {"model.layers.2.ffn_norm.weight": np.ones(8, np.float32)}


def misshaped(values):
    return values | {"model.layers.1.attention.wk.weight": np.zeros((8, 4), np.float32)}


@pytest.mark.parametrize("names", [dict, hf_names], ids=["ours", "hf"])
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (missing, r"is missing; does the model configuration fit\?"),
        (extra, r"model.layers.2.(post_attention_layernorm|ffn_norm).weight .* is no parameter of the model"),
        (misshaped, r"model.layers.1.*(wk|k_proj).weight has shape \(8, 4\), the model wants \(4, 8\)"),
    ],
    ids=["missing", "extra", "mis-shaped"],
)
def test_what_does_not_fit_is_named(tmp_path, noisy_values, change, message, names):
    folder = write_folder(tmp_path / "bad", names(change(noisy_values(UNTIED))))
    with pytest.raises(UserError, match=message) as caught:
        read_model(folder, UNTIED)
    assert str(caught.value).startswith(f"{folder}: ")
    assert "\n" not in str(caught.value)


def test_an_unknown_name_is_refused(tmp_path, noisy_values):
    stored = hf_names(noisy_values(UNTIED)) | {"model.layers.0.mlp.router.weight": np.ones(2, np.float32)}
    with pytest.raises(UserError, match=r"model.layers.0.mlp.router.weight"):
        read_model(write_folder(tmp_path / "moe", stored), UNTIED)


def test_the_head_of_an_untied_model_is_needed(tmp_path, noisy_values):
    folder = write_folder(tmp_path / "hf", hf_names(noisy_values(TIED)), UNTIED)
    with pytest.raises(UserError, match=r"lm_head.weight .* is missing"):
        read_model(folder, UNTIED)


def test_sizes_beside_a_checkpoint(tmp_path):
    (tmp_path / "model.yaml").write_text(
        "vocab_size: 11\nhidden_size: 8\nintermediate_size: 12\nnum_layers: 2\nnum_heads: 2\nnum_kv_heads: 1\n"
    )
    assert config_beside(tmp_path) == UNTIED
    with pytest.raises(UserError, match="no such model configuration"):
        config_beside(tmp_path / "none" / "model.safetensors")


MESHES = [(Mesh(), False), (Mesh(tp=2), False), (Mesh(pp=2, tp=2), True), (Mesh(dp=2, pp=2), True)]
PAIRED = ModelConfig(16, 8, 12, 2, 4, 2, tie_word_embeddings=True)


@pytest.mark.parametrize(("mesh", "opt_shard"), MESHES)
def test_a_folder_of_several_ranks(tmp_path, noisy_values, mesh, opt_shard):
    """Any region comes from the ranks that hold it, and only theirs is read."""
    values, layout = noisy_values(PAIRED), ModelLayout(PAIRED, mesh, opt_shard)
    cut = tmp_path / "cut"
    slice_checkpoint(write_folder(tmp_path / "full", values, PAIRED), cut, layout)
    check(cut, PAIRED, values)
    other = ModelLayout(PAIRED, Mesh(dp=2, tp=2), True)
    source = open_model(cut, PAIRED)
    for rank in range(4):
        for name, value in values.items():
            region = other.slices(name, rank)
            np.testing.assert_array_equal(source.read(name, region), value[region])


def test_opening_reads_no_tensor(tmp_path, noisy_values, monkeypatch):
    values, layout = noisy_values(PAIRED), ModelLayout(PAIRED, Mesh(dp=2, tp=2))
    slice_checkpoint(write_folder(tmp_path / "full", values, PAIRED), tmp_path / "cut", layout)
    sizes, plain = [], TensorEntry.read_bytes

    def counted(entry, descriptor, begin, out):
        sizes.append((entry.file.parent.name, len(out)))
        plain(entry, descriptor, begin, out)

    monkeypatch.setattr(TensorEntry, "read_bytes", counted)
    source = open_model(tmp_path / "cut", PAIRED)
    assert sizes == []
    part = (slice(8, 10), slice(0, 8))
    np.testing.assert_array_equal(source.read(EMBEDDING, part), values[EMBEDDING][part])
    assert sizes == [("rank_1", 4 * 16)]


def test_ranks_of_another_model_or_without_a_strategy_are_refused(tmp_path, noisy_values):
    layout = ModelLayout(PAIRED, Mesh(tp=2))
    cut = tmp_path / "cut"
    slice_checkpoint(write_folder(tmp_path / "full", noisy_values(PAIRED), PAIRED), cut, layout)
    (cut / STRATEGY_FILE).unlink()
    with pytest.raises(UserError, match=r"is cut into 2 ranks, and no strategy.ckpt there"):
        open_model(cut, PAIRED)
    write_merged_strategy(ModelLayout(PAIRED, Mesh(tp=2, dp=2)), cut / STRATEGY_FILE)
    with pytest.raises(UserError, match=r"has folders for ranks 0, 1; the strategy describes ranks 0 to 3"):
        open_model(cut, PAIRED)
    write_merged_strategy(layout, cut / STRATEGY_FILE)
    with pytest.raises(UserError, match=r"lm_head.weight .* is missing"):
        open_model(cut, ModelConfig(**{**PAIRED.__dict__, "tie_word_embeddings": False}))
    with pytest.raises(UserError, match=r"embedding_weight has shape \(16, 8\), the model wants \(32, 8\)"):
        open_model(cut, ModelConfig(**{**PAIRED.__dict__, "vocab_size": 32}))


def test_arrays_are_a_source_too(noisy_values):
    values = noisy_values(UNTIED)
    source = ArraySource(values, "somewhere")
    assert source.path == "somewhere"
    assert source.shapes == UNTIED.parameter_shapes()
    np.testing.assert_array_equal(source.read(EMBEDDING, (slice(1, 3), slice(0, 8))), values[EMBEDDING][1:3])
    assert source.read(EMBEDDING) is values[EMBEDDING]
