"""Numbers as people and models write them, compared as exact fractions."""

import re
from dataclasses import dataclass
from fractions import Fraction

# Longer literals are no answer to any question, and Python refuses to read integers of more than 4300 digits.
_LONGEST_LITERAL = 100

_WHOLE = r"(?:[0-9]{1,3}(?:,[0-9]{3})+(?![0-9])|[0-9]+)"
_EXPONENT = r"(?:[eE][-+]?[0-9]{1,3}(?![0-9]))"
_PLAIN = rf"(?:{_WHOLE}(?:\.[0-9]+)?|(?<![0-9])\.[0-9]+){_EXPONENT}?"
_CURRENCY = r"(?:\\?\$|[€£¥])"
# "5-3" and "10 -3" hold a minus between two numbers, not a sign.
_SIGN = r"(?:(?<![\w)\]}])(?<![0-9)\]}] )[-+])?"
# "x2", "m^2" and the 5 of "v1.5" are parts of a name or an exponent, not numbers.
_START = r"(?<![A-Za-z0-9_^])(?<!\^\{)(?<![0-9]\.)"
_NUMBER = re.compile(
    rf"{_START}{_SIGN}(?:{_CURRENCY}(?P<sign>[-+])?)?"
    rf"(?:\\[dt]?frac\{{(?P<above>[-+]?{_PLAIN})\}}\{{(?P<below>{_PLAIN})\}}"
    rf"|(?P<value>{_PLAIN})(?:\s?/\s?(?P<divisor>{_PLAIN}))?)"
    r"(?P<percent>\s?\\?%|\s[Pp]ercent\b)?"
)

_SPACING = re.compile(r"\\[!,;]|\{,\}|\\left\b|\\right\b")
_WRAPPED = re.compile(
    r"\$(?P<a>[^$]+)\$|\\\((?P<b>.+)\\\)|\\(?:text|textbf|mathrm|mathbf)\{(?P<c>[^{}]*)\}|\*\*(?P<d>.+)\*\*"
)
_UNIT = re.compile(r"\s*(?:\\(?:text|mathrm)\{[^{}]*\}(?:\^(?:\{[0-9]\}|[0-9]))?|\^\{?\\circ\}?)$")

_WORD = re.compile(r"[^\W\d_]+")
_PUNCTUATION = re.compile(r"[\s.,:;!?'\"=*]*")
# Words that change what the number beside them means, so that it cannot be read alone.
_MEANINGFUL_WORDS = frozenset(
    (
        *("pi", "sqrt", "sin", "cos", "tan", "log", "ln", "exp", "mod", "over", "squared", "cubed"),
        *("dozen", "hundred", "thousand", "million", "billion", "trillion", "half", "quarter", "third"),
        *("minus", "negative", "not", "plus", "times", "and", "or"),
    )
)
_MEANINGFUL_SIGNS = frozenset("π百千万萬亿億负負")


@dataclass(frozen=True)
class Number:
    """A number as written: 50% has the value 50 and `percent` set."""

    value: Fraction
    percent: bool = False


def tidy(text: str) -> str:
    r"""Drop what changes a number's looks only: `\,`, `\!`, `{,}`, `\left`, a typographic minus."""
    return _SPACING.sub(lambda match: "," if match.group() == "{,}" else "", text).replace("\u2212", "-")


def unwrap(text: str) -> str:
    r"""Take `$..$`, `\(..\)`, `\text{..}`, `**..**`, outer blanks and a closing full stop off, repeatedly."""
    while True:
        stripped = text.strip()
        match = _WRAPPED.fullmatch(stripped)
        inner = next(part for part in match.groups() if part is not None) if match else stripped.rstrip(".")
        if inner == text:
            return text
        text = inner


def parse_number(text: str) -> Number | None:
    r"""Read `text` if all of it is one number, else None.

    Known: 18. $1,234.00 -3 .5 1e3 1/2 \frac{1}{2} 50\% \text{18} and a unit in braces as in `18\text{ cm}^2`.
    """
    plain = unwrap(tidy(text))
    match = _NUMBER.fullmatch(_UNIT.sub("", plain) or plain)
    return _to_number(match) if match else None


def last_number(text: str) -> Number | None:
    """The last number that is written anywhere in `text`, or None."""
    found = None
    for found in _NUMBER.finditer(tidy(text)):  # noqa: B007 - only the last one is looked at
        pass
    return _to_number(found) if found else None


def first_number(text: str) -> Number | None:
    """The first number that is written anywhere in `text`, or None."""
    match = _NUMBER.search(tidy(text))
    return _to_number(match) if match else None


def read_answer(text: str) -> Number | None:
    """The number of a short answer in words ("18 dollars", "The answer is 18."), or None.

    None when there are two numbers, or beside it a sign of arithmetic, a single letter as in "18x", or a
    word that changes the number as in "3 million".
    """
    number = parse_number(text)
    if number is not None:
        return number
    plain = tidy(unwrap(text))
    matches = list(_NUMBER.finditer(plain))
    if len(matches) != 1:
        return None
    rest = f"{plain[: matches[0].start()]} {plain[matches[0].end() :]}"
    words = _WORD.findall(rest)
    only_words = _PUNCTUATION.fullmatch(_WORD.sub(" ", rest)) is not None
    return _to_number(matches[0]) if only_words and all(map(_is_harmless, words)) else None


def same_number(gold: Number, answer: Number) -> bool:
    """Whether the values are equal; where just one has a percent sign, 50% equals 50 (it was left out) and 0.5."""
    if gold.value == answer.value:
        return True
    return gold.percent != answer.percent and _meaning(gold) == _meaning(answer)


def _meaning(number: Number) -> Fraction:
    return number.value / 100 if number.percent else number.value


def _is_harmless(word: str) -> bool:
    if not word.isascii():
        return not _MEANINGFUL_SIGNS & set(word)
    return word == "a" or (len(word) > 1 and word.lower() not in _MEANINGFUL_WORDS)


def _to_number(match: re.Match[str]) -> Number | None:
    if len(match.group()) > _LONGEST_LITERAL:
        return None
    above = _to_fraction(match["above"] or match["value"])
    below = _to_fraction(match["below"] or match["divisor"] or "1")
    if below == 0:
        return None
    negative = match.group().startswith("-") or match["sign"] == "-"
    return Number(-above / below if negative else above / below, match["percent"] is not None)


def _to_fraction(literal: str) -> Fraction:
    return Fraction(literal.replace(",", ""))
