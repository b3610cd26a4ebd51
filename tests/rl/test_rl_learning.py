"""GRPO raises the reward that it is given: the share of sevens in a completion."""

import numpy as np
import pytest
from helpers.small_trainers import LEADER, make_trainer, share_of_sevens
from helpers.tiny_runs import MODEL

from r1parallel.models.parameters import random_values
from r1parallel.monitor.phases import PhaseTimer

pytestmark = pytest.mark.usefixtures("mindspore_cpu")

STEPS, ENDS = 20, 4
RISE = 0.5  # between what learning does and what noise does; numbers stand at the tests


def shares(inputs, seed: int) -> np.ndarray:
    """Mean share of sevens in the completions of each step; their reward is whatever `LEADER` is."""
    weights = random_values(MODEL, seed, 0.1)
    settings = {"num_rollouts": 4, "num_iterations": 1, "actor_config__parallel_config__micro_batch_num": 4}
    trainer = make_trainer(inputs, MODEL, weights, seed=seed, actor_config__lr_schedule__lr=0.01, **settings)
    means = []
    for number in range(STEPS):
        draw = trainer.run_step(number, PhaseTimer(), False).draw
        means.append(share_of_sevens(None, draw.prompts, draw.completions, draw.solutions, None).total.mean())
    return np.array(means)


def rise(means: np.ndarray) -> float:
    return means[-ENDS:].mean() - means[:ENDS].mean()


def against_sevens(*arguments):
    made = share_of_sevens(*arguments)
    made.total[:] *= -1.0
    return made


def test_grpo_raises_the_reward_that_it_is_given(inputs, monkeypatch):
    """Seeds 0 to 3 rise by 0.80 to 0.96, to nearly nothing but sevens."""
    monkeypatch.setattr(LEADER, share_of_sevens)
    means = shares(inputs, seed=0)
    assert rise(means) > RISE
    assert means[-ENDS:].mean() > 0.8 > 0.2 > means[:2].mean()


def test_without_a_learning_rate_the_reward_stays(inputs, monkeypatch):
    """Seeds 0 to 2 move by 0.00 to 0.01: that is all that the draw of prompts and completions does."""
    monkeypatch.setattr(LEADER, share_of_sevens)
    monkeypatch.setattr("r1parallel.rl.trainer.learning_rate", lambda *_: 0.0)
    assert abs(rise(shares(inputs, seed=0))) < RISE / 5


def test_the_reward_decides_the_direction(inputs, monkeypatch):
    """With its sign turned the sevens die out, the few that there were."""
    monkeypatch.setattr(LEADER, against_sevens)
    means = shares(inputs, seed=0)
    assert rise(means) <= 0.0
    assert means[-ENDS:].mean() < 0.005 < means[:2].mean()
