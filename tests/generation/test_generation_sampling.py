"""The sampler alone, on fixed logits, against a plain numpy account of every setting."""

import numpy as np
import pytest
from mindspore import Tensor

from r1parallel.config.schema import SamplingConfig
from r1parallel.generation.philox import uniforms
from r1parallel.generation.sampling import Sampler

VOCABULARY = 12
LOGITS = np.array([1.5, -0.5, 2.25, 0.25, -2.0, 3.0, 0.75, -1.25, 2.0, -3.0, 1.0, -0.25], np.float32)
SEEN = np.array([1, 1, 0, 0, 1, 1, 0, 0, 0, 1, 0, 0], np.float32)  # of high, low, positive and negative logits
STOP_IDS = [5, 8]
NUM_DRAWS = 12_000

pytestmark = pytest.mark.usefixtures("mindspore_cpu")


def draw(
    config: SamplingConfig, uniform: np.ndarray, held_back: bool = False
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Tokens, and their log-probs under the model and as drawn, one for every uniform number."""
    sampler = Sampler(config, VOCABULARY)
    sampler.set_train(False)
    rows = len(uniform)
    bias = np.zeros((rows, VOCABULARY), np.float32)
    bias[:, STOP_IDS if held_back else []] = -1e9
    inputs = (np.tile(LOGITS, (rows, 1)), uniform.reshape(-1, 1).astype(np.float32), np.tile(SEEN, (rows, 1)), bias)
    tokens, logps = sampler(*(Tensor(x) for x in inputs))
    assert (tokens.shape, logps.shape) == ((rows, 1), (rows, 2))
    return tokens.asnumpy()[:, 0], *logps.asnumpy().T


def expected_shares(config: SamplingConfig, held_back: bool) -> dict[int, float]:
    """Token → probability, tokens that cannot be drawn left out. Plain Python, one setting after the other."""
    logits = {token: float(logit) for token, logit in enumerate(LOGITS)}
    for token in np.flatnonzero(SEEN):
        penalty = config.repetition_penalty
        logits[token] = logits[token] / penalty if logits[token] > 0 else logits[token] * penalty
    if held_back:
        logits = {token: logit for token, logit in logits.items() if token not in STOP_IDS}
    weights = {token: np.exp(logit / config.temperature) for token, logit in logits.items()}
    ranked = sorted(weights, key=lambda token: -weights[token])
    if config.top_k:
        ranked = ranked[: config.top_k]
    total, kept, mass = sum(weights[token] for token in ranked), [], 0.0
    for token in ranked:  # the smallest set that reaches top_p
        if mass < config.top_p:
            kept.append(token)
        mass += weights[token] / total
    total = sum(weights[token] for token in kept)
    return {token: weights[token] / total for token in kept}


@pytest.mark.parametrize(
    ("config", "held_back"),
    [
        (SamplingConfig(), False),
        (SamplingConfig(temperature=0.5), False),
        (SamplingConfig(temperature=3.0), False),
        (SamplingConfig(top_k=3), False),
        (SamplingConfig(top_k=1), False),
        (SamplingConfig(top_k=VOCABULARY + 1), False),
        (SamplingConfig(top_p=0.6), False),
        (SamplingConfig(top_p=1e-6), False),
        (SamplingConfig(top_k=4, top_p=0.7), False),
        (SamplingConfig(repetition_penalty=1.6), False),
        (SamplingConfig(repetition_penalty=0.7), False),
        (SamplingConfig(min_tokens=1), True),
        (SamplingConfig(min_tokens=1), False),
        (SamplingConfig(temperature=0.8, top_k=6, top_p=0.9, repetition_penalty=1.2, min_tokens=2), True),
    ],
    ids=lambda value: None if isinstance(value, bool) else _name(value),
)
def test_shares_of_every_setting(config, held_back):
    """On an even grid of uniform numbers a token's share of the draws is its probability, up to one draw."""
    grid = (np.arange(NUM_DRAWS) + 0.5) / NUM_DRAWS
    tokens, _, _ = draw(config, grid, held_back)
    shares = expected_shares(config, held_back)
    assert set(tokens) <= set(shares)
    for token, share in shares.items():
        assert (tokens == token).mean() == pytest.approx(share, abs=2 / NUM_DRAWS)


def _name(config: SamplingConfig) -> str:
    changed = {key: value for key, value in vars(config).items() if value != vars(SamplingConfig())[key]}
    return ",".join(f"{key}={value}" for key, value in changed.items()) or "none"


def test_the_smallest_and_the_largest_number_stay_inside_the_support():
    """Tokens that were cut off stand before, between and behind those that were kept."""
    config = SamplingConfig(top_k=3)
    assert sorted(expected_shares(config, False)) == [2, 5, 8]
    tokens, _, _ = draw(config, np.array([0.0, 1.0 - 2.0**-24]))
    assert tokens.tolist() == [2, 8]


@pytest.mark.parametrize("temperature", [0.5, 1.0, 1.7])
@pytest.mark.parametrize("cuts", [{}, {"top_k": 5, "repetition_penalty": 2.0}, {"top_p": 0.8, "min_tokens": 1}])
def test_log_probs_are_the_models_at_the_sampling_temperature(cuts, temperature):
    """Nothing left out, as training sees them."""
    tokens, logps, _ = draw(SamplingConfig(temperature=temperature, **cuts), np.linspace(0.0, 0.999, 200), True)
    scaled = LOGITS.astype(np.float64) / temperature
    assert len(set(tokens)) > 1
    np.testing.assert_allclose(logps, scaled[tokens] - np.log(np.exp(scaled).sum()), rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("config", "held_back"),
    [
        (SamplingConfig(), False),
        (SamplingConfig(temperature=0.6), False),
        (SamplingConfig(top_k=4), False),
        (SamplingConfig(temperature=1.5, top_p=0.7), False),
        (SamplingConfig(repetition_penalty=1.6), False),
        (SamplingConfig(min_tokens=1), True),
        (SamplingConfig(temperature=0.8, top_k=6, top_p=0.9, repetition_penalty=1.2, min_tokens=2), True),
    ],
    ids=lambda value: None if isinstance(value, bool) else _name(value),
)
def test_drawn_log_probs_are_those_of_the_distribution_drawn_from(config, held_back):
    tokens, logps, drawn = draw(config, np.linspace(0.0, 0.999, 300), held_back)
    shares = expected_shares(config, held_back)
    np.testing.assert_allclose(drawn, np.log([shares[token] for token in tokens]), rtol=0, atol=1e-5)
    changed = set(vars(config)) - {k for k, v in vars(SamplingConfig()).items() if vars(config)[k] == v}
    if changed <= {"temperature"}:  # nothing is left out: they are one and the same
        np.testing.assert_array_equal(drawn, logps)
    else:
        assert np.abs(drawn - logps).max() > 0.01


def test_frequencies_of_random_draws():
    tokens, _, _ = draw(SamplingConfig(), uniforms(3, range(100), 1000).reshape(-1))
    shares = expected_shares(SamplingConfig(), False)
    expected = np.array([shares[token] for token in range(VOCABULARY)]) * len(tokens)
    counts = np.bincount(tokens, minlength=VOCABULARY)
    assert counts.sum() == 100_000
    assert ((counts - expected) ** 2 / expected).sum() < 31.3  # chi-square, 11 degrees of freedom, 0.1 %


@pytest.mark.parametrize(
    ("config", "held_back", "best"),
    [
        (SamplingConfig(temperature=0.0), False, 5),
        (SamplingConfig(temperature=0.0, min_tokens=1), True, 2),
        (SamplingConfig(temperature=0.0, repetition_penalty=2.0), False, 2),
        (SamplingConfig(temperature=0.0, top_k=1, top_p=0.1), False, 5),
    ],
)
def test_greedy_takes_the_best_after_penalty_and_held_back_ids(config, held_back, best):
    tokens, logps, drawn = draw(config, np.linspace(0.0, 0.999, 5), held_back)
    assert tokens.tolist() == [best] * 5
    wide = LOGITS.astype(np.float64)
    np.testing.assert_allclose(logps, wide[best] - np.log(np.exp(wide).sum()), rtol=0, atol=1e-6)
    np.testing.assert_array_equal(drawn, logps)
