"""From completions to scores: the named rewards, computed apart, checked and added up."""

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from r1parallel.errors import UserError
from r1parallel.rewards.pool import Pool, Results, shared_pool
from r1parallel.rewards.registry import check_names, is_from_file
from r1parallel.rewards.sandbox.call_limits import DEFAULT_MEBIBYTES
from r1parallel.rewards.sandbox.sandbox import check_sandbox

_warned: set[str] = set()


@dataclass(frozen=True)
class Scores:
    """Scores of N completions, in their order.

    A skipped row has NaN in `total` and in the part that skipped it: drop its whole group and count it. Where a
    reward ran out of time or failed, its part is 0.
    """

    total: np.ndarray  # float64 [N], weighted sum of the parts
    parts: dict[str, np.ndarray]  # name → float64 [N], before weighting
    skipped: np.ndarray  # bool [N], the gold answer could not be read
    timeouts: int  # parts of rows that ran out of time
    failures: int = 0  # parts of rows whose reward raised, gave no finite number, ate its memory or died


def check_reward_names(names: Sequence[str]) -> None:
    """Raise `UserError` for the first reward that cannot be used.

    That is a name that is unknown or given twice, a function that its file does not have or that takes other
    arguments, a sandbox that this machine has no means for.
    """
    check_names(names)
    if "code_reward" in names:
        check_sandbox()
    from_files = [name for name in names if is_from_file(name)]
    if not from_files:
        return
    pool = Pool(1, DEFAULT_MEBIBYTES)
    try:
        for name in from_files:
            pool.load(name)
    finally:
        pool.close()


def score(
    functions: Sequence[str],
    weights: Sequence[float],
    prompts: list[str],
    completions: list[str],
    solutions: list[str],
    time_limit: float,
    num_workers: int = 0,
    memory_limit: int = DEFAULT_MEBIBYTES,
) -> Scores:
    """Score N completions by the named rewards.

    A reward that hangs, raises, dies, eats its memory or gives no finite number scores 0 where it does; the first
    time is told as a warning.

    Args:
        functions: names, or file.py:function.
        weights: one for each.
        prompts: N; repeat a prompt for every completion of its group.
        completions: N.
        solutions: N.
        time_limit: seconds for one reward and completion.
        num_workers: processes that compute; 0: one for each CPU, 8 at most.
        memory_limit: MiB that a process may allocate.

    Raises:
        UserError: a name, a weight or a limit is wrong; a reward fails on all rows, or gives a wrong number of scores.
        ValueError: the three lists differ in length.

    """
    check_names(functions)
    _check_weights(functions, weights)
    if not 0 < time_limit < math.inf:
        raise UserError(f"reward_config.time_limit: {time_limit} is not a positive number of seconds")
    if not len(prompts) == len(completions) == len(solutions):
        raise ValueError(f"{len(prompts)} prompts, {len(completions)} completions, {len(solutions)} solutions")
    columns = {"prompts": prompts, "completions": completions, "solution": solutions}
    results = shared_pool(num_workers, memory_limit).run(functions, columns, time_limit)
    count = len(completions)
    for name in functions:
        _report(name, results[name], count)
    parts = {name: _part(results[name], count) for name in functions}
    total = np.zeros(count)
    for name, weight in zip(functions, weights, strict=True):
        total += weight * parts[name]
    timeouts = sum(len(result.timeouts) for result in results.values())
    failures = sum(len(result.errors) for result in results.values())
    return Scores(total, parts, np.isnan(total), timeouts, failures)


def _check_weights(functions: Sequence[str], weights: Sequence[float]) -> None:
    if len(functions) != len(weights) or not functions:
        raise UserError(
            f"reward_config.verifier_weight: {len(weights)} weights for {len(functions)} functions; "
            "give one weight for each function, and at least one function"
        )
    for name, weight in zip(functions, weights, strict=True):
        if not math.isfinite(weight):
            raise UserError(f"reward_config.verifier_weight: the weight {weight} of {name!r} is not finite")


def _report(name: str, result: Results, count: int) -> None:
    """Stop when a reward is broken altogether; warn once when it fails here and there."""
    if not result.errors:
        return
    row = min(result.errors)
    example = f"at row {row}: {result.errors[row]}"
    if len(result.errors) == count:
        raise UserError(f"reward {name!r} failed on all {count} completions, {example}")
    if name not in _warned:
        _warned.add(name)
        warnings.warn(
            f"reward {name!r} failed on {len(result.errors)} of {count} completions, which score 0, {example}; "
            "later failures are only counted, see reward_failures",
            stacklevel=3,
        )


def _part(result: Results, count: int) -> np.ndarray:
    part = np.zeros(count)
    for row, value in result.scores.items():
        part[row] = math.nan if value is None else value
    return part
