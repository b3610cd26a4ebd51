from dataclasses import replace

import grpo_reference as paper
import numpy as np
import pytest
from helpers import made_up
from helpers.tiny_runs import MODEL
from helpers.update_recorder import (
    Recorder,
    assert_same_gradients,
    make_logps,
    make_model,
    make_recorder,
    update,
)
from hypothesis import given
from hypothesis import strategies as st
from mindspore import Tensor

from r1parallel.config.schema import RLConfig
from r1parallel.errors import UserError
from r1parallel.models.parameters import parameter_values
from r1parallel.rl.experience.experience import Experience, compute_advantages
from r1parallel.rl.experience.rows import RowShape
from r1parallel.rl.metrics import completion_kl, experience_metrics, reward_metrics, update_metrics
from r1parallel.rl.objective.losses import token_values
from r1parallel.rl.update import Batch, token_inputs, update_batches
from r1parallel.training.step import TrainStep

GROUP, ROWS, SHAPE = 4, 8, RowShape(4, 6)
SLOTS = SHAPE.completion
LENGTHS = np.array([1, SLOTS, 3, 4, 2, 5, SLOTS, 1], np.int32)
GRPO = RLConfig(num_generations=GROUP, beta=0.04)


@pytest.fixture(scope="module")
def model(mindspore_cpu):
    return make_model(MODEL, SHAPE)


@pytest.fixture(scope="module")
def steps(model):
    """Rows of a micro-batch → the step that takes such micro-batches."""
    return {rows: make_recorder(model, SHAPE, GRPO, rows) for rows in (1, 2, 4)}


@pytest.fixture(scope="module")
def only_step(model):
    """The step of an update that is the only one of its rollout."""
    return make_recorder(model, SHAPE, GRPO, 4, on_policy=True)


@pytest.fixture(scope="module")
def experience(model) -> Experience:
    """Old log-probs are the model's, by a graph without a backward pass; those of rollout and reference are near."""
    rng = np.random.default_rng(0)
    rewards = np.array([1.0, 0, 0, 2, 0, 1, 1, 1])
    made = made_up.experience(0, GRPO, 2, SHAPE.prompt, SLOTS, MODEL.vocab_size)
    made = replace(
        made,
        starts=np.array([0, 0, 0, 0, 2, 2, 2, 2], np.int32),
        lengths=LENGTHS,
        stopped=LENGTHS < SLOTS,
        prompt_rows=np.repeat([11, 7], GROUP),
        rewards=rewards,
        scores=made_up.scores(rewards),
        counted=np.full(ROWS, True),
        old_logps=np.zeros_like(made.old_logps),
    )
    logps = make_logps(model, 4, SHAPE)
    for part in SHAPE.rows(made, np.arange(ROWS), 4).parts(4):
        part.put(logps(Tensor(part.tokens), Tensor(part.row_data)).asnumpy(), made.old_logps)
    noise = rng.normal(0, 0.2, (2, ROWS, SLOTS)).astype(np.float32)
    made.ref_logps = np.where(made.inside, made.old_logps + noise[0], 0)
    made.rollout_logps = np.where(made.inside, made.old_logps + noise[1] * 1e-3, 0)
    compute_advantages(made, GRPO, GRPO.beta)
    return made


def moved_policy(experience):
    """The same with other old log-probs, so that ratios differ from 1 and some are clipped."""
    shift = np.random.default_rng(5).normal(0, 0.3, experience.old_logps.shape).astype(np.float32)
    return replace(experience, old_logps=np.where(experience.inside, experience.old_logps + shift, 0))


def run(step, experience, samples, settings=GRPO, **how):
    return update(step, SHAPE, experience, samples, settings, **how)


def metrics_of(statistics, settings=GRPO):
    return update_metrics(statistics, settings)


def test_loss_and_metrics_of_an_update_are_the_papers(steps, experience):
    moved = moved_policy(experience)
    metrics = metrics_of(run(steps[4], moved, range(ROWS)))
    expected = paper.grpo(
        experience.old_logps, moved.old_logps, moved.ref_logps, moved.rewards, GROUP, LENGTHS, 0.2, 0.2, GRPO.beta
    )
    inside = moved.inside
    assert metrics["loss"] == pytest.approx(expected.loss, abs=2e-6)
    assert metrics["kl_loss"] == pytest.approx(expected.kl_loss, rel=1e-4)
    assert metrics["actor_loss"] == pytest.approx(expected.loss - expected.kl_loss, abs=2e-6)
    assert metrics["ratio_mean"] == pytest.approx(expected.ratio[inside].mean(), rel=1e-5)
    assert metrics["kl"] == pytest.approx(expected.kl[inside].mean(), rel=1e-4)
    assert metrics["clip_fraction"] == pytest.approx(expected.clipped[inside].mean())
    assert metrics["first_update_ratio_deviation"] == pytest.approx(np.abs(expected.ratio - 1).max(), rel=1e-4)
    assert metrics["first_update_kl_max"] == pytest.approx(expected.kl.max(), rel=1e-4)
    assert metrics["first_update_clip_fraction"] == metrics["clip_fraction"] > 0


@pytest.mark.parametrize("micro_rows", [1, 2])
def test_micro_batches_do_not_change_loss_or_gradients(steps, experience, micro_rows):
    experience = moved_policy(experience)
    whole = run(steps[4], experience, range(ROWS))
    parts = run(steps[micro_rows], experience, range(ROWS))
    assert steps[micro_rows].loss == pytest.approx(steps[4].loss, rel=1e-6, abs=5e-7)
    assert_same_gradients(steps[micro_rows].gradients, steps[4].gradients)
    before, after = metrics_of(whole), metrics_of(parts)
    assert before["clip_fraction"] > 0
    assert after == pytest.approx(before, rel=1e-5, abs=2e-6)


@pytest.mark.parametrize("counted", [np.arange(ROWS) < GROUP, np.arange(ROWS) % 3 > 0, np.arange(ROWS) == 5])
def test_what_is_not_counted_is_in_no_denominator(steps, experience, counted):
    """A group that could not be scored, completions that are masked: the others alone give the same."""
    moved = moved_policy(experience)
    both = run(steps[4], replace(moved, counted=counted), range(ROWS))
    loss, gradients = steps[4].loss, steps[4].gradients
    alone = run(steps[1], moved, np.flatnonzero(counted))
    assert loss == pytest.approx(steps[1].loss, rel=1e-6, abs=5e-7)
    assert_same_gradients(gradients, steps[1].gradients)
    assert both.tokens == alone.tokens == LENGTHS[counted].sum()
    assert metrics_of(both) == pytest.approx(metrics_of(alone), rel=1e-5, abs=2e-6)


@pytest.mark.parametrize("aggregation", ["sequence_mean", "token_mean", "constant"])
def test_a_completion_that_is_cut_off_leaves_numerator_and_denominator(experience, aggregation):
    settings = replace(GRPO, loss_aggregation=aggregation)
    masked = replace(experience, counted=experience.stopped)
    assert 0 < (~experience.stopped).sum() < ROWS
    samples = np.arange(ROWS)
    given_now = token_inputs(masked, Batch(0, samples, SHAPE.rows(masked, samples, ROWS)), settings, 1.0)
    left = np.flatnonzero(experience.stopped)
    given_alone = token_inputs(experience, Batch(0, left, SHAPE.rows(experience, left, 1)), settings, 1.0)
    for name in ("weights", "policy_weights", "kl_weights"):
        now, alone = getattr(given_now, name), getattr(given_alone, name)
        assert not now[~experience.stopped].any()
        np.testing.assert_allclose(now[experience.stopped], alone, rtol=1e-12)
    total = given_now.weights.sum()
    lengths = LENGTHS[experience.stopped]
    expected = {"sequence_mean": 1.0, "token_mean": 1.0, "constant": lengths.sum() / len(lengths) / SLOTS}
    assert total == pytest.approx(expected[aggregation])


def test_weights_carry_correction_and_beta(experience):
    samples = np.array([5, 2, 7])
    made = replace(experience, corrections=np.random.default_rng(0).random((ROWS, SLOTS)).astype(np.float32))
    batch = Batch(0, samples, SHAPE.rows(made, samples, 2))
    given_now = token_inputs(made, batch, GRPO, 0.25)
    np.testing.assert_allclose(given_now.policy_weights[:3], given_now.weights[:3] * made.corrections[samples])
    np.testing.assert_allclose(given_now.kl_weights, given_now.weights * 0.25)
    np.testing.assert_array_equal(given_now.shares[:3] > 0, made.inside[samples])
    np.testing.assert_allclose(given_now.shares.sum(axis=1), [1, 1, 1, 0])
    inside = made.inside[samples]
    np.testing.assert_array_equal(
        given_now.sequences[:3], np.where(inside, np.broadcast_to(samples[:, None], inside.shape), -1)
    )


def test_forward_graph_and_training_graph_agree_to_the_last_bit(steps, experience):
    order = np.random.default_rng(1).permutation(ROWS)
    rows = SHAPE.rows(experience, order, 4)
    steps[4].forget()
    given_now = token_inputs(experience, Batch(0, order, rows), GRPO, GRPO.beta)
    logps = token_values(steps[4].accumulate(rows.tokens, rows.row_data, given_now.concatenated())).logps
    inside = experience.inside[order]
    np.testing.assert_array_equal(logps[inside], experience.old_logps[order][inside])


def test_first_update_has_ratio_exactly_one(steps, experience):
    same = replace(experience, ref_logps=experience.old_logps)
    for samples in (np.arange(ROWS), np.array([3, 6, 1, 4, 0])):
        metrics = metrics_of(run(steps[4], same, samples))
        assert metrics["first_update_ratio_deviation"] == metrics["first_update_kl_max"] == 0.0
        assert metrics["first_update_clip_fraction"] == metrics["kl_loss"] == 0.0
        assert metrics["ratio_mean"] == 1.0
    run(steps[4], same, np.arange(ROWS))
    assert steps[4].loss == pytest.approx(0.0, abs=1e-6)  # advantages of a group sum to 0
    assert all(gradient.any() for gradient in steps[4].gradients.values())


def test_the_first_update_alone_says_where_the_policy_stood(steps, experience):
    statistics = run(steps[4], experience, range(GROUP))
    moved = moved_policy(experience)
    run(steps[4], moved, range(GROUP, ROWS), statistics=statistics)
    metrics = metrics_of(statistics)
    assert metrics["first_update_ratio_deviation"] == metrics["first_update_clip_fraction"] == 0.0
    assert metrics["clip_fraction"] > 0.0
    assert statistics.first_tokens == LENGTHS[:GROUP].sum()
    assert statistics.tokens == LENGTHS.sum()
    assert len(statistics.losses) == len(statistics.norms) == 2


def test_an_only_update_notes_the_log_probs_and_has_the_same_gradient(steps, only_step, experience):
    unknown = replace(experience, old_logps=np.full_like(experience.old_logps, np.nan))
    statistics = run(only_step, unknown, range(ROWS), on_policy=True, has_old_logps=False)
    inside = experience.inside
    np.testing.assert_array_equal(unknown.old_logps[inside], experience.old_logps[inside])
    assert metrics_of(statistics)["ratio_mean"] == 1.0
    run(steps[4], experience, range(ROWS))
    assert only_step.loss == pytest.approx(steps[4].loss, abs=1e-6)
    assert_same_gradients(only_step.gradients, steps[4].gradients)
    metrics = experience_metrics(unknown, GRPO)
    gap = np.abs(experience.rollout_logps - experience.old_logps)[inside]
    assert metrics["rollout_logp_diff_mean"] == pytest.approx(gap.mean(), rel=1e-5)
    assert metrics["rollout_logp_diff_max"] == pytest.approx(gap.max(), rel=1e-5)
    assert 0.99 < metrics["rollout_logp_correlation"] < 1.0
    assert metrics["learned_fraction"] == 1.0
    assert metrics["advantage_mean"] == pytest.approx(experience.advantages[inside].mean(), abs=1e-6)


@pytest.mark.parametrize("has_old_logps", [False, True])
def test_the_ratio_of_an_only_update_is_measured_against_the_forward_graph_or_not_at_all(
    only_step, experience, has_old_logps
):
    same = replace(experience, old_logps=experience.old_logps.copy())
    moved = moved_policy(experience)
    expected = np.abs(np.exp((experience.old_logps - moved.old_logps)[experience.inside]) - 1.0).max()
    found = [
        metrics_of(run(only_step, made, range(ROWS), on_policy=True, has_old_logps=has_old_logps))
        for made in (same, moved)
    ]
    if not has_old_logps:
        assert not any("first_update_ratio_deviation" in metrics for metrics in found)
        return
    assert found[0]["first_update_ratio_deviation"] == 0.0
    assert expected > 0.1
    assert found[1]["first_update_ratio_deviation"] == pytest.approx(expected, rel=1e-4)
    assert found[1]["ratio_mean"] == 1.0


def test_an_only_update_stops_before_it_where_the_gap_is_too_large(model, only_step, experience, monkeypatch):
    monkeypatch.setattr(Recorder, "apply", TrainStep.apply)
    before = parameter_values(model)
    far = replace(experience, rollout_logps=experience.rollout_logps - np.float32(0.2))
    with pytest.raises(UserError, match=r"^step 1: rollout and training log-probs differ by 0\.2 nats") as error:
        run(only_step, far, range(ROWS), on_policy=True, has_old_logps=False)
    assert "\n" not in str(error.value)
    assert only_step.updates == 0
    for name, value in parameter_values(model).items():
        np.testing.assert_array_equal(value, before[name])


def test_bad_numbers_stop_before_the_update_and_name_the_rows(model, steps, experience, monkeypatch):
    monkeypatch.setattr(Recorder, "apply", TrainStep.apply)
    before = parameter_values(model)
    broken = replace(experience, advantages=experience.advantages.copy())
    broken.advantages[2, 0] = np.inf
    message = r"loss is (nan|-?inf) at step 1, data set rows 7, 11; stopped before the update"
    with pytest.raises(UserError, match=message):
        run(steps[4], broken, range(ROWS))
    assert steps[4].updates == 0
    for name, value in parameter_values(model).items():
        np.testing.assert_array_equal(value, before[name])


@given(st.integers(1, 30), st.integers(1, 12), st.integers(1, 3), st.integers(0, 9))
def test_every_pass_takes_every_completion_once_in_updates_of_nearly_one_size(count, batch, iterations, number):
    updates = list(update_batches(count, batch, iterations, [0, number]))
    each = -(-count // batch)
    assert [iteration for iteration, _ in updates] == sorted(list(range(iterations)) * each)
    sizes = [len(samples) for _, samples in updates]
    assert max(sizes) <= batch and max(sizes) - min(sizes) <= 1
    for iteration in range(iterations):
        samples = np.concatenate([samples for i, samples in updates if i == iteration])
        np.testing.assert_array_equal(np.sort(samples), np.arange(count))


def test_order_of_completions_depends_on_seed_step_and_pass():
    orders = {tuple(rows) for seed in ([0, 0], [0, 1], [1, 0]) for _, rows in update_batches(16, 16, 2, seed)}
    assert len(orders) == 6
    again = [rows.tolist() for _, rows in update_batches(16, 4, 2, [0, 1])]
    assert again == [rows.tolist() for _, rows in update_batches(16, 4, 2, [0, 1])]


def test_metrics_are_finite_when_nothing_is_learned_from(steps, experience):
    nothing = np.full(ROWS, np.nan)
    skipped = replace(experience, rewards=nothing, scores=made_up.scores(nothing), counted=np.zeros(ROWS, bool))
    compute_advantages(skipped, GRPO, GRPO.beta)
    statistics = run(steps[4], skipped, range(ROWS))
    metrics = metrics_of(statistics) | reward_metrics(skipped, GROUP) | experience_metrics(skipped, GRPO)
    assert metrics["skipped_groups"] == 2
    assert "reward_mean" not in metrics and "advantage_mean" not in metrics
    assert all(np.isfinite(value) for value in metrics.values())
    assert metrics["loss"] == metrics["grad_norm"] == metrics["learned_fraction"] == 0.0
    assert completion_kl(skipped, GRPO) == 0.0
