"""Logits and gradients of random small models against transformers' Qwen2."""

from types import SimpleNamespace

import numpy as np
import pytest
from helpers.one_rank import LossGradient
from mindspore import ParameterTuple, Tensor

from r1parallel.checkpoint.tables.names import to_hf
from r1parallel.config.model import ModelConfig
from r1parallel.data.batches import right_aligned
from r1parallel.models.logps import CompletionLogps
from r1parallel.models.parameters import load_parameters
from r1parallel.models.qwen2_5 import Qwen2ForCausalLM
from r1parallel.training.sft import SFTLoss

# Sizes that differ in everything a model can get wrong: groups of heads, rotary base, eps, tied head.
CONFIGS = {
    "one key head, tied": ModelConfig(97, 64, 160, 3, 4, 1, rope_theta=10000.0, tie_word_embeddings=True),
    "groups of three, large eps": ModelConfig(97, 48, 80, 2, 6, 2, rms_norm_eps=0.05, rope_theta=1000000.0),
    "a key head each, short waves": ModelConfig(51, 32, 96, 2, 4, 4, rope_theta=20.0),
}
PROMPT_SLOTS, ANSWER_SLOTS = 7, 5
PROMPT_LENGTHS, ANSWER_LENGTHS = (7, 4, 1, 6), (5, 1, 4, 3)
ROWS, SLOTS = len(PROMPT_LENGTHS), PROMPT_SLOTS + ANSWER_SLOTS


@pytest.fixture(scope="module", params=CONFIGS.values(), ids=CONFIGS)
def pair(request, mindspore_cpu, reference, noisy_values) -> SimpleNamespace:
    """The same weights here and there, and rows of different lengths."""
    config: ModelConfig = request.param
    values = noisy_values(config, seed=1, scale=0.15)
    ours = Qwen2ForCausalLM(config, SLOTS)
    load_parameters(ours, values, "random values")
    sizes = {key: value for key, value in config.to_hf().items() if key != "architectures"}
    theirs = reference.transformers.Qwen2ForCausalLM(reference.transformers.Qwen2Config(**sizes)).eval()
    state = {to_hf(name): reference.torch.tensor(value) for name, value in values.items()}
    missing, unexpected = theirs.load_state_dict(state, strict=False)
    assert missing == (["lm_head.weight"] if config.tie_word_embeddings else [])
    assert not unexpected
    rng = np.random.default_rng(2)
    prompts = [rng.integers(0, config.vocab_size, length).tolist() for length in PROMPT_LENGTHS]
    tokens, starts = right_aligned(prompts, PROMPT_SLOTS, 0)
    # Slots behind an answer hold rubbish, which nothing may look at.
    answers = rng.integers(0, config.vocab_size, (ROWS, ANSWER_SLOTS)).astype(np.int32)
    rows = [[*prompt, *answers[i, : ANSWER_LENGTHS[i]].tolist()] for i, prompt in enumerate(prompts)]
    tokens = np.concatenate([tokens, answers], axis=1)
    return SimpleNamespace(ours=ours, theirs=theirs, tokens=tokens, starts=starts, rows=rows, torch=reference.torch)


def test_logits(pair):
    pair.ours.set_train(False)
    slots = Tensor(np.arange(SLOTS, dtype=np.int32))
    logits = pair.ours(Tensor(pair.tokens), slots, Tensor(pair.starts)).asnumpy().reshape(ROWS, SLOTS, -1)
    for i, row in enumerate(pair.rows):
        with pair.torch.no_grad():
            expected = pair.theirs(pair.torch.tensor([row])).logits[0].numpy()
        start = pair.starts[i]
        assert np.abs(expected).max() > 0.5  # logits near zero would agree whatever the model does
        np.testing.assert_allclose(logits[i, start : start + len(row)], expected, rtol=0, atol=1e-5)


def test_gradients_of_the_sft_loss(pair):
    mask = np.arange(ANSWER_SLOTS) < np.array(ANSWER_LENGTHS)[:, None]
    weights = (mask / mask.sum()).astype(np.float32)
    parameters = ParameterTuple(pair.ours.trainable_params())
    loss = SFTLoss(CompletionLogps(pair.ours, ROWS, PROMPT_SLOTS, ANSWER_SLOTS))
    inputs = (Tensor(pair.tokens), Tensor(pair.starts), Tensor(weights))
    losses, gradients = LossGradient(loss, parameters)(*inputs)
    expected = _loss_of_transformers(pair)
    expected.backward()
    assert losses.asnumpy().sum(dtype=np.float64) == pytest.approx(expected.item(), rel=1e-5)
    theirs = dict(pair.theirs.named_parameters())
    for parameter, gradient in zip(parameters, gradients, strict=True):
        wanted = theirs[to_hf(parameter.name)].grad.numpy()
        difference = np.linalg.norm(gradient.asnumpy() - wanted)
        assert np.linalg.norm(wanted) > 1e-5, parameter.name
        assert difference / np.linalg.norm(wanted) < 1e-4, parameter.name


def _loss_of_transformers(pair: SimpleNamespace):
    """Minus the mean log-prob of all answer tokens, row by row and without padding."""
    total = 0.0
    for row, length in zip(pair.rows, ANSWER_LENGTHS, strict=True):
        ids = pair.torch.tensor([row])
        logps = pair.theirs(ids).logits[0, :-1].log_softmax(-1)
        total = total - logps.gather(1, ids[0, 1:, None])[-length:].sum()
    return total / sum(ANSWER_LENGTHS)
