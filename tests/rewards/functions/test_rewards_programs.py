"""The reward for programs."""

import json

import pytest

from r1parallel.rewards.functions.programs import code_reward, last_program, read_tests
from r1parallel.rewards.sandbox.call_limits import CALL_LIMITS

ADD = "```python\nprint(sum(map(int, input().split())))\n```"
CASES = json.dumps({"tests": [{"stdin": "1 2", "stdout": "3\n\n"}, {"stdin": "2 2", "stdout": "4"}]})
ASSERTS = json.dumps({"asserts": ["assert f(1) == 2", "assert f(2) == 3"]})


def grade(completion, solution):
    return code_reward(prompts=[""], completions=[completion], solution=[solution])[0]


@pytest.mark.parametrize(
    ("completion", "solution", "expected"),
    [
        (f"so\n{ADD}\nthat is it", CASES, 1.0),
        (ADD, f"${CASES}$", 1.0),
        (ADD.replace("sum", "max"), CASES, 0.0),
        (f"{ADD}\nor rather\n```python\nprint(5)\n```", CASES, 0.0),
        (f"```py\nprint(3)\n```\n{ADD}\n```text\n3\n```\n```python\nprint(", CASES, 1.0),
        ("print(3)", CASES, 0.0),
        (
            "```python\nimport os\nprint(3)\nos._exit(0)\n```",
            json.dumps({"tests": [{"stdin": "", "stdout": "3"}]}),
            0.0,
        ),
        ("```python\nf = lambda x: x + 1\n```", ASSERTS, 1.0),
        ("```python\nf = lambda x: 2 * x\n```", ASSERTS, 0.0),
        ("```python\nimport sys; sys.exit()\n```", ASSERTS, 0.0),
        ("```python\nf = lambda x: x + 1\nprint(3)\n```", json.dumps(json.loads(CASES) | json.loads(ASSERTS)), 0.0),
        ("", CASES, 0.0),
        (ADD, "18", None),
        (ADD, "{}", None),
        (ADD, '{"tests": [{"stdin": "1"}]}', None),
        (ADD, '{"tests": [{"stdin": 1, "stdout": "1"}]}', None),
        (ADD, '{"asserts": 3}', None),
        (ADD, "[", None),
    ],
)
def test_code_reward(completion, solution, expected, monkeypatch):
    monkeypatch.setattr(CALL_LIMITS, "seconds", 60.0)
    assert grade(completion, solution) == expected


def test_all_tests_share_one_time_limit(monkeypatch):
    monkeypatch.setattr(CALL_LIMITS, "seconds", 1.0)
    assert grade("```python\nwhile True: pass\n```", CASES) == 0.0
    assert grade("```python\nf = lambda x: x + 1\nimport time; time.sleep(60)\n```", ASSERTS) == 0.0


def test_the_last_closed_block_of_python_counts():
    assert last_program("```python\na\n```\n```Python3\nb\n  c\n```") == "b\n  c"
    assert last_program("text\n```\na\n```\n```cpp\nb\n```") is None
    assert last_program("```text\n```python\na\n```") is None, "a fence inside a block is text"


def test_tests_are_read():
    tests = read_tests(CASES)
    assert tests.cases == (("1 2", "3\n\n"), ("2 2", "4"))
    assert tests.asserts == ()
