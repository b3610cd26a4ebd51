"""The countdown puzzle."""

import json
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from r1parallel.rewards.functions.countdown import (
    IllegalExpression,
    countdown_format_reward,
    countdown_reward,
    evaluate,
)

PUZZLE = json.dumps({"nums": [3, 5, 7, 7], "target": 26})


def both(answer, solution=PUZZLE):
    rows = {"prompts": [""], "completions": [f"<answer>{answer}</answer>"], "solution": [solution]}
    return countdown_reward(**rows)[0], countdown_format_reward(**rows)[0]


def test_right_numbers_and_target():
    assert both("3*7 + 5*7/7", '{"nums": [3, 7, 5, 7, 7], "target": 26}') == (1.0, 1.0)
    assert both("7 + 7*3 - 5\n", '{"nums": [3, 5, 7, 7], "target": 23}') == (1.0, 1.0)
    assert both("-3 + 5 + 7 + 7", '{"nums": [3, 5, 7, 7], "target": 16}') == (1.0, 1.0)


def test_right_numbers_wrong_target():
    assert both("3 + 5 + 7 + 7") == (0.0, 1.0)


def test_fractions_on_the_way_are_exact():
    assert both("8/(3-8/3)", '{"nums": [8, 3, 8, 3], "target": 24}') == (1.0, 1.0)


@pytest.mark.parametrize(
    "answer",
    [
        "3 + 5 + 7",  # a number left out
        "3 + 5 + 7 + 7 + 7",  # one used too often
        "3 + 5 + 77",
        "3 + 5 + 7 + 7 = 22",
        "3 ** 5 + 7 + 7",
        "3 // 5 + 7 + 7",
        "+3 + 5 + 7 + 7",
        "3(5) + 7 + 7",
        "3, 5, 7, 7",
        "3 5 7 7",
        "(3 + 5 + 7 + 7",
        "()",
        "",
        "3.0 + 5 + 7 + 7",
        "7/(5-5) + 3",
        "03 + 5 + 7 + 7",
        "__import__('os').getcwd()",
        "3 × 5 + 7 + 7",
        "(" * 140 + "3" + ")" * 140,
        "-" * 299 + "3",
        "1+" * 200 + "1",
    ],
)
def test_illegal_expressions_score_nothing(answer):
    assert both(answer) == (0.0, 0.0)


def test_the_last_answer_counts_and_none_is_zero():
    rows = {"prompts": [""], "completions": ["3 + 5 + 7 + 7"], "solution": [PUZZLE]}
    assert countdown_format_reward(**rows) == [0.0]
    rows["completions"] = ["<answer>1</answer> <answer>3+5+7+7</answer>"]
    assert countdown_format_reward(**rows) == [1.0]


@pytest.mark.parametrize(
    "solution",
    [
        *("", "18", "[1]", '{"nums": [1, 2]}', '{"target": 3}', '{"nums": [], "target": 3}'),
        *('{"nums": [1.5], "target": 3}', '{"nums": [true], "target": 1}', '{"nums": "12", "target": 3}'),
        '{"nums": [1], "target": "1"}',
    ],
)
def test_an_unreadable_puzzle_is_skipped(solution):
    assert both("1", solution) == (None, None)


def _expressions():
    numbers = st.integers(0, 99).map(lambda n: (str(n), Fraction(n), [n]))

    def combine(children):
        return st.tuples(children, st.sampled_from("+-*/"), children).map(_join)

    return st.recursive(numbers, combine, max_leaves=6)


def _join(parts):
    (left, left_value, left_numbers), sign, (right, right_value, right_numbers) = parts
    if sign == "/" and right_value == 0:
        sign = "+"
    results = {
        "+": lambda: left_value + right_value,
        "-": lambda: left_value - right_value,
        "*": lambda: left_value * right_value,
        "/": lambda: left_value / right_value,
    }
    return f"({left} {sign} {right})", results[sign](), left_numbers + right_numbers


@given(_expressions())
def test_evaluate_agrees_with_the_expression_it_was_built_from(expression):
    text, value, numbers = expression
    assert evaluate(text) == (value, numbers)


@given(st.text(alphabet="0123456789+-*/() \n", max_size=40))
def test_evaluate_gives_a_value_or_illegal(text):
    try:
        value, numbers = evaluate(text)
    except IllegalExpression:
        return
    assert isinstance(value, Fraction)
    assert numbers
