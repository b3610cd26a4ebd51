"""The rewards by name: those of this package, and functions in files of the user's."""

import difflib
import functools
import hashlib
import importlib.util
import inspect
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from r1parallel.errors import UserError
from r1parallel.rewards.functions.accuracy import (
    accuracy_reward,
    answer_line_reward,
    answer_reward,
    boxed_penalty_reward,
    boxed_sign_reward,
    gsm8k_reward,
    math_verify_reward,
    qwen_accuracy_reward,
    strict_accuracy_reward,
)
from r1parallel.rewards.functions.countdown import countdown_format_reward, countdown_reward
from r1parallel.rewards.functions.formats import (
    boxed_format_reward,
    format_reward,
    gsm8k_format_reward,
    strict_format_reward,
)
from r1parallel.rewards.functions.knights import kk_reward
from r1parallel.rewards.functions.programs import code_reward
from r1parallel.rewards.functions.steps import steps_reward
from r1parallel.rewards.sandbox.call_limits import CALL_LIMITS

# Called with prompts=, completions=, solution=: lists of N strings. Gives N scores, or (N scores, anything); None
# where the row's gold answer cannot be read.
RewardFunction = Callable[..., list[float | None] | tuple[list[float | None], object]]

KEY = "reward_config.verifier_function"
REWARDS: dict[str, RewardFunction] = {
    "accuracy_reward": accuracy_reward,
    "qwen_accuracy_reward": qwen_accuracy_reward,
    "answer_reward": answer_reward,
    "math_verify_reward": math_verify_reward,
    "gsm8k_reward": gsm8k_reward,
    "gsm8k_format_reward": gsm8k_format_reward,
    "boxed_format_reward": boxed_format_reward,
    "format_reward": format_reward,
    "countdown_reward": countdown_reward,
    "countdown_format_reward": countdown_format_reward,
    "kk_reward": kk_reward,
    "code_reward": code_reward,
    # MindSpeed-RL's names
    "acc": boxed_penalty_reward,
    "format": format_reward,
    "step": steps_reward,
    "strict_format": strict_format_reward,
    "base_acc": strict_accuracy_reward,
    "math_17k_acc": qwen_accuracy_reward,
    "acc_for_dapo": answer_line_reward,
    "acc_for_ppo": qwen_accuracy_reward,
    "retool_reward": boxed_sign_reward,
}


def is_from_file(name: str) -> bool:
    """Whether a reward is named by file and function, as in my_rewards.py:length_bonus."""
    return ":" in name


def check_names(names: Sequence[str]) -> None:
    """Raise `UserError` for the first name that is unknown or given twice; looks into no file."""
    for index, name in enumerate(names):
        if not is_from_file(name) and name not in REWARDS:
            nearest = difflib.get_close_matches(name, REWARDS, n=1, cutoff=0.0)[0]
            raise UserError(
                f"{KEY}: unknown reward {name!r}, did you mean {nearest!r}? known: {', '.join(REWARDS)}, "
                "and functions of your own as file.py:function"
            )
        if name in names[:index]:
            raise UserError(f"{KEY}: {name!r} is given twice, raise its weight instead")


@functools.cache
def load_reward(name: str) -> RewardFunction:
    """The function behind a name. Runs the user's file, so it is for workers only; raises `UserError`."""
    if not is_from_file(name):
        return REWARDS[name]
    file, _, function_name = name.rpartition(":")
    path = Path(file).resolve()
    if not path.is_file() or path.suffix != ".py":
        raise UserError(f"{KEY}: {name!r}: {path} is no Python file; write file.py:function")
    with CALL_LIMITS.untimed():
        members = _run_file(name, path)
    if function_name not in members:
        raise UserError(f"{KEY}: {path} has no function {function_name!r}")
    function = members[function_name]
    if not callable(function):
        raise UserError(f"{KEY}: {function_name!r} in {path} is no function")
    try:
        inspect.signature(function).bind(prompts=[], completions=[], solution=[])
    except TypeError as error:
        raise UserError(
            f"{KEY}: {function_name!r} in {path} must take prompts=, completions=, solution= ({error})"
        ) from None
    return function


def _run_file(name: str, path: Path) -> dict[str, object]:
    """What a file defines; it may import its neighbours, as a script may."""
    module_name = f"user_rewards_{hashlib.sha256(str(path).encode()).hexdigest()[:16]}"
    if module_name in sys.modules:
        return vars(sys.modules[module_name])
    sys.path.append(str(path.parent))
    spec = importlib.util.spec_from_file_location(module_name, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[module_name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException as error:  # SystemExit too: it is a script of the user's
        del sys.modules[module_name]
        raise UserError(f"{KEY}: {name!r}: {path} cannot be loaded: {one_line(error)}") from None
    return vars(module)


def one_line(error: BaseException) -> str:
    """Type and message of an exception, without line breaks."""
    return " ".join(f"{type(error).__name__}: {error}".split())
