"""The Cells of fused operators against the plain ones, in fp32, and what there is of them in bf16."""

import re
from dataclasses import replace

import mindspore as ms
import ml_dtypes
import numpy as np
import pytest
from helpers.one_rank import LossGradient
from helpers.packed_texts import pack, random_texts
from mindspore import ParameterTuple, Tensor

from r1parallel.config.model import ModelConfig
from r1parallel.config.schema import SamplingConfig
from r1parallel.data.batches import right_aligned
from r1parallel.errors import UserError
from r1parallel.generation.engine import RolloutEngine
from r1parallel.models.decoding.model import token_model
from r1parallel.models.fused import operators as module
from r1parallel.models.fused.operators import FUSED, PLAIN, choose_operators, fused
from r1parallel.models.fused.packing import packed
from r1parallel.models.logps import CompletionLogps, PackedLogps
from r1parallel.models.parameters import (
    load_parameters,
    model_parameters,
    parameter_values,
    same_parameters,
    set_slices,
    share_parameters,
    transposed_weights,
)
from r1parallel.models.qwen2_5 import Qwen2ForCausalLM
from r1parallel.training.sft import SFTLoss

# Three query heads to a key head; heads of 16, as Ascend wants them.
SIZES = {
    tied: ModelConfig(37, 96, 48, 2, 6, 2, rope_theta=100.0, max_position_embeddings=40, tie_word_embeddings=tied)
    for tied in (False, True)
}
PROMPT, ANSWER = 5, 3
SLOTS = PROMPT + ANSWER
PROMPTS = [[5, 9, 2], [7, 7, 1, 36, 4], [11]]
# Those of the CPU, and Ascend's in the type that the CPU has kernels for.
OPERATORS = {"cpu": FUSED, "ascend": fused(ms.float32, ms.float32)}

in_fp32 = pytest.mark.parametrize("operators", OPERATORS.values(), ids=OPERATORS)


def batch():
    """Tokens with padding in front, starts, weights."""
    prompts, starts = right_aligned(PROMPTS, PROMPT, 36)
    rng = np.random.default_rng(3)
    answers = rng.integers(0, 37, (len(PROMPTS), ANSWER)).astype(np.int32)
    tokens = np.concatenate([prompts, answers], axis=1)
    return tokens, starts, rng.random((len(PROMPTS), ANSWER)).astype(np.float32)


def logits_of(config, values, operators):
    tokens, starts, _ = batch()
    model = Qwen2ForCausalLM(config, SLOTS, operators)
    load_parameters(model, values, "test")
    logits = model(Tensor(tokens), Tensor(np.arange(SLOTS, dtype=np.int32)), Tensor(starts)).asnumpy()
    return logits.reshape(len(PROMPTS), SLOTS, -1)


def check_logits(config, values, operators):
    plain, ours = (logits_of(config, values, made_of) for made_of in (PLAIN, operators))
    assert np.isfinite(ours).all()  # padding too
    for row, start in enumerate(batch()[1]):
        np.testing.assert_allclose(ours[row, start:], plain[row, start:], rtol=0, atol=5e-5)
    assert np.abs(plain[0, -1]).max() > 1


@in_fp32
@pytest.mark.parametrize("tied", [False, True])
def test_logits_are_those_of_the_plain_model(fused_kernels, noisy_values, tied, operators):
    check_logits(SIZES[tied], noisy_values(SIZES[tied], seed=6), operators)


@pytest.mark.parametrize("head", [2, 6, 20])
def test_on_the_cpu_heads_may_have_any_even_size(fused_kernels, noisy_values, head):
    config = ModelConfig(37, 6 * head, 48, 2, 6, 2, rope_theta=100.0)
    check_logits(config, noisy_values(config, seed=6), FUSED)


@in_fp32
@pytest.mark.parametrize("tied", [False, True])
def test_gradients_are_those_of_the_plain_model(fused_kernels, noisy_values, tied, operators):
    found = []
    for made_of in (PLAIN, operators):
        model = Qwen2ForCausalLM(SIZES[tied], SLOTS, made_of)
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


@in_fp32
def test_packed_rows_are_those_of_the_plain_model(fused_kernels, noisy_values, operators):
    """Log-probs and entropies, and the gradients of what they are weighed to."""
    texts = random_texts(np.random.default_rng(4), 37, [(3, 2), (1, 3), (2, 1)])
    texts[2] = texts[2]._replace(prompt=texts[0].prompt)
    rows = pack(texts, [[[1]], [[0, 2]]], 9, 4)
    used = np.tile(rows.origin[..., 0] >= 0, (1, 2))
    weights = (np.random.default_rng(5).random(used.shape) * used).astype(np.float32)
    found = []
    for made_of in (PLAIN, operators):
        model = Qwen2ForCausalLM(SIZES[True], 9, packed(made_of))
        load_parameters(model, noisy_values(SIZES[True], seed=6), "test")
        cell = PackedLogps(model, 2, 9, 4, temperature=0.7, entropy=True)
        inputs = Tensor(rows.tokens), Tensor(rows.segment_map.concatenated())
        parameters = ParameterTuple(model.trainable_params())
        _, gradients = LossGradient(SFTLoss(cell), parameters)(*inputs, Tensor(weights))
        found.append((cell(*inputs).asnumpy(), *(gradient.asnumpy() for gradient in gradients)))
    assert np.isfinite(found[1][0]).all()  # unused targets too
    assert used.sum() == 12
    np.testing.assert_allclose(found[1][0][used], found[0][0][used], rtol=0, atol=2e-5)
    for ours, expected in zip(found[1][1:], found[0][1:], strict=True):
        np.testing.assert_allclose(ours, expected, rtol=0, atol=2e-5 * max(np.abs(expected).max(), 1e-2))


@in_fp32
@pytest.mark.parametrize(
    ("tied", "temperature"),
    [(False, 0.0), (True, 0.0), (True, 1.0)],
    ids=["greedy-untied", "greedy-tied", "drawn-tied"],
)
def test_generation_answers_as_the_plain_model_does(fused_kernels, noisy_values, tied, operators, temperature):
    """More prompts than rows, of every length, some of them twice, and completions that end early."""
    rng = np.random.default_rng(7)
    prompts = [rng.integers(0, 37, length).tolist() for length in (3, 1, PROMPT, 2, 4)]
    prompts = [prompts[i] for i in (0, 0, 1, 2, 2, 2, 3, 4)]
    sampling, answers = SamplingConfig(max_tokens=9, temperature=temperature), []
    for made_of in (PLAIN, operators):
        engine = RolloutEngine(SIZES[tied], sampling, 3, PROMPT, range(4), 0, operators=made_of)
        load_parameters(engine.model, noisy_values(SIZES[tied], seed=6), "test")
        answers.append(engine.generate(prompts, 5, range(len(prompts))))
    for key in ("tokens", "lengths", "stopped"):
        np.testing.assert_array_equal(getattr(answers[1], key), getattr(answers[0], key))
    for key in ("logps", "drawn_logps"):
        np.testing.assert_allclose(getattr(answers[1], key), getattr(answers[0], key), rtol=0, atol=5e-5)
    assert len(np.unique(answers[0].tokens)) > 5


def cached(operators):
    return token_model(SIZES[False], 2, SLOTS, operators)


@pytest.mark.parametrize("make", [lambda made_of: Qwen2ForCausalLM(SIZES[False], SLOTS, made_of), cached])
def test_parameters_have_the_plain_ones_names_and_shapes(mindspore_cpu, make):
    plain, bf16, cpu = (make(made_of) for made_of in (PLAIN, choose_operators("bfloat16", trained=False), FUSED))
    shapes = {p.name: tuple(p.shape) for p in plain.get_parameters()}
    assert [(p.name, tuple(p.shape)) for p in bf16.get_parameters()] == list(shapes.items())
    # The backend's own product is for weights as a checkpoint has them.
    turned = transposed_weights(plain)
    assert [(p.name, tuple(p.shape)) for p in cpu.get_parameters()] == [
        (name, shape[::-1] if name in turned else shape) for name, shape in shapes.items()
    ]
    assert not transposed_weights(cpu)
    assert bool(turned) == (make is cached)


def test_only_a_trained_model_keeps_fp32_weights(mindspore_cpu):
    def kinds(trained):
        return {p.name: p.dtype for p in cached(choose_operators("bfloat16", trained)).get_parameters()}

    trained, frozen = kinds(True), kinds(False)
    assert {name for name, kind in trained.items() if kind != ms.float32} == {
        f"model.layers.{layer}.attention.cache.{name}_cache" for layer in (0, 1) for name in ("key", "value")
    }
    assert {name for name, kind in frozen.items() if kind == ms.float32} == {
        "model.norm_out.weight",
        *(f"model.layers.{layer}.{name}_norm.weight" for layer in (0, 1) for name in ("attention", "ffn")),
    }
    assert {kind for kind in frozen.values()} == {ms.float32, ms.bfloat16}


def test_bf16_parameters_round_what_they_are_given(mindspore_cpu, noisy_values):
    values = noisy_values(SIZES[False], seed=2)
    model = cached(choose_operators("bfloat16", trained=False))
    plain = Qwen2ForCausalLM(SIZES[False], SLOTS)
    load_parameters(plain, values, "test")
    for give in (lambda: load_parameters(model, values, "test"), lambda: set_slices(model, parameter_values(plain))):
        give()
        for name, value in parameter_values(model).items():
            kept = values[name] if "norm" in name else values[name].astype(ml_dtypes.bfloat16).astype(np.float32)
            assert value.dtype == np.float32 and value.flags.c_contiguous
            np.testing.assert_array_equal(value, kept, err_msg=name)


def test_a_twin_of_a_fused_model_has_the_very_parameters(mindspore_cpu):
    model, twin = (Qwen2ForCausalLM(SIZES[True], 4, choose_operators("bfloat16", True)) for _ in range(2))
    share_parameters(model, twin)
    ours = model_parameters(twin)
    assert all(ours[name] is parameter for name, parameter in model_parameters(model).items())


def test_parameters_are_the_same_where_shapes_types_and_sides_are(mindspore_cpu):
    square = replace(SIZES[False], intermediate_size=96)  # some weights have one shape on either side
    model = Qwen2ForCausalLM(square, 4, FUSED)
    for other in (Qwen2ForCausalLM(square, 9, PLAIN), token_model(square, 2, 4, FUSED)):
        assert same_parameters(model, other) and same_parameters(other, model)
    bf16 = choose_operators("bfloat16", trained=False)
    for one, other in (
        (model, token_model(square, 2, 4, PLAIN)),  # [in, out]
        (model, Qwen2ForCausalLM(replace(square, num_layers=1), 4)),
        (model, Qwen2ForCausalLM(replace(square, vocab_size=36), 4)),
        (model, Qwen2ForCausalLM(replace(square, tie_word_embeddings=True), 4)),
        (model, Qwen2ForCausalLM(square, 4, bf16)),
    ):
        assert not same_parameters(one, other) and not same_parameters(other, one)


@pytest.mark.parametrize(("kernels", "operators"), [(True, FUSED), (False, PLAIN)], ids=["kernels", "no kernels"])
def test_float32_means_fused_operators_where_there_are_kernels(monkeypatch, kernels, operators):
    monkeypatch.setattr(module, "has_fused_kernels", lambda: kernels)
    assert choose_operators("float32", True) is choose_operators("float32", False) is operators


def test_heads_that_ascends_operator_does_not_take_are_refused(mindspore_cpu):
    odd = ModelConfig(37, 96, 48, 2, 12, 2)
    message = "head size is 8; FlashAttentionScore takes multiples of 16 only: set context.compute_dtype to float32"
    with pytest.raises(UserError, match=re.escape(message)):
        Qwen2ForCausalLM(odd, SLOTS, choose_operators("bfloat16", True))
    Qwen2ForCausalLM(odd, SLOTS, FUSED)
