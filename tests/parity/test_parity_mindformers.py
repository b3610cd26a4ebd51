"""Names and concatenated tensors against mindformers 1.9.0."""

import importlib.util
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from r1parallel.checkpoint.convert import Target, convert_weight
from r1parallel.checkpoint.tables.names import concatenated_tensors, group_rows, to_hf, translate
from r1parallel.config.model import ModelConfig, load_model_config

REPOSITORY = Path(__file__).parents[2]
WORKER = Path(__file__).with_name("mindformers_worker.py")
LIMIT_S = 600
pytestmark = pytest.mark.slow
REASON = "NO PARITY CHECK: mindformers is missing; install the mindformers extra: pip install -e '.[mindformers]'"

QWEN = {
    f"{size}, {'tied' if tied else 'untied'}": replace(
        load_model_config(REPOSITORY / "model_configs" / f"qwen2_5_{size}"), tie_word_embeddings=tied
    )
    for size in ("0_5b", "7b", "72b")
    for tied in (True, False)
}
# Small, with heads grouped as differently as can be.
MODELS = {
    "pairs": ModelConfig(19, 32, 24, 2, 4, 2),
    "one_key_head_tied": ModelConfig(19, 24, 20, 1, 6, 1, tie_word_embeddings=True),
    "a_key_head_each": ModelConfig(19, 24, 12, 1, 3, 3),
    "seven_to_a_key_head": ModelConfig(19, 56, 40, 1, 14, 2),
}


def write_hf(folder: Path, config: ModelConfig, values: dict[str, np.ndarray]) -> None:
    folder.mkdir(parents=True)
    save_file({to_hf(name): value for name, value in values.items()}, folder / "model.safetensors", {"format": "pt"})
    (folder / "config.json").write_text(json.dumps(config.to_hf()))


def join(values: dict[str, np.ndarray], layer: int = 0) -> dict[str, np.ndarray]:
    """A layer's tensors one below the other, as mindformers' functions take them."""
    prefix = f"model.layers.{layer}."
    parts = {
        "qkv.weight": [f"attention.{part}.weight" for part in ("wq", "wk", "wv")],
        "qkv.bias": [f"attention.{part}.bias" for part in ("wq", "wk", "wv")],
        "gate_up.weight": [f"feed_forward.{part}.weight" for part in ("w1", "w3")],
    }
    return {name: np.concatenate([values[prefix + part] for part in names]) for name, names in parts.items()}


@pytest.fixture(scope="module")
def theirs(tmp_path_factory, noisy_values) -> SimpleNamespace:
    """Our values of each small model, and what mindformers answers in a process and a folder of its own."""
    if importlib.util.find_spec("mindformers") is None:
        pytest.skip(REASON)
    folder = tmp_path_factory.mktemp("mindformers")
    values = {model: noisy_values(config, seed=3) for model, config in MODELS.items()}
    for model, config in MODELS.items():
        write_hf(folder / "models" / model / "hf", config, values[model])
        save_file(join(values[model]), folder / "models" / model / "joined.safetensors")
    names = {to_hf(name) for config in (*QWEN.values(), *MODELS.values()) for name in config.parameter_shapes()}
    (folder / "names.json").write_text(json.dumps(sorted(names)))
    result = subprocess.run(
        [sys.executable, str(WORKER), str(folder)],
        cwd=folder,  # they write a log into the folder they are started from
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=LIMIT_S,
        start_new_session=True,
    )
    assert result.returncode == 0, result.stdout[-3000:]
    answers = json.loads((folder / "answers.json").read_text())
    logits = load_file(folder / "logits.safetensors")
    return SimpleNamespace(answers=answers, models=folder / "models", values=values, logits=logits)


def concatenate(config: ModelConfig, values: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """What names.py says a concatenated checkpoint holds, in plain numpy."""
    tensors = {}
    for name, parts in concatenated_tensors(values).items():
        if parts == (name,):
            tensors[name] = values[name]
            continue
        sizes = zip(parts, group_rows(config, name), strict=True)
        groups = [values[part].reshape(-1, rows, *values[part].shape[1:]) for part, rows in sizes]
        tensors[name] = np.concatenate(groups, axis=1).reshape(-1, *values[parts[0]].shape[1:])
    return tensors


def assert_same_bits(found: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert (found[name].dtype, found[name].shape) == (value.dtype, value.shape), name
        assert found[name].tobytes() == value.tobytes(), name


@pytest.mark.parametrize("config", QWEN.values(), ids=QWEN)
def test_every_name_of_qwen2_5(theirs, config):
    for name in config.parameter_shapes():
        hf = to_hf(name)
        assert theirs.answers["ours"][hf] == theirs.answers["offline"][hf] == name
        assert theirs.answers["mcore"][hf] == translate(name, "ours", "mcore") == translate(hf, "hf", "mcore")


def test_their_loaders_do_not_take_our_names_for_hugging_faces(theirs):
    for family, member in (("ours again", "attention.w_qkv.bias"), ("mcore again", "self_attention.linear_q.bias")):
        assert any(name.endswith(member) for name in theirs.answers[family])
        assert all(name == again for name, again in theirs.answers[family].items())


@pytest.mark.parametrize("model", MODELS)
def test_their_models_have_the_parameters_of_ours(theirs, model):
    shapes = MODELS[model].parameter_shapes()
    parameters = theirs.answers["parameters"][model]
    assert parameters["plain"] == {name: list(shape) for name, shape in shapes.items()}
    expected = concatenate(MODELS[model], theirs.values[model])
    assert parameters["concatenated"] == {name: list(value.shape) for name, value in expected.items()}


@pytest.mark.parametrize("model", MODELS)
def test_their_functions_concatenate_alike(theirs, model):
    expected = concatenate(MODELS[model], theirs.values[model])
    prefix = "model.layers.0."
    found = load_file(theirs.models / model / "functions.safetensors")
    ours = {
        "qkv.weight": expected[f"{prefix}attention.w_qkv.weight"],
        "qkv.bias": expected[f"{prefix}attention.w_qkv.bias"],
        "gate_up.weight": expected[f"{prefix}feed_forward.w_gate_hidden.weight"],
    }
    assert_same_bits(found, ours)


@pytest.mark.parametrize("model", MODELS)
def test_their_loader_converts_alike(theirs, model):
    values = theirs.values[model]
    assert_same_bits(load_file(theirs.models / model / "plain" / "model.safetensors"), values)
    converted = load_file(theirs.models / model / "concatenated" / "model.safetensors")
    assert_same_bits(converted, concatenate(MODELS[model], values))


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("kind", ["plain", "concatenated"])
def test_our_converter_writes_what_theirs_does(theirs, tmp_path, model, kind):
    folder = theirs.models / model
    convert_weight(folder / "hf", tmp_path / "ours", Target(concatenate=kind == "concatenated"))
    ours, expected = (load_file(path / "model.safetensors") for path in (tmp_path / "ours", folder / kind))
    assert_same_bits(ours, expected)


def test_their_model_computes_the_same_with_concatenated_tensors(theirs):
    plain, concatenated = theirs.logits["plain"], theirs.logits["concatenated"]
    assert plain.std() > 0.1
    np.testing.assert_allclose(concatenated, plain, rtol=0, atol=1e-5)
