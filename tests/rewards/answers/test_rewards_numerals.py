"""Numbers: what is read as one, what is not, and when two are the same."""

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from r1parallel.rewards.answers.numerals import (
    Number,
    first_number,
    last_number,
    parse_number,
    read_answer,
    same_number,
    unwrap,
)

HALF = Number(Fraction(1, 2))


def number(value: str, percent: bool = False) -> Number:
    return Number(Fraction(value), percent)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("18", number("18")),
        ("18.", number("18")),
        (" 18 \n", number("18")),
        ("$1,234.00", number("1234")),
        ("-$5", number("-5")),
        ("$-5", number("-5")),
        ("+7", number("7")),
        ("\u22127", number("-7")),
        (".5", HALF),
        ("1e3", number("1000")),
        ("2.5E-1", number("1/4")),
        ("1/2", HALF),
        ("1 / 2", HALF),
        ("-1/2", number("-1/2")),
        (r"\frac{1}{2}", HALF),
        (r"-\dfrac{1}{2}", number("-1/2")),
        (r"\tfrac{-1}{2}", number("-1/2")),
        (r"$\frac{1}{2}$", HALF),
        (r"\(18\)", number("18")),
        ("50%", number("50", True)),
        (r"50\%", number("50", True)),
        ("50 percent", number("50", True)),
        (r"1{,}234", number("1234")),
        (r"1\,234\!", number("1234")),
        (r"\text{18}", number("18")),
        (r"18\text{ cm}^2", number("18")),
        (r"18\text{ dollars}", number("18")),
        (r"\$18", number("18")),
        (r"90^\circ", number("90")),
        ("**18**", number("18")),
    ],
)
def test_parse_number_reads_one_number(text, expected):
    assert parse_number(text) == expected


@pytest.mark.parametrize(
    "text",
    [
        *("", ".", "abc", "1,23", "1,2345", "12,345,6", "5-3", "18x", "x18", "1 2", "1/0", "10^5", "1e9999"),
        *("1.2.3", "0x10", "1_000", "٣", "9" * 5000, "--5", r"2\frac{1}{2}", r"\sqrt{2}"),
    ],
)
def test_parse_number_refuses_the_rest(text):
    assert parse_number(text) is None


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("The answer is 18.", number("18")),  # F18
        ("First 9, then 18", number("18")),
        ("She pays $1,234.50.", number("2469/2")),
        ("16 - 3 - 4 = 9 and 5-3", number("3")),
        ("from 10 -3", number("3")),
        ("it is -3", number("-3")),
        ("(-3)", number("-3")),
        ("the area is 18 m^2", number("18")),
        ("the area is 18 m^{2}", number("18")),
        ("18 kg of CO2", number("18")),
        ("18 mol of x12", number("18")),
        (r"so 3 and \frac12", number("3")),
        ("Rs.18", number("18")),
        ("3.14.15", number("3.14")),
        ("half is 1/2", HALF),
        (r"thus \frac{1}{2}.", HALF),
        ("up by 150%", number("150", True)),
        ("5/0", None),
        ("no number", None),
        ("", None),
        ("then 1," + "9" * 5000, None),
    ],
)
def test_last_number(text, expected):
    assert last_number(text) == expected


def test_first_number_is_the_first():
    assert first_number(" $18 of 20") == number("18")
    assert first_number("none") is None


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("18 dollars", number("18")),
        ("The answer is 18.", number("18")),
        ("12 miles per hour", number("12")),
        ("18 a day", number("18")),
        ("答案是18元", number("18")),
        ("**18** eggs", number("18")),
        ("18", number("18")),
        ("18x", None),
        ("3 million", None),
        ("18万", None),
        ("2 pi", None),
        ("not 18", None),
        ("9 or 18", None),
        (r"\sqrt{9}", None),
        ("√9", None),
        ("5+13", None),
        ("(18, x)", None),
        ("many", None),
    ],
)
def test_read_answer_takes_the_only_number_among_harmless_words(text, expected):
    assert read_answer(text) == expected


def test_percent_equals_its_value_with_the_sign_left_out_and_its_meaning():
    assert same_number(number("50"), number("50", True))
    assert same_number(number("1/2"), number("50", True))
    assert same_number(number("50", True), number("1/2"))
    assert not same_number(number("50", True), number("1/2", True))
    assert not same_number(number("50"), number("1/2"))


def test_decimals_are_compared_exactly():
    assert not same_number(number("1/3"), number("0.3333333"))


@given(st.integers(-(10**15), 10**15))
def test_every_way_to_write_an_integer_is_the_same_number(value):
    expected = Number(Fraction(value))
    sign, size = ("-" if value < 0 else ""), abs(value)
    for text in (f"{value}", f"{value:,}", f"{value}.", f"{value}.00", f"{sign}${size:,}.00", f"${value}$"):
        assert parse_number(text) == expected, text
        assert last_number(f"after 7 steps it is {text}") == expected, text


@given(st.fractions(max_denominator=10**6))
def test_fractions_survive_plain_and_latex(value):
    expected = Number(value)
    assert parse_number(str(value)) == expected
    assert parse_number(rf"\frac{{{value.numerator}}}{{{value.denominator}}}") == expected


@given(st.decimals(allow_nan=False, allow_infinity=False, places=4, min_value=-(10**9), max_value=10**9))
def test_decimals_survive(value):
    assert parse_number(f"{value:f}") == Number(Fraction(value))


@given(st.text(alphabet="0123456789.,-+$%/eE{}\\ frac^ax*", max_size=60))
def test_no_text_breaks_the_readers(text):
    whole, last = parse_number(text), last_number(text)
    if whole is not None:
        assert last == whole or last_number(unwrap(text)) is not None
    assert unwrap(unwrap(text)) == unwrap(text)
    assert read_answer(text) == whole or whole is None
