import json
from dataclasses import asdict

import numpy as np
import pytest
import yaml
from helpers.stored import read_all, read_entry

from r1parallel.checkpoint.convert import Target, convert_weight
from r1parallel.checkpoint.formats.tensor_file import open_checkpoint
from r1parallel.checkpoint.writing import output
from r1parallel.checkpoint.writing.tensor_writer import write_checkpoint
from r1parallel.errors import UserError

HEAD, EMBEDDING = "lm_head.weight", "model.embed_tokens.weight"


def values(folder):
    return {name: array.tobytes() for name, array in read_all(folder).items()}


@pytest.mark.parametrize("dtype", ["F32", "F16", "BF16"])
@pytest.mark.parametrize("shard", [10**9, 500])
def test_there_and_back_is_bit_equal(tmp_path, make_folder, config, dtype, shard):
    source = make_folder("hf", config, dtype=dtype, max_shard_size=shard)
    convert_weight(source, tmp_path / "ours", Target(max_shard_size=shard))
    convert_weight(tmp_path / "ours", tmp_path / "back", Target(names="hf", max_shard_size=shard))
    assert values(tmp_path / "back") == values(source)
    assert {entry.dtype for entry in open_checkpoint(tmp_path / "back").values()} == {dtype}
    ours = open_checkpoint(tmp_path / "ours")
    assert {name: entry.shape for name, entry in ours.items()} == config.parameter_shapes()
    assert (tmp_path / "back" / "tokenizer.json").read_text() == '{"made": "up"}'
    written = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}[dtype]
    assert json.loads((tmp_path / "back" / "config.json").read_text())["torch_dtype"] == written


def test_tied_model_there_and_back(tmp_path, make_folder, tied_config):
    source = make_folder("hf", tied_config)
    convert_weight(source, tmp_path / "ours")
    convert_weight(tmp_path / "ours", tmp_path / "back", Target(names="hf"))
    assert values(tmp_path / "back") == values(source)
    assert HEAD not in values(tmp_path / "back")


@pytest.mark.parametrize(("dtype", "stored"), [("fp16", "F16"), ("bf16", "BF16"), ("fp32", "F32")])
def test_cast_and_config(tmp_path, make_folder, config, dtype, stored):
    source = make_folder("hf", config, dtype="BF16")
    settings = {**json.loads((source / "config.json").read_text()), "dtype": "bfloat16", "kept": 1}
    (source / "config.json").write_text(json.dumps(settings))
    convert_weight(source, tmp_path / "ours", Target(dtype=dtype))
    checkpoint = open_checkpoint(tmp_path / "ours")
    assert {entry.dtype for entry in checkpoint.values()} == {stored}
    written = json.loads((tmp_path / "ours" / "config.json").read_text())
    assert written["torch_dtype"] == written["dtype"]
    assert written["torch_dtype"] == {"F16": "float16", "BF16": "bfloat16", "F32": "float32"}[stored]
    assert written["kept"] == 1
    original = read_all(source)[EMBEDDING].astype(np.float32)
    now = read_entry(checkpoint["model.tok_embeddings.embedding_weight"]).astype(np.float32)
    np.testing.assert_allclose(now, original, atol=1e-7)


def test_transformers_reads_the_result(tmp_path, make_folder, tied_config):
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    source = make_folder("hf", tied_config, dtype="BF16")
    convert_weight(source, tmp_path / "ours")
    convert_weight(tmp_path / "ours", tmp_path / "back", Target(names="hf"))
    one, other = (
        transformers.AutoModelForCausalLM.from_pretrained(folder, torch_dtype="auto")
        for folder in (source, tmp_path / "back")
    )
    assert one.dtype == other.dtype == torch.bfloat16
    tokens = torch.tensor([[1, 2, 3, 15]])
    assert torch.equal(one(tokens).logits, other(tokens).logits)
    other.save_pretrained(tmp_path / "saved")
    convert_weight(tmp_path / "saved", tmp_path / "again")
    assert values(tmp_path / "again") == values(tmp_path / "ours")


def test_a_single_file_and_a_model_yaml_are_accepted(tmp_path, make_folder, config):
    source = make_folder("hf", config)
    convert_weight(source / "model.safetensors", tmp_path / "ours")
    (tmp_path / "ours" / "config.json").unlink()
    (tmp_path / "ours" / "model.yaml").write_text(yaml.safe_dump(asdict(config)))
    convert_weight(tmp_path / "ours", tmp_path / "back", Target(names="hf"))
    assert values(tmp_path / "back") == values(source)
    assert json.loads((tmp_path / "back" / "config.json").read_text())["hidden_size"] == config.hidden_size


def test_mixed_types_leave_torch_dtype_alone(tmp_path, make_folder, config):
    source = make_folder("hf", config)
    tensors = read_all(source)
    mixed = [(n, a.shape, "F16" if n == HEAD else "F32", a) for n, a in tensors.items()]
    mixed = [(n, s, d, a.astype(np.float16) if d == "F16" else a) for n, s, d, a in mixed]
    write_checkpoint(source, mixed)
    convert_weight(source, tmp_path / "ours")
    assert open_checkpoint(tmp_path / "ours")[HEAD].dtype == "F16"
    assert json.loads((tmp_path / "ours" / "config.json").read_text())["torch_dtype"] == "float32"


def test_rotary_buffers_are_ignored(tmp_path, make_folder, config):
    def change(arrays):
        arrays["model.layers.0.self_attn.rotary_emb.inv_freq"] = np.ones(4, np.float32)

    convert_weight(make_folder("hf", config, change=change), tmp_path / "ours")
    assert set(values(tmp_path / "ours")) == set(config.parameter_shapes())


def test_tied_head_must_be_the_embedding(tmp_path, make_folder, tied_config):
    def equal(arrays):
        arrays[HEAD] = arrays[EMBEDDING].copy()

    def one_bit(arrays):
        equal(arrays)
        arrays[HEAD].view(np.uint32)[3, 2] ^= 1

    convert_weight(make_folder("equal", tied_config, change=equal), tmp_path / "ours")
    assert HEAD not in values(tmp_path / "ours")
    with pytest.raises(UserError, match=r"lm_head.weight differs from model.embed_tokens.weight"):
        convert_weight(make_folder("other", tied_config, change=one_bit), tmp_path / "no")
    assert not (tmp_path / "no").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda a: a.pop("model.norm.weight"), r"model.norm.weight \(8,\) is missing"),
        (lambda a: a.update({"model.layers.2.mlp.up_proj.weight": a[HEAD]}), "layers.2.* no parameter of the model"),
        (lambda a: a.update({"vision.weight": a[HEAD]}), "vision.weight: no Hugging Face Qwen2"),
        (
            lambda a: a.update({HEAD: a[HEAD][:15]}),
            r"lm_head.weight has shape \(15, 8\), the model wants \(16, 8\)",
        ),
    ],
)
def test_wrong_tensors_are_named(tmp_path, make_folder, config, change, message):
    with pytest.raises(UserError, match=message):
        convert_weight(make_folder("hf", config, change=change), tmp_path / "ours")
    assert not (tmp_path / "ours").exists()


def test_other_refusals(tmp_path, make_folder, config):
    source = make_folder("hf", config)
    with pytest.raises(UserError, match="is the same folder as what is read"):
        convert_weight(source, source, overwrite=True)
    with pytest.raises(UserError, match="is a file"):
        convert_weight(source, source / "tokenizer.json")
    convert_weight(source, tmp_path / "ours")
    with pytest.raises(UserError, match="exists; choose another --output_path or give --overwrite"):
        convert_weight(source, tmp_path / "ours")
    convert_weight(source, tmp_path / "ours", Target(dtype="fp16"), overwrite=True)
    assert {entry.dtype for entry in open_checkpoint(tmp_path / "ours").values()} == {"F16"}


def test_integers_are_no_weights(tmp_path, make_folder, config):
    source = make_folder("hf", config)
    tensors = read_all(source)
    entries = [(n, a.shape, "I32" if n == HEAD else "F32", a) for n, a in tensors.items()]
    write_checkpoint(source, [(n, s, d, a.astype(np.int32) if d == "I32" else a) for n, s, d, a in entries])
    with pytest.raises(UserError, match=r"lm_head.weight is stored as I32"):
        convert_weight(source, tmp_path / "ours")


def test_a_config_that_is_no_json_is_refused_before_anything_is_written(tmp_path, make_folder, config):
    source = make_folder("hf", config)
    text = (source / "config.json").read_text()
    (source / "config.json").write_text(text.replace("}", ",}"))
    with pytest.raises(UserError, match=r"config.json: not readable"):
        convert_weight(source, tmp_path / "ours")
    assert not (tmp_path / "ours").exists()


def test_overflow_writes_nothing(tmp_path, make_folder, config):
    def change(arrays):
        arrays["model.norm.weight"][0] = 1e6

    with pytest.raises(UserError, match=r"hf: model.norm_out.weight: 1e\+06 does not fit into F16"):
        convert_weight(make_folder("hf", config, change=change), tmp_path / "ours", Target(dtype="fp16"))
    assert [path.name for path in tmp_path.iterdir()] == ["hf"]


def test_a_bad_write_is_noticed(tmp_path, make_folder, config, monkeypatch):
    source = make_folder("hf", config)
    plain = output.run_jobs

    def spoilt(jobs, *rest):
        digests = plain(jobs, *rest)
        file = jobs[0].parts[0].places[0][0]
        file.write_bytes(file.read_bytes().replace(b'"F32"', b'"I32"', 1))
        return digests

    monkeypatch.setattr(output, "run_jobs", spoilt)
    with pytest.raises(UserError, match="not what was written there"):
        convert_weight(source, tmp_path / "ours")
    assert [path.name for path in tmp_path.iterdir()] == ["hf"]


def test_command_line(tmp_path, make_folder, config, tool, capsys):
    source = make_folder("hf", config)
    main = tool("convert_weight")
    main(["--input_path", str(source), "--output_path", str(tmp_path / "ours"), "--dtype", "bf16"])
    assert "wrote" in capsys.readouterr().out
    main(["--input_path", str(tmp_path / "ours"), "--output_path", str(tmp_path / "back"), "--reversed"])
    assert set(values(tmp_path / "back")) == set(values(source))
    with pytest.raises(SystemExit):
        main(["--input", str(source), "--output_path", str(tmp_path / "x")])
