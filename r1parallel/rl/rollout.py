"""Completions of all prompts of a step: every data-parallel group of the generator answers its share of them."""

from collections.abc import Sequence

import numpy as np

from r1parallel.generation.engine import Completions, RolloutEngine
from r1parallel.parallel.collectives import all_gather
from r1parallel.parallel.mesh import Mesh
from r1parallel.parallel.waiting import waiting
from r1parallel.parallel.world import World


def own_share(count: int, mesh: Mesh, world: World) -> slice:
    """Which of `count` rows the dp group of this rank works on; the groups take equal shares in their order."""
    assert count % mesh.dp == 0, (count, mesh)
    dp, _, _ = mesh.coordinates(world.rank)
    share = count // mesh.dp
    return slice(dp * share, (dp + 1) * share)


def gather_shares(array: np.ndarray, mesh: Mesh, world: World, what: str) -> np.ndarray:
    """Every group's rows put together, in the order of groups: [share, …] → [count, …], the same on every rank."""
    ranks = all_gather(world, array, what)
    return np.concatenate([ranks[mesh.rank_of(dp, 0, 0)] for dp in range(mesh.dp)])


def rollout(
    engine: RolloutEngine,
    prompts: Sequence[Sequence[int]],
    seed: int,
    first_sample: int,
    mesh: Mesh,
    world: World,
    progress: bool,
) -> Completions:
    """Answer all prompts of a step.

    Args:
        engine: this rank's, of the generator's layout.
        prompts: the same on every rank; their number is a multiple of dp.
        seed: of the run.
        first_sample: number of the first prompt's sample; (seed, sample) decides what is drawn, on whichever rank.
        mesh: of the generator.
        world: which rank this is.
        progress: show a bar.
    """
    own = own_share(len(prompts), mesh, world)
    samples = range(first_sample + own.start, first_sample + own.stop)
    with waiting("rollout"):
        drawn = engine.generate(prompts[own], seed, samples, progress and world.is_leader)
    return Completions(
        *(
            gather_shares(array, mesh, world, f"completions: {name}")
            for name, array in (
                ("tokens", drawn.tokens),
                ("lengths", drawn.lengths),
                ("log-probs", drawn.logps),
                ("stopped", drawn.stopped),
            )
        )
    )
