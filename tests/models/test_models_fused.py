"""The Cells of Ascend's fused operators, whose operators stand here as plain ones after their documentation, in fp32.

No CPU has kernels for them. What this finds are wrong masks, scales, layouts and orders of heads.
"""

import mindspore as ms
import ml_dtypes
import numpy as np
import pytest
from mindspore import ParameterTuple, Tensor, nn, ops
from one_rank import LossGradient
from packed_texts import pack, random_texts

from r1parallel.config.model import ModelConfig
from r1parallel.config.schema import SamplingConfig
from r1parallel.data.batches import right_aligned
from r1parallel.errors import UserError
from r1parallel.generation.engine import RolloutEngine
from r1parallel.models import fused as module
from r1parallel.models.fused import PLAIN, choose_operators, fused
from r1parallel.models.logps import CompletionLogps, PackedLogps
from r1parallel.models.packing import packed
from r1parallel.models.parameters import (
    load_parameters,
    model_parameters,
    parameter_values,
    set_slices,
    share_parameters,
)
from r1parallel.models.qwen2_5 import Qwen2ForCausalLM
from r1parallel.training.sft import SFTLoss

# Three query heads to a key head; heads of 16, as the operator wants them.
SIZES = {
    tied: ModelConfig(37, 96, 48, 2, 6, 2, rope_theta=100.0, max_position_embeddings=40, tie_word_embeddings=tied)
    for tied in (False, True)
}
PROMPT, ANSWER = 5, 3
SLOTS = PROMPT + ANSWER
PROMPTS = [[5, 9, 2], [7, 7, 1, 36, 4], [11]]


class PlainRmsNorm(nn.Cell):
    """(x / √(mean(x²) + epsilon) · gamma, 1 / √(…)) of one type, over the last dimension."""

    def __init__(self, epsilon=1e-6):
        super().__init__()
        self.epsilon = epsilon

    def construct(self, x, gamma):
        inverse = ops.rsqrt(ops.mean(x * x, -1, True) + self.epsilon)
        return x * inverse * gamma, inverse


class PlainFlashAttention(nn.Cell):
    """Softmax(Mask(scale · q·kᵀ))·v in layout BNSD; 1 in the mask discards; query head n reads key head n // G."""

    def __init__(self, head_num, keep_prob=1.0, scale_value=1.0, input_layout="BSH"):
        super().__init__()
        assert keep_prob == 1.0 and input_layout == "BNSD"
        self.head_num, self.scale = head_num, scale_value

    def spread(self, x_BMKD):
        rows, heads, keys, size = x_BMKD.shape
        wide = ops.tile(ops.reshape(x_BMKD, (rows, heads, 1, keys, size)), (1, 1, self.head_num // heads, 1, 1))
        return ops.reshape(wide, (rows, self.head_num, keys, size))

    def construct(self, query, key, value, real_shift, drop_mask, padding_mask, attn_mask):
        scores = ops.matmul(query, ops.transpose(self.spread(key), (0, 1, 3, 2))) * self.scale
        discard = ops.tile(attn_mask, (1, self.head_num, 1, 1))
        weights = ops.softmax(ops.masked_fill(scores, discard, Tensor(-1e30, ms.float32)), -1)
        return scores, scores, scores, ops.matmul(weights, self.spread(value))


class PlainIndexAdd(nn.Cell):
    """`Tensor.index_add_` along dim 2."""

    name = "InplaceIndexAddExt"

    def __init__(self):
        super().__init__()
        self.add = ops.IndexAdd(2)

    def construct(self, cache, dim, index, source):
        return self.add(cache, index, source)


@pytest.fixture
def operators(mindspore_cpu, monkeypatch):
    """The fused Cells over plain operators, in fp32."""
    monkeypatch.setattr(module, "RmsNorm", PlainRmsNorm)
    monkeypatch.setattr(module, "FlashAttentionScore", PlainFlashAttention)
    monkeypatch.setattr(module, "InplaceIndexAddExt", PlainIndexAdd)
    return fused(ms.float32, ms.float32)


def batch():
    """Tokens with padding in front, starts, weights."""
    prompts, starts = right_aligned(PROMPTS, PROMPT, 36)
    rng = np.random.default_rng(3)
    answers = rng.integers(0, 37, (len(PROMPTS), ANSWER)).astype(np.int32)
    tokens = np.concatenate([prompts, answers], axis=1)
    return tokens, starts, rng.random((len(PROMPTS), ANSWER)).astype(np.float32)


@pytest.mark.parametrize("tied", [False, True])
def test_logits_are_those_of_the_plain_model(operators, noisy_values, tied):
    tokens, starts, _ = batch()
    logits = []
    for made_of in (PLAIN, operators):
        model = Qwen2ForCausalLM(SIZES[tied], SLOTS, operators=made_of)
        load_parameters(model, noisy_values(SIZES[tied], seed=6), "test")
        out = model(Tensor(tokens), Tensor(np.arange(SLOTS, dtype=np.int32)), Tensor(starts))
        logits.append(out.asnumpy().reshape(len(PROMPTS), SLOTS, -1))
    assert np.isfinite(logits[1]).all()  # padding too
    for row, start in enumerate(starts):
        np.testing.assert_allclose(logits[1][row, start:], logits[0][row, start:], rtol=0, atol=2e-5)
    assert np.abs(logits[0][0, starts[0] :]).max() > 1


@pytest.mark.parametrize("tied", [False, True])
def test_gradients_are_those_of_the_plain_model(operators, noisy_values, tied):
    found = []
    for made_of in (PLAIN, operators):
        model = Qwen2ForCausalLM(SIZES[tied], SLOTS, operators=made_of)
        load_parameters(model, noisy_values(SIZES[tied], seed=6), "test")
        parameters = ParameterTuple(model.trainable_params())
        loss = SFTLoss(CompletionLogps(model, len(PROMPTS), PROMPT, ANSWER))
        rows, gradients = LossGradient(loss, parameters)(*(Tensor(x) for x in batch()))
        named = {p.name: g.asnumpy() for p, g in zip(parameters, gradients, strict=True)}
        found.append(named | {"loss": rows.asnumpy()})
    assert found[0].keys() == found[1].keys() and len(found[0]) == len(SIZES[tied].parameter_shapes()) + 1
    for name, expected in found[0].items():
        largest = np.abs(expected).max()
        np.testing.assert_allclose(found[1][name], expected, rtol=0, atol=2e-5 * max(largest, 1e-2), err_msg=name)


def test_packed_rows_are_those_of_the_plain_model(operators, noisy_values):
    texts = random_texts(np.random.default_rng(4), 37, [(3, 2), (1, 3), (2, 1)])
    texts[2] = texts[2]._replace(prompt=texts[0].prompt)
    rows = pack(texts, [[[1]], [[0, 2]]], 9, 4)
    found = []
    for made_of in (PLAIN, operators):
        model = Qwen2ForCausalLM(SIZES[True], 9, operators=packed(made_of))
        load_parameters(model, noisy_values(SIZES[True], seed=6), "test")
        cell = PackedLogps(model, 2, 9, 4, temperature=0.7, entropy=True)
        found.append(cell(Tensor(rows.tokens), Tensor(rows.places.joined())).asnumpy())
    assert np.isfinite(found[1]).all()  # unused targets too
    used = np.tile(rows.origin[..., 0] >= 0, (1, 2))
    assert used.sum() == 12
    np.testing.assert_allclose(found[1][used], found[0][used], rtol=0, atol=2e-5)


def test_the_cache_answers_as_the_plain_one(operators, noisy_values):
    """The cached calls: a prompt, then one query at a time against all slots."""
    answers = []
    for made_of in (PLAIN, operators):
        engine = RolloutEngine(SIZES[True], SamplingConfig(max_tokens=4), 3, PROMPT, [], 0, operators=made_of)
        load_parameters(engine.model, noisy_values(SIZES[True], seed=6), "test")
        answers.append(engine.generate(PROMPTS, 5, range(3)))
    np.testing.assert_array_equal(answers[1].tokens, answers[0].tokens)
    np.testing.assert_allclose(answers[1].logps, answers[0].logps, rtol=0, atol=2e-5)


@pytest.mark.parametrize("cache_rows", [0, 2])
def test_parameters_have_the_plain_ones_names_and_shapes(mindspore_cpu, cache_rows):
    plain = Qwen2ForCausalLM(SIZES[False], SLOTS, cache_rows)
    bf16 = Qwen2ForCausalLM(SIZES[False], SLOTS, cache_rows, choose_operators("bfloat16", trained=False))
    assert [(p.name, p.shape) for p in bf16.get_parameters()] == [(p.name, p.shape) for p in plain.get_parameters()]


def test_only_a_trained_model_keeps_fp32_weights(mindspore_cpu):
    def kinds(trained):
        model = Qwen2ForCausalLM(SIZES[False], SLOTS, 2, choose_operators("bfloat16", trained))
        return {p.name: p.dtype for p in model.get_parameters()}

    trained, frozen = kinds(True), kinds(False)
    assert {name for name, kind in trained.items() if kind != ms.float32} == {
        f"model.layers.{layer}.attention.{name}_cache" for layer in (0, 1) for name in ("key", "value")
    }
    assert {name for name, kind in frozen.items() if kind == ms.float32} == {
        "model.norm_out.weight",
        *(f"model.layers.{layer}.{name}_norm.weight" for layer in (0, 1) for name in ("attention", "ffn")),
    }
    assert {kind for kind in frozen.values()} == {ms.float32, ms.bfloat16}


def test_bf16_parameters_round_what_they_are_given(mindspore_cpu, noisy_values):
    values = noisy_values(SIZES[False], seed=2)
    model = Qwen2ForCausalLM(SIZES[False], SLOTS, 2, choose_operators("bfloat16", trained=False))
    plain = Qwen2ForCausalLM(SIZES[False], SLOTS)
    load_parameters(plain, values, "test")
    for give in (lambda: load_parameters(model, values, "test"), lambda: set_slices(model, parameter_values(plain))):
        give()
        for name, value in parameter_values(model).items():
            kept = values[name] if "norm" in name else values[name].astype(ml_dtypes.bfloat16).astype(np.float32)
            assert value.dtype == np.float32 and value.flags.c_contiguous
            np.testing.assert_array_equal(value, kept, err_msg=name)


def test_a_twin_of_a_fused_model_has_the_very_parameters(mindspore_cpu):
    model, twin = (Qwen2ForCausalLM(SIZES[True], 4, operators=choose_operators("bfloat16", True)) for _ in range(2))
    share_parameters(model, twin)
    ours = model_parameters(twin)
    assert all(ours[name] is parameter for name, parameter in model_parameters(model).items())


def test_float32_means_the_plain_cells():
    assert choose_operators("float32", True) is choose_operators("float32", False) is PLAIN


def test_heads_that_the_operator_does_not_take_are_refused(mindspore_cpu):
    odd = ModelConfig(37, 96, 48, 2, 12, 2)
    with pytest.raises(
        UserError, match=r"head size is 8; .* multiples of 16 only: set context\.compute_dtype to float32"
    ):
        Qwen2ForCausalLM(odd, SLOTS, operators=choose_operators("bfloat16", True))
