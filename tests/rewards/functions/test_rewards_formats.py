"""Rewards for the shape of a completion."""

import pytest

from r1parallel.rewards.functions.formats import boxed_format_reward, format_reward, gsm8k_format_reward


def call(reward, completion, prompt=""):
    return reward(prompts=[prompt], completions=[completion], solution=["18"])[0]


GOOD = "<think>16 - 3\nis 13</think>\n<answer>13</answer>"


@pytest.mark.parametrize(
    "completion",
    [
        GOOD,
        f"  {GOOD}\n",
        f"{GOOD}<|im_end|>",
        f"{GOOD}<|im_end|>\n<|endoftext|>",
        "<think>a</think><answer>b</answer>",
    ],
)
def test_format_reward_takes_think_then_answer(completion):
    assert call(format_reward, completion) == 1.0


@pytest.mark.parametrize(
    "completion",
    [
        "",
        "18",
        f"{GOOD} and more",
        f"Sure! {GOOD}",
        f"{GOOD}{GOOD}",
        GOOD.removesuffix("</answer>"),
        "<think>a</think> so <answer>b</answer>",
        "<think>a<think>b</think><answer>c</answer>",
        "<answer>b</answer><think>a</think>",
        "<think> </think><answer>b</answer>",
        "<think>a</think><answer>\n</answer>",
    ],
)
def test_format_reward_refuses_the_rest(completion):
    assert call(format_reward, completion) == 0.0


@pytest.mark.parametrize("prefill", ["<think>", "<think>\n", "Let me solve this step by step.\n<think> "])
def test_a_prefilled_think_counts(prefill):  # F14
    prompt = f"Use <think> </think> and <answer> </answer> tags.\nassistant\n{prefill}"
    rest = "16 - 3</think>\n<answer>13</answer><|im_end|>"
    assert call(format_reward, rest, prompt) == 1.0
    assert call(format_reward, GOOD, prompt) == 0.0, "a second <think> is one too many"
    assert call(format_reward, rest, "Use <think> </think> tags.") == 0.0


@pytest.mark.parametrize(
    ("completion", "expected"),
    [
        ("so 18\n#### 18", 1.0),
        ("#### 1,234.5\n", 1.0),
        ("####18<|im_end|>", 1.0),
        ("#### $18", 1.0),
        ("#### 18\nthat is all", 0.0),
        ("#### eighteen", 0.0),
        ("####", 0.0),
        ("##### 18", 0.0),
        ("so #### 18", 0.0),
        ("18", 0.0),
        ("", 0.0),
    ],
)
def test_gsm8k_format_reward(completion, expected):
    assert call(gsm8k_format_reward, completion) == expected


@pytest.mark.parametrize(
    ("completion", "expected"),
    [
        (r"so \boxed{18}.", 1.0),
        (r"\boxed{\frac{1}{2}}", 1.0),
        (r"\boxed{1} \boxed{2}", 0.0),
        (r"\boxed{\boxed{2}}", 0.0),
        (r"\boxed{ }", 0.0),
        (r"\boxed{18", 0.0),
        ("18", 0.0),
    ],
)
def test_boxed_format_reward(completion, expected):
    assert call(boxed_format_reward, completion) == expected
