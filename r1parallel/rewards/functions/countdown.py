"""The countdown puzzle: reach a target with + - * / and brackets from given numbers, each used exactly once."""

import ast
import json
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction

from r1parallel.rewards.answers.extract import last_answer

_LEGAL = re.compile(r"[0-9+\-*/()\s]+")
# No puzzle needs more, and the parser's recursion stays harmless.
_LONGEST_EXPRESSION = 300

_OPERATORS: dict[type[ast.operator], Callable[[Fraction, Fraction], Fraction]] = {
    ast.Add: lambda left, right: left + right,
    ast.Sub: lambda left, right: left - right,
    ast.Mult: lambda left, right: left * right,
    ast.Div: lambda left, right: left / right,
}


@dataclass(frozen=True)
class Puzzle:
    """The numbers to use and the value to reach, all integers."""

    nums: tuple[int, ...]
    target: int


class IllegalExpression(Exception):
    """Not an expression of integers, + - * / and brackets, or one without a value."""


def countdown_reward(
    *, prompts: Sequence[str], completions: Sequence[str], solution: Sequence[str]
) -> list[float | None]:
    """1 when the last `<answer>` is a legal expression that equals the target exactly."""
    return [_grade(*row, reaches_target=True) for row in zip(completions, solution, strict=True)]


def countdown_format_reward(
    *, prompts: Sequence[str], completions: Sequence[str], solution: Sequence[str]
) -> list[float | None]:
    """1 when the last `<answer>` is a legal expression with the right numbers, whatever its value."""
    return [_grade(*row, reaches_target=False) for row in zip(completions, solution, strict=True)]


def parse_puzzle(solution: str) -> Puzzle | None:
    """Read `{"nums": [..], "target": ..}`; None when it is anything else."""
    try:
        record = json.loads(solution)
    except json.JSONDecodeError:
        return None
    if not isinstance(record, dict) or not isinstance(record.get("nums"), list):
        return None
    numbers = [*record["nums"], record.get("target")]
    if len(numbers) < 2 or any(type(number) is not int for number in numbers):
        return None
    return Puzzle(tuple(numbers[:-1]), numbers[-1])


def evaluate(expression: str) -> tuple[Fraction, list[int]]:
    """The exact value and the numbers used. Raises `IllegalExpression`, also for a division by 0; runs no code."""
    if len(expression) > _LONGEST_EXPRESSION or not _LEGAL.fullmatch(expression):
        raise IllegalExpression(expression)
    try:
        tree = ast.parse(" ".join(expression.split()), mode="eval").body
        numbers: list[int] = []
        return _value(tree, numbers), numbers
    except (SyntaxError, ZeroDivisionError):
        raise IllegalExpression(expression) from None


def _grade(completion: str, solution: str, reaches_target: bool) -> float | None:
    puzzle = parse_puzzle(solution)
    if puzzle is None:
        return None
    expression = last_answer(completion)
    if expression is None:
        return 0.0
    try:
        value, numbers = evaluate(expression)
    except IllegalExpression:
        return 0.0
    right_numbers = Counter(numbers) == Counter(puzzle.nums)
    return float(right_numbers and (value == puzzle.target or not reaches_target))


def _value(node: ast.expr, numbers: list[int]) -> Fraction:
    match node:
        case ast.Constant(value=int(value)):
            numbers.append(value)
            return Fraction(value)
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            return -_value(operand, numbers)
        case ast.BinOp(left=left, op=operator, right=right) if type(operator) in _OPERATORS:
            return _OPERATORS[type(operator)](_value(left, numbers), _value(right, numbers))
    raise IllegalExpression(ast.dump(node))
