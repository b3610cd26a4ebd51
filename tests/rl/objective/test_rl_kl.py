"""Estimators of the KL divergence: values, gradients, and what each gradient is in expectation."""

from functools import cache

import numpy as np
import pytest
from helpers.given_logps import GivenLogps
from helpers.paper_pieces import STEP, kl_estimate
from hypothesis import given
from hypothesis import strategies as st

from r1parallel.config.schema import RLConfig
from r1parallel.rl.objective.kl import Beta, kl_values
from r1parallel.rl.objective.losses import TokenInputs

pytestmark = pytest.mark.usefixtures("mindspore_cpu")
NAMES = ("k1", "k2", "k3", "abs")
RNG = np.random.default_rng(0)
# No difference is near 0, where |d| has a corner, and none is outside ±0.25, where MindSpore's Exp is less exact.
LOGPS = -RNG.uniform(0.5, 4.0, (4, 5))
REF = LOGPS + RNG.uniform(0.01, 0.24, (4, 5)) * RNG.choice([-1, 1], (4, 5))
OLD = LOGPS + RNG.uniform(-0.2, 0.2, (4, 5))


@cache
def graph(shape, **settings):
    return GivenLogps(RLConfig(beta=1.0, **settings), *shape)


def kl_alone(logps, ref, old, **settings):
    """KL of each token and the gradient of Σ weight · KL: all advantages are 0."""
    zeros, ones = np.zeros_like(logps), np.ones_like(logps)
    given = TokenInputs(old, ref, zeros, ones, ones, ones, zeros, ones)
    values, gradient = graph(logps.shape, **settings)(logps, given)
    np.testing.assert_array_equal(values.loss, values.kl)
    return values.kl, gradient


def slope(name, logps, ref):
    return (kl_estimate(name, logps + STEP, ref) - kl_estimate(name, logps - STEP, ref)) / (2 * STEP)


@pytest.mark.parametrize("value", NAMES)
@pytest.mark.parametrize("turn", [0, 1])
def test_value_and_gradient_are_chosen_apart(value, turn):
    """The gradient is the value's own, then that of the next estimator."""
    gradient = NAMES[(NAMES.index(value) + turn) % len(NAMES)]
    settings = {"kl_estimator": value, "kl_gradient": gradient} if turn else {"kl_estimator": value}
    kl, slopes = kl_alone(LOGPS, REF, OLD, **settings)
    np.testing.assert_allclose(kl, kl_estimate(value, LOGPS, REF), rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(slopes, slope(gradient, LOGPS, REF), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(kl_values(LOGPS, REF, value, 0.0), kl_estimate(value, LOGPS, REF), rtol=1e-12)


@pytest.mark.parametrize("name", ["k1", "k3"])
def test_importance_weighted(name):
    """(r · k)' by finite differences: the gradient goes through ratio and estimate both."""

    def weighted(logps):
        return np.exp(logps - OLD) * kl_estimate(name, logps, REF)

    kl, slopes = kl_alone(LOGPS, REF, OLD, kl_estimator=name, kl_importance_weighted=True)
    np.testing.assert_allclose(kl, weighted(LOGPS), rtol=1e-6, atol=1e-6)
    expected = (weighted(LOGPS + STEP) - weighted(LOGPS - STEP)) / (2 * STEP)
    np.testing.assert_allclose(slopes, expected, rtol=1e-5, atol=1e-6)


def test_clamp():
    """Outside the clamp the value stands still, so the gradient is 0."""
    ref = LOGPS + np.array([30.0, -30.0, 0.1, -0.1, 19.0])
    kl, slopes = kl_alone(LOGPS, ref, OLD, kl_estimator="k2", kl_clamp=20.0)
    np.testing.assert_allclose(kl, np.clip(LOGPS - ref, -20, 20) ** 2 / 2, rtol=1e-6, atol=1e-6)
    np.testing.assert_array_equal(slopes[:, :2], 0.0)
    np.testing.assert_allclose(slopes[:, 2:], (LOGPS - ref)[:, 2:], rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(kl_values(LOGPS, ref, "k2", 20.0), kl, rtol=1e-6, atol=1e-6)


@given(st.lists(st.floats(-12, 0), min_size=1, max_size=5), st.floats(-20, 20), st.sampled_from(NAMES))
def test_in_numpy(logps, gap, name):
    logps = np.array(logps)
    values = kl_values(logps, logps + gap, name, 0.0)
    assert values.dtype == np.float64
    np.testing.assert_allclose(values, kl_estimate(name, logps, logps + gap), rtol=1e-9, atol=1e-9)
    if name != "k1":
        assert (values >= -1e-15).all()
    np.testing.assert_array_equal(kl_values(logps, logps, name, 0.0), 0.0)


# --- exact expectations over a vocabulary of twenty tokens, with the graph's own gradients ---

SCORES = np.random.default_rng(2).normal(0, 0.08, LOGPS.size)
POLICY = np.exp(SCORES) / np.exp(SCORES).sum()
REFERENCE = np.roll(POLICY, 3)


def expected_gradient(**settings):
    """By the policy's logits z, of E over tokens drawn from it: Σ_a π(a) · slope(a) · (1[a = b] − π(b))."""
    logps, ref = np.log(POLICY).reshape(LOGPS.shape), np.log(REFERENCE).reshape(LOGPS.shape)
    slopes = kl_alone(logps, ref, logps, **settings)[1].ravel()
    return POLICY * (slopes - POLICY @ slopes)


def divergence(scores, backward):
    policy = np.exp(scores) / np.exp(scores).sum()
    one, other = (policy, REFERENCE) if backward else (REFERENCE, policy)
    return (one * np.log(one / other)).sum()


def true_gradient(backward):
    """Of KL(policy‖reference), which is what RL's objective has, or of KL(reference‖policy)."""
    moves = STEP * np.eye(LOGPS.size)
    return np.array([(divergence(SCORES + m, backward) - divergence(SCORES - m, backward)) / (2 * STEP) for m in moves])


BACKWARD, FORWARD, NOTHING = "of KL(policy‖reference)", "of KL(reference‖policy)", "nothing"
BIAS = [
    ({"kl_estimator": "k1"}, NOTHING),
    ({"kl_estimator": "k2"}, BACKWARD),
    ({"kl_estimator": "k3"}, FORWARD),
    ({"kl_estimator": "k3", "kl_gradient": "k2"}, BACKWARD),
    ({"kl_estimator": "k1", "kl_importance_weighted": True}, BACKWARD),
    ({"kl_estimator": "k3", "kl_importance_weighted": True}, BACKWARD),
]


@pytest.mark.parametrize(("settings", "gradient"), BIAS)
def test_what_the_gradient_in_the_loss_is_in_expectation(settings, gradient):
    """The table in docs/algorithms.md, on policy."""
    expected = {BACKWARD: true_gradient(True), FORWARD: true_gradient(False), NOTHING: np.zeros(LOGPS.size)}
    ours = expected_gradient(**settings)
    np.testing.assert_allclose(ours, expected[gradient], atol=1e-6)
    for name, other in expected.items():
        assert name == gradient or np.abs(ours - other).max() > 1e-5


def test_values_in_expectation():
    """k1 and k3 are right, k2 and |d| are not."""
    logps, ref, truth = np.log(POLICY), np.log(REFERENCE), divergence(SCORES, backward=True)
    for name, right in (("k1", True), ("k2", False), ("k3", True), ("abs", False)):
        error = abs(POLICY @ kl_values(logps, ref, name, 0.0) - truth)
        assert (error < 1e-12) == right


# --- the adaptive coefficient ---


def test_beta_follows_the_target():
    """Ziegler et al. 2019, section 2.2: the error is cut to ±0.2; beta grows by error · completions / horizon."""
    settings = RLConfig(beta=0.1, kl_controller="adaptive", kl_target=6.0, kl_horizon=100)
    for kl, error in ((6.0, 0.0), (6.6, 0.1), (60.0, 0.2), (0.0, -0.2), (5.4, -0.1)):
        beta = Beta(settings, 0.1)
        beta.move(kl, 50)
        assert beta.value == pytest.approx(0.1 * (1 + error * 50 / 100))


def test_a_fixed_beta_stays():
    beta = Beta(RLConfig(beta=0.1), 0.1)
    beta.move(60.0, 50)
    assert beta.value == 0.1
