from dataclasses import replace

import numpy as np
import pytest
from mindspore import Tensor
from tiny_runs import MODEL, SIZES, STOP_ID, grpo_config, tiny_inputs

from r1parallel.checkpoint.load import ArraySource, read_model
from r1parallel.config.model import ModelConfig
from r1parallel.data.mindrecord import read_mindrecord
from r1parallel.data.tokenizer import load_tokenizer
from r1parallel.errors import UserError
from r1parallel.generation.engine import Completions
from r1parallel.models.logps import CompletionLogps
from r1parallel.models.parameters import parameter_values, random_values
from r1parallel.monitor.phases import PhaseTimer
from r1parallel.parallel.world import World
from r1parallel.rewards import REWARDS, Scores
from r1parallel.rl.experience import collect
from r1parallel.rl.trainer import Trainer
from r1parallel.training.schedule import learning_rate

pytestmark = pytest.mark.usefixtures("mindspore_cpu")
# Sizes that are no multiple of a vector register: kernels treat the last elements of their arrays in another way.
ODD = ModelConfig(**{**SIZES, "vocab_size": 37, "hidden_size": 40, "intermediate_size": 70, "num_layers": 2})


def share_of_sevens(prompts, completions, solution):
    """A reward that a model can raise without knowing any arithmetic."""
    return [text.count("7") / max(1, len(text)) for text in completions]


@pytest.fixture(scope="module")
def inputs(mindspore_cpu):
    return tiny_inputs()


@pytest.fixture(scope="module", autouse=True)
def sevens():
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(REWARDS, "sevens", share_of_sevens)
        yield


def make_trainer(inputs, model, weights, **changes):
    rewards = {"reward_config__verifier_function": "sevens", "reward_config__verifier_weight": "1"}
    config = grpo_config(inputs, inputs.folder / "unused", **rewards, **changes)
    trainer = Trainer(config, model, read_mindrecord(inputs.train), load_tokenizer(inputs.tokenizer), World())
    trainer.load(ArraySource(weights, "random"), None)
    return trainer


def same(left, right):
    return all((left[name] == value).all() for name, value in right.items())


@pytest.fixture(scope="module")
def odd(inputs):
    """Two passes of five updates, three rows each, and a reference that follows the actor every second step."""
    trainer = make_trainer(
        inputs,
        ODD,
        random_values(ODD, 0, 0.3),
        batch_size=3,
        num_generations=5,
        num_rollouts=3,
        chunk_size=1,
        actor_config__parallel_config__micro_batch_num=1,
        ref_config__ref_model_batch_size=5,
        ref_config__sync_ref_model="true",
        ref_config__ref_model_sync_steps=2,
        generate_config__infer_model_batch_size=5,
        generate_config__sampling_config__max_tokens=7,
    )
    trainer.results, trainer.samples, generate = [], [], trainer.engine.generate

    def noted(prompts, seed, samples, progress):
        trainer.samples += samples
        return generate(prompts, seed, samples, progress)

    trainer.engine.generate = noted
    trainer.references = [parameter_values(trainer.reference.model)]
    trainer.actors = [trainer.actor.values()]
    for number in range(4):
        trainer.results.append(trainer.run_step(number, PhaseTimer(), False))
        trainer.actors.append(trainer.actor.values())
        trainer.references.append(parameter_values(trainer.reference.model))
    return trainer


def test_ratio_of_the_first_update_is_exactly_one(odd):
    for result in odd.results:
        assert result.metrics["first_update_ratio_deviation"] == 0.0
        assert result.metrics["first_update_clip_fraction"] == 0.0
        assert result.metrics["ratio_mean"] != 1.0  # later updates have moved


def test_rollout_and_training_graph_see_the_same_policy(odd):
    for result in odd.results:
        assert 0 < result.metrics["rollout_logp_diff_max"] < 1e-4


def test_metrics_are_finite_and_complete(odd):
    for number, result in enumerate(odd.results):
        assert all(np.isfinite(value) for value in result.metrics.values())
        lengths = result.experience.lengths
        assert result.metrics["tokens"] == lengths.sum()
        assert result.metrics["completion_length_mean"] == pytest.approx(lengths.mean())
        assert result.metrics["reward_mean"] == pytest.approx(np.mean(result.experience.rewards))
        assert result.metrics["kl"] > 0
        updates_done = 10 * (number + 1)
        assert result.metrics["lr"] == learning_rate(odd.config.actor_config.lr_schedule, updates_done - 1)


def test_updates_are_counted_and_move_the_actor(odd):
    assert odd.train.updates == 4 * 2 * 5
    assert all(not same(before, after) for before, after in zip(odd.actors[:-1], odd.actors[1:], strict=True))


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
    rows = odd.rows
    for number, result in enumerate(odd.results):
        expected = np.repeat(odd.order.indices(number), 5)
        np.testing.assert_array_equal(result.experience.prompt_rows, expected)
        assert result.solutions == [rows.solutions[i] for i in expected]
        for i, prompt in enumerate(result.prompts):
            assert (
                odd.tokenizer.encode(prompt)
                == rows.prompt_ids[expected[i], : rows.prompt_lengths[expected[i]]].tolist()
            )
        assert result.experience.rewards.tolist() == share_of_sevens(None, result.completions, None)


def test_reference_log_probs_are_the_references(odd):
    experience = odd.results[0].experience
    inside = experience.inside
    # In step 1 reference and actor are one model.
    np.testing.assert_allclose(experience.ref_logps[inside], experience.old_logps[inside], atol=1e-5)
    assert not experience.ref_logps[~inside].any()
    later = odd.results[1].experience
    assert np.abs(later.ref_logps - later.old_logps)[later.inside].max() > 1e-3


def test_a_reward_that_can_be_moved_rises(inputs):
    trainer = make_trainer(
        inputs,
        MODEL,
        read_model(inputs.checkpoint, MODEL),
        beta=0,
        batch_size=16,
        num_iterations=1,
        num_generations=8,
        actor_config__parallel_config__micro_batch_num=2,
        actor_config__lr_schedule__lr=0.01,
    )
    assert trainer.reference is None
    assert trainer.actor.old_logps is None
    results = [trainer.run_step(number, PhaseTimer(), False).metrics for number in range(15)]
    rewards = [metrics["reward_mean"] for metrics in results]
    assert np.mean(rewards[:2]) < 0.2
    assert np.mean(rewards[-2:]) > 0.5
    # One update a rollout: the ratio is 1 by definition, and there is no KL term.
    assert all(metrics["first_update_ratio_deviation"] == 0.0 for metrics in results)
    assert all(metrics["ratio_mean"] == 1.0 and metrics["clip_fraction"] == 0.0 for metrics in results)
    assert all(metrics["kl"] == metrics["kl_loss"] == 0.0 for metrics in results)
    assert all(metrics["rollout_logp_diff_max"] < 1e-4 for metrics in results)


def test_reference_from_another_checkpoint(odd, inputs):
    other = random_values(ODD, 1, 0.3)
    odd.load(ArraySource(odd.actors[0], "one checkpoint"), ArraySource(other, "another"))
    assert same(parameter_values(odd.reference.model), other)
    assert same(odd.actor.values(), odd.actors[0])
    assert same(parameter_values(odd.engine.model), odd.actors[0])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"generate_config__max_prompt_length": 3}, r"has prompts of 6 tokens; generate_config.max_prompt_length is 3"),
        ({"generate_config__sampling_config__eos_token_id": "32"}, r"token id 32 .* outside the model's 32 ids"),
        ({"generate_config__sampling_config__pad_token_id": 40}, r"token id 40 .* outside the model's 32 ids"),
        ({"generate_config__sampling_config__max_tokens": 59}, r"prompt length 6 \+ max_tokens 59 .* 64"),
        ({"num_rollouts": 10, "chunk_size": 4}, r"a batch of 40 rows cannot be cut from a data set of 32"),
    ],
)
def test_what_does_not_fit_the_model_or_the_data_is_refused(inputs, changes, message):
    with pytest.raises(UserError, match=message):
        make_trainer(inputs, MODEL, {}, **changes)


def test_collect_puts_prompt_and_completion_side_by_side():
    completions = Completions(
        np.array([[5, STOP_ID, 0], [6, 7, 8]], np.int32),
        np.array([2, 3], np.int32),
        np.array([[-1, -2, 0], [-3, -4, -5]], np.float32),
        np.array([True, False]),
    )
    rewards = np.array([1.0, 0.0])
    made = collect([[9], [9]], np.array([4, 4]), completions, Scores(rewards, {}, np.isnan(rewards), 0), 2, 3, 0)
    np.testing.assert_array_equal(made.tokens, [[0, 0, 9, 5, STOP_ID, 0], [0, 0, 9, 6, 7, 8]])
    np.testing.assert_array_equal(made.starts, [2, 2])
    np.testing.assert_array_equal(made.inside, [[True, True, False], [True, True, True]])
    np.testing.assert_allclose(made.advantages, [2**-0.5, -(2**-0.5)], rtol=1e-5)
    assert made.kept.all()
    assert replace(made).rollout_logps is completions.logps


def test_completion_log_probs_do_not_depend_on_neighbours(odd):
    """A row's log-probs are those of the row alone: nothing leaks between the rows of a batch."""
    experience = odd.results[0].experience
    odd.load(ArraySource(odd.actors[0], "again"), None)
    assert same(parameter_values(odd.reference.model), odd.actors[0])  # the actor's where there is no other
    alone = CompletionLogps(odd.actor.model, 1, odd.slots.prompt, 7)
    for row in (0, 7, 14):
        tokens, starts = experience.tokens[row : row + 1], experience.starts[row : row + 1]
        logps = alone(Tensor(tokens), Tensor(starts)).asnumpy()[0]
        length = experience.lengths[row]
        np.testing.assert_allclose(logps[:length], experience.old_logps[row, :length], atol=1e-5)
