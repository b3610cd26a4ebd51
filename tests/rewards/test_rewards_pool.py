"""Rewards that misbehave: each costs its own samples, and leaves nothing behind."""

import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import psutil
import pytest

from r1parallel.errors import UserError
from r1parallel.rewards import check_reward_names, score
from r1parallel.rewards import pool as module
from r1parallel.rewards.pool import Pool, close_shared_pool

FILE = '''
import os, signal, subprocess, sys, time
import numpy as np
from neighbour import ONE

def length(*, prompts, completions, solution):
    return [float(len(text)) for text in completions]

def misbehave(*, prompts, completions, solution):
    """Do what the completion says."""
    for text in completions:
        exec(text)
    return [ONE] * len(completions), ["parsed"] * len(completions)

def give(*, prompts, completions, solution):
    return [eval(text) for text in completions]

def give_two(**columns):
    return [1.0, 1.0]

def nothing(prompts, completions, solution):
    return None

def calls(prompts, completions, solution):
    return [len(completions)] * len(completions)

def wants_more(prompts, completions, solution, more):
    return [0.0] * len(completions)

number = 3
'''
GRACE = {"time_limit": 60.0, "num_workers": 2, "memory_limit": 512}


@pytest.fixture
def mine(tmp_path, monkeypatch):
    """Name of a reward in a file of the user's, relative to the working directory."""
    (tmp_path / "my_rewards.py").write_text(FILE)
    (tmp_path / "neighbour.py").write_text("ONE = 1\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("r1parallel.rewards.scoring._warned", set())
    yield lambda function: f"my_rewards.py:{function}"
    close_shared_pool()


def run(name, completions, **limits):
    count = len(completions)
    return score([name, "format_reward"], [1.0, 0.5], [""] * count, completions, ["18"] * count, **GRACE | limits)


def descendants():
    return [child for child in psutil.Process().children(recursive=True) if child.status() != psutil.STATUS_ZOMBIE]


def test_a_function_of_the_users(mine):
    scores = run(mine("length"), ["", "ab", "<think>a</think><answer>b</answer>"])
    np.testing.assert_array_equal(scores.parts[mine("length")], [0, 2, 34])
    np.testing.assert_array_equal(scores.total, [0, 2, 34.5])
    assert (scores.timeouts, scores.failures) == (0, 0)


@pytest.mark.parametrize(
    ("deed", "what"),
    [
        ("raise KeyError('two\\nlines')", r"KeyError: 'two\\nlines'"),
        ("sys.exit(0)", "SystemExit"),
        ("os._exit(0)", "its process ended with status 0"),
        ("os.kill(os.getpid(), signal.SIGSEGV)", "its process ended with status -11"),
        ("bytearray(1 << 40)", "MemoryError"),
        ("hoard = bytearray(400 << 20); bytearray(400 << 20)", "MemoryError"),
    ],
)
def test_a_failure_costs_its_own_samples(deed, what, mine):
    completions = ["pass", deed, "pass", "print('not for the pipe', flush=True)", deed]
    with pytest.warns(UserWarning, match=rf"failed on 2 of 5 completions, which score 0, at row 1: {what}"):
        scores = run(mine("misbehave"), completions)
    np.testing.assert_array_equal(scores.parts[mine("misbehave")], [1, 0, 1, 1, 0])
    np.testing.assert_array_equal(scores.total, [1, 0, 1, 1, 0])
    assert not scores.skipped.any()
    assert (scores.timeouts, scores.failures) == (0, 2)


@pytest.mark.parametrize(
    "deed",
    [
        "while True: pass",
        "time.sleep(1000)",
        "os.kill(os.getpid(), signal.SIGSTOP)",
        "subprocess.run(['sleep', '1000'], start_new_session=True)",
    ],
)
def test_a_reward_that_hangs_costs_its_own_samples(deed, mine):
    run(mine("misbehave"), ["pass", "pass"])  # the workers are there
    scores = run(mine("misbehave"), ["pass", deed, "pass"], time_limit=1.5)
    np.testing.assert_array_equal(scores.parts[mine("misbehave")], [1, 0, 1])
    assert (scores.timeouts, scores.failures) == (1, 0)
    assert all("worker" in " ".join(child.cmdline()) for child in descendants())


def test_what_a_reward_starts_ends_with_it(mine):
    deeds = [
        "subprocess.Popen(['sleep', '1000'])",
        "subprocess.Popen(['sleep', '1000'], start_new_session=True)",
        "os.fork()",  # the copy goes on with the call
        "os.fork() or os.fork() or os.setsid() or time.sleep(1000)",
        "os.fork() or time.sleep(1000)",
    ]
    scores = run(mine("misbehave"), deeds)
    np.testing.assert_array_equal(scores.parts[mine("misbehave")], [1] * 5)
    assert all("worker" in " ".join(child.cmdline()) for child in descendants())


def test_a_value_that_is_no_score_costs_its_own_row(mine):
    values = ["1.0", "float('nan')", "float('inf')", "'1'", "None", "np.float32(2)", "True"]
    with pytest.warns(UserWarning, match=r"failed on 3 of 7 .* row 1: it gave nan, not a finite number"):
        scores = run(mine("give"), values)
    np.testing.assert_array_equal(scores.parts[mine("give")], [1, 0, 0, 0, np.nan, 2, 1])
    np.testing.assert_array_equal(scores.skipped, [False] * 4 + [True, False, False])
    assert scores.failures == 3


@pytest.mark.parametrize(
    ("function", "message"),
    [
        ("give", r"^reward 'my_rewards.py:give' failed on all 2 completions, at row 0: NameError: name 'a'"),
        ("nothing", r"failed on all 2 completions, at row 0: TypeError"),
        ("give_two", r"^reward 'my_rewards.py:give_two' gave 2 scores for 1 completions$"),
    ],
)
def test_a_reward_that_is_broken_altogether_stops_the_run(function, message, mine):
    with pytest.raises(UserError, match=message):
        run(mine(function), ["a", "b"])


def test_a_function_gets_many_rows_until_it_is_slow(mine):
    close_shared_pool()
    assert set(run(mine("calls"), ["a"] * 8).parts[mine("calls")]) == {4.0}
    assert set(run(mine("calls"), ["a"] * 100).parts[mine("calls")]) <= {32.0, 4.0}
    run(mine("misbehave"), ["pass"] * 4)
    assert run(mine("misbehave"), ["time.sleep(1)"] * 6, time_limit=2.5).timeouts == 0
    assert module._POOL._slow == {mine("misbehave")}
    assert set(run(mine("calls"), ["a"] * 8).parts[mine("calls")]) == {4.0}


def test_a_warning_is_given_once(mine, recwarn):
    for _ in range(2):
        assert run(mine("misbehave"), ["pass", "1 / 0"]).failures == 1
    assert len(recwarn) == 1


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("none.py:length", r"'none.py:length': .*none.py is no Python file"),
        ("neighbour:ONE", "is no Python file"),
        ("my_rewards.py:lenght", "my_rewards.py has no function 'lenght'"),
        ("my_rewards.py:number", "'number' in .* is no function"),
        ("my_rewards.py:wants_more", "must take prompts=, completions=, solution= .*'more'"),
        ("broken.py:f", "broken.py cannot be loaded: SyntaxError"),
        ("leaving.py:f", "leaving.py cannot be loaded: SystemExit: 0"),
    ],
)
def test_files_are_checked_before_the_run(name, message, mine, tmp_path):
    (tmp_path / "broken.py").write_text("def f(:\n")
    (tmp_path / "leaving.py").write_text("import sys\nsys.exit(0)\n")
    check_reward_names(["format_reward", "code_reward", mine("length"), str(tmp_path / "my_rewards.py:give")])
    with pytest.raises(UserError, match=message):
        check_reward_names(["format_reward", name])
    assert not descendants()


def test_workers_are_kept_and_replaced():
    pool = Pool(2, 512)
    columns = {"prompts": ["a"] * 4, "completions": ["b"] * 4, "solution": ["c"] * 4}
    try:
        pool.run(["format_reward"], columns, 60.0)
        first = {worker.process.pid for worker in pool._workers}
        pool.run(["format_reward"], columns, 60.0)
        assert {worker.process.pid for worker in pool._workers} == first
        for pid in first:
            os.kill(pid, signal.SIGKILL)
        results = pool.run(["format_reward"], columns, 60.0)["format_reward"]
        assert results.scores == dict.fromkeys(range(4), 0.0)
        assert not {worker.process.pid for worker in pool._workers} & first
    finally:
        pool.close()
    assert not descendants()


def test_threads_share_a_pool():
    pool = Pool(1, 512)
    columns = {"prompts": [""], "completions": ["<think>a</think><answer>b</answer>"], "solution": ["c"]}
    found = []
    threads = [
        threading.Thread(target=lambda: found.append(pool.run(["format_reward"], columns, 60.0))) for _ in range(3)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    pool.close()
    assert [results["format_reward"].scores for results in found] == [{0: 1.0}] * 3


def test_an_interrupted_batch_leaves_no_reply_behind(monkeypatch):
    pool = Pool(1, 512)
    columns = {"prompts": [""], "completions": ["a"], "solution": ["c"]}
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Pool, "_receive", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        pool.run(["format_reward"], columns, 60.0)
    assert pool._workers == []


def test_a_worker_that_cannot_start_is_told(monkeypatch, tmp_path):
    (tmp_path / "psutil.py").write_text("raise ImportError('broken')\n")
    monkeypatch.setattr(module, "_PACKAGE_PARENT", f"{tmp_path}{os.pathsep}{module._PACKAGE_PARENT}")
    with pytest.raises(UserError, match=r"could not be started \(exit status 1"):
        Pool(1, 512).run(["format_reward"], {"prompts": [""], "completions": [""], "solution": [""]}, 60.0)
    monkeypatch.setattr(module, "_START_LIMIT", 0.0)
    with pytest.raises(UserError, match="was not ready after 0 s"):
        Pool(1, 512).run(["format_reward"], {"prompts": [""], "completions": [""], "solution": [""]}, 60.0)
    assert not descendants()


@pytest.mark.parametrize("end", ["pass", "os.kill(os.getpid(), 9)"])
def test_workers_end_with_the_program_and_never_load_mindspore(end):
    code = (
        "import json, os\nfrom r1parallel.rewards import pool, score\n"
        "score(['qwen_accuracy_reward'], [1.0], ['']*2, [r'\\boxed{5+13}']*2, ['18']*2, 60.0, 2)\n"
        "pids = [worker.process.pid for worker in pool._POOL._workers]\n"
        "print(json.dumps([pids, ['mindspore' in open(f'/proc/{pid}/maps').read() for pid in pids]]), flush=True)\n"
        f"{end}\n"
    )
    run = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, start_new_session=True,
        env={**os.environ, "PYTHONPATH": str(Path(module.__file__).parents[2])},
    )  # fmt: skip
    pids, mindspore = json.loads(run.stdout)
    assert len(pids) == 2
    assert mindspore == [False, False]
    left = [psutil.Process(pid) for pid in pids if psutil.pid_exists(pid)]
    _, alive = psutil.wait_procs(left, timeout=30)
    assert not [process for process in alive if process.status() != psutil.STATUS_ZOMBIE]
