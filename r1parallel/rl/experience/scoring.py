"""Rewards of all completions, computed by rank 0 alone: a time limit may strike on one rank and not on another."""

import numpy as np

from r1parallel.config.schema import RewardConfig
from r1parallel.parallel.launch.world import World
from r1parallel.parallel.moving.collectives import broadcast
from r1parallel.rewards import Scores, score


def score_on_leader(
    config: RewardConfig,
    prompts: list[str],
    completions: list[str],
    solutions: list[str],
    world: World,
) -> Scores:
    """Scores of N completions, the same on every rank; see `rewards.score`.

    Raises:
        UserError: on rank 0, a reward is broken.
    """
    names, count = config.verifier_function, len(prompts)
    table = np.zeros((len(names) + 4, count))  # total, skipped, timeouts, failures, then the parts
    if world.is_leader:
        limits = (config.time_limit, config.num_workers, config.memory_limit)
        scores = score(names, config.verifier_weight, prompts, completions, solutions, *limits)
        table[:4] = np.stack(np.broadcast_arrays(scores.total, scores.skipped, scores.timeouts, scores.failures))
        for row, name in enumerate(names, start=4):
            table[row] = scores.parts[name]
    table = broadcast(world, table, "rewards")
    parts = {name: table[row] for row, name in enumerate(names, start=4)}
    return Scores(table[0], parts, table[1].astype(bool), int(table[2, 0]), int(table[3, 0]))
