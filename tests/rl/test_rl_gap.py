"""The default `rollout_gap_limit`: far above what rounding makes of the gap, far below what a real mismatch does."""

from dataclasses import replace

import pytest
from helpers.small_trainers import ODD, make_trainer, step_with_another_generator
from helpers.tiny_runs import TinyInputs

from r1parallel.config.schema import RLConfig
from r1parallel.errors import UserError
from r1parallel.models.parameters import parameter_values, random_values
from r1parallel.monitor.phases import PhaseTimer
from r1parallel.rl.objective.correction import gap_limit
from r1parallel.rl.trainer import Trainer

MARGIN = 10  # at least, between the limit and what it must tell apart
BEYOND = r"rollout and training log-probs differ by .*rollout_gap_limit 0.01;"

pytestmark = pytest.mark.usefixtures("mindspore_cpu", "sevens")


def sampling_trainer(inputs: TinyInputs) -> Trainer:
    """One update a step, with the default limit."""
    weights = random_values(ODD, 0, 0.1)
    trainer = make_trainer(inputs, ODD, weights, num_iterations=1, num_rollouts=1, batch_size=4)
    assert trainer.config.rl_config.rollout_gap_limit == RLConfig().rollout_gap_limit
    return trainer


@pytest.fixture(scope="module")
def trainer(inputs):
    return sampling_trainer(inputs)


def test_rounding_stays_a_tenth_below_the_limit(trainer):
    gaps = [trainer.run_step(number, PhaseTimer(), False).metrics["rollout_logp_diff_mean"] for number in range(3)]
    assert max(gaps) < trainer.gap_limit / MARGIN


def test_two_weights_of_the_generator_that_are_swapped_are_noticed(trainer, monkeypatch):
    monkeypatch.setattr(trainer, "gap_limit", MARGIN * trainer.gap_limit)
    weights = parameter_values(trainer.actor.model)
    one, other = (f"model.layers.1.feed_forward.{name}.weight" for name in ("w1", "w3"))
    weights[one], weights[other] = weights[other], weights[one]
    with pytest.raises(UserError, match=BEYOND):
        step_with_another_generator(trainer, weights)


def test_another_rope_theta_of_the_generator_is_noticed(inputs, monkeypatch):
    make_engine = Trainer._make_engine
    monkeypatch.setattr(
        Trainer,
        "_make_engine",
        lambda self, config, tokenizer: make_engine(self, replace(config, rope_theta=1e6), tokenizer),
    )
    trainer = sampling_trainer(inputs)
    trainer.gap_limit *= MARGIN
    with pytest.raises(UserError, match=BEYOND):
        trainer.run_step(0, PhaseTimer(), False)


@pytest.mark.parametrize(
    ("given", "compute_dtype", "limit"),
    [
        (-1.0, "float32", 1e-3),
        (-1.0, "bfloat16", 0.1),
        (0.5, "float32", 0.5),
        (0.5, "bfloat16", 0.5),
        (0.0, "float32", 0),
    ],
)
def test_the_default_limit_follows_the_compute_type(given, compute_dtype, limit):
    assert gap_limit(RLConfig(rollout_gap_limit=given), compute_dtype) == limit
