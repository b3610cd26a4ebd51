"""The rewards under the names of mindrlhf and MindSpeed-RL."""

import pytest

from r1parallel.rewards import REWARDS

BOXED = r"<think>16 + 2</think> <answer>It is \boxed{18}.</answer>"
PUZZLE = "(1) Zoey is a knight\n(2) Oliver is a knave"


def call(name, completion, solution="18", prompt=""):
    return REWARDS[name](prompts=[prompt], completions=[completion], solution=[solution])[0]


def test_every_name_of_the_contracts_is_known():
    mindrlhf = {"accuracy_reward", "qwen_accuracy_reward", "format_reward", "kk_reward"}
    mindspeed = {"acc", "format", "step", "strict_format", "base_acc", "math_17k_acc", "acc_for_dapo", "acc_for_ppo"}
    assert mindrlhf | mindspeed | {"math_verify_reward", "retool_reward"} <= REWARDS.keys()


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("(1) Zoey is a knight (2) Oliver is a knave", 3.0),
        ("oliver is a KNAVE, Zoey is a knight.", 3.0),
        ("Zoey is a knave, Oliver is a knave", -0.5),
        ("Zoey is a knight", -1.0),
        ("Zoey is a knight, Oliver is a knave, Zoey is a knave", -1.0),
        ("Zoey is a knight, Ann is a knave", -1.0),
        ("nobody knows", -1.0),
    ],
)
def test_knights_and_knaves(answer, expected):
    assert call("kk_reward", f"<think>a</think><answer>{answer}</answer>", PUZZLE) == expected


@pytest.mark.parametrize(
    "completion",
    [
        "",
        "<answer>Zoey is a knight, Oliver is a knave</answer>",
        "<answer>Zoey is a knight, Oliver is a knave</answer><think>a</think>",
        "<think>a</think><think>b</think><answer>Zoey is a knight, Oliver is a knave</answer>",
    ],
)
def test_knights_without_their_tags(completion):
    assert call("kk_reward", completion, PUZZLE) == -3.0


def test_knights_know_a_prefilled_think_and_an_unreadable_gold():
    completion = "a</think> so <answer>Zoey is a knight, Oliver is a knave</answer> that is all"
    assert call("kk_reward", completion, PUZZLE, "assistant\n<think>\n") == 3.0
    assert call("kk_reward", completion, "18") is None


@pytest.mark.parametrize(
    ("name", "completion", "expected"),
    [
        ("acc", r"so \boxed{18.0}", 1.0),
        ("acc", r"so \boxed{17}", -0.5),
        ("acc", "so 18", -1.0),
        ("acc", r"so \boxed{ }", -1.0),
        ("retool_reward", r"so \boxed{18.}", 1.0),
        ("retool_reward", r"so \boxed{17}", -1.0),
        ("retool_reward", "so 18", -1.0),
        ("math_17k_acc", r"so \boxed{\frac{36}{2}}", 1.0),
        ("math_17k_acc", "so 18", 0.0),
        ("acc_for_ppo", r"so \boxed{17}", 0.0),
        ("acc_for_dapo", "so\nAnswer: 18.", 1.0),
        ("acc_for_dapo", "Answer: 17\nanswer : $18$<|im_end|>", 1.0),
        ("acc_for_dapo", r"Answer: \boxed{18} dollars", 1.0),
        ("acc_for_dapo", "Answer: 17", -1.0),
        ("acc_for_dapo", r"so \boxed{18}", -1.0),
        ("acc_for_dapo", "Answer: 18" + " " * 300 + ".", -1.0),
        ("math_verify_reward", "so $18$ eggs<|im_end|>", 1.0),
        ("math_verify_reward", r"so \boxed{17}", 0.0),
        ("base_acc", BOXED, 1.0),
        ("base_acc", BOXED.replace("18", "17"), 0.0),
        ("base_acc", r"\boxed{18}", 0.0),
        ("strict_format", BOXED, 1.0),
        ("strict_format", f"\n{BOXED}<|im_end|>", 1.0),
        ("strict_format", f"{BOXED} more", -0.5),
        ("strict_format", r"<think>\boxed{18}</think><answer>18</answer>", -0.5),
        ("strict_format", r"<think>\boxed{1}</think><answer>\boxed{18}</answer>", -0.5),
        ("strict_format", "<think>a</think><answer>18</answer>", -0.5),
        ("format", "<think>a</think><answer>b</answer>", 1.0),
        ("format", "<think>a</think><answer>b</answer>\nmore", 0.0),
        ("step", "", 0.0),
        ("step", "Step 1: add.\n2. done", 2 / 3),
        ("step", "1. a\n2. b\n3. c\n- d", 1.0),
        ("step", "First, a.\n* b", 2 / 3),
        ("step", "- no line before it, and 3-2=1, 1.5", 0.0),
    ],
)
def test_scores(name, completion, expected):
    assert call(name, completion) == pytest.approx(expected)


@pytest.mark.parametrize("name", ["acc", "acc_for_dapo", "retool_reward", "base_acc", "math_verify_reward"])
def test_an_unreadable_gold_is_skipped(name):  # D24
    completion = r"<think>a</think><answer>Answer: \boxed{18}</answer>"
    assert call(name, completion, r"\frac{") is None
    assert call(name, completion, " ") is None


def test_strict_format_knows_a_prefilled_think():
    assert call("strict_format", BOXED.removeprefix("<think>"), prompt="assistant\n<think>\n") == 1.0
    assert call("base_acc", BOXED.removeprefix("<think>"), prompt="assistant\n<think>\n") == 1.0
