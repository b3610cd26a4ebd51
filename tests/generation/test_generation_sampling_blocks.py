"""The draw in two levels and the log-prob of one token, on vocabularies of many blocks, against numpy in float64."""

import numpy as np
import pytest
from mindspore import Tensor

from r1parallel.config.schema import SamplingConfig
from r1parallel.generation.sampling import Sampler, block_size

NEVER, LARGEST = -1e9, 1.0 - 2.0**-24  # what `noise.uniforms` gives at most
BORDER = 1e-6  # a number nearer than this to the end of a token's share may be taken for its neighbour's
PLAIN = SamplingConfig()
# One token; one block (2, 37); S and N different and the same; what the models have.
SIZES = {1: 1, 2: 2, 12: 4, 37: 37, 256: 16, 1000: 40, 49152: 256}

pytestmark = pytest.mark.usefixtures("mindspore_cpu")


def draw(
    logits: np.ndarray, uniform: np.ndarray, config: SamplingConfig = PLAIN, bias: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Tokens, and their log-probs under the model and as drawn, one for every row of logits."""
    sampler = Sampler(config, logits.shape[1])
    sampler.set_train(False)
    nothing = np.zeros((1, 1), np.float32)
    inputs = (logits, uniform[:, None], nothing, nothing if bias is None else bias)
    tokens, logps = sampler(*(Tensor(x.astype(np.float32)) for x in inputs))
    return tokens.asnumpy()[:, 0], *logps.asnumpy().T


def log_softmax(logits: np.ndarray) -> np.ndarray:
    shifted = logits.astype(np.float64) - logits.max(1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(1, keepdims=True))


def of(table: np.ndarray, tokens: np.ndarray) -> np.ndarray:
    """One entry of each row."""
    return table[np.arange(len(tokens)), tokens]


def check_inverse(logits: np.ndarray, uniform: np.ndarray, tokens: np.ndarray) -> int:
    """Every token is the one whose stretch of the distribution holds the number; → how many are not exactly so."""
    assert tokens.min() >= 0 and tokens.max() < logits.shape[1]
    shares = np.exp(log_softmax(logits))
    ends = shares.cumsum(1)
    ends /= ends[:, -1:]
    first, last = of(np.pad(ends, ((0, 0), (1, 0))), tokens), of(ends, tokens)
    assert (of(shares, tokens) > 0.0).all()
    assert (first - BORDER <= uniform).all()
    assert (uniform < last + BORDER).all()
    return int(((uniform < first) | (uniform >= last)).sum())


def random_logits(rng: np.random.Generator, rows: int, size: int) -> np.ndarray:
    """Flat and steep rows, by turns whole, with tokens left out here and there, and with long stretches left out."""
    logits = rng.normal(size=(rows, size)) * rng.choice([0.0, 0.3, 3.0, 30.0], (rows, 1))
    hidden = rng.random((rows, size)) < rng.choice([0.0, 0.5, 0.99], (rows, 1))
    stretch = np.sort(rng.integers(0, size + 1, (rows, 2)), 1)
    inside = (np.arange(size) >= stretch[:, :1]) & (np.arange(size) < stretch[:, 1:])
    hidden |= inside & (rng.random((rows, 1)) < 0.5)
    hidden[np.arange(rows), rng.integers(0, size, rows)] = False
    return np.where(hidden, NEVER, logits).astype(np.float32)


@pytest.mark.parametrize("size", SIZES)
def test_tokens_are_those_of_the_inverse_distribution(size):
    rng = np.random.default_rng(size)
    rows = 64 if size > 10_000 else 3000
    logits, uniform = random_logits(rng, rows, size), rng.random(rows).astype(np.float32).clip(0.0, LARGEST)
    tokens, _, _ = draw(logits, uniform)
    # A share is about 1 / V in a flat row, and a number within 1e-6 of its end may go either way.
    assert check_inverse(logits, uniform, tokens) <= max(0.01, 2 * BORDER * size) * rows


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("number", [0.0, 1e-30, 2.0**-24, LARGEST, 1.0])
def test_the_ends_of_the_numbers_stay_inside_the_support(number, size):
    rows = 64 if size > 10_000 else 1000
    logits, uniform = random_logits(np.random.default_rng(7), rows, size), np.full(rows, number)
    check_inverse(logits, uniform, draw(logits, uniform)[0])


@pytest.mark.parametrize("hidden_at_the_end", [False, True])
@pytest.mark.parametrize("size", [12, 256, 1000])
def test_numbers_beside_the_borders_of_blocks(size, hidden_at_the_end):
    """Where the sum of a block is compared with the running sum inside it, the two are rounded differently."""
    rng, width = np.random.default_rng(size), block_size(size)
    logits = rng.normal(size=(1, size)).astype(np.float32) * 2.0
    if hidden_at_the_end:  # what stands behind the last token of a block must not be drawn
        logits[:, np.arange(size) % width >= width // 2] = NEVER
    ends = np.exp(log_softmax(logits))[0].cumsum()[width - 1 : -1 : width].astype(np.float32)
    steps = np.arange(-12, 13) * 2.0**-24
    uniform = (ends[:, None] + steps).reshape(-1).astype(np.float32).clip(0.0, LARGEST)
    logits = np.tile(logits, (len(uniform), 1))
    check_inverse(logits, uniform, draw(logits, uniform)[0])


ROW = np.arange(512)  # 16 blocks of 32
STANDING = {
    "all": ROW >= 0,
    "every second": ROW % 2 == 1,
    "first of every block": ROW % 32 == 0,
    "last of every block": ROW % 32 == 31,
    "middle blocks": (ROW >= 128) & (ROW < 384),
    "every second block": ROW // 32 % 2 == 1,
    "one": ROW == 100,
    "first": ROW == 0,
    "last": ROW == 511,
}


@pytest.mark.parametrize("standing", STANDING.values(), ids=STANDING)
def test_equal_shares_are_exact(standing):
    """Shares that fp32 adds without rounding: each token has the very numbers from its start to before its end."""
    assert block_size(len(ROW)) == 32
    grid = np.arange(2048) / 2048
    logits = np.tile(np.where(standing, 1.5, NEVER), (len(grid), 1))
    tokens, logps, drawn = draw(logits, grid)
    kept = np.flatnonzero(standing)
    np.testing.assert_array_equal(tokens, kept[(grid * len(kept)).astype(int)])
    np.testing.assert_allclose(logps, -np.log(len(kept)), rtol=0, atol=2e-6)
    np.testing.assert_array_equal(drawn, logps)


@pytest.mark.parametrize("config", [PLAIN, SamplingConfig(top_k=150), SamplingConfig(top_p=0.7, temperature=0.8)])
def test_frequencies_on_a_grid_are_the_shares(config):
    """Up to one draw a token."""
    size, count = 384, 16_384
    logits = np.random.default_rng(2).normal(size=size).astype(np.float32) * 1.5
    tokens, _, drawn = draw(np.tile(logits, (count, 1)), (np.arange(count) + 0.5) / count, config)
    weights = np.exp(logits.astype(np.float64) / config.temperature)
    order = np.argsort(-weights)
    weights[order[config.top_k or size :]] = 0.0
    ahead = weights[order].cumsum() / weights.sum() - weights[order] / weights.sum()
    weights[order[ahead >= config.top_p]] = 0.0
    shares = weights / weights.sum()
    counts = np.bincount(tokens, minlength=size)
    assert (counts[shares == 0.0] == 0).all()
    np.testing.assert_allclose(counts / count, shares, rtol=0, atol=1.5 / count)
    np.testing.assert_allclose(drawn, np.log(shares[tokens]), rtol=0, atol=2e-6)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("settings", [{}, {"temperature": 0.0}, {"temperature": 0.7}, {"top_k": 5}], ids=str)
def test_log_probs_are_those_of_float64(settings, size):
    rng, config = np.random.default_rng(size), SamplingConfig(**settings)
    logits = (rng.normal(size=(100, size)) * 2.5 + rng.normal(size=(100, 1))).astype(np.float32)
    tokens, logps, drawn = draw(logits, rng.random(100).clip(0.0, LARGEST), config)
    wide = logits.astype(np.float64) / (config.temperature or 1.0)
    np.testing.assert_allclose(logps, of(log_softmax(wide), tokens), rtol=0, atol=2e-6)
    if config.top_k:
        wide = np.where(logits >= np.sort(logits)[:, -min(config.top_k, size), None], wide, NEVER)
        np.testing.assert_allclose(drawn, of(log_softmax(wide), tokens), rtol=0, atol=3e-6)
    else:
        np.testing.assert_array_equal(drawn, logps)


@pytest.mark.parametrize("size", [256, 49152, 151_936])
@pytest.mark.parametrize("spread", [0.01, 1.0, 5.0])
def test_log_probs_of_flat_and_steep_rows(size, spread):
    """Of a flat row the logarithm itself, which MindSpore rounds to 4e-7 of its result, makes most of the error."""
    rng = np.random.default_rng(size)
    logits = (rng.normal(size=(20, size)) * spread).astype(np.float32)
    tokens, logps, _ = draw(logits, rng.random(20))
    np.testing.assert_allclose(logps, of(log_softmax(logits), tokens), rtol=0, atol=3e-6)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_log_prob_is_finite_where_the_share_is_not_a_number_of_fp32(temperature):
    """The model wants nothing but a stop id, which is held back."""
    rng = np.random.default_rng(1)
    logits, bias = rng.normal(size=(50, 256)).astype(np.float32), np.zeros((50, 256), np.float32)
    logits[:, 77], bias[:, 77] = 300.0, NEVER
    config = SamplingConfig(temperature=temperature, min_tokens=1)
    tokens, logps, drawn = draw(logits, rng.random(50), config, bias)
    assert (tokens != 77).all()
    np.testing.assert_allclose(logps, of(log_softmax(logits), tokens), rtol=1e-6)
    if temperature:
        np.testing.assert_allclose(drawn, of(log_softmax(logits + bias), tokens), rtol=0, atol=2e-6)


def test_the_number_zero_draws_the_first_share_however_small():
    """Token 0 has a share that fp32 holds in few bits or not at all; its log-prob has no fewer bits for it."""
    logits = np.zeros((60, 256), np.float32)
    logits[:, 0] = -np.linspace(60.0, 119.0, 60)
    tokens, logps, _ = draw(logits, np.zeros(60))
    assert (tokens[:20] == 0).all()
    assert (tokens[50:] == 1).all()
    np.testing.assert_allclose(logps, of(log_softmax(logits), tokens), rtol=1e-6)


def test_greedy_takes_the_first_of_equals():
    logits = np.random.default_rng(3).integers(0, 6, (200, 256)).astype(np.float32)
    tokens, _, _ = draw(logits, np.zeros(200), SamplingConfig(temperature=0.0))
    np.testing.assert_array_equal(tokens, logits.argmax(1))


def test_blocks_fill_the_vocabulary():
    for size in range(1, 3000):
        width = block_size(size)
        assert size % width == 0
        assert width * width >= size
        assert not [d for d in range(1, width) if d * d >= size and size % d == 0]
    assert {size: block_size(size) for size in SIZES} == SIZES
    assert [block_size(size) for size in (151_936, 152_064)] == [1187, 396]
