from dataclasses import replace

import numpy as np
import pytest
from helpers import made_up
from hypothesis import given
from hypothesis import strategies as st

from r1parallel.config.presets import PRESETS
from r1parallel.config.schema import RLConfig
from r1parallel.rl.experience.experience import collect, compute_advantages
from r1parallel.rl.objective.advantages import (
    equal_groups,
    kept_rows,
    overlong_penalties,
    sequence_advantages,
    token_advantages,
)
from r1parallel.rl.objective.kl import kl_values

GROUP = 4
ESTIMATORS = ("group", "rloo", "reinforce_plus_plus")
SCALES = ("group", "batch", "none")
every_kind = pytest.mark.parametrize(("estimator", "scale"), [(e, s) for e in ESTIMATORS for s in SCALES])
groups_of_rewards = st.lists(
    st.lists(st.sampled_from([0.0, 0.1, 1.0, 2.5, -1.0]), min_size=GROUP, max_size=GROUP), min_size=1, max_size=5
)


def settings_of(estimator="group", scale="group", **changes):
    return RLConfig(num_generations=GROUP, advantage_estimator=estimator, advantage_scale=scale, **changes)


def judged(rewards, settings, seed=0, slots=5, penalties=None):
    """Token advantages [N, C] and what is inside of completions of random lengths."""
    rewards = np.array(rewards, float).reshape(-1)
    rng = np.random.default_rng(seed)
    lengths = rng.integers(1, slots + 1, len(rewards))
    penalties = np.zeros((len(rewards), slots)) if penalties is None else penalties
    made = token_advantages(rewards, penalties, lengths, GROUP, settings)
    assert made.dtype == np.float32 and made.shape == penalties.shape
    return made, np.arange(slots) < lengths[:, None]


@every_kind
@given(groups_of_rewards, st.integers(0, 99))
def test_permuted_groups_take_their_advantages_with_them(estimator, scale, rewards, seed):
    rng = np.random.default_rng(seed)
    order = (rng.permutation(len(rewards))[:, None] * GROUP + np.array([rng.permutation(GROUP)])).reshape(-1)
    rewards, slots = np.array(rewards).reshape(-1), 5
    lengths, penalties = rng.integers(1, slots + 1, len(rewards)), rng.normal(0, 0.1, (len(rewards), slots))
    settings = settings_of(estimator, scale)
    made = token_advantages(rewards, penalties, lengths, GROUP, settings)
    moved = token_advantages(rewards[order], penalties[order], lengths[order], GROUP, settings)
    # An equal spread may lie a rounding apart: with it near 0 an advantage is large, but not of another value.
    np.testing.assert_allclose(moved, made[order], rtol=1e-4, atol=1e-5)


@every_kind
@given(groups_of_rewards)
def test_advantages_are_finite_and_zero_behind_the_end(estimator, scale, rewards):
    made, inside = judged(rewards, settings_of(estimator, scale))
    assert np.isfinite(made).all()
    assert not made[~inside].any()


@every_kind
@pytest.mark.parametrize("value", [0.0, 0.1, 1 / 3, 1e6])
def test_equal_rewards_give_exactly_nothing(estimator, scale, value):
    made, inside = judged([value] * 12, settings_of(estimator, scale))
    if (estimator, scale) == ("reinforce_plus_plus", "none"):  # no baseline at all
        assert (made[inside] == np.float32(value)).all()
    else:
        assert not made.any()


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("estimator", ["group", "rloo"])
def test_an_equal_group_among_others_gives_exactly_nothing(estimator, scale):
    made = sequence_advantages(np.array([0.1] * GROUP + [0, 1, 0, 0.0]), GROUP, settings_of(estimator, scale))
    assert not made[:GROUP].any()
    assert made[GROUP:].all()


@every_kind
def test_a_group_with_a_nan_counts_in_no_mean(estimator, scale):
    rng = np.random.default_rng(1)
    rewards = rng.integers(0, 3, 12).astype(float)
    lengths, penalties = rng.integers(1, 6, 12), rng.normal(0, 0.1, (12, 5))
    rewards[5] = np.nan
    settings = settings_of(estimator, scale)
    made = token_advantages(rewards, penalties, lengths, GROUP, settings)
    left = np.r_[0:4, 8:12]
    alone = token_advantages(rewards[left], penalties[left], lengths[left], GROUP, settings)
    assert not made[4:8].any()
    np.testing.assert_array_equal(made[left], alone)


@given(groups_of_rewards)
def test_leaving_one_out_is_the_group_mean_in_another_scale(rewards):
    returns = np.array(rewards)
    expected = returns - (returns.sum(axis=1, keepdims=True) - returns) / (GROUP - 1)
    made = sequence_advantages(returns.reshape(-1), GROUP, settings_of("rloo", "none"))
    np.testing.assert_allclose(made, expected.reshape(-1), atol=1e-12)


@given(groups_of_rewards.filter(lambda groups: np.ptp(groups) > 0))
def test_scaled_by_the_batch_every_group_is_divided_alike(rewards):
    returns = np.array(rewards)
    plain = sequence_advantages(returns.reshape(-1), GROUP, settings_of("group", "none"))
    scaled = sequence_advantages(returns.reshape(-1), GROUP, settings_of("group", "batch"))
    np.testing.assert_allclose(scaled, plain / (returns.std(ddof=1) + 1e-6), atol=1e-12)


def test_reinforce_plus_plus_normalises_the_tokens_of_all_kept_rows():
    rewards = [0, 1, 0, 0, 1, 1, 2, 0.0]
    made, inside = judged(rewards, settings_of("reinforce_plus_plus", "batch"))
    assert made[inside].mean() == pytest.approx(0.0, abs=1e-6)
    assert made[inside].std(ddof=1) == pytest.approx(1.0, rel=1e-5)
    each, _ = judged(rewards, settings_of("reinforce_plus_plus", "group"))
    for first in (0, GROUP):
        part = slice(first, first + GROUP)
        assert each[part][inside[part]].mean() == pytest.approx(0.0, abs=1e-6)
        assert each[part][inside[part]].std(ddof=1) == pytest.approx(1.0, rel=1e-5)


def test_penalties_count_from_their_token_on_or_for_the_whole_completion():
    lengths, rewards = np.array([3, 1, 2, 2]), np.array([1.0, 0.0, 2.0, 0.0])
    penalties = np.arange(16.0).reshape(4, 4) / 10
    penalties[1, 1:] = np.nan  # behind its end
    made = token_advantages(rewards, penalties, lengths, GROUP, settings_of("reinforce_plus_plus", "none"))
    np.testing.assert_allclose(made[0], [1 - 0.3, 1 - 0.3, 1 - 0.2, 0], atol=1e-6)
    np.testing.assert_allclose(made[2], [2 - 1.7, 2 - 0.9, 0, 0], atol=1e-6)
    returns = rewards - [0.3, 0.4, 1.7, 2.5]
    made = token_advantages(rewards, penalties, lengths, GROUP, settings_of("rloo", "none"))
    others = (returns.sum() - returns) / 3
    np.testing.assert_allclose(made[:, 0], returns - others, atol=1e-6)


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_kl_in_the_reward_is_of_the_old_policy_and_moves_advantages(estimator):
    settings = settings_of(estimator, "none", beta=0.5, kl_place="reward", kl_estimator="k1")
    made = made_up.experience(2, settings, 3, 4, 6)
    penalties = np.where(made.inside, 0.5 * kl_values(made.old_logps, made.ref_logps, "k1", 0.0), 0.0)
    expected = token_advantages(made.rewards, penalties, made.lengths, GROUP, settings)
    np.testing.assert_array_equal(made.advantages, expected)
    compute_advantages(made, settings, 1.0)  # the adaptive weight of this step
    moved = token_advantages(made.rewards, 2 * penalties, made.lengths, GROUP, settings)
    np.testing.assert_array_equal(made.advantages, moved)
    assert np.abs(moved - expected).max() > 0.01
    compute_advantages(made, replace(settings, kl_place="loss"), 0.5)
    plain = token_advantages(made.rewards, 0 * penalties, made.lengths, GROUP, settings)
    np.testing.assert_array_equal(made.advantages, plain)


@pytest.mark.parametrize("preset", PRESETS)
@given(seed=st.integers(0, 50))
def test_permuted_prompts_take_their_advantages_with_them_under_every_preset(preset, seed):
    settings = replace(RLConfig(num_generations=GROUP), **PRESETS[preset])
    made = made_up.experience(seed, settings, 4, 5, 6)
    order = np.random.default_rng(seed).permutation(4)
    rows = (order[:, None] * GROUP + np.arange(GROUP)).reshape(-1)
    moved = replace(made, **{k: v[rows] for k, v in vars(made).items() if isinstance(v, np.ndarray)})
    compute_advantages(moved, settings, settings.beta)
    np.testing.assert_allclose(moved.advantages, made.advantages[rows], rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(moved.corrections, made.corrections[rows])


def test_rows_of_groups_that_could_be_scored_and_groups_that_are_equal():
    rewards = np.array([0, 0, 1, 1, np.nan, 2, 2.0, 2, np.nan, np.nan])
    assert kept_rows(rewards, 2).tolist() == [True] * 4 + [False] * 2 + [True] * 2 + [False] * 2
    assert equal_groups(rewards, 2).tolist() == [True, True, False, True, False]


def test_penalty_for_length_grows_over_the_buffer():
    """Yu et al. 2025, eq. 13: nothing up to L_max − L_cache, then even, the whole for a completion that is cut off."""
    lengths, stopped = np.array([1, 6, 7, 8, 9, 10, 10]), np.array([True] * 6 + [False])
    settings = settings_of(overlong="penalty", overlong_buffer=4, overlong_penalty=0.8)
    np.testing.assert_allclose(
        overlong_penalties(lengths, stopped, 10, settings), [0, 0, 0.2, 0.4, 0.6, 0.8, 0.8], atol=1e-12
    )
    default = overlong_penalties(lengths, stopped, 10, replace(settings, overlong_buffer=0))  # a fifth: 2
    np.testing.assert_allclose(default, [0, 0, 0, 0, 0.4, 0.8, 0.8], atol=1e-12)
    tiny = overlong_penalties(np.array([3, 4]), np.array([True, False]), 4, replace(settings, overlong_buffer=0))
    np.testing.assert_allclose(tiny, [0, 0.8])  # a buffer of one token
    for other in ("keep", "mask"):
        assert not overlong_penalties(lengths, stopped, 10, replace(settings, overlong=other)).any()


@pytest.mark.parametrize("overlong", ["keep", "mask", "penalty"])
def test_what_happens_to_completions_that_were_cut_off(overlong):
    settings = settings_of(overlong=overlong, overlong_penalty=0.7)
    made = made_up.experience(4, settings, 3, 4, 6)
    cut = ~made.stopped
    assert cut.any() and not cut.all()
    assert made.counted.tolist() == (made.stopped.tolist() if overlong == "mask" else [True] * 12)
    taken_off = made.scores.total - made.rewards
    if overlong == "penalty":
        np.testing.assert_allclose(taken_off[cut], 0.7)
    else:
        assert not taken_off.any()


def test_groups_left_equal_are_not_learned_from_with_dynamic_sampling_only():
    for dynamic in (False, True):
        settings = settings_of(dynamic_sampling=dynamic, overlong="penalty")
        made = made_up.experience(0, settings, 3, 4, 6)
        totals = made.scores.total.copy()
        totals[GROUP : 2 * GROUP] = 1.0
        completions = made_up.completions(np.random.default_rng(0), 12, 6, 32)
        again = collect([[1]] * 12, made.prompt_rows, completions, made_up.scores(totals), settings, 4, 0)
        assert again.counted.tolist() == [True] * 4 + [not dynamic] * 4 + [True] * 4
        # The penalty for length makes their rewards differ; whether they teach anything is a matter of the scores.
        assert np.ptp(again.rewards[GROUP : 2 * GROUP]) > 0
