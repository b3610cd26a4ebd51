"""The reward for programs: does the program of a completion pass its tests?"""

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass

from r1parallel.rewards.sandbox.call_limits import CALL_LIMITS
from r1parallel.rewards.sandbox.sandbox import Finished, run_program

_LANGUAGES = ("python", "python3", "py")
# The rest of the time limit is for starting and ending the sandbox.
_SHARE_FOR_PROGRAMS = 0.9


@dataclass(frozen=True)
class Tests:
    """What a program must do: print `stdout` when it reads `stdin`, and hold each of `asserts`."""

    cases: tuple[tuple[str, str], ...]  # (stdin, stdout)
    asserts: tuple[str, ...]


def code_reward(*, prompts: Sequence[str], completions: Sequence[str], solution: Sequence[str]) -> list[float | None]:
    """1 when the last Python block passes all tests; None when the solution holds none that can be read.

    A solution is `{"tests": [{"stdin": "..", "stdout": ".."}, ..], "asserts": ["assert f(1) == 2", ..]}`, or one of
    the two.
    """
    return [_grade(*row) for row in zip(completions, solution, strict=True)]


def last_program(completion: str) -> str | None:
    """The last fenced block of Python that is closed, or None."""
    program = language = None
    lines: list[str] = []
    for line in completion.splitlines():
        mark = line.strip()
        if language is None and mark.startswith("```"):
            language, lines = mark.removeprefix("```").strip().lower(), []
        elif language is not None and mark == "```":
            program = "\n".join(lines) if language in _LANGUAGES else program
            language = None
        else:
            lines.append(line)
    return program


def read_tests(solution: str) -> Tests | None:
    """The tests in a solution; None when there is none, or when it is anything else."""
    text = solution.strip()
    if text.startswith("$") and text.endswith("$"):  # as mindrlhf wraps every solution
        text = text[1:-1]
    try:
        record = json.loads(text)
        cases = tuple((case["stdin"], case["stdout"]) for case in record.get("tests", []))
        asserts = tuple(record.get("asserts", []))
    except (ValueError, AttributeError, TypeError, KeyError):
        return None
    texts = [*asserts, *(text for case in cases for text in case)]
    if not texts or any(type(text) is not str for text in texts):
        return None
    return Tests(cases, asserts)


def _grade(completion: str, solution: str) -> float | None:
    tests = read_tests(solution)
    if tests is None:
        return None
    program = last_program(completion)
    return 0.0 if program is None else float(_passes(program, tests))


def _passes(program: str, tests: Tests) -> bool:
    deadline = time.monotonic() + _SHARE_FOR_PROGRAMS * CALL_LIMITS.seconds

    def run(stdin: str, asserts: Sequence[str]) -> Finished:
        left = max(0.0, deadline - time.monotonic())
        return run_program(program, stdin, asserts, seconds=left, mebibytes=CALL_LIMITS.mebibytes)

    if tests.asserts and not run("", tests.asserts).confirmed:
        return False
    for stdin, stdout in tests.cases:
        finished = run(stdin, ())
        if not finished.ok or _visible(finished.stdout) != _visible(stdout):
            return False
    return True


def _visible(text: str) -> list[str]:
    """Lines without the blanks at their ends and without empty lines at the end."""
    return [line.rstrip() for line in text.rstrip().splitlines()]
