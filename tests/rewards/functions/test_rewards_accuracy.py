"""Rewards for the right answer."""

import pytest

from r1parallel.rewards.answers import math_equal
from r1parallel.rewards.functions.accuracy import accuracy_reward, answer_reward, gsm8k_reward, qwen_accuracy_reward


def call(reward, completion, gold):
    return reward(prompts=[""], completions=[completion], solution=[gold])[0]


@pytest.fixture
def no_math_verify(monkeypatch):
    """Fail the test that asks math-verify."""
    monkeypatch.setattr(math_equal, "_math_verify", lambda: pytest.fail("math-verify was asked"))


@pytest.mark.usefixtures("no_math_verify")
@pytest.mark.parametrize(
    ("reward", "completion", "gold", "expected"),
    [
        (accuracy_reward, "The answer is 18.", "18", 1.0),  # F18
        (accuracy_reward, "It is $18.00<|im_end|>", "$18$", 1.0),
        (accuracy_reward, "9 * 2 = 18", "9 eggs\n#### 18", 1.0),  # F18: not the first number of the gold
        (accuracy_reward, "9 * 2 = 18", "9 eggs\n#### 9", 0.0),
        (accuracy_reward, "1e3", "1,000", 1.0),
        (accuracy_reward, "it is 18, in 2 steps", "18", 0.0),
        (accuracy_reward, "nothing", "18", 0.0),
        (accuracy_reward, "", "18", 0.0),
        (qwen_accuracy_reward, r"so \boxed{18 }", "18", 1.0),  # F18
        (qwen_accuracy_reward, r"\boxed{\frac{1}{2}}", "0.5", 1.0),  # F18
        (qwen_accuracy_reward, r"\boxed{18\text{ dollars}}", "18", 1.0),
        (qwen_accuracy_reward, r"\boxed{18} or \boxed{19}", "18", 0.0),
        (qwen_accuracy_reward, "18", "18", 0.0),
        (qwen_accuracy_reward, r"\boxed{ }", "18", 0.0),
        (qwen_accuracy_reward, r"\boxed{2\sqrt{3}}", r"$2\sqrt{3}$", 1.0),
        (qwen_accuracy_reward, r"\boxed{\text{East}}", "east", 1.0),
        (qwen_accuracy_reward, r"\boxed{seat}", "east", 0.0),
        (answer_reward, "<answer>18</answer>", "18", 1.0),
        (answer_reward, "<answer>The answer is 18.</answer>", "18", 1.0),
        (answer_reward, r"<answer>\boxed{18}</answer>", "18", 1.0),
        (answer_reward, "<answer>17</answer> 18", "18", 0.0),
        (answer_reward, r"\boxed{18}", "18", 0.0),
        (gsm8k_reward, "so\n#### 18", "x\n#### 18", 1.0),
        (gsm8k_reward, "#### $1,234 in all", "1234", 1.0),
        (gsm8k_reward, "#### 1\n#### 18", "18", 1.0),
        (gsm8k_reward, "####\n18", "18", 0.0),
        (gsm8k_reward, "18", "18", 0.0),
        (gsm8k_reward, "#### 18", r"\sqrt{2}", None),
        (gsm8k_reward, "18", "", None),
        (accuracy_reward, "18", "", None),
        (qwen_accuracy_reward, r"\boxed{18}", " ", None),
    ],
)
def test_numbers_are_graded_without_math_verify(reward, completion, gold, expected):
    assert call(reward, completion, gold) == expected


@pytest.mark.parametrize(
    ("reward", "completion", "gold", "expected"),
    [
        (qwen_accuracy_reward, r"\boxed{\sqrt{12}}", r"2\sqrt{3}", 1.0),
        (qwen_accuracy_reward, r"\boxed{\sqrt{13}}", r"2\sqrt{3}", 0.0),
        (qwen_accuracy_reward, r"\boxed{2\frac{1}{2}}", "2.5", 1.0),
        (qwen_accuracy_reward, r"\boxed{x = 18}", "18", 1.0),
        (qwen_accuracy_reward, r"\boxed{18x}", "18", 0.0),
        (qwen_accuracy_reward, r"\boxed{\{2, 1\}}", r"\{1, 2\}", 1.0),
        (qwen_accuracy_reward, r"\boxed{\frac{}", "18", 0.0),
        (accuracy_reward, r"so \boxed{\sqrt{12}} (2 steps)", r"$2\sqrt{3}$", 1.0),
        (accuracy_reward, r"<answer>\sqrt{12}</answer>", r"$2\sqrt{3}$", 1.0),
        (accuracy_reward, "3", r"$2\sqrt{3}$", 0.0),
        (answer_reward, r"<answer>\sqrt{12}</answer>", r"2\sqrt{3}", 1.0),
        (qwen_accuracy_reward, r"\boxed{18}", r"\frac{", None),  # D24: an unreadable gold is never right
        (qwen_accuracy_reward, "nothing", r"\frac{", None),
        (answer_reward, "<answer>18</answer>", "???", None),
    ],
)
def test_symbols_are_graded_by_math_verify(reward, completion, gold, expected):
    assert call(reward, completion, gold) == expected
