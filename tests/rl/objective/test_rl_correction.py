from dataclasses import replace

import numpy as np
import pytest
from helpers import made_up
from hypothesis import given
from hypothesis import strategies as st

from r1parallel.config.schema import RLConfig
from r1parallel.errors import UserError
from r1parallel.rl.experience.experience import needs_old_logps
from r1parallel.rl.metrics import experience_metrics
from r1parallel.rl.objective.correction import Gap, check_gap, rollout_corrections, rollout_gap

LOW, HIGH = 0.6, 1.7
KINDS = ("token_truncate", "token_mask", "sequence_truncate", "sequence_mask")


def settings_of(kind, **changes):
    return RLConfig(
        num_generations=4,
        rollout_correction=kind,
        rollout_correction_low=LOW,
        rollout_correction_high=HIGH,
        **changes,
    )


def by_hand(kind, old, drawn, length):
    """The weights of one completion's tokens, one after the other."""
    ratios = [np.exp(float(old[t]) - float(drawn[t])) for t in range(length)]
    if kind.startswith("sequence"):
        ratios = [float(np.prod(ratios))] * length
    if kind.endswith("truncate"):
        return [min(ratio, HIGH) for ratio in ratios]
    return [ratio if LOW <= ratio <= HIGH else 0.0 for ratio in ratios]


@pytest.mark.parametrize("kind", KINDS)
@given(st.integers(0, 99))
def test_weights_are_the_ratio_cut_or_masked(kind, seed):
    made = made_up.experience(seed, settings_of("none"), 2, 4, 6)
    weights = rollout_corrections(made.old_logps, made.drawn_logps, made.inside, settings_of(kind))
    assert weights.dtype == np.float32 and weights.shape == made.inside.shape
    for row, length in enumerate(made.lengths):
        expected = by_hand(kind, made.old_logps[row], made.drawn_logps[row], length)
        np.testing.assert_allclose(weights[row, :length], expected, rtol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_far_apart_is_cut_or_masked_and_stays_finite(kind):
    old, drawn = np.full((1, 4), -1.0, np.float32), np.full((1, 4), -900.0, np.float32)
    inside = np.ones((1, 4), bool)
    expected = HIGH if kind.endswith("truncate") else 0.0
    assert (rollout_corrections(old, drawn, inside, settings_of(kind)) == np.float32(expected)).all()
    assert not rollout_corrections(drawn, old, inside, settings_of(kind)).any()  # exp(-899) is 0 to a float


def test_without_a_correction_every_weight_is_one():
    made = made_up.experience(0, settings_of("none"), 2, 4, 6)
    assert (made.corrections == 1.0).all()


@pytest.mark.parametrize("kind", KINDS)
def test_metrics_say_what_was_corrected(kind):
    settings = settings_of(kind, overlong="mask")
    made = made_up.experience(1, settings, 5, 4, 6)
    metrics, learned = experience_metrics(made, settings), made.learned
    assert 0 < learned.sum() < made.inside.sum()
    assert metrics["rollout_correction_mean"] == pytest.approx(made.corrections[learned].mean())
    assert metrics["rollout_masked_fraction"] == pytest.approx((made.corrections[learned] == 0).mean())
    assert (metrics["rollout_masked_fraction"] > 0) == kind.endswith("mask")
    largest = np.exp((made.old_logps - made.drawn_logps)[learned].max())
    assert metrics["rollout_ratio_max"] == pytest.approx(largest, rel=1e-6)
    assert metrics["learned_fraction"] == made.counted.mean() < 1
    assert "rollout_correction_mean" not in experience_metrics(made, replace(settings, rollout_correction="none"))


def test_old_log_probs_are_computed_where_somebody_needs_them():
    plain = RLConfig(num_generations=4)
    assert not needs_old_logps(plain, 1)
    assert needs_old_logps(plain, 2)
    assert needs_old_logps(settings_of("token_mask"), 1)
    assert needs_old_logps(replace(plain, kl_place="reward"), 1)
    assert not needs_old_logps(replace(plain, kl_place="reward", beta=0.0), 1)


def test_the_gap_is_measured_on_the_tokens_that_count():
    rng = np.random.default_rng(0)
    training = rng.normal(-2, 1, (6, 8)).astype(np.float32)
    rollout = (training + rng.normal(0, 0.05, training.shape)).astype(np.float32)
    counted = rng.random((6, 8)) < 0.5
    training[~counted], rollout[~counted] = np.nan, 7.0
    gap = rollout_gap(training, rollout, counted)
    ours, theirs = training[counted].astype(float), rollout[counted].astype(float)
    assert gap.mean == pytest.approx(np.abs(ours - theirs).mean())
    assert gap.max == np.abs(ours - theirs).max()
    assert gap.correlation == pytest.approx(np.corrcoef(ours, theirs)[0, 1])
    assert 0.9 < gap.correlation < 1


@given(st.integers(1, 5), st.floats(-10, 0, width=32))
def test_a_gap_of_equal_numbers_is_none(count, value):
    numbers = np.full((1, count), value, np.float32)
    assert rollout_gap(numbers, numbers, np.ones((1, count), bool)) == Gap(0.0, 0.0, 1.0)


def test_a_gap_of_no_tokens_is_none():
    nothing = np.full((2, 3), np.nan, np.float32)
    assert rollout_gap(nothing, nothing, np.zeros((2, 3), bool)) == Gap(0.0, 0.0, 1.0)


def test_the_limit_stops_with_one_line():
    gap = Gap(0.25, 1.5, 0.875)
    for limit in (0.0, 0.25, 1.0):  # 0: no limit
        check_gap(gap, limit, "step 3")
    with pytest.raises(UserError) as error:
        check_gap(gap, 0.1, "step 3")
    assert str(error.value) == (
        "step 3: rollout and training log-probs differ by 0.25 nats a token on average (at most 1.5, correlation "
        "0.8750), more than rl_config.rollout_gap_limit 0.1; compare the generator's weights and compute_dtype with "
        "the actor's, or raise the limit"
    )
    with pytest.raises(UserError, match="differ by nan nats"):
        check_gap(Gap(float("nan"), float("nan"), float("nan")), 0.1, "step 3")
