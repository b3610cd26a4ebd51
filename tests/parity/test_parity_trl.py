"""Our loss, advantages and corrections against TRL's trainers on the same numbers.

TRL computes in fp64 here, we in fp32. No log ratio exceeds 0.25, below which MindSpore's Exp on a CPU is right to 5e-7.
Where TRL means something else the test says what, and changes an input, never a tolerance. docs/algorithms.md lists it.
"""

from dataclasses import replace
from functools import cache

import numpy as np
import pytest

pytest.importorskip(
    "trl", reason='NO PARITY CHECK: trl is missing; install the parity extra: pip install -e ".[parity]"'
)

from helpers.given_logps import GivenLogps
from helpers.paper_cases import Case, told
from helpers.paper_pieces import Batch
from trl import GRPOTrainer, RLOOTrainer
from trl_judge import Judge

from r1parallel.config.schema import RLConfig
from r1parallel.rl.objective.advantages import token_advantages
from r1parallel.rl.objective.correction import rollout_corrections

pytestmark = pytest.mark.usefixtures("mindspore_cpu")
GROUP, ROWS, SLOTS = 4, 8, 6
TRL_EPS, OUR_EPS = 1e-4, 1e-6  # added to a standard deviation


def numbers(rng, scale, limit):
    return np.round(np.clip(rng.normal(0, scale, (ROWS, SLOTS)), -limit, limit) * 65536) / 65536


@cache
def case(masked=False):
    rng = np.random.default_rng(0)
    logps = -np.abs(numbers(rng, 3.0, 12.0))
    old, ref = logps + numbers(rng, 0.15, 0.24), logps + numbers(rng, 0.15, 0.24)
    lengths = np.array([6, 4, 3, 5, 6, 1, 2, 3])
    rewards = np.array([1.0, 0.0, 0.5, 2.0, 0.0, 0.0, 1.5, 1.0])
    cut_off = np.isin(np.arange(ROWS), [0, 3, 4]) & masked
    return Case(Batch(rewards, GROUP, lengths, old, ref, cut_off), logps, 0.24)


@cache
def graph(**changes):
    return GivenLogps(config(**changes), ROWS, SLOTS)


def config(**changes):
    return replace(RLConfig(), **{"num_generations": GROUP, "beta": 0.0, **changes})


def ours(the_case, trl_inputs, change=None, **settings):
    """Our loss of what TRL made: its advantages and corrections."""
    given = told(the_case, config(**settings))
    given = given._replace(advantages=given.advantages * 0 + trl_inputs["advantages"].numpy()[:, None])
    if "importance_sampling_ratio" in trl_inputs:
        given = given._replace(policy_weights=given.weights * trl_inputs["importance_sampling_ratio"].numpy())
    if change:
        given = change(given)
    values, gradient = graph(**settings)(the_case.logps, given)
    return values.loss.sum(dtype=np.float64), gradient


def assert_same(trl, us):
    assert us[0] == pytest.approx(trl[0], rel=1e-6, abs=1e-6)
    np.testing.assert_allclose(us[1], trl[1], rtol=1e-5, atol=1e-7)
    assert np.abs(trl[1]).max() > 1e-3


CLIP = {"epsilon_low": 0.05, "epsilon_high": 0.1}
KL = {"beta": 0.3}
LOSSES = {
    # TRL's arguments, ours. Its epsilon_high is a bound of the weight itself in CISPO, and it has no lower one.
    "grpo": ({**CLIP, **KL}, {**CLIP, **KL}),
    "bnpo": ({"loss_type": "bnpo", **CLIP}, {"loss_aggregation": "token_mean", **CLIP}),
    "dapo": ({"loss_type": "dapo", **CLIP, **KL}, {"loss_aggregation": "token_mean", **CLIP, **KL}),
    "dr_grpo": ({"loss_type": "dr_grpo", **CLIP}, {"loss_aggregation": "constant", **CLIP}),
    "cispo": (
        {"loss_type": "cispo", "epsilon_high": 1.1, **KL},
        {"policy_loss": "cispo", "loss_aggregation": "token_mean", "epsilon_low": 1.0, "epsilon_high": 0.1, **KL},
    ),
    "gspo": ({"importance_sampling_level": "sequence", **CLIP}, {"importance_level": "sequence", **CLIP}),
    "gspo with KL": (
        {"importance_sampling_level": "sequence", "use_bias_correction_kl": True, **CLIP, **KL},
        {"importance_level": "sequence", "kl_importance_weighted": True, **CLIP, **KL},
    ),
    "weighted KL": ({"use_bias_correction_kl": True, **CLIP, **KL}, {"kl_importance_weighted": True, **CLIP, **KL}),
    # TRL bounds the ratio whatever the sign of A; above 1 + epsilon_high that changes nothing where A > 0.
    "delta": ({"delta": 1.15, **CLIP}, {"dual_clip": 1.15, **CLIP}),
}


@pytest.mark.parametrize("name", LOSSES)
def test_loss_and_gradient(name):
    theirs, us = LOSSES[name]
    judge = Judge(GRPOTrainer, case(), **theirs)
    inputs = judge.inputs()
    assert_same(judge.loss(inputs), ours(case(), inputs, **us))


def test_the_dual_clip_was_met():
    batch, inside = case().batch, case().batch.inside
    ratio = np.exp(np.where(inside, case().logps - batch.old, 0.0))
    advantages = Judge(GRPOTrainer, case()).inputs()["advantages"].numpy()[:, None]
    for bound in (1.1, 1.15):
        assert ((ratio > bound) & (advantages < 0)).sum() >= 2
        assert ((ratio > bound) & (advantages > 0)).sum() >= 2


@pytest.mark.parametrize("scale", ["group", "batch", "none"])
def test_advantages(scale):
    """TRL adds 1e-4 to a standard deviation, we 1e-6; both take it with n − 1."""
    theirs = Judge(GRPOTrainer, case(), scale_rewards=scale).inputs()["advantages"].numpy()
    rewards = case().batch.rewards
    spread = {
        "group": np.repeat(rewards.reshape(-1, GROUP).std(axis=1, ddof=1), GROUP),
        "batch": rewards.std(ddof=1),
        "none": np.inf,
    }[scale]
    factor = 1.0 if scale == "none" else (spread + OUR_EPS) / (spread + TRL_EPS)
    us = advantages(rewards, advantage_scale=scale)
    np.testing.assert_allclose(us * factor, theirs, rtol=1e-6)


def advantages(rewards, penalties=None, **settings):
    penalties = np.zeros((ROWS, SLOTS)) if penalties is None else penalties
    return token_advantages(rewards, penalties, case().batch.lengths, GROUP, config(**settings))[:, 0]


def test_a_reward_that_is_not_a_number():
    """TRL leaves that completion out, we its whole group. The other group is the same for both."""
    rewards = case().batch.rewards.copy()
    rewards[1] = np.nan
    batch = replace(case().batch, rewards=rewards)
    theirs = Judge(GRPOTrainer, replace(case(), batch=batch), scale_rewards="none").inputs()["advantages"].numpy()
    us = advantages(rewards, advantage_scale="none")
    assert theirs[1] == 0
    others = rewards[[0, 2, 3]]
    np.testing.assert_allclose(theirs[[0, 2, 3]], others - others.mean(), rtol=1e-12)
    assert not us[:GROUP].any()
    np.testing.assert_allclose(us[GROUP:], theirs[GROUP:], rtol=1e-6)


@pytest.mark.parametrize("name", ["grpo", "dapo", "dr_grpo"])
def test_two_micro_batches(name):
    """Rows of equal micro-batches and tokens of the whole batch are counted alike: the sum is our loss of all rows."""
    theirs, us = LOSSES[name]
    halves = {"steps_per_generation": 2, "current_gradient_accumulation_steps": 2, "gradient_accumulation_steps": 2}
    judge = Judge(GRPOTrainer, case(), **theirs, **halves)
    inputs = judge.inputs()
    parts = [judge.loss(inputs, rows) for rows in (slice(0, 4), slice(4, 8))]
    assert_same([sum(part) for part in zip(*parts, strict=True)], ours(case(), inputs, **us))


def test_bnpo_counts_the_tokens_of_its_micro_batch():
    """So its loss is the mean over micro-batches of our loss with denominators of that micro-batch alone."""
    theirs, us = LOSSES["bnpo"]
    judge = Judge(GRPOTrainer, case(), **theirs, current_gradient_accumulation_steps=2)
    inputs = judge.inputs()
    parts = [judge.loss(inputs, rows) for rows in (slice(0, 4), slice(4, 8))]
    tokens = case().batch.lengths.reshape(2, 4).sum(axis=1)
    local = np.repeat(tokens.sum() / tokens / 2, 4)[:, None]
    whole = [sum(part) for part in zip(*parts, strict=True)]
    changed = ours(case(), inputs, lambda given: weighed(given, local), **us)
    assert_same(whole, changed)
    assert abs(ours(case(), inputs, **us)[0] - whole[0]) > 1e-3


def weighed(given, factor):
    return given._replace(
        weights=given.weights * factor,
        policy_weights=given.policy_weights * factor,
        kl_weights=given.kl_weights * factor,
    )


@pytest.mark.parametrize("name", ["grpo", "bnpo", "dapo", "dr_grpo"])
def test_masked_completions(name):
    """Both leave them in the group's mean. TRL's rows, but not its tokens, are still counted in the denominator."""
    theirs, us = LOSSES[name]
    judge = Judge(GRPOTrainer, case(True), mask_truncated_completions=True, **theirs)
    inputs = judge.inputs()
    np.testing.assert_array_equal(inputs["advantages"], Judge(GRPOTrainer, case(), **theirs).inputs()["advantages"])
    share = 1.0 if name in ("bnpo", "dapo") else case(True).batch.counted.sum() / ROWS
    assert_same(judge.loss(inputs), ours(case(True), inputs, lambda given: weighed(given, share), **us))


@pytest.mark.parametrize("mode", ["token_truncate", "token_mask", "sequence_truncate", "sequence_mask"])
def test_corrections_for_the_rollout(mode):
    """TRL multiplies the policy's part of the loss, not the KL's; so do we. Its truncation can have a lower bound."""
    drawn = case().batch.old + numbers(np.random.default_rng(4), 0.06, 0.2)
    limits = {"low": 0.9, "high": 1.1}
    masks = mode.endswith("mask")
    judge = Judge(
        GRPOTrainer,
        case(),
        drawn,
        use_vllm=True,
        vllm_importance_sampling_mode=mode,
        vllm_importance_sampling_clip_min=limits["low"] if masks else None,
        vllm_importance_sampling_clip_max=limits["high"],
        **CLIP,
        **KL,
    )
    inputs = judge.inputs()
    inside = case().batch.inside
    limits = {f"rollout_correction_{side}": limit for side, limit in limits.items()}
    us = rollout_corrections(case().batch.old, drawn, inside, config(rollout_correction=mode, **limits))
    theirs = np.broadcast_to(inputs["importance_sampling_ratio"].numpy(), us.shape)
    np.testing.assert_allclose(us[inside], theirs[inside], rtol=1e-6)
    assert 3 < (us[inside] == (0.0 if masks else np.float32(1.1))).sum() < inside.sum() - 3
    assert_same(judge.loss(inputs), ours(case(), inputs, **LOSSES["grpo"][1]))


def test_entropy_bonus():
    """TRL's is a mean over tokens whatever the loss; ours weighs tokens as the loss does, the same for token_mean."""
    entropies = np.random.default_rng(4).uniform(0.1, 2.0, (ROWS, SLOTS))
    theirs, us = LOSSES["bnpo"]
    judge = Judge(GRPOTrainer, case(), entropies=entropies, entropy_coef=0.5, **theirs)
    inputs = judge.inputs()
    loss, gradient = judge.loss(inputs)
    settings = {**us, "entropy_coef": 0.5}
    given = told(case(), config(**settings))
    given = given._replace(advantages=given.advantages * 0 + inputs["advantages"].numpy()[:, None])
    values, slopes = graph(**settings)(np.concatenate([case().logps, entropies], axis=1), given)
    assert_same((loss, gradient), (values.loss.sum(dtype=np.float64), slopes[:, :SLOTS]))
    np.testing.assert_allclose(slopes[:, SLOTS:], -0.5 * given.weights, rtol=1e-6)


def test_rloo_advantages():
    """KL in the reward: k1 of the whole completion under the policy that drew it."""
    batch = case().batch
    theirs = Judge(RLOOTrainer, case(), beta=0.3).inputs()["advantages"].numpy()
    us = advantages(batch.rewards, 0.3 * (batch.old - batch.ref), advantage_estimator="rloo", advantage_scale="none")
    np.testing.assert_allclose(us, theirs, rtol=1e-6, atol=1e-6)


def test_rloo_loss():
    """TRL clips the ratio of the whole completion, no mean over tokens. On policy its gradient is the paper's."""
    judge = Judge(RLOOTrainer, case(), beta=0.3, **CLIP)
    inputs = judge.inputs()
    settings = {"importance_level": "sequence", **CLIP}
    us = ours(case(), inputs, lambda given: given._replace(shares=given.shares > 0), **settings)
    assert_same(judge.loss(inputs), us)

    on_policy = replace(case(), batch=replace(case().batch, old=case().logps))
    judge = Judge(RLOOTrainer, on_policy, beta=0.3, **CLIP)
    inputs = judge.inputs()
    paper = {"policy_loss": "reinforce", "loss_aggregation": "constant", "loss_constant": 1}
    np.testing.assert_allclose(ours(on_policy, inputs, **paper)[1], judge.loss(inputs)[1], rtol=1e-6, atol=1e-8)
