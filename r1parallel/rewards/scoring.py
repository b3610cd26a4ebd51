"""From completions to scores: the named rewards, checked and added up."""

import difflib
import math
import numbers
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from r1parallel.errors import UserError

from .accuracy import accuracy_reward, answer_reward, gsm8k_reward, qwen_accuracy_reward
from .countdown import countdown_format_reward, countdown_reward
from .formats import boxed_format_reward, format_reward, gsm8k_format_reward
from .math_equal import comparison_budget

# Called with prompts=, completions=, solution=: lists of N strings. Gives N scores; None where the row's
# gold answer cannot be read.
RewardFunction = Callable[..., list[float | None]]

REWARDS: dict[str, RewardFunction] = {
    "accuracy_reward": accuracy_reward,
    "qwen_accuracy_reward": qwen_accuracy_reward,
    "answer_reward": answer_reward,
    "gsm8k_reward": gsm8k_reward,
    "gsm8k_format_reward": gsm8k_format_reward,
    "boxed_format_reward": boxed_format_reward,
    "format_reward": format_reward,
    "countdown_reward": countdown_reward,
    "countdown_format_reward": countdown_format_reward,
}


@dataclass(frozen=True)
class Scores:
    """Scores of N completions, in their order.

    A skipped row has NaN in `total` and in the part that skipped it: drop its whole group and count it.
    """

    total: np.ndarray  # float64 [N], weighted sum of the parts
    parts: dict[str, np.ndarray]  # name → float64 [N], before weighting
    skipped: np.ndarray  # bool [N], the gold answer could not be read
    timeouts: int  # symbolic comparisons stopped at the time limit, each scored 0


def check_reward_names(names: Sequence[str]) -> None:
    """Raise `UserError` for the first name that is unknown or given twice."""
    for index, name in enumerate(names):
        if name not in REWARDS:
            nearest = difflib.get_close_matches(name, REWARDS, n=1, cutoff=0.0)[0]
            raise UserError(
                f"reward_config.verifier_function: unknown reward {name!r}, did you mean {nearest!r}? "
                f"known: {', '.join(REWARDS)}"
            )
        if name in names[:index]:
            raise UserError(f"reward_config.verifier_function: {name!r} is given twice, raise its weight instead")


def score(
    functions: Sequence[str],
    weights: Sequence[float],
    prompts: list[str],
    completions: list[str],
    solutions: list[str],
    time_limit: float,
) -> Scores:
    """Score N completions by the named rewards.

    `prompts`, `completions` and `solutions` have N rows each: repeat a prompt for every completion of its
    group. `time_limit` is seconds for one symbolic comparison. Raises `UserError` when a name, a weight or the
    limit is wrong, or when a reward raises or gives anything but N finite scores; `ValueError` when the three
    lists differ in length.
    """
    check_reward_names(functions)
    _check_weights(functions, weights)
    if not 0 < time_limit < math.inf:
        raise UserError(f"reward_config.time_limit: {time_limit} is not a positive number of seconds")
    if not len(prompts) == len(completions) == len(solutions):
        raise ValueError(f"{len(prompts)} prompts, {len(completions)} completions, {len(solutions)} solutions")
    rows = {"prompts": prompts, "completions": completions, "solution": solutions}
    with comparison_budget(time_limit) as budget:
        parts = {name: _run_reward(name, rows) for name in functions}
    total = np.zeros(len(completions))
    for name, weight in zip(functions, weights, strict=True):
        total += weight * parts[name]
    return Scores(total, parts, np.isnan(total), budget.timeouts)


def _check_weights(functions: Sequence[str], weights: Sequence[float]) -> None:
    if len(functions) != len(weights) or not functions:
        raise UserError(
            f"reward_config.verifier_weight: {len(weights)} weights for {len(functions)} functions; "
            "give one weight for each function, and at least one function"
        )
    for name, weight in zip(functions, weights, strict=True):
        if not math.isfinite(weight):
            raise UserError(f"reward_config.verifier_weight: the weight {weight} of {name!r} is not finite")


def _run_reward(name: str, rows: dict[str, list[str]]) -> np.ndarray:
    try:
        values = _call(name, rows)
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"reward {name!r} failed at {_failing_row(name, rows)}: {_one_line(error)}") from error
    count = len(rows["completions"])
    if len(values) != count:
        raise UserError(f"reward {name!r} gave {len(values)} scores for {count} completions")
    return np.array([_check_value(name, index, value) for index, value in enumerate(values)], dtype=np.float64)


def _call(name: str, rows: dict[str, list[str]]) -> list[float | None]:
    return list(REWARDS[name](**rows))


def _failing_row(name: str, rows: dict[str, list[str]]) -> str:
    for index in range(len(rows["completions"])):
        try:
            _call(name, {key: column[index : index + 1] for key, column in rows.items()})
        except Exception:
            return f"row {index}"
    return "no single row, only with all of them"


def _check_value(name: str, index: int, value: float | None) -> float:
    if value is None:
        return math.nan
    if not isinstance(value, numbers.Real) or not math.isfinite(value):
        raise UserError(f"reward {name!r} gave {value!r} for row {index}, not a finite number (None skips a row)")
    return float(value)


def _one_line(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())
