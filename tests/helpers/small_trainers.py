"""Trainers of tiny models whose reward is made up, for tests in one process."""

import numpy as np

from helpers import made_up
from helpers.tiny_runs import SIZES, TinyInputs, grpo_config
from r1parallel.checkpoint.load import ArraySource
from r1parallel.config.model import ModelConfig
from r1parallel.data.mindrecord import read_mindrecord
from r1parallel.data.text.tokenizer import load_tokenizer
from r1parallel.models.parameters import load_parameters, parameter_values, random_values
from r1parallel.monitor.phases import PhaseTimer
from r1parallel.parallel.launch.world import World
from r1parallel.rl.trainer import Trainer

# Sizes that are no multiple of a vector register: kernels treat the last elements of their arrays in another way.
ODD = ModelConfig(**{**SIZES, "vocab_size": 37, "hidden_size": 40, "intermediate_size": 70, "num_layers": 2})
LEADER = "r1parallel.rl.experience.rollout.score_on_leader"
# What `step_with_another_generator` is stopped with.
GAP = r"^step 21: rollout and training log-probs differ by .*rollout_gap_limit 0.001;"


def share_of_sevens(config, prompts, completions, solutions, world):
    """Stands in for `score_on_leader`: scores that a model can raise without knowing any arithmetic."""
    return made_up.scores([text.count("7") / max(1, len(text)) for text in completions])


def make_trainer(inputs: TinyInputs, model: ModelConfig, weights, **changes) -> Trainer:
    config = grpo_config(inputs, inputs.folder / "unused", **changes)
    trainer = Trainer(config, model, read_mindrecord(inputs.train), load_tokenizer(inputs.tokenizer), World())
    trainer.load(ArraySource(weights, "random"), None)
    return trainer


def same(left, right) -> bool:
    return all((left[name] == value).all() for name, value in right.items())


def step_with_another_generator(trainer: Trainer, weights: dict[str, np.ndarray] | None = None) -> None:
    """A step whose completions a model with other weights draws, random ones unless they are given.

    On one rank the generator shares the actor's Parameters, so they are changed only while it draws.
    """
    other = random_values(trainer.actor.layout.config, 5, 0.5) if weights is None else weights
    engine, model = trainer.engine, trainer.engine.model
    generate, own = engine.generate, parameter_values(model)

    def with_other_weights(*arguments):
        load_parameters(model, other, "other weights")
        drawn = generate(*arguments)
        load_parameters(model, own, "its own")
        return drawn

    engine.generate = with_other_weights
    try:
        trainer.run_step(20, PhaseTimer(), False)
    finally:
        engine.generate = generate
