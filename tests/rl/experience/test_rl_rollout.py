from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from helpers import made_up
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st

from r1parallel.config.schema import RewardConfig, RunConfig
from r1parallel.monitor.phases import PhaseTimer
from r1parallel.parallel.launch.world import World
from r1parallel.rl.experience.experience import collect
from r1parallel.rl.experience.rollout import Rollout
from r1parallel.rl.metrics import reward_errors
from r1parallel.rl.objective.advantages import equal_groups

GROUP, CHUNK, ROLLOUTS, PROMPTS, SLOTS = 3, 2, 2, 20, 5
PER_STEP = CHUNK * ROLLOUTS
COMPLETIONS = PER_STEP * GROUP


class Letters:
    """Decodes ids to letters."""

    def decode(self, ids):
        return "".join(chr(97 + i % 26) for i in ids)


def data_set():
    lengths = np.arange(PROMPTS) % 3 + 1
    ids = np.arange(PROMPTS)[:, None] * np.ones(3, int)
    return SimpleNamespace(prompt_ids=ids, prompt_lengths=lengths, solutions=[f"gold {i}" for i in range(PROMPTS)])


def grade(share, nan_share=0.0):
    """A reward of which `share` of the groups are equal; a function of a group's prompt and completions alone."""

    def score(config, prompts, completions, solutions, world):
        totals = []
        for first in range(0, len(prompts), GROUP):
            group = "".join((solutions[first], *completions[first : first + GROUP]))
            rng = np.random.default_rng(list(group.encode()))
            kind = rng.random()
            values = np.arange(GROUP) % 2 + rng.integers(0, 5) if kind >= share else np.full(GROUP, 1.0)
            if kind > 1 - nan_share:
                values = np.where(np.arange(GROUP) == 1, np.nan, values)
            totals += list(values.astype(float))
        return made_up.scores(totals)

    return score


def make(monkeypatch, score, rows=4, max_refills=3, **changes):
    config = RunConfig(reward_config=RewardConfig())
    config.rl_config.num_generations, config.rl_config.chunk_size = GROUP, CHUNK
    config.rl_config.num_rollouts, config.rl_config.dynamic_sampling = ROLLOUTS, True
    config.rl_config.max_refills = max_refills
    for name, value in changes.items():
        setattr(config.rl_config, name, value)
    monkeypatch.setattr("r1parallel.rl.experience.rollout.score_on_leader", score)
    return Rollout(config, data_set(), Letters(), made_up.FakeEngine(rows, SLOTS), World())


def step(rollout, number):
    """The draw of a step, a copy of it from before, and what the refill says."""
    draw, before = (rollout.draw(number, PhaseTimer(), False) for _ in range(2))
    return draw, before, rollout.refill(draw, number, PhaseTimer(), False)


def rows_of(draw, group):
    """Everything that a draw says of one group."""
    part = slice(group * GROUP, (group + 1) * GROUP)
    return [
        *(np.asarray(getattr(draw, name)[part]).tolist() for name in ("prompt_rows", "prompts", "completions")),
        draw.prompt_ids[part],
        draw.solutions[part],
        *(
            getattr(draw.drawn, name)[part].tolist()
            for name in ("tokens", "lengths", "logps", "drawn_logps", "stopped")
        ),
        repr(draw.scores.total[part].tolist()),
        draw.scores.skipped[part].tolist(),
        repr(draw.scores.parts["made_up"][part].tolist()),
    ]


def useless(draw):
    totals = draw.scores.total
    return equal_groups(totals, GROUP) | np.isnan(totals.reshape(-1, GROUP)).any(axis=1)


def is_whole(draw, score):
    """Whether prompts, texts, gold answers and scores belong together."""
    data, letters = data_set(), Letters()
    for row in range(COMPLETIONS):
        name = draw.prompt_rows[row]
        assert draw.prompt_ids[row] == data.prompt_ids[name, : data.prompt_lengths[name]].tolist()
        assert draw.prompts[row] == letters.decode(draw.prompt_ids[row])
        assert draw.completions[row] == letters.decode(draw.drawn.ids(row))
        assert draw.solutions[row] == f"gold {name}"
    again = score(None, draw.prompts, draw.completions, draw.solutions, None)
    np.testing.assert_array_equal(draw.scores.total, again.total)
    np.testing.assert_array_equal(draw.scores.skipped, again.skipped)
    np.testing.assert_array_equal(draw.scores.parts["made_up"], again.total)


def test_a_step_draws_a_group_of_each_prompt_of_its_turn(monkeypatch):
    rollout = make(monkeypatch, grade(0.5))
    assert (rollout.prompts_per_step, rollout.completions_per_step) == (PER_STEP, COMPLETIONS)
    for number in range(3):
        draw = rollout.draw(number, PhaseTimer(), False)
        np.testing.assert_array_equal(draw.prompt_rows, np.repeat(rollout.order.indices(number), GROUP))
        is_whole(draw, grade(0.5))
    drawn = [sample for call in rollout.engine.calls for sample in call]
    assert drawn == list(range(3 * COMPLETIONS))


def test_timeouts_and_failures_of_refills_are_counted(monkeypatch):
    """Each reward that is computed counts, also those of groups that are drawn and not used."""
    calls = []

    def score(config, prompts, completions, solutions, world):
        calls.append(len(prompts))
        made = grade(1.1)(config, prompts, completions, solutions, world)
        return replace(made, timeouts=10 ** len(calls), failures=2 * 10 ** len(calls))

    rollout = make(monkeypatch, score, max_refills=2)
    draw = rollout.draw(0, PhaseTimer(), False)
    assert (draw.scores.timeouts, draw.scores.failures) == (10, 20)
    rollout.refill(draw, 0, PhaseTimer(), False)
    assert len(calls) == 3
    assert reward_errors(draw.scores) == {"reward_timeouts": 1110.0, "reward_failures": 2220.0}


@examples(deadline=None, max_examples=30)
@given(st.integers(0, 40), st.sampled_from([0.2, 0.5, 0.8]), st.integers(1, 9), st.integers(1, 4))
def test_refill_replaces_useless_groups_and_no_other(number, share, rows, max_refills):
    score = grade(share, nan_share=0.1)
    with pytest.MonkeyPatch.context() as monkeypatch:
        rollout = make(monkeypatch, score, rows, max_refills)
        draw, before, metrics = step(rollout, number)
    was, left = useless(before), useless(draw)
    is_whole(draw, score)
    for group in range(PER_STEP):
        same = rows_of(draw, group) == rows_of(before, group)
        assert same == (not was[group] or left[group])  # what stays useless is what it was
    assert metrics["refilled_groups"] == was.sum() - left.sum()
    assert metrics["frac_groups_left_equal"] == left.mean()
    extra = rollout.engine.calls[2:]
    assert len(extra) <= max_refills
    assert len(extra) == max_refills or not left.any()
    assert metrics["refill_groups"] * GROUP == sum(len(call) for call in extra)
    assert (metrics["refill_tokens"] > 0) == bool(extra)


def test_nothing_is_drawn_where_every_group_teaches(monkeypatch):
    rollout = make(monkeypatch, grade(0.0))
    _, _, metrics = step(rollout, 0)
    assert len(rollout.engine.calls) == 2
    assert metrics == {
        "refill_tokens": 0.0,
        "refill_groups": 0.0,
        "refilled_groups": 0.0,
        "frac_groups_left_equal": 0.0,
    }


@pytest.mark.parametrize("max_refills", [1, 2, 5])
def test_the_limit_ends_a_search_that_finds_nothing(monkeypatch, max_refills):
    rollout = make(monkeypatch, grade(1.1), max_refills=max_refills)
    draw, before, metrics = step(rollout, 4)
    assert len(rollout.engine.calls) == 2 + max_refills
    assert metrics["frac_groups_left_equal"] == 1.0
    assert metrics["refilled_groups"] == 0.0
    assert all(rows_of(draw, group) == rows_of(before, group) for group in range(PER_STEP))
    settings = rollout.config.rl_config
    made = collect(draw.prompt_ids, draw.prompt_rows, draw.drawn, draw.scores, settings, 3, 0)
    assert not made.counted.any()  # groups left equal count nowhere


def test_groups_left_equal_are_not_counted_and_the_others_are(monkeypatch):
    rollout = make(monkeypatch, grade(0.9), max_refills=1)
    for number in range(30):
        draw, _, _ = step(rollout, number)
        left = useless(draw)
        made = collect(draw.prompt_ids, draw.prompt_rows, draw.drawn, draw.scores, rollout.config.rl_config, 3, 0)
        np.testing.assert_array_equal(made.counted, np.repeat(~left, GROUP))
        if 0 < left.sum() < PER_STEP:
            return
    raise AssertionError("no step was left with both kinds of groups")


def test_a_step_is_a_function_of_its_number(monkeypatch):
    """So resuming needs no state of the sampler: a new Rollout that begins at step 3 draws what the old one did."""
    first, second = (make(monkeypatch, grade(0.6)) for _ in range(2))
    results = [step(first, number) for number in range(4)]
    draw, _, metrics = step(second, 3)
    assert metrics == results[3][2] and metrics["refill_groups"] > 0
    for group in range(PER_STEP):
        assert rows_of(draw, group) == rows_of(results[3][0], group)


@pytest.mark.parametrize("rows", [2, 4, 12])
def test_no_sample_number_is_used_twice(monkeypatch, rows):
    rollout = make(monkeypatch, grade(0.8), rows)
    for number in range(12):
        draw = rollout.draw(number, PhaseTimer(), False)
        rollout.refill(draw, number, PhaseTimer(), False)
    numbers = [sample for call in rollout.engine.calls for sample in call]
    assert len(numbers) > 12 * COMPLETIONS
    assert len(set(numbers)) == len(numbers)


def test_prompts_of_a_refill_have_an_order_of_their_own(monkeypatch):
    """Prompts of the data set keep their turn, and a search goes through all of them before it repeats one."""
    rollout = make(monkeypatch, grade(1.1), rows=COMPLETIONS, max_refills=PROMPTS // PER_STEP)
    seen, draw_of = [], rollout._draw
    monkeypatch.setattr(rollout, "_draw", lambda prompts, *rest: seen.append(prompts) or draw_of(prompts, *rest))
    step(rollout, 0)
    assert sorted(np.concatenate(seen[2:]).tolist()) == list(range(PROMPTS))
    np.testing.assert_array_equal(rollout.draw(1, PhaseTimer(), False).prompt_rows[::GROUP], rollout.order.indices(1))


@pytest.mark.parametrize(("rows", "missing", "prompts"), [(4, 1, 1), (6, 1, 2), (12, 1, 4), (100, 1, 4), (4, 4, 4)])
def test_a_round_draws_what_the_generators_batches_hold_anyway(monkeypatch, rows, missing, prompts):
    assert make(monkeypatch, grade(1.0), rows)._worth_drawing(missing) == prompts
