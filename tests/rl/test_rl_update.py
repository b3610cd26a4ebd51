from dataclasses import replace

import grpo_reference as paper
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from mindspore import Tensor
from one_rank import actor_config
from tiny_runs import MODEL

from r1parallel.config.schema import OptimizerConfig
from r1parallel.errors import UserError
from r1parallel.models.logps import CompletionLogps
from r1parallel.models.parameters import load_parameters, parameter_values, random_values
from r1parallel.models.qwen2_5 import Qwen2ForCausalLM
from r1parallel.parallel.layout import ModelLayout
from r1parallel.parallel.mesh import Mesh
from r1parallel.parallel.world import World
from r1parallel.rewards import Scores
from r1parallel.rl.advantages import group_advantages, kept_rows
from r1parallel.rl.experience import Experience, batched_logps
from r1parallel.rl.losses import GRPOLoss, token_values
from r1parallel.rl.metrics import reward_metrics, update_metrics
from r1parallel.rl.models import Slots, example_batch
from r1parallel.rl.update import TokenStatistics, run_update, update_batches
from r1parallel.training.step import TrainStep

GROUP, ROWS, PROMPT, SLOTS = 4, 8, 4, 6
LENGTHS = np.array([1, SLOTS, 3, 4, 2, 5, SLOTS, 1], np.int32)
BETA = 0.04


class Recorder(TrainStep):
    """Keeps what `apply` was given instead of updating the parameters."""

    def apply(self, lr, loss, where):
        self.loss = loss
        self.gradients = {p.name: p.asnumpy().astype(np.float64) for p in self.optimizer.sums}
        return length(self.gradients.values())

    def forget(self):
        for p in self.optimizer.sums:
            p.set_data(Tensor(np.zeros_like(p.asnumpy())))


def length(gradients):
    return float(np.sqrt(sum((gradient**2).sum() for gradient in gradients)))


@pytest.fixture(scope="module")
def model(mindspore_cpu):
    model = Qwen2ForCausalLM(MODEL, PROMPT + SLOTS)
    load_parameters(model, random_values(MODEL, 0, 0.3), "random")
    return model


@pytest.fixture(scope="module")
def steps(model):
    """Rows of a micro-batch → the step that takes ROWS rows an update in such micro-batches."""
    return {micro_rows: make_step(model, ROWS, micro_rows) for micro_rows in (1, 2, 4)}


@pytest.fixture(scope="module")
def group_step(model):
    """The step that takes one group an update, as one micro-batch."""
    return make_step(model, GROUP, GROUP)


def make_step(model, rows, micro_rows):
    loss = GRPOLoss(CompletionLogps(model, micro_rows, PROMPT, SLOTS), 0.2, 0.2, BETA, on_policy=False)
    config, examples = actor_config(OptimizerConfig(), rows // micro_rows), example_batch(rows, Slots(PROMPT, SLOTS))
    return Recorder(loss, model.trainable_params(), ModelLayout(MODEL, Mesh()), World(), config, examples)


@pytest.fixture(scope="module")
def experience(model):
    rng = np.random.default_rng(0)
    rewards = np.array([1.0, 0, 0, 2, 0, 1, 1, 1])
    empty = np.zeros((ROWS, SLOTS), np.float32)
    made = Experience(
        tokens=rng.integers(0, MODEL.vocab_size, (ROWS, PROMPT + SLOTS)).astype(np.int32),
        starts=np.array([0, 0, 0, 0, 2, 2, 2, 2], np.int32),
        lengths=LENGTHS,
        stopped=LENGTHS < SLOTS,
        prompt_rows=np.repeat([11, 7], GROUP),
        rollout_logps=empty,
        old_logps=empty,
        ref_logps=empty,
        rewards=rewards,
        scores=Scores(rewards, {"accuracy_reward": rewards}, np.isnan(rewards), 0),
        advantages=group_advantages(rewards, GROUP),
        kept=kept_rows(rewards, GROUP),
    )
    logps_cell = CompletionLogps(model, 4, PROMPT, SLOTS)
    made.old_logps = batched_logps(logps_cell, 4, made, np.arange(ROWS), "old", False)
    noise = rng.normal(0, 0.2, (2, ROWS, SLOTS)).astype(np.float32)
    made.ref_logps = np.where(made.inside, made.old_logps + noise[0], 0)
    made.rollout_logps = np.where(made.inside, made.old_logps + noise[1] * 1e-3, 0)
    return made


def moved_policy(experience):
    """The same with other old log-probs, so that ratios differ from 1 and some are clipped."""
    shift = np.random.default_rng(5).normal(0, 0.3, experience.old_logps.shape).astype(np.float32)
    return replace(experience, old_logps=np.where(experience.inside, experience.old_logps + shift, 0))


def update(step, experience, rows, first_pass=True, statistics=None):
    step.forget()
    statistics = statistics or TokenStatistics()
    run_update(step, experience, np.asarray(rows), BETA, 1e-3, "step 1", statistics, first_pass)
    return statistics


def assert_same_gradients(actual, expected):
    """Up to fp32 rounding through the whole model; a wrong denominator would be off by a tenth and more."""
    differences = {name: actual[name] - gradient for name, gradient in expected.items()}
    assert length(differences.values()) <= 3e-6 * length(expected.values())
    for name, difference in differences.items():
        assert length([difference]) <= 1e-5 * length([expected[name]]), name


def test_loss_and_metrics_of_an_update_are_the_papers(steps, experience):
    moved = moved_policy(experience)
    metrics = update_metrics(update(steps[4], moved, range(ROWS)))
    expected = paper.grpo(
        experience.old_logps, moved.old_logps, moved.ref_logps, moved.rewards, GROUP, LENGTHS, 0.2, 0.2, BETA
    )
    inside = moved.inside
    assert metrics["loss"] == pytest.approx(expected.loss, abs=2e-6)
    assert metrics["kl_loss"] == pytest.approx(expected.kl_loss, rel=1e-4)
    assert metrics["actor_loss"] == pytest.approx(expected.loss - expected.kl_loss, abs=2e-6)
    assert metrics["ratio_mean"] == pytest.approx(expected.ratio[inside].mean(), rel=1e-5)
    assert metrics["kl"] == pytest.approx(expected.kl[inside].mean(), rel=1e-4)
    assert metrics["clip_fraction"] == pytest.approx(expected.clipped[inside].mean())
    assert metrics["first_update_ratio_deviation"] == pytest.approx(np.abs(expected.ratio - 1).max(), rel=1e-4)
    assert metrics["first_update_clip_fraction"] == metrics["clip_fraction"] > 0


@pytest.mark.parametrize("micro_rows", [1, 2])
def test_micro_batches_do_not_change_loss_or_gradients(steps, experience, micro_rows):
    experience = moved_policy(experience)
    whole = update(steps[4], experience, range(ROWS))
    parts = update(steps[micro_rows], experience, range(ROWS))
    assert steps[micro_rows].loss == pytest.approx(steps[4].loss, rel=1e-6, abs=5e-7)
    assert_same_gradients(steps[micro_rows].gradients, steps[4].gradients)
    before, after = update_metrics(whole), update_metrics(parts)
    assert before["clip_fraction"] > 0
    assert after == pytest.approx(before, rel=1e-5, abs=2e-6)


def test_order_of_rows_does_not_change_loss_or_gradients(steps, experience):
    experience = moved_policy(experience)
    update(steps[4], experience, range(ROWS))
    loss, gradients = steps[4].loss, steps[4].gradients
    for seed in range(3):
        update(steps[4], experience, np.random.default_rng(seed).permutation(ROWS))
        assert steps[4].loss == pytest.approx(loss, rel=1e-6, abs=5e-7)
        assert_same_gradients(steps[4].gradients, gradients)


def test_a_skipped_group_counts_nowhere(steps, group_step, experience):
    skipped = replace(experience, kept=np.repeat([True, False], GROUP))
    both = update(steps[4], skipped, range(ROWS))
    loss, gradients = steps[4].loss, steps[4].gradients
    alone = update(group_step, experience, range(GROUP))
    assert loss == pytest.approx(group_step.loss, rel=1e-6, abs=5e-7)
    assert_same_gradients(gradients, group_step.gradients)
    assert both.tokens == alone.tokens == LENGTHS[:GROUP].sum()


def test_forward_graph_and_training_graph_agree_to_the_last_bit(model, steps, experience):
    order = np.random.default_rng(1).permutation(ROWS)
    unused = np.zeros((ROWS, SLOTS), np.float32)
    steps[4].forget()
    inputs = (experience.tokens[order], experience.starts[order], unused, unused, unused[:, :1], unused)
    logps = token_values(steps[4].accumulate(*inputs)).logps
    inside = experience.inside[order]
    np.testing.assert_array_equal(logps[inside], experience.old_logps[order][inside])
    assert not any(p.asnumpy().any() for p in steps[4].optimizer.sums)  # weights of 0 give no gradient


def test_first_update_has_ratio_exactly_one(steps, experience):
    statistics = update(steps[4], experience, range(ROWS))
    metrics = update_metrics(statistics)
    assert metrics["first_update_ratio_deviation"] == 0.0
    assert metrics["first_update_clip_fraction"] == 0.0
    assert metrics["ratio_mean"] == 1.0
    assert metrics["actor_loss"] == pytest.approx(0.0, abs=1e-6)  # advantages of a group sum to 0
    gap = np.abs(experience.rollout_logps - experience.old_logps)[experience.inside]
    assert metrics["rollout_logp_diff_mean"] == pytest.approx(gap.mean(), rel=1e-5)
    assert metrics["rollout_logp_diff_max"] == pytest.approx(gap.max(), rel=1e-5)


def test_gap_to_the_rollout_does_not_hold_what_the_updates_changed(group_step, experience):
    """In a later update of the first pass the policy has moved; the gap is of the policy that made the rollout."""
    statistics = update(group_step, experience, range(GROUP))
    statistics.gap = statistics.gap_tokens = statistics.gap_max = 0.0
    far = replace(experience, old_logps=experience.old_logps + 1, rollout_logps=experience.rollout_logps + 1)
    update(group_step, far, range(GROUP, ROWS), statistics=statistics)
    assert 0 < statistics.gap_max < 0.01
    assert statistics.gap_tokens == LENGTHS[GROUP:].sum()
    assert statistics.first_tokens == LENGTHS[:GROUP].sum()


def test_gap_is_measured_in_the_first_pass_only(steps, experience):
    statistics = update(steps[4], experience, range(ROWS), first_pass=False)
    assert statistics.gap_tokens == 0
    assert statistics.tokens == LENGTHS.sum()


def test_bad_numbers_stop_before_the_update_and_name_the_rows(model, steps, experience, monkeypatch):
    monkeypatch.setattr(Recorder, "apply", TrainStep.apply)
    before = parameter_values(model)
    broken = replace(experience, advantages=np.where(np.arange(ROWS) == 2, np.inf, experience.advantages))
    broken.advantages = broken.advantages.astype(np.float32)
    message = r"loss is (nan|-?inf) at step 1, data set rows 7, 11; stopped before the update"
    with pytest.raises(UserError, match=message):
        update(steps[4], broken, range(ROWS))
    assert steps[4].updates == 0
    for name, value in parameter_values(model).items():
        np.testing.assert_array_equal(value, before[name])


@given(st.integers(1, 4), st.integers(1, 5), st.integers(1, 3), st.integers(0, 9))
def test_every_pass_takes_every_row_once(batches, batch, iterations, number):
    count = batches * batch
    updates = list(update_batches(count, batch, iterations, [0, number]))
    assert [iteration for iteration, _ in updates] == sorted(list(range(iterations)) * batches)
    for iteration in range(iterations):
        rows = np.concatenate([rows for i, rows in updates if i == iteration])
        np.testing.assert_array_equal(np.sort(rows), np.arange(count))


def test_order_of_rows_depends_on_seed_step_and_pass():
    orders = {tuple(rows) for seed in ([0, 0], [0, 1], [1, 0]) for _, rows in update_batches(16, 16, 2, seed)}
    assert len(orders) == 6
    again = [rows.tolist() for _, rows in update_batches(16, 4, 2, [0, 1])]
    assert again == [rows.tolist() for _, rows in update_batches(16, 4, 2, [0, 1])]


def test_reward_metrics_leave_out_skipped_groups(experience):
    rewards = np.array([0.5, 1.5, 0, 0, 1, np.nan, 1, 1, 2, 2, 2, 2])
    wide = replace(
        experience,
        tokens=np.zeros((12, PROMPT + SLOTS), np.int32),
        starts=np.repeat([0, 1, 3], GROUP),
        lengths=np.arange(1, 13),
        stopped=np.arange(12) > 2,
        rewards=rewards,
        scores=Scores(
            rewards,
            {"format_reward": np.where(rewards == 0.5, 0.5, 0), "accuracy_reward": rewards - (rewards == 0.5) * 0.5},
            np.isnan(rewards),
            0,
        ),
        advantages=group_advantages(rewards, GROUP),
        kept=kept_rows(rewards, GROUP),
    )
    metrics = reward_metrics(wide, GROUP)
    kept = np.array([0.5, 1.5, 0, 0, 2, 2, 2, 2])
    assert metrics["skipped_groups"] == 1
    assert metrics["reward_mean"] == kept.mean()
    assert metrics["reward_std"] == pytest.approx(kept.std())
    assert (metrics["reward_min"], metrics["reward_max"]) == (0, 2)
    assert metrics["frac_reward_zero_std"] == 0.5
    assert metrics["reward/format_reward"] == pytest.approx(0.5 / 8)
    assert metrics["accuracy"] == 0.0  # of the first reward that is no format: nobody has exactly 1
    assert metrics["completion_length_mean"] == 6.5
    assert metrics["completion_clipped_fraction"] == 0.25
    assert metrics["prompt_length_mean"] == pytest.approx((4 + 3 + 1) / 3)
    assert metrics["advantage_mean"] == pytest.approx(0, abs=1e-6)


def test_metrics_are_finite_when_no_group_can_be_scored(steps, experience):
    nothing = np.full(ROWS, np.nan)
    skipped = replace(
        experience, rewards=nothing, advantages=group_advantages(nothing, GROUP), kept=kept_rows(nothing, GROUP)
    )
    statistics = update(steps[4], skipped, range(ROWS))
    metrics = update_metrics(statistics) | reward_metrics(skipped, GROUP)
    assert metrics["skipped_groups"] == 2
    assert "reward_mean" not in metrics
    assert all(np.isfinite(value) for value in metrics.values())
    assert metrics["loss"] == metrics["grad_norm"] == 0.0
