"""Symbolic comparison: what math-verify is asked, and what not."""

import logging
import sys
import threading

import pytest

from r1parallel.errors import UserError
from r1parallel.rewards.answers import math_equal as module
from r1parallel.rewards.answers.math_equal import math_equal, math_equal_anywhere


def test_gold_comes_first():  # D24: an interval may answer an inequality, not the other way round
    assert math_equal("x<3", r"(-\infty,3)") == 1.0
    assert math_equal(r"(-\infty,3)", "x<3") == 0.0


@pytest.mark.parametrize(
    ("gold", "answer", "expected"), [(r"\frac{1}{2}", "0.5", 1.0), ("???", "18", None), ("x", "???", 0.0)]
)
def test_an_unreadable_gold_is_never_right(gold, answer, expected):
    assert math_equal(gold, answer) == expected


def test_it_works_outside_the_main_thread_and_says_nothing(caplog):  # D23
    scores = []
    with caplog.at_level(logging.DEBUG):
        thread = threading.Thread(target=lambda: scores.append(math_equal(r"2\sqrt{3}", r"\sqrt{12}")))
        thread.start()
        thread.join(timeout=120)
    assert scores == [1.0]
    assert not caplog.records


@pytest.mark.parametrize(
    ("gold", "text", "expected"),
    [
        (r"\sqrt{12}", r"so it is $2\sqrt{3}$.", 1.0),
        ("18", r"16 eggs, so \boxed{18}", 1.0),
        ("18", r"18 eggs, so \boxed{16}", 0.0),
        ("18", "no idea", 0.0),
        ("???", "18", None),
    ],
)
def test_the_answer_is_found_in_a_text(gold, text, expected):
    assert math_equal_anywhere(gold, text) == expected


@pytest.mark.parametrize(("gold", "answer", "expected"), [("$x$", "x", 1.0), ("East", r"\text{east}", 1.0)])
def test_equal_strings_and_words_need_no_math_verify(gold, answer, expected, monkeypatch):
    monkeypatch.setattr(module, "_math_verify", lambda: pytest.fail("math-verify was asked"))
    assert math_equal(gold, answer) == expected


def test_without_math_verify_it_says_what_to_install(monkeypatch):
    module._math_verify.cache_clear()
    monkeypatch.setitem(sys.modules, "math_verify", None)
    with pytest.raises(UserError, match="pip install math-verify"):
        math_equal("18", "5+13")
