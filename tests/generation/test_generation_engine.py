"""The rollout engine on a small random model, against the same model without a cache."""

from collections.abc import Callable

import numpy as np
import pytest
from mindspore import Tensor
from small_engine import GREEDY, PAD_ID, PROMPT_SLOTS, ROWS, SAMPLED, STOP_IDS, TOKENS

from r1parallel.config.schema import SamplingConfig
from r1parallel.data.batches import right_aligned
from r1parallel.errors import UserError
from r1parallel.generation.engine import Completions, RolloutEngine
from r1parallel.models.fused.operators import FUSED
from r1parallel.models.parameters import load_parameters
from r1parallel.models.qwen2_5 import Qwen2ForCausalLM

CUT = SamplingConfig(max_tokens=TOKENS, temperature=0.7, top_p=0.8, repetition_penalty=1.3, min_tokens=2)


@pytest.fixture(scope="module")
def full_logits(mindspore_cpu, tiny_config, values) -> Callable[..., np.ndarray]:
    """(prompts, tokens [N, C]) → logits that predict each of the tokens, [N, C, V], in one pass without a cache."""
    model = Qwen2ForCausalLM(tiny_config, PROMPT_SLOTS + TOKENS)
    load_parameters(model, values, "random values")
    model.set_train(False)
    slots = Tensor(np.arange(PROMPT_SLOTS + TOKENS, dtype=np.int32))

    def compute(prompts, tokens) -> np.ndarray:
        padded, starts = right_aligned(prompts, PROMPT_SLOTS, PAD_ID)
        every = np.concatenate([padded, tokens.astype(np.int32)], axis=1)
        logits = model(Tensor(every), slots, Tensor(starts)).asnumpy()
        return logits.reshape(len(prompts), PROMPT_SLOTS + TOKENS, -1)[:, PROMPT_SLOTS - 1 : -1]

    return compute


@pytest.fixture(scope="module")
def greedy(make_engine, prompts) -> Completions:
    return make_engine().generate(prompts, 0, range(len(prompts)))


@pytest.fixture(params=["greedy", "sampled"])
def answers(request, greedy, sampled) -> Completions:
    return {"greedy": greedy, "sampled": sampled}[request.param]


def recompute_greedily(full_logits, prompts, choose=lambda step, logits, before: logits.argmax(-1)) -> np.ndarray:
    """Decode with the whole sequence computed anew for every token."""
    tokens = np.zeros((len(prompts), TOKENS), np.int32)
    for step in range(TOKENS):
        tokens[:, step] = choose(step, full_logits(prompts, tokens)[:, step].copy(), tokens[:, :step])
    return tokens


def log_softmax(logits: np.ndarray) -> np.ndarray:
    shifted = logits.astype(np.float64) - logits.max(-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))


def test_greedy_decoding_equals_recomputing_everything_at_each_step(greedy, full_logits, prompts):
    expected = recompute_greedily(full_logits, prompts)
    assert len(np.unique(expected)) > 5  # a model that always says the same would prove little
    np.testing.assert_array_equal(greedy.tokens, expected)
    assert greedy.lengths.tolist() == [TOKENS] * len(prompts)
    assert not greedy.stopped.any()


def test_log_probs_equal_those_of_a_full_forward(answers, full_logits, prompts):
    logps = log_softmax(full_logits(prompts, answers.tokens))
    expected = np.take_along_axis(logps, answers.tokens[:, :, None], axis=2)[:, :, 0]
    np.testing.assert_allclose(answers.logps, expected, rtol=0, atol=2e-5)


def test_without_cuts_the_drawn_log_probs_are_the_models(answers):
    np.testing.assert_array_equal(answers.drawn_logps, answers.logps)


def test_both_log_probs_of_a_cut_distribution_against_numpy(make_engine, full_logits, prompts):
    """Temperature, nucleus, penalty and held-back stop ids, one token after the other."""
    drawn = make_engine(CUT, STOP_IDS).generate(prompts, 0, range(len(prompts)))
    logits = full_logits(prompts, drawn.tokens).astype(np.float64)
    far = 0.0
    for row, prompt in enumerate(prompts):
        for step in range(drawn.lengths[row]):
            token, raw = drawn.tokens[row, step], logits[row, step]
            adjusted = raw.copy()
            for seen in {*prompt, *drawn.tokens[row, :step].tolist()}:
                adjusted[seen] *= 1 / CUT.repetition_penalty if adjusted[seen] > 0 else CUT.repetition_penalty
            if step < CUT.min_tokens:
                adjusted[STOP_IDS] = -np.inf
            shares = np.exp(log_softmax(adjusted / CUT.temperature))
            order = np.argsort(-shares)
            kept = order[np.cumsum(shares[order]) - shares[order] < CUT.top_p]
            assert token in kept
            model = log_softmax(raw / CUT.temperature)[token]
            as_drawn = np.log(shares[token] / shares[kept].sum())
            assert drawn.logps[row, step] == pytest.approx(model, abs=2e-5)
            assert drawn.drawn_logps[row, step] == pytest.approx(as_drawn, abs=2e-5)
            far = max(far, abs(as_drawn - model))
        assert not drawn.drawn_logps[row, drawn.lengths[row] :].any()
    assert far > 0.5


def test_types_and_shapes(sampled, prompts):
    assert sampled.tokens.dtype == sampled.lengths.dtype == np.int32
    assert sampled.logps.dtype == sampled.drawn_logps.dtype == np.float32
    assert sampled.tokens.shape == sampled.logps.shape == sampled.drawn_logps.shape == (len(prompts), TOKENS)
    assert sampled.ids(1) == sampled.tokens[1].tolist()


@pytest.mark.parametrize("pad_id", [PAD_ID, STOP_IDS[0]], ids=["pad", "pad is a stop id"])
def test_the_first_stop_id_ends_a_completion_and_is_kept(make_engine, prompts, sampled, pad_id):
    drawn = make_engine(SAMPLED, STOP_IDS, pad_id=pad_id).generate(prompts, 0, range(len(prompts)))
    ended = 0
    for row in range(len(prompts)):
        free = sampled.tokens[row].tolist()
        first = next((i for i, token in enumerate(free) if token in STOP_IDS), None)
        length = TOKENS if first is None else first + 1
        ended += length < TOKENS
        assert drawn.lengths[row] == length
        assert drawn.stopped[row] == (first is not None)
        assert drawn.ids(row) == free[:length]
        assert drawn.tokens[row, length:].tolist() == [pad_id] * (TOKENS - length)
        assert not drawn.logps[row, length:].any() and not drawn.drawn_logps[row, length:].any()
        np.testing.assert_allclose(drawn.logps[row, :length], sampled.logps[row, :length], rtol=0, atol=1e-6)
    assert 2 <= ended < len(prompts)  # both kinds occur


@pytest.mark.parametrize("rows", [1, ROWS, 8])
def test_a_sample_does_not_depend_on_batch_or_order(make_engine, prompts, sampled, rows):
    order = [4, 0, 5, 2, 1, 3]
    drawn = make_engine(SAMPLED, rows=rows).generate([prompts[i] for i in order], 0, order)
    np.testing.assert_array_equal(drawn.tokens, sampled.tokens[order])
    np.testing.assert_allclose(drawn.logps, sampled.logps[order], rtol=0, atol=1e-5)


def test_samples_of_one_prompt_differ_and_so_do_seeds(make_engine, prompts, sampled):
    engine = make_engine(SAMPLED)
    group = engine.generate([prompts[0]] * ROWS, 0, [0, 1, 2, 3])
    assert len({tuple(row) for row in group.tokens.tolist()}) == ROWS
    assert group.ids(0) == sampled.ids(0)
    again = engine.generate(prompts, 1, range(len(prompts)))
    assert (again.tokens != sampled.tokens).any(axis=1).all()


def test_penalty_and_min_tokens_against_numpy(make_engine, prompts, full_logits):
    """Greedy, so that every choice can be followed: the penalty sees prompt and completion, stop ids come late."""
    penalty, min_tokens, stop_ids = 1.5, 3, list(range(0, 37, 2))  # half of the vocabulary would end it at once
    sampling = SamplingConfig(
        max_tokens=TOKENS, temperature=0.0, repetition_penalty=penalty, min_tokens=min_tokens, eos_token_id=[]
    )
    drawn = make_engine(sampling, stop_ids).generate(prompts, 0, range(len(prompts)))

    def choose(step, logits, before):
        for row, prompt in enumerate(prompts):
            for token in {*prompt, *before[row].tolist()}:
                logits[row, token] *= 1 / penalty if logits[row, token] > 0 else penalty
        if step < min_tokens:
            logits[:, stop_ids] = -np.inf
        return logits.argmax(-1)

    expected = recompute_greedily(full_logits, prompts, choose)
    for row in range(len(prompts)):
        assert drawn.ids(row) == expected[row, : drawn.lengths[row]].tolist()
    assert drawn.lengths.min() == min_tokens + 1
    assert drawn.stopped.any()


def test_an_engine_for_prompts_of_one_token(make_engine, operators, tiny_config, values):
    """All of them stay out of the cache until their own token is run, in rows that hold earlier ones."""
    engine = RolloutEngine(tiny_config, GREEDY, 1, 1, [], PAD_ID, operators=operators)
    load_parameters(engine.model, values, "random values")
    prompts = [[5], [30], [17]]
    expected = make_engine().generate(prompts, 0, range(3))
    np.testing.assert_array_equal(engine.generate(prompts, 0, range(3)).tokens, expected.tokens)


def test_an_engine_that_shares_a_models_weights_follows_them(fused_kernels, tiny_config, noisy_values, prompts):
    """Both its graphs: prompts and tokens."""
    engines = [RolloutEngine(tiny_config, SAMPLED, ROWS, PROMPT_SLOTS, [], PAD_ID, operators=FUSED) for _ in range(2)]
    model = Qwen2ForCausalLM(tiny_config, PROMPT_SLOTS, FUSED)
    engines[0].share(model)
    answers = []
    for seed in (1, 2):
        for learned in (model, engines[1].model):
            load_parameters(learned, noisy_values(tiny_config, seed), "random values")
        ours, expected = (engine.generate(prompts, 0, range(len(prompts))) for engine in engines)
        np.testing.assert_array_equal(ours.tokens, expected.tokens)
        np.testing.assert_array_equal(ours.logps, expected.logps)
        answers.append(ours.tokens)
    assert (answers[0] != answers[1]).any()


@pytest.mark.parametrize("prompt", [[], [1] * (PROMPT_SLOTS + 1)], ids=["empty", "too long"])
def test_prompts_that_do_not_fit_are_refused(make_engine, prompt):
    with pytest.raises(UserError, match=rf"prompt 1 has {len(prompt)} tokens; 1 to {PROMPT_SLOTS}"):
        make_engine().generate([[5], prompt], 0, [0, 1])


def test_more_slots_than_positions_are_refused(tiny_config):
    assert tiny_config.max_position_embeddings == 40
    with pytest.raises(UserError, match=r"prompt length 30 \+ max_tokens 11 .* 40; shorten"):
        RolloutEngine(tiny_config, SamplingConfig(max_tokens=11), 1, 30, [], 0)


def test_prompts_are_pushed_to_the_right():
    tokens, starts = right_aligned([[1, 2, 3], [4]], 4, pad_id=9)
    assert tokens.tolist() == [[9, 1, 2, 3], [9, 9, 9, 4]]
    assert starts.tolist() == [1, 3]
    assert tokens.dtype == starts.dtype == np.int32
