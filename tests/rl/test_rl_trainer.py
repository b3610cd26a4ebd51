from types import SimpleNamespace

import numpy as np
import pytest
from helpers import made_up
from helpers.small_trainers import GAP, ODD, make_trainer, same, share_of_sevens, step_with_another_generator
from helpers.tiny_runs import MODEL, STOP_ID, grpo_config
from mindspore import Tensor

from r1parallel.checkpoint.load import ArraySource
from r1parallel.config.schema import RLConfig
from r1parallel.errors import UserError
from r1parallel.generation.engine import Completions
from r1parallel.models.logps import CompletionLogps
from r1parallel.models.parameters import model_parameters, parameter_values, random_values, state_values
from r1parallel.monitor.phases import PhaseTimer
from r1parallel.parallel.device import has_fused_kernels
from r1parallel.rl.experience.experience import collect
from r1parallel.rl.grpo import GRPOTraining
from r1parallel.rl.metrics import completion_kl
from r1parallel.rl.trainer import Trainer
from r1parallel.training.run import _load, _snapshot
from r1parallel.training.schedule import learning_rate

pytestmark = pytest.mark.usefixtures("mindspore_cpu", "sevens")


@pytest.fixture(scope="module")
def odd(inputs):
    """15 completions a step at another temperature than 1; two passes of four updates of 4, 4, 4 and 3 of them.

    A micro-batch has 3 rows. The reference follows the actor every second step, and beta follows the KL.
    """
    trainer = make_trainer(
        inputs,
        ODD,
        random_values(ODD, 0, 0.3),
        batch_size=3,
        mini_batch_size=4,
        num_generations=5,
        num_rollouts=3,
        chunk_size=1,
        kl_controller="adaptive",
        kl_target=0.05,
        kl_horizon=100,
        actor_config__parallel_config__micro_batch_num=1,
        ref_config__ref_model_batch_size=3,
        ref_config__sync_ref_model="true",
        ref_config__ref_model_sync_steps=2,
        generate_config__infer_model_batch_size=5,
        generate_config__sampling_config__max_tokens=7,
        generate_config__sampling_config__temperature=0.7,
    )
    trainer.results, trainer.samples, generate = [], [], trainer.engine.generate

    def noted(prompts, seed, samples, progress):
        trainer.samples += samples
        return generate(prompts, seed, samples, progress)

    trainer.engine.generate = noted
    trainer.references = [parameter_values(trainer.reference.model)]
    trainer.actors = [parameter_values(trainer.actor.model)]
    for number in range(4):
        trainer.results.append(trainer.run_step(number, PhaseTimer(), False))
        trainer.actors.append(parameter_values(trainer.actor.model))
        trainer.references.append(parameter_values(trainer.reference.model))
    return trainer


def test_ratio_of_the_first_update_is_exactly_one(odd):
    for result in odd.results:
        assert result.metrics["first_update_ratio_deviation"] == 0.0
        assert result.metrics["first_update_clip_fraction"] == 0.0
        assert result.metrics["ratio_mean"] != 1.0  # later updates have moved


def test_kl_is_exactly_zero_while_the_reference_is_the_actor(odd):
    """At the first step, and at the third, before which the reference took the actor's weights over."""
    largest = [result.metrics["first_update_kl_max"] for result in odd.results]
    assert largest[0] == largest[2] == 0.0
    assert min(largest[1], largest[3]) > 0.0


def test_rollout_and_training_graph_see_the_same_policy_at_this_temperature(odd):
    for result in odd.results:
        assert result.metrics["rollout_logp_diff_max"] < 1e-4  # 0 where both round alike; see another generator below
        assert result.metrics["rollout_logp_correlation"] > 0.999999


def test_metrics_are_finite_and_complete(odd):
    for number, result in enumerate(odd.results):
        assert all(np.isfinite(value) for value in result.metrics.values())
        lengths = result.experience.lengths
        assert result.metrics["tokens"] == lengths.sum()
        assert result.metrics["completion_length_mean"] == pytest.approx(lengths.mean())
        assert result.metrics["reward_mean"] == pytest.approx(np.mean(result.experience.rewards))
        assert result.metrics["kl"] > 0
        assert result.metrics["learned_fraction"] == 1.0
        updates_done = 8 * (number + 1)
        assert result.metrics["lr"] == learning_rate(odd.config.actor_config.lr_schedule, updates_done - 1)


def test_updates_are_counted_and_move_the_actor(odd):
    assert [len(samples) for _, samples in odd._samples(0)] == [4, 4, 4, 3] * 2
    assert odd.train.updates == 4 * 8
    assert all(not same(before, after) for before, after in zip(odd.actors[:-1], odd.actors[1:], strict=True))


def test_no_graph_is_compiled_after_the_first_step(odd):
    """Lengths and numbers of completions differ from step to step."""
    lengths = {tuple(result.experience.lengths) for result in odd.results}
    assert len(lengths) == len(odd.results)
    assert {result.metrics["graphs"] for result in odd.results} == {odd.graphs} == {7.0}


def test_on_one_rank_the_generator_holds_the_actors_parameters(odd):
    assert has_fused_kernels(), "without them the generator keeps its weights turned"
    own = model_parameters(odd.engine.model)
    assert all(own[name] is parameter for name, parameter in model_parameters(odd.actor.model).items())


def test_beta_follows_the_kl_of_a_completion(odd):
    """Ziegler et al. 2019: by at most a fifth of completions / horizon a step."""
    settings, beta = odd.config.rl_config, odd.config.rl_config.beta
    for result in odd.results:
        assert result.metrics["beta"] == pytest.approx(beta, rel=1e-12)
        error = completion_kl(result.experience, settings) / settings.kl_target - 1.0
        beta *= 1.0 + min(max(error, -0.2), 0.2) * 15 / settings.kl_horizon
    assert odd.beta.value == pytest.approx(beta, rel=1e-12)
    assert odd.results[1].metrics["beta"] == pytest.approx(settings.beta * 0.97)  # no KL yet: down


def test_a_checkpoint_keeps_beta_and_updates(odd):
    training = GRPOTraining(odd.config, odd, ODD)
    groups, state = _snapshot(training)
    assert set(groups) == {"actor", "optimizer", "reference"}
    kept = dict(state)
    values = {
        "actor": parameter_values(odd.actor.model),
        "optimizer": {k: v.copy() for k, v in state_values(odd.train.optimizer.state(), odd.actor.layout, 0).items()},
        "reference": parameter_values(odd.reference.model),
    }
    odd.beta.value, odd.train.updates = 9.0, 0
    sources = {name: ArraySource(arrays, "checkpoint") for name, arrays in values.items()}
    _load(training, SimpleNamespace(sources=sources, state=kept))
    assert (odd.beta.value, odd.train.updates) == (state["beta"], 32)
    assert state["beta"] not in (9.0, odd.config.rl_config.beta)
    assert same(parameter_values(odd.actor.model), values["actor"]) and same(
        parameter_values(odd.engine.model), values["actor"]
    )


def test_no_random_number_is_used_twice(odd):
    assert odd.samples == list(range(4 * 15))


def test_generator_gets_the_new_weights(odd):
    assert same(parameter_values(odd.engine.model), odd.actors[-1])


def test_reference_follows_the_actor_every_second_step_only(odd):
    start, first, second, third, fourth = odd.references
    assert same(first, start)
    assert same(second, odd.actors[2])
    assert same(third, second)
    assert same(fourth, odd.actors[4])


def test_completions_belong_to_their_prompts(odd):
    rows, tokenizer = odd.rollout.rows, odd.rollout.tokenizer
    for number, result in enumerate(odd.results):
        draw, expected = result.draw, np.repeat(odd.rollout.order.indices(number), 5)
        np.testing.assert_array_equal(result.experience.prompt_rows, expected)
        assert draw.solutions == [rows.solutions[i] for i in expected]
        for i, prompt in zip(expected, draw.prompts, strict=True):
            assert tokenizer.encode(prompt) == rows.prompt_ids[i, : rows.prompt_lengths[i]].tolist()
        scores = share_of_sevens(None, None, draw.completions, None, None)
        assert result.experience.rewards.tolist() == scores.total.tolist()


def test_reference_log_probs_are_the_references(odd):
    experience = odd.results[0].experience
    np.testing.assert_array_equal(experience.ref_logps, experience.old_logps)  # in step 1 they are one model
    assert not experience.ref_logps[~experience.inside].any()
    later = odd.results[1].experience
    assert np.abs(later.ref_logps - later.old_logps)[later.inside].max() > 1e-3


def test_a_generator_with_other_weights_stops_the_run_before_the_update(odd):
    """Where there are several: the log-probs from before the first are compared."""
    before, updates = parameter_values(odd.actor.model), odd.train.updates
    with pytest.raises(UserError, match=GAP):
        step_with_another_generator(odd)
    assert same(parameter_values(odd.actor.model), before) and odd.train.updates == updates


def test_reference_from_another_checkpoint(odd):
    other = random_values(ODD, 1, 0.3)
    odd.load(ArraySource(odd.actors[0], "one checkpoint"), ArraySource(other, "another"))
    assert same(parameter_values(odd.reference.model), other)
    assert same(parameter_values(odd.actor.model), odd.actors[0])
    assert same(parameter_values(odd.engine.model), odd.actors[0])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"generate_config__max_prompt_length": 3}, r"has prompts of 6 tokens; generate_config.max_prompt_length is 3"),
        ({"generate_config__sampling_config__eos_token_id": "32"}, r"token id 32 .* outside the model's 32 ids"),
        ({"generate_config__sampling_config__pad_token_id": 40}, r"token id 40 .* outside the model's 32 ids"),
        ({"generate_config__sampling_config__max_tokens": 59}, r"prompt length 6 \+ max_tokens 59 .* 64"),
        ({"packing": "true", "pack_length": 11}, r"rl_config.pack_length is 11, less than the longest prompt 6 \+"),
        ({"num_rollouts": 10, "chunk_size": 4}, r"a batch of 40 rows cannot be cut from a data set of 32"),
    ],
)
def test_what_does_not_fit_the_model_or_the_data_is_refused(inputs, changes, message):
    with pytest.raises(UserError, match=message):
        make_trainer(inputs, MODEL, {}, **changes)


@pytest.mark.parametrize(
    ("changes", "sizes"),
    [
        ({}, [8, 8] * 2),  # as many as a batch of 4 rows in 2 micro-batches
        ({"num_iterations": 1, "packing": "true"}, [16]),  # packed rows: all at once
        ({"mini_batch_size": 5}, [4, 4, 4, 4] * 2),
        ({"mini_batch_size": 7, "packing": "true"}, [6, 5, 5] * 2),
        ({"num_rollouts": 3, "mini_batch_size": 16, "num_iterations": 1}, [12, 12]),
        ({"num_rollouts": 1, "chunk_size": 4, "batch_size": 3, "num_iterations": 3}, [6, 5, 5] * 3),
    ],
)
def test_updates_of_a_step(inputs, changes, sizes):
    """Rollouts, passes and mini-batches decide how many there are; they differ by one completion at most."""
    trainer = Trainer.__new__(Trainer)
    trainer.config = grpo_config(inputs, inputs.folder / "unused", **changes)
    settings = trainer.config.rl_config
    prompts = settings.chunk_size * settings.num_rollouts
    trainer.rollout = SimpleNamespace(completions_per_step=prompts * settings.num_generations)
    assert [len(samples) for _, samples in trainer._samples(3)] == sizes


def test_collect_puts_prompt_and_completion_side_by_side():
    logps = np.array([[-1, -2, 0], [-3, -4, -5]], np.float32)
    completions = Completions(
        np.array([[5, STOP_ID, 0], [6, 7, 8]], np.int32),
        np.array([2, 3], np.int32),
        logps,
        logps + 1,
        np.array([True, False]),
    )
    settings = RLConfig(num_generations=2, overlong="penalty", overlong_penalty=0.25, overlong_buffer=1)
    made = collect([[9], [9]], np.array([4, 4]), completions, made_up.scores([1.0, 0.0]), settings, 3, 0)
    np.testing.assert_array_equal(made.tokens, [[0, 0, 9, 5, STOP_ID, 0], [0, 0, 9, 6, 7, 8]])
    np.testing.assert_array_equal(made.starts, [2, 2])
    np.testing.assert_array_equal(made.inside, [[True, True, False], [True, True, True]])
    assert made.rewards.tolist() == [1.0, -0.25]
    assert made.counted.all()
    assert made.rollout_logps is completions.logps and made.drawn_logps is completions.drawn_logps


def test_completion_log_probs_do_not_depend_on_neighbours(odd):
    """A row's log-probs are those of the row alone: nothing leaks between the rows of a batch."""
    experience = odd.results[0].experience
    odd.load(ArraySource(odd.actors[0], "again"), None)
    assert same(parameter_values(odd.reference.model), odd.actors[0])  # the actor's where there is no other
    alone = CompletionLogps(odd.actor.model, 1, odd.shape.prompt, 7, temperature=0.7)
    for row in (0, 7, 14):
        tokens, starts = experience.tokens[row : row + 1], experience.starts[row : row + 1]
        logps = alone(Tensor(tokens), Tensor(starts)).asnumpy()[0]
        length = experience.lengths[row]
        np.testing.assert_allclose(logps[:length], experience.old_logps[row, :length], atol=1e-5)
