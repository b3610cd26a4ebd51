import os
import subprocess
import sys
from pathlib import Path

import mindspore as ms
import numpy as np
import pytest
from mindspore import ParameterTuple, Tensor, nn

from r1parallel.data.batches import right_aligned
from r1parallel.models import logps as logps_module
from r1parallel.models.logps import CompletionLogps
from r1parallel.models.parameters import load_parameters
from r1parallel.models.qwen2_5 import Qwen2ForCausalLM
from r1parallel.training.sft import SFTLoss

REPOSITORY = Path(__file__).parents[2]
PROMPT_SLOTS, ANSWER_SLOTS = 4, 5
PROMPTS = [[1, 2, 3, 4], [9], [30, 8]]
ROWS, SLOTS = len(PROMPTS), PROMPT_SLOTS + ANSWER_SLOTS


class Gradient(nn.Cell):
    """Loss, log-probs and gradients, in one graph."""

    def __init__(self, loss: SFTLoss, parameters: ParameterTuple):
        super().__init__(auto_prefix=False)
        self.gradient = ms.value_and_grad(loss, None, parameters, has_aux=True)

    def construct(self, tokens, starts, weights):
        return self.gradient(tokens, starts, weights)


@pytest.fixture(scope="module")
def model(mindspore_cpu, tiny_config, noisy_values) -> Qwen2ForCausalLM:
    model = Qwen2ForCausalLM(tiny_config, SLOTS)
    load_parameters(model, noisy_values(tiny_config, seed=8), "random values")
    return model


@pytest.fixture(scope="module")
def rows(tiny_config) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(9)
    tokens, starts = right_aligned(PROMPTS, PROMPT_SLOTS, 0)
    answers = rng.integers(0, tiny_config.vocab_size, (ROWS, ANSWER_SLOTS)).astype(np.int32)
    return np.concatenate([tokens, answers], axis=1), starts


def compute(model, rows) -> tuple[np.ndarray, dict[str, np.ndarray], int]:
    """Log-probs, gradients of a weighted sum of them, and the number of chunks."""
    logps = CompletionLogps(model, ROWS, PROMPT_SLOTS, ANSWER_SLOTS)
    weights = np.random.default_rng(1).normal(size=(ROWS, ANSWER_SLOTS)).astype(np.float32)
    parameters = ParameterTuple(model.trainable_params())
    (_, values), gradients = Gradient(SFTLoss(logps), parameters)(*(Tensor(x) for x in (*rows, weights)))
    named = {p.name: g.asnumpy() for p, g in zip(parameters, gradients, strict=True)}
    return values.asnumpy(), named, len(logps.token_logps.chunks)


@pytest.fixture(scope="module")
def in_one(model, rows) -> tuple[np.ndarray, dict[str, np.ndarray], int]:
    return compute(model, rows)


def test_log_probs_are_those_of_the_logits(model, rows, in_one):
    model.set_train(False)
    logits = model(Tensor(rows[0]), Tensor(np.arange(SLOTS, dtype=np.int32)), Tensor(rows[1])).asnumpy()
    logits = logits.reshape(ROWS, SLOTS, -1)[:, PROMPT_SLOTS - 1 : -1].astype(np.float64)
    targets = rows[0][:, PROMPT_SLOTS:, None]
    expected = np.take_along_axis(logits, targets, axis=2)[:, :, 0] - np.log(np.exp(logits).sum(axis=2))
    np.testing.assert_allclose(in_one[0], expected, rtol=0, atol=1e-5)


def test_chunks_change_neither_values_nor_gradients(model, rows, in_one, tiny_config, monkeypatch):
    monkeypatch.setattr(logps_module, "_CHUNK_ELEMENTS", 4 * tiny_config.vocab_size)
    values, gradients, num_chunks = compute(model, rows)
    assert (in_one[2], num_chunks) == (1, 3)  # 15 rows of logits, at least 4 a chunk
    np.testing.assert_allclose(values, in_one[0], rtol=0, atol=1e-6)
    for name, expected in in_one[1].items():
        np.testing.assert_allclose(gradients[name], expected, rtol=0, atol=1e-5 * np.abs(expected).max(), err_msg=name)


@pytest.mark.parametrize(("rows", "elements"), [(5, 1), (100, 1), (7, 3 * 37), (1, 10**9)])
def test_chunks_cover_every_row_once(model, rows, elements, tiny_config, monkeypatch):
    monkeypatch.setattr(logps_module, "_CHUNK_ELEMENTS", elements)
    chunks = logps_module.TokenLogps(model, rows).chunks
    assert [row for first, last in chunks for row in range(first, last)] == list(range(rows))
    assert len(chunks) <= 8


_MEASURE = """

import mindspore as ms
import numpy as np
from mindspore import ParameterTuple, Tensor

from r1parallel.config.schema import ContextConfig
from r1parallel.config.model import ModelConfig
from r1parallel.models.logps import CompletionLogps
from r1parallel.models.parameters import load_parameters, random_values
from r1parallel.models.qwen2_5 import Qwen2ForCausalLM
from r1parallel.monitor.memory import peak_resident_bytes
from r1parallel.parallel.device import setup_device
from r1parallel.training.sft import SFTLoss


class Gradient(ms.nn.Cell):
    def __init__(self, loss, parameters):
        super().__init__(auto_prefix=False)
        self.gradient = ms.value_and_grad(loss, None, parameters, has_aux=True)

    def construct(self, tokens, starts, weights):
        return self.gradient(tokens, starts, weights)


setup_device(ContextConfig())
rows, prompt, answer, config = 32, 4, 32, ModelConfig(102400, 16, 16, 1, 2, 1)
model = Qwen2ForCausalLM(config, prompt + answer)
load_parameters(model, random_values(config, 0), "random values")
loss = SFTLoss(CompletionLogps(model, rows, prompt, answer))
gradient = Gradient(loss, ParameterTuple(model.trainable_params()))
tokens = np.random.default_rng(0).integers(0, config.vocab_size, (rows, prompt + answer)).astype(np.int32)
inputs = [Tensor(x) for x in (tokens, np.zeros(rows, np.int32), np.ones((rows, answer), np.float32))]
before = peak_resident_bytes()  # ru_maxrss would begin at the parent's
for _ in range(2):
    (value, _), gradients = gradient(*inputs)
    assert np.isfinite(float(value.asnumpy())) and np.abs(gradients[0].asnumpy()).max() > 0
print("MEASURED", (peak_resident_bytes() - before) / 2**20)
"""


@pytest.mark.slow
def test_memory_of_a_large_vocabulary(tmp_path):
    """1024 answer tokens × 102,400 ids are 400 MiB of logits; forward and backward stay below twice that."""
    script = tmp_path / "measure.py"  # MindSpore reads the source of what it compiles
    script.write_text(_MEASURE)
    done = subprocess.run(
        [sys.executable, str(script)],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        capture_output=True,
        text=True,
        timeout=120,
        start_new_session=True,
    )
    assert done.returncode == 0, done.stderr
    mebibytes = float(done.stdout.split("MEASURED")[1])
    assert 200 < mebibytes < 2 * 400 + 150
