"""Rewards of one rank for all: the same as without ranks, and computed once."""

import numpy as np
import pytest
from helpers.simulated_world import SimulatedWorld

from r1parallel.config.schema import RewardConfig
from r1parallel.errors import UserError
from r1parallel.parallel.launch.world import World
from r1parallel.rewards import Scores, score
from r1parallel.rl.experience.scoring import score_on_leader

PROMPTS = ["1+1=", "2+2=", "3+3=", "4+4="]
COMPLETIONS = ["<answer>2</answer>", "<answer>5</answer>", "6", "<answer>8</answer>"]
SOLUTIONS = ["2", "four", "6", "#### 8"]
# Not in the order of the alphabet, and with weights that tell them apart.
NAMES, WEIGHTS = ["format_reward", "answer_reward", "gsm8k_reward"], [0.25, 2.0, 8.0]


@pytest.fixture
def calls(monkeypatch):
    """Ranks that computed rewards; `score` is counted on its way."""
    made = []

    def counted(*arguments):
        made.append(arguments)
        return score(*arguments)

    monkeypatch.setattr("r1parallel.rl.experience.scoring.score", counted)
    return made


def make_config(names=NAMES, weights=WEIGHTS) -> RewardConfig:
    return RewardConfig(verifier_function=list(names), verifier_weight=list(weights), time_limit=30.0, num_workers=1)


def assert_same(found: Scores, expected: Scores) -> None:
    np.testing.assert_array_equal(found.total, expected.total)
    np.testing.assert_array_equal(found.skipped, expected.skipped)
    assert (found.total.dtype, found.skipped.dtype) == (np.float64, bool)
    assert list(found.parts) == list(expected.parts)
    for name, values in expected.parts.items():
        np.testing.assert_array_equal(found.parts[name], values)
    assert (found.timeouts, found.failures) == (expected.timeouts, expected.failures)
    assert (type(found.timeouts), type(found.failures)) == (int, int)


def simulated(size, monkeypatch) -> SimulatedWorld:
    world = SimulatedWorld(size, monkeypatch)
    monkeypatch.setattr("r1parallel.rl.experience.scoring.broadcast", world.broadcast)
    return world


@pytest.mark.parametrize("names", [NAMES, NAMES[::-1], NAMES[:1]])
def test_one_process_has_the_scores_of_the_rewards(calls, names):
    config = make_config(names, WEIGHTS[: len(names)])
    found = score_on_leader(config, PROMPTS, COMPLETIONS, SOLUTIONS, World())
    expected = score(names, WEIGHTS[: len(names)], PROMPTS, COMPLETIONS, SOLUTIONS, 30.0, 1)
    assert_same(found, expected)
    assert list(found.parts) == names
    assert [arguments[-3:] for arguments in calls] == [(30.0, 1, 2048)]  # the limits of the configuration


def test_every_rank_has_them_and_only_the_leader_computes(calls, monkeypatch):
    results = simulated(4, monkeypatch).run(
        lambda world: score_on_leader(make_config(), PROMPTS, COMPLETIONS, SOLUTIONS, world)
    )
    expected = score(NAMES, WEIGHTS, PROMPTS, COMPLETIONS, SOLUTIONS, 30.0, 1)
    assert expected.skipped.tolist() == [False, True, False, False]  # a gold answer that gsm8k_reward cannot read
    assert len({round(value, 6) for part in expected.parts.values() for value in part if value == value}) > 1
    for found in results:
        assert_same(found, expected)
    assert len(calls) == 1


def test_time_limits_and_failures_are_counted_on_every_rank(monkeypatch):
    total = np.array([0.0, np.nan, 1 / 3])
    struck = Scores(total, {"answer_reward": total}, np.isnan(total), 5, 7)
    monkeypatch.setattr("r1parallel.rl.experience.scoring.score", lambda *arguments: struck)
    config = make_config(["answer_reward"], [1.0])
    for found in simulated(2, monkeypatch).run(
        lambda world: score_on_leader(config, PROMPTS[:3], COMPLETIONS[:3], SOLUTIONS[:3], world)
    ):
        assert_same(found, struck)


def test_a_broken_reward_ends_every_rank_with_its_own_message(monkeypatch, tmp_path):
    (tmp_path / "mine.py").write_text("def broken(prompts, completions, solution):\n    return 1 / 0\n")
    config = make_config([f"{tmp_path}/mine.py:broken"], [1.0])
    with pytest.raises(UserError, match="broken' failed on all 4 completions, at row 0: ZeroDivisionError"):
        simulated(2, monkeypatch).run(lambda world: score_on_leader(config, PROMPTS, COMPLETIONS, SOLUTIONS, world))
