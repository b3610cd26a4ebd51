import grpo_reference as paper
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from mindspore import Parameter, ParameterTuple, Tensor, nn
from tiny_runs import MODEL

from r1parallel.models.logps import CompletionLogps
from r1parallel.models.parameters import load_parameters, random_values
from r1parallel.models.qwen2_5 import Qwen2ForCausalLM
from r1parallel.rl.advantages import group_advantages, kept_rows
from r1parallel.rl.losses import GRPOLoss, sequence_mean_weights, token_values
from r1parallel.training.gradients import Gradients

pytestmark = pytest.mark.usefixtures("mindspore_cpu")
GROUP, ROWS, SLOTS = 3, 6, 7  # two groups
GARBAGE = np.array([-1e4, 80.0, np.inf, -np.inf, np.nan, 0.0], np.float32)


class GivenLogps(nn.Cell):
    """Stands in for the model: its log-probs are the parameter that the loss is differentiated by."""

    def __init__(self):
        super().__init__()
        self.values = Parameter(Tensor(np.zeros((ROWS, SLOTS), np.float32)), name="logps")

    def construct(self, tokens_BS, starts_B):
        return self.values


class Graph:
    """GRPOLoss over given log-probs; calling it gives what the loss says, and its gradient by the log-probs."""

    def __init__(self, low, high, beta, on_policy=False):
        self.settings = low, high, beta
        self.stub = GivenLogps()
        self.sums = Parameter(Tensor(np.zeros((ROWS, SLOTS), np.float32)), name="gradient_sum.logps")
        loss = GRPOLoss(self.stub, low, high, beta, on_policy)
        self.cell = Gradients(loss, ParameterTuple([self.stub.values]), ParameterTuple([self.sums]))

    def __call__(self, case):
        self.stub.values.set_data(Tensor(case.logps))
        self.sums.set_data(Tensor(np.zeros((ROWS, SLOTS), np.float32)))
        kept = kept_rows(case.rewards, GROUP)
        inputs = (
            np.zeros((ROWS, 1), np.int32),
            np.zeros(ROWS, np.int32),
            case.old,
            case.ref,
            group_advantages(case.rewards, GROUP)[:, None],
            sequence_mean_weights(case.lengths, kept, SLOTS),
        )
        said = self.cell(*(Tensor(x) for x in inputs)).asnumpy()
        assert said.shape == (ROWS, 5 * SLOTS)
        return token_values(said), self.sums.asnumpy().copy()


class Case:
    """Random log-probs, rewards and lengths. Log-probs are multiples of 1/1024: fp32 holds their differences."""

    def __init__(self, seed):
        rng = np.random.default_rng(seed)

        def numbers(scale):
            return (np.round(rng.normal(0, scale, (ROWS, SLOTS)) * 1024) / 1024).astype(np.float32)

        spread = (0.08, 1.0, 6.0)[seed % 3]  # of the log of the ratio: from about 1 to e^±18
        # MindSpore's Exp on a CPU is right to the last bit only for |x| < 0.25; at |x| = 20 it is off by 8e-6.
        self.tolerance = 1e-6 if spread < 0.1 else 1e-5
        self.logps = np.minimum(-np.abs(numbers(3.0)), 0)
        self.old, self.ref = self.logps + numbers(spread), self.logps + numbers(spread)
        self.lengths = rng.integers(1, SLOTS + 1, ROWS).astype(np.int32)
        self.lengths[:2] = 1, SLOTS
        self.rewards = rng.integers(0, 3, ROWS) + rng.choice([0.0, 0.5], ROWS)
        if seed % 5 == 0:
            self.rewards[:GROUP] = 0.1  # all equal
        if seed % 5 == 1:
            self.rewards[GROUP + seed % GROUP] = np.nan  # the group cannot be scored
        self.outside = np.arange(SLOTS) >= self.lengths[:, None]
        for array in (self.logps, self.old, self.ref):
            array[self.outside] = rng.choice(GARBAGE, self.outside.sum())

    def reference(self, low, high, beta):
        return paper.grpo(self.logps, self.old, self.ref, self.rewards, GROUP, self.lengths, low, high, beta)


@pytest.fixture(scope="module", params=[(0.2, 0.2, 0.04), (0.1, 0.3, 0.0)], ids=["kl", "no_kl"])
def graph(request):
    return Graph(*request.param)


@pytest.mark.parametrize("seed", range(30))
def test_loss_and_tokens_agree_with_the_paper(graph, seed):
    case = Case(seed)
    expected = case.reference(*graph.settings)
    (losses, logps, ratio, kl, clipped), gradient = graph(case)
    counted = ~case.outside & kept_rows(case.rewards, GROUP)[:, None]
    assert losses.sum(dtype=np.float64) == pytest.approx(expected.loss, rel=case.tolerance, abs=1e-6)
    assert not losses[~counted].any()
    np.testing.assert_allclose(ratio[counted], expected.ratio[counted], rtol=case.tolerance)
    np.testing.assert_allclose(kl[counted], expected.kl[counted], rtol=case.tolerance, atol=case.tolerance)
    np.testing.assert_array_equal(clipped[counted], expected.clipped[counted])
    np.testing.assert_array_equal(logps, case.logps)
    np.testing.assert_allclose(gradient, expected.gradient, rtol=1e-5, atol=1e-6)
    assert not gradient[~counted].any()


def test_cases_cover_what_they_claim():
    cases = [Case(seed) for seed in range(30)]
    outcomes = [case.reference(0.2, 0.2, 0.04) for case in cases]
    assert max(outcome.ratio.max() for outcome in outcomes) > 1e6
    assert min(outcome.ratio[outcome.ratio > 0].min() for outcome in outcomes) < 1e-6
    clipped = np.concatenate([outcome.clipped.ravel() for outcome in outcomes])
    assert 100 < clipped.sum() < len(clipped) / 2
    assert sum(np.isnan(case.rewards).any() for case in cases) == 6
    assert any(np.isnan(case.logps).any() for case in cases)


def test_reference_gradient_is_the_slope_of_the_reference_loss():
    for seed in (0, 1, 3, 4, 7):  # ratios that differences of float64 can follow
        case, step = Case(seed), 1e-6
        case.logps = case.logps.astype(np.float64)
        slopes = case.reference(0.2, 0.2, 0.04).gradient
        for i, t in np.argwhere(~case.outside):
            losses = []
            for sign in (1, -1):
                case.logps[i, t] += sign * step
                losses.append(case.reference(0.2, 0.2, 0.04).loss)
                case.logps[i, t] -= sign * step
            assert (losses[0] - losses[1]) / (2 * step) == pytest.approx(slopes[i, t], rel=1e-5, abs=1e-7)


def test_on_policy_the_ratio_is_one_and_the_gradient_stays():
    graph = Graph(0.2, 0.2, 0.04, on_policy=True)
    case = Case(3)
    (losses, _, ratio, _, clipped), gradient = graph(case)
    case.old[:] = case.logps  # what "on policy" means; the graph was given other numbers
    expected = case.reference(*graph.settings)
    assert losses.sum(dtype=np.float64) == pytest.approx(expected.loss, rel=1e-6, abs=1e-6)
    assert (ratio == 1.0).all()
    assert not clipped.any()
    np.testing.assert_allclose(gradient, expected.gradient, rtol=1e-5, atol=1e-6)
    assert np.abs(gradient).max() > 0.01


def test_over_the_real_model_the_loss_is_the_papers():
    prompt = 4
    model = Qwen2ForCausalLM(MODEL, prompt + SLOTS)
    load_parameters(model, random_values(MODEL, 0, 0.3), "random")
    logps_cell = CompletionLogps(model, ROWS, prompt, SLOTS)
    loss_cell = GRPOLoss(logps_cell, 0.2, 0.2, 0.04, on_policy=False)
    rng = np.random.default_rng(0)
    case = Case(3)
    shifts = rng.normal(0, 0.08, (2, ROWS, SLOTS)).astype(np.float32)
    tokens = rng.integers(0, MODEL.vocab_size, (ROWS, prompt + SLOTS)).astype(np.int32)
    starts = rng.integers(0, prompt, ROWS).astype(np.int32)
    logps = logps_cell(Tensor(tokens), Tensor(starts)).asnumpy()
    case.logps, case.old, case.ref = logps, logps + shifts[0], logps + shifts[1]
    case.old[case.outside] = case.ref[case.outside] = 80.0
    advantages = group_advantages(case.rewards, GROUP)[:, None]
    weights = sequence_mean_weights(case.lengths, kept_rows(case.rewards, GROUP), SLOTS)
    inputs = (tokens, starts, case.old.astype(np.float32), case.ref.astype(np.float32), advantages, weights)
    losses, seen, ratio, kl, clipped = token_values(loss_cell(*(Tensor(x) for x in inputs)).asnumpy())
    case.old, case.ref = inputs[2], inputs[3]
    expected = case.reference(0.2, 0.2, 0.04)
    np.testing.assert_array_equal(seen, logps)
    assert losses.sum(dtype=np.float64) == pytest.approx(expected.loss, rel=1e-6, abs=1e-6)
    inside = ~case.outside
    np.testing.assert_allclose(ratio[inside], expected.ratio[inside], rtol=1e-6)
    np.testing.assert_allclose(kl[inside], expected.kl[inside], rtol=1e-6, atol=1e-6)
    np.testing.assert_array_equal(clipped[inside], expected.clipped[inside])


def test_garbage_past_the_end_changes_no_bit(graph):
    case = Case(2)
    before = graph(case)
    for array in (case.logps, case.old, case.ref):
        array[case.outside] = 0.0
    values, gradient = graph(case)
    assert np.isnan(before[0].logps[case.outside]).any()  # the garbage was there
    for part in ("loss", "ratio", "kl", "clipped"):
        np.testing.assert_array_equal(getattr(values, part), getattr(before[0], part))
    np.testing.assert_array_equal(gradient, before[1])


def test_token_values_are_the_five_parts_in_order():
    rows = np.arange(2 * 15, dtype=np.float32).reshape(2, 15)
    parts = token_values(rows)
    assert parts._fields == ("loss", "logps", "ratio", "kl", "clipped")
    for i, part in enumerate(parts):
        np.testing.assert_array_equal(part, rows[:, 3 * i : 3 * i + 3])


@given(st.lists(st.tuples(st.integers(1, 9), st.booleans()), min_size=1, max_size=8))
def test_weights_of_kept_rows_are_equal_and_sum_to_one(rows):
    lengths = np.array([length for length, _ in rows], np.int32)
    kept = np.array([keep for _, keep in rows])
    weights = sequence_mean_weights(lengths, kept, 9)
    assert weights.dtype == np.float32 and weights.shape == (len(rows), 9)
    np.testing.assert_allclose(weights.sum(axis=1), kept / max(1, kept.sum()), rtol=1e-6)
    np.testing.assert_array_equal(weights > 0, (np.arange(9) < lengths[:, None]) & kept[:, None])


rewards_of_groups = st.lists(
    st.lists(st.sampled_from([0.0, 0.1, 0.5, 1.0, 2.0, -1.0, float("nan")]), min_size=4, max_size=4),
    min_size=1,
    max_size=5,
)


@given(rewards_of_groups)
def test_advantages_agree_with_the_paper(groups):
    rewards = np.array(groups).reshape(-1)
    ours = group_advantages(rewards, 4)
    assert ours.dtype == np.float32
    np.testing.assert_allclose(ours, paper.advantages(rewards, 4), rtol=1e-6, atol=1e-7)
    np.testing.assert_array_equal(kept_rows(rewards, 4), paper.counted_rows(rewards, 4))


@given(rewards_of_groups, st.randoms(use_true_random=False))
def test_advantages_follow_their_completions(groups, random):
    order = [random.sample(range(4), 4) for _ in groups]
    moved = [[group[i] for i in places] for group, places in zip(groups, order, strict=True)]
    straight = group_advantages(np.array(groups).reshape(-1), 4).reshape(-1, 4)
    places = np.array(order)
    followed = np.take_along_axis(straight, places, axis=1)
    np.testing.assert_allclose(group_advantages(np.array(moved).reshape(-1), 4).reshape(-1, 4), followed, atol=1e-6)


def test_equal_rewards_give_exactly_zero():
    advantages = group_advantages(np.array([0.1, 0.1, 0.1, 1 / 3, 1 / 3, 1 / 3]), 3)
    assert (advantages == 0.0).all()
