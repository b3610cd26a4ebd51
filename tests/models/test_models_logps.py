import os
import subprocess
import sys
from pathlib import Path

import mindspore as ms
import numpy as np
import pytest
from helpers.one_rank import LossGradient
from mindspore import ParameterTuple, Tensor

from r1parallel.data.batches import right_aligned
from r1parallel.models import logps as logps_module
from r1parallel.models.logps import CompletionLogps, SplitVocabularyLogps, TokenLogps
from r1parallel.models.parameters import load_parameters
from r1parallel.models.qwen2_5 import Qwen2ForCausalLM
from r1parallel.training.sft import SFTLoss

REPOSITORY = Path(__file__).parents[2]
PROMPT_SLOTS, ANSWER_SLOTS = 4, 5
PROMPTS = [[1, 2, 3, 4], [9], [30, 8]]
ROWS, SLOTS = len(PROMPTS), PROMPT_SLOTS + ANSWER_SLOTS


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


def compute(model, rows, split_vocab=False) -> tuple[np.ndarray, dict[str, np.ndarray], int]:
    """Log-probs, gradients of a weighted sum of them, and the number of chunks."""
    logps = CompletionLogps(model, ROWS, PROMPT_SLOTS, ANSWER_SLOTS, split_vocab)
    weights = np.random.default_rng(1).normal(size=(ROWS, ANSWER_SLOTS)).astype(np.float32)
    parameters = ParameterTuple(model.trainable_params())
    losses, gradients = LossGradient(SFTLoss(logps), parameters)(*(Tensor(x) for x in (*rows, weights)))
    named = {p.name: g.asnumpy() for p, g in zip(parameters, gradients, strict=True)}
    values = logps(*(Tensor(x) for x in rows)).asnumpy()
    np.testing.assert_allclose(losses.asnumpy(), -values * weights, rtol=1e-6, atol=1e-7)
    return values, named, len(logps.chunks)


@pytest.fixture(scope="module")
def in_one(model, rows) -> tuple[np.ndarray, dict[str, np.ndarray], int]:
    return compute(model, rows)


@pytest.fixture(scope="module")
def split_in_one(model, rows) -> tuple[np.ndarray, dict[str, np.ndarray], int]:
    """The same with the form for a vocabulary on several ranks."""
    return compute(model, rows, split_vocab=True)


def test_log_probs_are_those_of_the_logits(model, rows, in_one, split_in_one):
    model.set_train(False)
    logits = model(Tensor(rows[0]), Tensor(np.arange(SLOTS, dtype=np.int32)), Tensor(rows[1])).asnumpy()
    logits = logits.reshape(ROWS, SLOTS, -1)[:, PROMPT_SLOTS - 1 : -1].astype(np.float64)
    targets = rows[0][:, PROMPT_SLOTS:, None]
    expected = np.take_along_axis(logits, targets, axis=2)[:, :, 0] - np.log(np.exp(logits).sum(axis=2))
    np.testing.assert_allclose(in_one[0], expected, rtol=0, atol=1e-5)
    np.testing.assert_allclose(split_in_one[0], expected, rtol=0, atol=2e-6)


def assert_same(found, expected, limit):
    np.testing.assert_allclose(found[0], expected[0], rtol=0, atol=limit)
    for name, wanted in expected[1].items():
        np.testing.assert_allclose(found[1][name], wanted, rtol=0, atol=1e-5 * np.abs(wanted).max(), err_msg=name)


@pytest.mark.parametrize("split_vocab", [False, True])
def test_chunks_change_neither_values_nor_gradients(
    model, rows, in_one, split_in_one, tiny_config, monkeypatch, split_vocab
):
    monkeypatch.setattr(logps_module, "_CHUNK_ELEMENTS", 4 * tiny_config.vocab_size)
    whole, found = split_in_one if split_vocab else in_one, compute(model, rows, split_vocab)
    assert (whole[2], found[2]) == (1, 3)  # 15 rows of logits, at least 4 a chunk
    assert_same(found, whole, 1e-6)


def test_a_split_vocabulary_changes_neither_values_nor_gradients(in_one, split_in_one):
    assert_same(split_in_one, in_one, 1e-5)  # of which the fused kernel's rounding is 5e-6; see below


@pytest.mark.parametrize(
    ("rows", "slots", "elements"), [(5, 1, 1), (3, 100, 1), (1, 7, 3 * 37), (2, 7, 3 * 37), (1, 5, 10**9)]
)
def test_chunks_cover_every_slot_once(model, rows, slots, elements, monkeypatch):
    monkeypatch.setattr(logps_module, "_CHUNK_ELEMENTS", elements)
    chunks = CompletionLogps(model, rows, PROMPT_SLOTS, slots).chunks
    assert [slot for first, last in chunks for slot in range(first, last)] == list(range(slots))
    assert all(first < last for first, last in chunks)
    assert len(chunks) <= 8


def random_logits(case: str) -> np.ndarray:
    rng = np.random.default_rng(4)
    logits = rng.normal(0, 3, (6, 11))
    if case == "large":
        logits = rng.choice([-80.0, 80.0], (6, 11)) + rng.normal(0, 1, (6, 11))
    elif case == "one far above":
        logits[np.arange(6), rng.integers(0, 11, 6)] = 80.0
    elif case == "all equal":
        logits[:] = np.array([-80.0, 80.0, 0.0, 1e4, -1e4, 3.0])[:, None]
    return logits.astype(np.float32)


@pytest.mark.parametrize("case", ["usual", "large", "one far above", "all equal"])
def test_log_probs_of_a_split_vocabulary(mindspore_cpu, case):
    """The form for a vocabulary on several ranks against the fused one, and both against float64."""
    logits, targets = random_logits(case), np.array([0, 10, 3, 3, 7, 1], np.int32)
    inputs = Tensor(logits), Tensor(targets)
    shifted = logits.astype(np.float64) - logits.max(axis=1, keepdims=True)
    logps = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    slopes = np.eye(11)[targets] - np.exp(logps)
    found = []
    # MindSpore's fused kernel has a polynomial of its own for exp on a CPU.
    for cell, limit in ((SplitVocabularyLogps(11), 1e-6), (TokenLogps(), 3e-6)):
        values = cell(*inputs)[0].asnumpy()
        gradient = ms.grad(cell, 0)(*inputs).asnumpy()
        np.testing.assert_allclose(values, logps[np.arange(6), targets], rtol=1e-6, atol=limit)
        np.testing.assert_allclose(gradient, slopes, rtol=0, atol=limit)
        found.append((values, gradient))
    for ours, fused in zip(*found, strict=True):
        np.testing.assert_allclose(ours, fused, rtol=1e-6, atol=3e-6)


@pytest.mark.parametrize("split_vocab", [False, True])
@pytest.mark.parametrize("case", ["usual", "large", "one far above", "all equal"])
def test_entropies(mindspore_cpu, split_vocab, case):
    """Values and gradients against float64; the gradient of −Σ p·log p is −p·(log p + entropy)."""
    logits, targets = random_logits(case), np.array([0, 10, 3, 3, 7, 1], np.int32)
    shifted = logits.astype(np.float64) - logits.max(axis=1, keepdims=True)
    logps = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    entropies = -(np.exp(logps) * logps).sum(axis=1)
    inputs, limit = (Tensor(logits), Tensor(targets)), 1e-6 if split_vocab else 1e-5  # MindSpore's fused kernel; above

    def make(learned: bool) -> SplitVocabularyLogps | TokenLogps:
        return SplitVocabularyLogps(11, True, learned) if split_vocab else TokenLogps(True, learned)

    np.testing.assert_allclose(make(True)(*inputs)[1].asnumpy(), entropies, rtol=1e-6, atol=limit)
    one_hot = np.eye(11)[targets]
    slopes = one_hot - np.exp(logps) - np.exp(logps) * (logps + entropies[:, None])
    np.testing.assert_allclose(ms.grad(make(True), 0)(*inputs).asnumpy(), slopes, rtol=0, atol=2 * limit)
    still = ms.grad(make(False), 0)(*inputs).asnumpy()  # of the log-probs alone
    np.testing.assert_allclose(still, one_hot - np.exp(logps), rtol=0, atol=limit)


@pytest.mark.parametrize("split_vocab", [False, True])
@pytest.mark.parametrize("temperature", [0.3, 1.0, 1.7])
def test_temperature_divides_the_logits(model, rows, split_vocab, temperature):
    """Log-probs and entropies of softmax(logits / temperature), both side by side."""
    model.set_train(False)
    logits = model(Tensor(rows[0]), Tensor(np.arange(SLOTS, dtype=np.int32)), Tensor(rows[1])).asnumpy()
    logits = logits.reshape(ROWS, SLOTS, -1)[:, PROMPT_SLOTS - 1 : -1].astype(np.float64) / temperature
    logps = logits - np.log(np.exp(logits).sum(axis=2, keepdims=True))
    expected = np.take_along_axis(logps, rows[0][:, PROMPT_SLOTS:, None], axis=2)[:, :, 0]
    entropies = -(np.exp(logps) * logps).sum(axis=2)
    cell = CompletionLogps(model, ROWS, PROMPT_SLOTS, ANSWER_SLOTS, split_vocab, temperature, entropy=True)
    found = cell(*(Tensor(x) for x in rows)).asnumpy()
    np.testing.assert_allclose(found, np.concatenate([expected, entropies], axis=1), rtol=1e-6, atol=1e-5)
    if temperature == 1.0:  # and asking for entropies changes no log-prob
        plain = CompletionLogps(model, ROWS, PROMPT_SLOTS, ANSWER_SLOTS, split_vocab)(*(Tensor(x) for x in rows))
        np.testing.assert_array_equal(found[:, :ANSWER_SLOTS], plain.asnumpy())


_MEASURE = """
import numpy as np
from mindspore import ParameterTuple, Tensor
from helpers.one_rank import LossGradient

from r1parallel.config.schema import ContextConfig
from r1parallel.config.model import ModelConfig
from r1parallel.models.logps import CompletionLogps
from r1parallel.models.parameters import load_parameters, random_values
from r1parallel.models.qwen2_5 import Qwen2ForCausalLM
from r1parallel.monitor.memory import peak_resident_bytes
from r1parallel.parallel.device import setup_device
from r1parallel.training.sft import SFTLoss


setup_device(ContextConfig())
rows, prompt, answer, config = 32, 4, 32, ModelConfig(102400, 16, 16, 1, 2, 1)
model = Qwen2ForCausalLM(config, prompt + answer)
load_parameters(model, random_values(config, 0), "random values")
loss = SFTLoss(CompletionLogps(model, rows, prompt, answer))
gradient = LossGradient(loss, ParameterTuple(model.trainable_params()))
tokens = np.random.default_rng(0).integers(0, config.vocab_size, (rows, prompt + answer)).astype(np.int32)
inputs = [Tensor(x) for x in (tokens, np.zeros(rows, np.int32), np.ones((rows, answer), np.float32))]
before = peak_resident_bytes()  # ru_maxrss would begin at the parent's
for _ in range(2):
    losses, gradients = gradient(*inputs)
    assert np.isfinite(losses.asnumpy()).all() and np.abs(gradients[0].asnumpy()).max() > 0
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
        env={**os.environ, "PYTHONPATH": os.pathsep.join((str(REPOSITORY), str(REPOSITORY / "tests")))},
        capture_output=True,
        text=True,
        timeout=120,
        start_new_session=True,
    )
    assert done.returncode == 0, done.stderr
    mebibytes = float(done.stdout.split("MEASURED")[1])
    assert 200 < mebibytes < 2 * 400 + 150
