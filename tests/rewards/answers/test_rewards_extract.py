"""Where answers stand."""

import pytest

from r1parallel.rewards.answers.extract import (
    after_hashes,
    count_boxed,
    gold_answer,
    last_answer,
    last_boxed,
    strip_end_tokens,
)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (r"\boxed{18}", "18"),
        (r"\boxed{18 }", "18 "),
        (r"so \boxed{\frac{1}{2}}.", r"\frac{1}{2}"),
        (r"\boxed{\sqrt{\frac{a}{b_{1}}}} done", r"\sqrt{\frac{a}{b_{1}}}"),
        (r"\boxed{1} then \boxed {2}", "2"),
        (r"\boxed{\{1, 2\}}", r"\{1, 2\}"),
        (r"\boxed{}", ""),
        (r"\boxed{1} and \boxed{2", None),
        (r"\fbox{1}", None),
        ("none", None),
    ],
)
def test_last_boxed(text, expected):
    assert last_boxed(text) == expected


def test_last_boxed_stays_quick_when_a_model_repeats_itself():
    text = r"\boxed{" * 20_000
    assert last_boxed(text) is None
    assert count_boxed(text) == 20_000


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("<answer>18</answer>", "18"),
        ("<answer>1</answer> no, <answer>\n2\n</answer>", "\n2\n"),
        ("<answer>1</answer> <answer>2", "1"),
        ("<answer><answer>3</answer>", "3"),
        ("18", None),
    ],
)
def test_last_answer(text, expected):
    assert last_answer(text) == expected


def test_after_hashes_stops_at_the_end_of_the_line():
    assert after_hashes("#### 1\n#### 18\nok 3") == " 18"
    assert after_hashes("18") is None


@pytest.mark.parametrize(
    ("solution", "expected"),
    [
        ("18", "18"),
        ("$18$", "18"),
        ("She has 9.\n#### 1,234", "1,234"),
        (r"We get $\boxed{\frac{1}{2}}$.", r"\frac{1}{2}"),
        (r"$2\sqrt{3}$", r"2\sqrt{3}"),
        ("  ", ""),
        ("9 eggs\n#### ", ""),
    ],
)
def test_gold_answer(solution, expected):
    assert gold_answer(solution) == expected


@pytest.mark.parametrize(
    "end", ["<|im_end|>", "<|endoftext|>", "<|im_end|>\n<|endoftext|>", "</s>", " <|eot_id|> \n", ""]
)
def test_strip_end_tokens(end):
    assert strip_end_tokens(f"a <|im_end|> b{end}") == "a <|im_end|> b"
