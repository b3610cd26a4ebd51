"""The parts of the loss one by one, and what surrounds it: weights, advantages, penalties, the real model."""

from dataclasses import replace

import numpy as np
import pytest
from helpers import paper_pieces as paper
from helpers import paper_presets as papers
from helpers.given_logps import GivenLogps
from helpers.paper_cases import GROUP, ROWS, SLOTS, random_case, settings_of, told
from helpers.tiny_runs import MODEL
from hypothesis import given
from hypothesis import strategies as st
from mindspore import Tensor

from r1parallel.config.schema import RLConfig
from r1parallel.models.logps import CompletionLogps
from r1parallel.models.parameters import load_parameters, random_values
from r1parallel.models.qwen2_5 import Qwen2ForCausalLM
from r1parallel.rl.objective.advantages import kept_rows, overlong_penalties, token_advantages
from r1parallel.rl.objective.losses import PolicyLoss, TokenInputs, loss_weights, token_values

pytestmark = pytest.mark.usefixtures("mindspore_cpu")
ROW = np.array([[-0.24, -0.12, -0.04, 0.0, 0.04, 0.12, 0.24]])  # log ratios


def judged(settings, advantages, logps=-2.0, differences=ROW, entropies=None):
    """(values, gradient) of slots with weight 1, each a completion of its own."""
    logps = np.full(differences.shape, logps)
    ones, numbers = np.ones_like(logps), np.arange(logps.size, dtype=float).reshape(logps.shape)
    told_loss = TokenInputs(
        logps - differences, logps, np.broadcast_to(advantages, logps.shape), ones, ones, ones, numbers, ones
    )
    stub = logps if entropies is None else np.concatenate([logps, entropies], axis=1)
    return GivenLogps(settings, *logps.shape)(stub, told_loss)


@pytest.mark.parametrize("advantage", [1.5, -1.5])
@pytest.mark.parametrize("dual", [None, 1.2])
def test_clip(advantage, dual):
    settings = RLConfig(beta=0.0, epsilon_low=0.05, epsilon_high=0.1, dual_clip=dual or 0.0)
    values, gradient = judged(settings, advantage)

    def gain(difference):
        return paper.clipped(np.exp(difference), advantage, 0.05, 0.1, dual)

    np.testing.assert_allclose(values.loss, -gain(ROW), rtol=1e-6)
    slope = -(gain(ROW + paper.STEP) - gain(ROW - paper.STEP)) / (2 * paper.STEP)
    np.testing.assert_allclose(gradient, slope, rtol=1e-5, atol=1e-7)
    np.testing.assert_array_equal(values.clipped, slope == 0)


@pytest.mark.parametrize(("low", "smallest"), [(0.1, 0.9), (1.0, 0.0)])
def test_cispo_weights(low, smallest):
    """Every token keeps a gradient; a lower limit of 1 is none."""
    settings = RLConfig(beta=0.0, policy_loss="cispo", epsilon_low=low, epsilon_high=0.1)
    values, gradient = judged(settings, -1.5)
    weights = np.clip(np.exp(ROW), smallest, 1.1)
    np.testing.assert_allclose(values.loss, weights * 1.5 * -2.0, rtol=1e-6)
    np.testing.assert_allclose(gradient, weights * 1.5, rtol=1e-6)
    np.testing.assert_array_equal(values.clipped, weights != np.exp(ROW))


def test_reinforce_has_no_ratio():
    values, gradient = judged(RLConfig(beta=0.0, policy_loss="reinforce"), 1.5)
    np.testing.assert_allclose(values.loss, np.full(ROW.shape, 3.0), rtol=1e-6)
    np.testing.assert_allclose(gradient, np.full(ROW.shape, -1.5), rtol=1e-6)
    assert not values.clipped.any()


def test_entropy_bonus_and_metric():
    """The bonus is Σ weight · entropy, with a minus in the loss. As a metric alone it moves nothing."""
    entropies = np.linspace(0.1, 2.0, ROW.size)[None]
    plain, slopes = judged(RLConfig(beta=0.0), 1.0)
    metric, metric_slopes = judged(RLConfig(beta=0.0, calculate_entropy=True), 1.0, entropies=entropies)
    bonus, bonus_slopes = judged(RLConfig(beta=0.0, entropy_coef=0.3), 1.0, entropies=entropies)
    for values in (metric, bonus):
        np.testing.assert_allclose(values.entropy, entropies, rtol=1e-6)
    np.testing.assert_array_equal(metric.loss, plain.loss)
    np.testing.assert_array_equal(metric_slopes, np.concatenate([slopes, 0 * slopes], axis=1))
    np.testing.assert_allclose(bonus.loss, plain.loss - 0.3 * entropies, rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(bonus_slopes[:, ROW.size :], np.full(ROW.shape, -0.3), rtol=1e-6)


def test_corrections_weigh_the_policy_and_beta_the_kl():
    """Each term has weights of its own; the entropy has those without either."""
    case = random_case(17)
    settings = RLConfig(beta=0.5, num_generations=GROUP, entropy_coef=0.3)
    given_loss = told(case, settings)
    rng = np.random.default_rng(0)
    corrections = rng.choice([0.0, 0.5, 1.3], given_loss.weights.shape)
    entropies = rng.uniform(0.1, 2.0, given_loss.weights.shape)
    changed = given_loss._replace(policy_weights=given_loss.weights * corrections)
    tokens = case.batch.tokens
    ratio = np.exp(paper.difference(tokens, case.logps, case.batch.old))
    kl = paper.kl_estimate("k3", paper.only(tokens, case.logps), paper.only(tokens, case.batch.ref))
    policy = -paper.clipped(ratio, given_loss.advantages, 0.2, 0.2)
    values, _ = GivenLogps(settings, ROWS, SLOTS)(np.concatenate([case.logps, entropies], axis=1), changed)
    weights = paper.each_completion_alike(case.batch)
    expected = weights * (corrections * policy + 0.5 * kl - 0.3 * entropies)
    np.testing.assert_allclose(values.loss, expected, rtol=1e-5, atol=1e-6)


def test_garbage_past_the_end_changes_no_bit():
    settings = settings_of("grpo")
    graph, case = GivenLogps(settings, ROWS, SLOTS), random_case(17)
    inside, batch = case.batch.inside, case.batch
    before = graph(case.logps, told(case, settings))
    assert np.isnan(before[0].loss).sum() == 0 and np.isnan(case.logps).any()
    clean = [np.where(inside, array, 0.0) for array in (case.logps, batch.old, batch.ref)]
    cleaned = replace(case, logps=clean[0], batch=replace(batch, old=clean[1], ref=clean[2]))
    after = graph(cleaned.logps, told(cleaned, settings))
    for name in ("loss", "logps", "ratio", "kl", "clipped", "entropy"):
        np.testing.assert_array_equal(getattr(before[0], name), getattr(after[0], name), err_msg=name)
    np.testing.assert_array_equal(before[1], after[1])


def test_over_the_real_model_the_loss_is_the_papers():
    prompt, settings = 4, settings_of("grpo")
    model = Qwen2ForCausalLM(MODEL, prompt + SLOTS)
    load_parameters(model, random_values(MODEL, 0, 0.3), "random")
    logps_cell = CompletionLogps(model, ROWS, prompt, SLOTS)
    rng = np.random.default_rng(0)
    tokens = rng.integers(0, MODEL.vocab_size, (ROWS, prompt + SLOTS)).astype(np.int32)
    starts = rng.integers(0, prompt, ROWS).astype(np.int32)
    logps = logps_cell(Tensor(tokens), Tensor(starts)).asnumpy().astype(np.float64)
    shifts = rng.normal(0, 0.06, (2, ROWS, SLOTS)).astype(np.float32)
    old, ref = ((logps + shift).astype(np.float32).astype(np.float64) for shift in shifts)
    case = random_case(18)
    case = replace(case, logps=logps, batch=replace(case.batch, old=old, ref=ref))
    cell = PolicyLoss(logps_cell, settings, on_policy=False)
    values = token_values(cell(Tensor(tokens), Tensor(starts), Tensor(told(case, settings).concatenated())).asnumpy())
    expected = papers.grpo(case.batch, beta=settings.beta).loss(logps)
    assert values.loss.sum(dtype=np.float64) == pytest.approx(expected, rel=1e-6, abs=1e-6)


def test_token_values_are_the_parts_in_order():
    rows = np.arange(2 * 18, dtype=np.float32).reshape(2, 18)
    parts = token_values(rows)
    assert parts._fields == ("loss", "logps", "ratio", "kl", "clipped", "entropy")
    for i, part in enumerate(parts):
        np.testing.assert_array_equal(part, rows[:, 3 * i : 3 * i + 3])


# --- what a token counts for ---

rows_of_an_update = st.lists(st.tuples(st.integers(1, 9), st.booleans()), min_size=1, max_size=8)


@given(rows_of_an_update, st.integers(0, 5))
def test_weights_hold_every_denominator(rows, constant):
    lengths, counted = np.array([length for length, _ in rows]), np.array([counts for _, counts in rows])
    tokens = (np.arange(9) < lengths[:, None]) & counted[:, None]
    count = max(1, counted.sum())
    of_rows = {
        "sequence_mean": counted / count,
        "token_mean": tokens.sum(axis=1) / max(1, tokens.sum()),
        "constant": tokens.sum(axis=1) / count / (constant or 11),
    }
    for name, expected in of_rows.items():
        weights = loss_weights(lengths, counted, 9, RLConfig(loss_aggregation=name, loss_constant=constant), 11)
        np.testing.assert_allclose(weights.sum(axis=1), expected, rtol=1e-12)
        np.testing.assert_array_equal(weights > 0, tokens)
        for row, inside in zip(weights, tokens, strict=True):
            assert len(set(row[inside])) <= 1


# --- advantages ---

rewards_of_groups = st.lists(
    st.lists(st.sampled_from([0.0, 0.1, 0.5, 1.0, 2.0, -1.0, float("nan")]), min_size=4, max_size=4),
    min_size=1,
    max_size=5,
)
ESTIMATORS = [
    ("group", "group"),
    ("group", "batch"),
    ("group", "none"),
    ("rloo", "none"),
    ("rloo", "batch"),
    ("reinforce_plus_plus", "batch"),
    ("reinforce_plus_plus", "none"),
]


def our_advantages(groups, estimator, scale, penalties=None):
    rewards = np.array(groups).reshape(-1)
    lengths = np.arange(len(rewards)) % 3 + 1
    penalties = np.zeros((len(rewards), 3)) if penalties is None else penalties
    settings = RLConfig(advantage_estimator=estimator, advantage_scale=scale)
    return token_advantages(rewards, penalties, lengths, 4, settings)


@pytest.mark.parametrize(("estimator", "scale"), ESTIMATORS)
@given(groups=rewards_of_groups)
def test_advantages_agree_with_the_papers(estimator, scale, groups):
    rewards = np.array(groups).reshape(-1)
    kept, inside = kept_rows(rewards, 4), np.arange(3) < (np.arange(len(rewards)) % 3 + 1)[:, None]
    tokens = inside & kept[:, None]
    values = {
        "group": lambda: paper.group_relative(rewards, 4, scaled=scale == "group"),
        "rloo": lambda: paper.leave_one_out(rewards, 4),
        "reinforce_plus_plus": lambda: np.nan_to_num(rewards),
    }[estimator]()
    expected = np.where(tokens, values[:, None], 0.0)
    if scale == "batch" and kept.any():
        if estimator == "reinforce_plus_plus":
            expected = paper.whitened(expected, tokens)
        else:
            spread = rewards[kept].std(ddof=1)
            expected = expected / (spread + 1e-6) if np.ptp(rewards[kept]) else 0 * expected
    ours = our_advantages(groups, estimator, scale)
    assert ours.dtype == np.float32
    np.testing.assert_allclose(ours, expected, rtol=1e-6, atol=1e-6)


@given(st.lists(st.integers(1, 20), min_size=1, max_size=8), st.integers(1, 20), st.sampled_from([0.5, 1.0, 2.0]))
def test_the_penalty_for_length_is_the_papers(lengths, buffer, penalty):
    settings = RLConfig(overlong="penalty", overlong_buffer=buffer, overlong_penalty=penalty)
    stopped = np.ones(len(lengths), bool)
    ours = overlong_penalties(np.array(lengths), stopped, 20, settings)
    np.testing.assert_allclose(-ours, [penalty * paper.overlong_penalty(length, 20, buffer) for length in lengths])
    cut_off = overlong_penalties(np.full(len(lengths), 20), ~stopped, 20, settings)
    np.testing.assert_allclose(-cut_off, penalty * paper.overlong_penalty(21, 20, buffer))
