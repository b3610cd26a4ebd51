"""Countdown problems that have a solution: reach a target with given numbers."""

import random
from collections.abc import Collection, Iterator, Sequence
from fractions import Fraction
from typing import Any

from r1parallel.errors import UserError

_LARGEST_NUMBER = 99
_LARGEST_TARGET = 100
_MAX_MISSES = 20000  # draws in a row without a new problem that count as "there are no more"

CountdownKey = tuple[tuple[int, ...], int]


def generate_countdown(
    num: int, seed: int, sizes: Sequence[int] = (3, 4), exclude: Collection[CountdownKey] = ()
) -> Iterator[dict[str, Any]]:
    """Yield `num` distinct rows {"nums", "target", "answer"}.

    Each row has one of `sizes` numbers from 1 to 99 and a target from 1 to 100. `answer` is a completion that
    works the target out and uses every number once. Two problems are the same when target and numbers, in any
    order, are; those whose `countdown_key` is in `exclude` are left out.

    Raises:
        UserError: a size is below 2, or there are fewer distinct problems than asked for.
    """
    if not sizes or min(sizes) < 2:
        raise UserError(f"countdown: sizes are {list(sizes)}; each must be at least 2")
    rng = random.Random(seed)
    seen = set(exclude)
    for made in range(num):
        row = _new_problem(rng, sizes, seen)
        if row is None:
            raise UserError(f"countdown: found only {made} of {num} distinct problems; ask for fewer")
        seen.add(countdown_key(row))
        yield row


def countdown_key(row: dict[str, Any]) -> CountdownKey:
    """What makes two problems the same."""
    return tuple(sorted(row["nums"])), row["target"]


def _new_problem(rng: random.Random, sizes: Sequence[int], seen: set[CountdownKey]) -> dict[str, Any] | None:
    for _ in range(_MAX_MISSES):
        nums = [rng.randint(1, _LARGEST_NUMBER) for _ in range(rng.choice(sizes))]
        value, expression, steps = _combine(rng, nums)
        if value.denominator != 1 or not 1 <= value <= _LARGEST_TARGET:
            continue
        answer = f"<think>{', '.join(steps)}</think><answer>{expression}</answer>"
        row = {"nums": nums, "target": int(value), "answer": answer}
        if countdown_key(row) not in seen:
            return row
    return None


def _combine(rng: random.Random, nums: Sequence[int]) -> tuple[Fraction, str, list[str]]:
    """Join random pairs until one value is left: (value, expression, steps of the working)."""
    terms = [(Fraction(n), str(n)) for n in nums]
    steps = []
    while len(terms) > 1:
        left, left_text = terms.pop(rng.randrange(len(terms)))
        right, right_text = terms.pop(rng.randrange(len(terms)))
        sign = rng.choice("+-*/" if right else "+-*")
        value = {"+": left + right, "-": left - right, "*": left * right, "/": left / (right or 1)}[sign]
        steps.append(f"{_operand(left)}{sign}{_operand(right)}={value}")
        text = f"{left_text}{sign}{right_text}"
        terms.append((value, f"({text})" if terms else text))
    return *terms[0], steps


def _operand(value: Fraction) -> str:
    """Text of an intermediate value; what carries a sign or a fraction bar is put in parentheses."""
    return str(value) if value >= 0 and value.denominator == 1 else f"({value})"
