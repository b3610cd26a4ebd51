"""The worker: its limit, its deaths, its threads."""

import os
import resource
import signal
import subprocess
import sys
import threading

import pytest

from r1parallel.errors import UserError
from r1parallel.rewards import math_equal as module
from r1parallel.rewards import math_worker
from r1parallel.rewards.math_equal import MathWorker, WorkerDied, comparison_budget, math_equal

HANGS = "9^{9^{9}}"


@pytest.fixture
def worker():
    worker = MathWorker()
    yield worker
    worker.close()


def test_gold_comes_first(worker):  # D24: an interval may answer an inequality, not the other way round
    assert worker.compare("x<3", r"(-\infty,3)", 60.0) is True
    assert worker.compare(r"(-\infty,3)", "x<3", 60.0) is False


def test_it_works_outside_the_main_thread():  # D23
    scores = []

    def compare():
        with comparison_budget(60.0):
            scores.append(math_equal(r"2\sqrt{3}", r"\sqrt{12}"))

    thread = threading.Thread(target=compare)
    thread.start()
    thread.join(timeout=120)
    assert scores == [1.0]


def test_a_comparison_that_hangs_scores_zero_is_counted_and_the_next_one_works():
    with comparison_budget(0.5) as budget:
        assert math_equal("18", HANGS) == 0.0
    assert budget.timeouts == 1
    with comparison_budget(60.0) as budget:
        assert math_equal("18", "5+13") == 1.0
    assert budget.timeouts == 0


def test_the_limit_holds_where_the_parent_ignores_and_blocks_the_signal(worker):
    previous = signal.signal(signal.SIGALRM, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGALRM})
    try:
        with pytest.raises(WorkerDied) as death:
            worker.compare("18", HANGS, 0.5)
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGALRM})
        signal.signal(signal.SIGALRM, previous)
    assert death.value.exit_status == -signal.SIGALRM


def test_a_worker_killed_from_outside_is_replaced(worker):
    assert worker.compare("18", "5+13", 60.0) is True
    first = worker._process
    os.kill(first.pid, signal.SIGKILL)
    first.wait()
    assert worker.compare("18", "5+13", 60.0) is True
    assert worker._process.pid != first.pid


def test_a_comparison_that_breaks_every_worker_is_counted(monkeypatch):
    def die(self, request):
        raise WorkerDied(-signal.SIGSEGV)

    monkeypatch.setattr(MathWorker, "_ask", die)
    with comparison_budget(60.0) as budget:
        assert math_equal("18", "5+13") == 0.0
    assert budget.timeouts == 1


def test_an_interrupted_comparison_leaves_no_reply_behind(worker, monkeypatch):
    assert worker.compare("18", "5+13", 60.0) is True

    def interrupt(self, process):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(MathWorker, "_read_reply", interrupt)
        worker.compare("18", "5+13", 60.0)
    assert worker._process is None
    assert worker.compare("18", "5+14", 60.0) is False


def test_a_worker_that_cannot_start_says_what_to_install(worker, monkeypatch, tmp_path):
    (tmp_path / "math_verify.py").write_text("raise ImportError('broken')\n")
    monkeypatch.setattr(module, "_PACKAGE_PARENT", f"{tmp_path}{os.pathsep}{module._PACKAGE_PARENT}")
    with pytest.raises(UserError, match=r"exit status 1.*pip install math-verify"):
        worker.compare("18", "5+13", 60.0)
    worker.close()


def test_a_program_that_used_it_ends_and_takes_the_worker_along():
    code = (
        "from r1parallel.rewards import math_equal as m\n"
        "assert m.math_equal('18', '5+13') == 1.0\n"
        "print(m._WORKER._process.pid)\n"
    )
    run = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, start_new_session=True, check=True,
        env={**os.environ, "PYTHONPATH": str(module._PACKAGE_PARENT)},
    )  # fmt: skip
    with pytest.raises(ProcessLookupError):
        os.kill(int(run.stdout), 0)
    assert run.stderr == ""


def test_serve_answers_every_line():
    replies = []
    math_worker.serve(
        [
            b'{"gold": "\\\\frac{1}{2}", "answer": "0.5", "time_limit": 60}\n',
            b'{"gold": "???", "answer": "???", "time_limit": 60}\n',
            b'{"gold": "x", "answer": "???", "time_limit": 60}\n',
        ],
        replies.append,
    )
    assert replies == [{"equal": True}, {"equal": None}, {"equal": False}]
    assert signal.getitimer(signal.ITIMER_REAL)[0] == 0.0


@pytest.mark.parametrize(("gold", "answer", "expected"), [("$x$", "x", 1.0), ("East", r"\text{east}", 1.0)])
def test_equal_strings_and_words_need_no_worker(gold, answer, expected, monkeypatch):
    monkeypatch.setattr(MathWorker, "compare", lambda *_: pytest.fail("math-verify was asked"))
    assert math_equal(gold, answer) == expected


def test_the_worker_has_a_memory_limit(worker):
    assert worker.compare("18", "5+13", 60.0) is True
    soft, hard = resource.prlimit(worker._process.pid, resource.RLIMIT_AS)
    assert soft == hard
    assert 2 << 30 < soft < 8 << 30
