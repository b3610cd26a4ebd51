"""Adding rewards up, and refusing what is wrong with them."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from r1parallel.errors import UserError
from r1parallel.rewards import REWARDS, check_reward_names, score
from r1parallel.rewards.answers import math_equal as math_equal_module

COMPLETIONS = [
    "<think>a</think><answer>18</answer>",
    "<think>a</think><answer>17</answer>",
    "the answer is 18",
    "#### 18",
    r"\boxed{18}",
    "",
]


@pytest.fixture
def shared_gsm8k(shared_dir):
    path = shared_dir / "data" / "gsm8k" / "test.jsonl"
    if not path.is_file():
        pytest.skip(f"no GSM8K at {path}: set R1_SHARED")
    return path


def run(functions, weights, completions, solutions, time_limit=60.0):
    return score(functions, weights, [""] * len(completions), completions, solutions, time_limit, 2)


def test_the_total_is_the_weighted_sum():
    scores = run(["accuracy_reward", "format_reward"], [1.0, 0.5], COMPLETIONS, ["18"] * 6)
    np.testing.assert_array_equal(scores.parts["accuracy_reward"], [1, 0, 1, 1, 1, 0])
    np.testing.assert_array_equal(scores.parts["format_reward"], [1, 1, 0, 0, 0, 0])
    np.testing.assert_array_equal(scores.total, [1.5, 0.5, 1, 1, 1, 0])
    assert scores.total.dtype == np.float64
    assert scores.skipped.dtype == np.bool_
    assert not scores.skipped.any()
    assert (scores.timeouts, scores.failures) == (0, 0)


def test_an_unreadable_gold_is_skipped_and_never_one():  # D24
    scores = run(["gsm8k_reward", "format_reward"], [1.0, 0.5], ["#### 18", "#### 18"], ["18", "???"])
    np.testing.assert_array_equal(scores.skipped, [False, True])
    np.testing.assert_array_equal(scores.total, [1.0, np.nan])
    np.testing.assert_array_equal(scores.parts["gsm8k_reward"], [1.0, np.nan])
    np.testing.assert_array_equal(scores.parts["format_reward"], [0.0, 0.0])


def test_timeouts_are_counted():
    scores = run(["qwen_accuracy_reward"], [1.0], [r"\boxed{9^{9^{9}}}", r"\boxed{5+13}"], ["18", "18"], 3.0)
    np.testing.assert_array_equal(scores.total, [0.0, 1.0])
    assert (scores.timeouts, scores.failures) == (1, 0)


@settings(max_examples=5, deadline=None)
@given(st.permutations(range(12)))
def test_scores_follow_their_rows(order):  # F19
    names = list(REWARDS)
    prompts = ["", "<think>\n"] * 6
    completions = [*COMPLETIONS, "a</think><answer>3+4</answer>", r"\boxed{\frac{36}{2}} x", "-18", "18.0", "$18", "1"]
    solutions = ["18", "17"] * 3 + ['{"nums": [3, 4], "target": 7}'] + ["18"] * 5

    def of(rows):
        columns = [[column[row] for row in rows] for column in (prompts, completions, solutions)]
        return score(names, [1.0] * len(names), *columns, 60.0, 2)

    straight, shuffled = of(range(12)), of(order)
    for name in names:
        np.testing.assert_array_equal(shuffled.parts[name], straight.parts[name][list(order)])
    np.testing.assert_array_equal(shuffled.total, straight.total[list(order)])
    kinds = {tuple(row) for row in np.nan_to_num(np.stack(list(straight.parts.values())), nan=-1.0).T}
    assert len(kinds) > 6, "rows must differ for their order to show"


def test_no_rows_give_no_scores():
    assert run(["accuracy_reward"], [1.0], [], []).total.shape == (0,)


def test_an_unknown_name_gets_the_nearest_and_the_list():
    with pytest.raises(UserError, match=r"'acuracy_reward', did you mean 'accuracy_reward'.*countdown_format_reward"):
        check_reward_names(["format_reward", "acuracy_reward"])


@pytest.mark.parametrize(
    ("functions", "weights", "time_limit", "message"),
    [
        (["format_reward"] * 2, [1.0, 1.0], 5.0, "given twice"),
        (["format_reward"], [1.0, 1.0], 5.0, "2 weights for 1 functions"),
        ([], [], 5.0, "at least one"),
        (["format_reward"], [float("nan")], 5.0, "'format_reward' is not finite"),
        (["format_reward"], [1.0], 0.0, "time_limit"),
        (["format_reward"], [1.0], float("inf"), "time_limit"),
    ],
)
def test_wrong_settings(functions, weights, time_limit, message):
    with pytest.raises(UserError, match=message):
        run(functions, weights, ["a"], ["18"], time_limit)


def test_columns_of_different_length():
    with pytest.raises(ValueError, match="1 prompts, 2 completions, 1 solutions"):
        score(["format_reward"], [1.0], ["p"], ["a", "b"], ["18"], 5.0)


def test_importing_rewards_does_not_import_mindspore():
    code = (
        "import sys, r1parallel.rewards; print([n for n in ('mindspore', 'sympy', 'math_verify') if n in sys.modules])"
    )
    run = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, start_new_session=True, check=True,
        cwd=Path(math_equal_module.__file__).parents[2],
    )  # fmt: skip
    assert run.stdout == "[]\n"


def test_every_gsm8k_solution_earns_its_own_reward(shared_gsm8k):
    answers = [json.loads(line)["answer"] for line in shared_gsm8k.read_text(encoding="utf-8").splitlines()]
    scores = run(["accuracy_reward", "gsm8k_reward", "gsm8k_format_reward"], [1.0, 1.0, 1.0], answers, answers)
    assert len(answers) > 1000
    np.testing.assert_array_equal(scores.total, 3.0)
