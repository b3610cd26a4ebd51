"""Continuous batching: how many launches completions take, and that these change nothing else."""

import heapq
from dataclasses import replace

import numpy as np
import pytest
from small_engine import PAD_ID, PROMPT_SLOTS, ROWS, SAMPLED, STOP_IDS

from r1parallel.generation.engine import RolloutEngine
from r1parallel.models.parameters import load_parameters


def test_a_freed_row_is_given_to_the_next_sample(make_engine, prompts, launches):
    """So it takes as many launches as lengths need, one after the other in the row that is free first.

    A launch gives a row several tokens, and the row is free after it.
    """
    engine = make_engine(SAMPLED, range(1, 37, 4))
    done, count = launches(engine), 4 * len(prompts)
    drawn = engine.generate(prompts * 4, 0, range(count))
    assert len({*drawn.lengths.tolist()}) >= 5
    ends = [0] * ROWS
    needed = -(-drawn.lengths // engine.tokens_per_launch)
    for launches_of_one in needed.tolist():
        heapq.heappush(ends, heapq.heappop(ends) + launches_of_one)
    batches = sum(needed[first : first + ROWS].max() for first in range(0, count, ROWS))
    assert done.count("token") == max(ends) < batches


@pytest.mark.parametrize(
    ("changes", "tokens"),
    [({}, 4), ({"max_tokens": 3}, 3), ({"repetition_penalty": 1.1}, 1), ({"min_tokens": 2}, 1)],
    ids=["plain", "short", "penalty", "least length"],
)
def test_a_launch_draws_several_tokens_where_the_host_sees_none(make_engine, prompts, launches, changes, tokens):
    sampling = replace(SAMPLED, **changes)
    engine = make_engine(sampling)
    assert engine.tokens_per_launch == tokens
    done = launches(engine)
    engine.generate(prompts[:ROWS], 0, range(ROWS))
    assert done.count("token") == -(-sampling.max_tokens // tokens)


def test_what_prompts_have_in_common_is_computed_once(make_engine, operators, launches):
    """Eight rows: two chunks of eight tokens a launch, whoever wants them; many, where those of nobody cost nothing."""
    engine = make_engine(SAMPLED, rows=8)
    done = launches(engine)

    def fills(*chosen) -> int:
        before = done.count("fill")
        engine.generate(chosen, 0, range(len(chosen)))
        return done.count("fill") - before

    first, second = (3, 1, 2), (5, 1)
    assert fills(*[first] * 8) == 1
    assert fills(*[first] * 4, *[second] * 4) == fills(*[first, second] * 4) == 1
    assert fills(*[(token, 1) for token in range(8)]) == (1 if operators.whole_kv_cache_blocks else 4)
    assert fills(*[(1, token) for token in range(8)]) == 1  # the last token is not computed here
    assert fills(*[first] * 16) == 1  # the rows still hold it
    assert fills(*[first] * 8, *[(3, 4, 2)] * 8) == 2  # the second of these prompts sits down when the first is done


def test_prompts_that_begin_alike_are_answered_like_each_alone(make_engine, tiny_config, values):
    """In rows that hold the prompts of others: what is left in them of these is used, and only that."""
    rng = np.random.default_rng(6)
    begin = rng.integers(0, tiny_config.vocab_size, PROMPT_SLOTS - 1).tolist()
    chosen = [[*begin[: rng.integers(0, PROMPT_SLOTS)], int(rng.integers(tiny_config.vocab_size))] for _ in range(24)]
    drawn = make_engine(SAMPLED, STOP_IDS).generate(chosen, 0, range(len(chosen)))
    alone = make_engine(SAMPLED, STOP_IDS, rows=1)
    for row, prompt in enumerate(chosen):
        own = alone.generate([prompt], 0, [row])
        assert own.ids(0) == drawn.ids(row)
        np.testing.assert_allclose(own.logps[0], drawn.logps[row], rtol=0, atol=1e-5)


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
