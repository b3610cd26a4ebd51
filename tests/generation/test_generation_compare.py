"""tools/verify_ckpt.py --logits: what two checkpoints compute."""

import json
import re
from functools import partial

import pytest
from helpers.verifying import run_verify

from r1parallel.checkpoint.convert import Target, convert_weight
from r1parallel.checkpoint.tables.names import to_hf
from r1parallel.checkpoint.writing.tensor_writer import write_checkpoint
from r1parallel.config.model import ModelConfig, write_model_config
from r1parallel.data.problems.arithmetic import write_character_tokenizer
from r1parallel.parallel.layout.mesh import Mesh
from r1parallel.parallel.layout.table import ModelLayout

CONFIG = ModelConfig(48, 8, 12, 1, 4, 2, max_position_embeddings=8)
TENSORS = len(CONFIG.parameter_shapes())


@pytest.fixture
def verify(capsys):
    return partial(run_verify, capsys)


@pytest.fixture
def two_models(tmp_path, noisy_values):
    """A Hugging Face folder, fp32, and the same model cut for two ranks; neither has a tokenizer."""
    values = {to_hf(name): value for name, value in noisy_values(CONFIG).items()}
    hf = tmp_path / "hf"
    write_checkpoint(hf, [(name, value.shape, "F32", value) for name, value in values.items()])
    write_model_config(CONFIG, hf / "config.json")
    return hf, convert_weight(hf, tmp_path / "cut", Target(layout=ModelLayout(CONFIG, Mesh(tp=2))))


def logits_line(done):
    return next(line for line in done.lines if line.startswith("logits"))


def test_equal_models_have_equal_logits(two_models, mindspore_cpu, verify):
    hf, cut = two_models
    write_character_tokenizer(hf)
    done = verify(hf, cut, "--logits")
    assert done.code == 0
    assert done.last.startswith(f"equal: {TENSORS} tensors")
    assert logits_line(done) == "logits  5 tokens: largest difference 0, highest logit at the same id in 5 of 5"
    assert "9 tokens are more than its 8 positions" in verify(hf, cut, "--logits", "1+2+3+4+5").last


def test_rounded_weights_have_logits_of_their_own(tmp_path, two_models, mindspore_cpu, verify):
    """A sees the same rounding only where --dtype says so."""
    hf, _ = two_models
    cast = convert_weight(hf, tmp_path / "cast", Target(dtype="bf16"))
    assert "8 tokens: largest difference 0," in logits_line(verify(hf, cast, "--logits", "--dtype", "bf16"))
    done = verify(hf, cast, "--logits")
    assert done.code == 1
    assert done.last.startswith(f"DIFFERENT: {TENSORS} dtype, 1 logits;")
    assert 1e-4 < float(re.search(r"largest difference ([0-9.e-]+)", logits_line(done))[1]) < 1


def test_other_settings_are_another_model(tmp_path, two_models, mindspore_cpu, verify):
    """The tensors are equal; config.json is not."""
    hf, cut = two_models
    sizes = json.loads((cut / "config.json").read_text())
    (cut / "config.json").write_text(json.dumps(sizes | {"rms_norm_eps": 0.5}))
    write_character_tokenizer(hf)
    done = verify(hf, cut, "--logits", "1+2")
    assert done.code == 1
    assert done.last.startswith("DIFFERENT: 1 logits;")
    assert logits_line(done).startswith("logits  3 tokens:")
    assert verify(hf, cut).code == 0


def test_logits_that_cannot_be_computed(tmp_path, two_models, noisy_values, verify):
    hf, cut = two_models
    assert "has no tokenizer for the prompt" in verify(hf, cut, "--logits", "1+2").last
    less = tmp_path / "less"
    name, value = next(iter(noisy_values(CONFIG).items()))
    write_checkpoint(less, [(name, value.shape, "F32", value)])
    assert logits_line(verify(hf, less, "--logits")).startswith("logits  not compared")
    for folder in two_models:
        (folder / "config.json").unlink()
    assert "--logits needs the model's config.json" in verify(hf, cut, "--logits").last
