"""Continuous batching: how many launches completions take, and that these change nothing else."""

import heapq

import numpy as np
import pytest
from small_engine import GREEDY, PAD_ID, PROMPT_SLOTS, ROWS, SAMPLED, STOP_IDS

from r1parallel.generation.engine import RolloutEngine
from r1parallel.models.parameters import load_parameters


def test_a_freed_row_is_given_to_the_next_sample(make_engine, prompts, launches):
    """So it takes as many launches as lengths need, one after the other in the row that is free first."""
    engine = make_engine(SAMPLED, range(1, 37, 4))
    done, count = launches(engine), 4 * len(prompts)
    drawn = engine.generate(prompts * 4, 0, range(count))
    assert len({*drawn.lengths.tolist()}) >= 5
    ends = [0] * ROWS
    for length in drawn.lengths.tolist():
        heapq.heappush(ends, heapq.heappop(ends) + length)
    batches = sum(drawn.lengths[first : first + ROWS].max() for first in range(0, count, ROWS))
    assert done.count("token") == max(ends) < batches


def test_samples_of_one_prompt_share_its_computation(make_engine, prompts, launches):
    """Eight rows: two prompts a launch, whoever wants them."""
    engine = make_engine(SAMPLED, rows=8)
    done = launches(engine)

    def fills(chosen) -> int:
        before = done.count("fill")
        engine.generate(chosen, 0, range(len(chosen)))
        return done.count("fill") - before

    first, second = [3, 1, 2], [5]
    assert fills([first] * 8) == 1
    assert fills([first] * 4 + [second] * 4) == fills([first, second] * 4) == 1
    assert fills([[token, 1] for token in range(8)]) == 4
    assert fills([first] * 16) == 2  # all rows are free at once, for nothing stops


@pytest.mark.parametrize(("group", "fills"), [(1, 4), (4, 4), (8, 8)])
def test_large_groups_need_fewer_prompts_a_launch(operators, tiny_config, values, launches, group, fills):
    """The graph computes no more than can be wanted: of eight rows two prompts, or one that fills them all."""
    engine = RolloutEngine(tiny_config, GREEDY, 8, PROMPT_SLOTS, [], PAD_ID, operators=operators, group=group)
    load_parameters(engine.model, values, "random values")
    done = launches(engine)
    engine.generate([[token, 1] for token in range(8)], 0, range(8))
    assert done.count("fill") == fills


def test_samples_answer_the_same_whether_they_share_a_prompt_or_not(make_engine, prompts, sampled):
    drawn = make_engine(SAMPLED).generate([prompts[1]] * 3 + prompts, 0, [1, 1, 1, *range(len(prompts))])
    np.testing.assert_array_equal(drawn.tokens, sampled.tokens[[1, 1, 1, *range(len(prompts))]])
    np.testing.assert_allclose(drawn.logps[:3], np.tile(sampled.logps[1], (3, 1)), rtol=0, atol=1e-5)


def test_other_prompts_compile_nothing_new(operators, tiny_config, values, prompts):
    engine = RolloutEngine(tiny_config, SAMPLED, ROWS, PROMPT_SLOTS, STOP_IDS, PAD_ID, operators=operators)
    load_parameters(engine.model, values, "random values")
    assert engine.graphs == 0
    for chosen in (prompts, [prompts[2]], [[1], [2, 3], [4] * PROMPT_SLOTS] * 3):
        engine.generate(chosen, len(chosen), range(len(chosen)))
        assert engine.graphs == 2  # one fills the cache, one gives a token of every row
