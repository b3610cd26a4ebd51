"""Steps with one update: DAPO in packed rows, and corrected nucleus sampling with the KL in the reward."""

import numpy as np
import pytest
from helpers.small_trainers import GAP, ODD, make_trainer, same, step_with_another_generator
from helpers.tiny_runs import MODEL

from r1parallel.checkpoint.load import read_model
from r1parallel.errors import UserError
from r1parallel.models.parameters import parameter_values, random_values
from r1parallel.monitor.phases import PhaseTimer
from r1parallel.rl.objective.kl import kl_values

pytestmark = pytest.mark.usefixtures("mindspore_cpu", "sevens")


@pytest.fixture(scope="module")
def moving(inputs):
    """DAPO in packed rows: one update a step, no KL, groups that are equal are searched for others."""
    trainer = make_trainer(
        inputs,
        MODEL,
        read_model(inputs.checkpoint, MODEL),
        algorithm="dapo",
        packing="true",
        pack_length=30,
        batch_size=4,
        num_iterations=1,
        num_generations=2,
        num_rollouts=8,
        overlong="keep",
        calculate_entropy="true",
        actor_config__lr_schedule__lr=0.01,
    )
    trainer.results = [trainer.run_step(number, PhaseTimer(), False) for number in range(12)]
    return trainer


def test_a_reward_that_can_be_moved_rises(moving):
    assert moving.reference is None
    assert moving.actor.old_logps is None
    results = [result.metrics for result in moving.results]
    rewards = [metrics["reward_mean"] for metrics in results]
    assert np.mean(rewards[:2]) < 0.2
    assert np.mean(rewards[-2:]) > 0.5
    # One update a rollout and no old log-probs: the ratio is 1 by definition, nobody measures it. There is no KL term.
    assert moving.train.updates == 12
    assert not any("first_update_ratio_deviation" in metrics for metrics in results)
    assert all(metrics["ratio_mean"] == 1.0 and metrics["clip_fraction"] == 0.0 for metrics in results)
    assert all(metrics["kl"] == metrics["kl_loss"] == 0.0 for metrics in results)
    assert all(metrics["rollout_logp_diff_max"] < 1e-4 for metrics in results)
    assert results[0]["entropy"] == pytest.approx(np.log(32), abs=0.3)
    assert results[-1]["entropy"] < results[0]["entropy"]


def test_groups_that_dynamic_sampling_leaves_equal_are_not_learned_from(moving):
    refilled = 0
    for result in moving.results:
        experience, metrics = result.experience, result.metrics
        equal = np.ptp(experience.scores.total.reshape(-1, 2), axis=1) == 0
        np.testing.assert_array_equal(experience.counted, ~np.repeat(equal, 2))
        assert metrics["learned_fraction"] == experience.counted.mean()
        assert metrics["frac_groups_left_equal"] == equal.mean()
        refilled += metrics["refilled_groups"]
        assert metrics["tokens"] == metrics["completion_length_mean"] * 32 + metrics["refill_tokens"]
    assert refilled > 0


@pytest.fixture(scope="module")
def corrected(inputs):
    """Nucleus sampling with a correction; the KL is in the reward; one update a step; rows that are packed."""
    trainer = make_trainer(
        inputs,
        ODD,
        random_values(ODD, 0, 0.3),
        algorithm="reinforce_plus_plus",
        overlong="mask",
        num_iterations=1,
        packing="true",
        batch_size=2,
        beta=0.5,
        rollout_correction="token_truncate",
        rollout_correction_high=0.81,
        ref_config__ref_model_batch_size=2,
        actor_config__parallel_config__micro_batch_num=1,
        actor_config__lr_schedule__lr=0.01,
        generate_config__sampling_config__top_p=0.8,
        generate_config__sampling_config__temperature=1.3,
    )
    trainer.results = [trainer.run_step(number, PhaseTimer(), False) for number in range(3)]
    return trainer


def test_nucleus_sampling_is_corrected_by_the_mass_that_it_kept(corrected):
    """π / μ of a drawn token is the probability of all tokens that could be drawn: top_p at least, 1 at most."""
    for result in corrected.results:
        experience, inside = result.experience, result.experience.inside
        ratios = np.exp((experience.old_logps - experience.drawn_logps)[inside])
        assert 0.8 - 1e-4 <= ratios.min() < ratios.max() <= 1.0 + 1e-4
        np.testing.assert_allclose(experience.corrections[inside], np.minimum(ratios, 0.81), rtol=1e-6)
        assert (experience.corrections[inside] == np.float32(0.81)).any()
        assert result.metrics["rollout_logp_diff_max"] < 1e-4  # measured without the cut


def test_completions_that_are_cut_off_are_masked(corrected):
    for result in corrected.results:
        stopped = result.experience.stopped
        assert 0 < stopped.sum() < len(stopped)
        np.testing.assert_array_equal(result.experience.counted, stopped)
        assert result.metrics["learned_fraction"] == stopped.mean()


def test_kl_in_the_reward_moves_the_advantages(corrected):
    first, *later = corrected.results
    assert all(result.metrics["first_update_ratio_deviation"] == 0.0 for result in corrected.results)
    assert first.metrics["first_update_kl_max"] == first.metrics["kl"] == 0.0
    assert all(result.metrics["kl_loss"] == 0.0 for result in corrected.results)
    for result in later:
        made = result.experience
        kl = kl_values(made.old_logps, made.ref_logps, "k1", 0.0)[made.learned]
        assert np.abs(kl).max() > 1e-3
        assert result.metrics["kl"] == pytest.approx(kl.mean())
        assert result.metrics["first_update_kl_max"] == pytest.approx(np.abs(kl).max())
        # Inside a completion advantages differ by what is still to be paid.
        row = int(np.argmax(made.lengths))
        assert np.ptp(made.advantages[row, : made.lengths[row]]) > 1e-3


@pytest.mark.parametrize("name", ["moving", "corrected"])
def test_a_generator_with_other_weights_stops_the_run_before_its_only_update(name, request):
    """Both where the update itself says the old log-probs and where something needs them before."""
    trainer = request.getfixturevalue(name)
    before, updates = parameter_values(trainer.actor.model), trainer.train.updates
    with pytest.raises(UserError, match=GAP):
        step_with_another_generator(trainer)
    assert same(parameter_values(trainer.actor.model), before) and trainer.train.updates == updates
