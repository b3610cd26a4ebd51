"""Completions whose answers are judged in benchmarks.speed: half of GSM8K's kind, half of MATH's; half are wrong."""

import random
from pathlib import Path

from r1parallel.data.text.sources import ExampleSource

COMPLETIONS = 256  # of a batch
_WORKING = "We set up the equation, simplify both sides and collect the terms step by step. "


def answer_batches(gsm8k: Path, count: int) -> list[dict[str, list[str]]]:
    r"""Batches of completions and gold solutions, no two alike, since math-verify's SymPy keeps what it has seen.

    Every completion has one \boxed{..}, where all rewards look, and ends with it.
    """
    worked = [(example.answer, example.solution) for example in ExampleSource("gsm8k", gsm8k, False)]
    draw = random.Random(0)
    batches = []
    for _ in range(count):
        rows = [numeric(draw, *draw.choice(worked)) for _ in range(COMPLETIONS // 2)]
        rows += [symbolic(draw) for _ in range(COMPLETIONS - len(rows))]
        batches.append({"completions": [text for text, _ in rows], "solution": [gold for _, gold in rows]})
    return batches


def numeric(draw: random.Random, working: str, gold: str) -> tuple[str, str]:
    """A worked answer of GSM8K, its number put into a box; or another number."""
    number = gold.rpartition("####")[2].strip().replace(",", "")
    said = number if draw.random() < 0.5 else str(int(number) + draw.randint(1, 9))
    return f"{working.partition('####')[0]}The answer is $\\boxed{{{said}}}$", f"${number}$"


def symbolic(draw: random.Random) -> tuple[str, str]:
    """An answer as MATH has them, in another form than the gold one; or a wrong one of the same form."""
    a, b, c = draw.randint(2, 99), draw.randint(2, 99), draw.choice((2, 3, 5, 7))
    wrong = draw.randint(0, 1)
    gold, said = draw.choice(
        [
            (rf"\frac{{{a}}}{{{b}}}", rf"\frac{{{a * c + wrong}}}{{{b * c}}}"),
            (rf"{a}\sqrt{{{c}}}", rf"\sqrt{{{a * a * c + wrong}}}"),
            (rf"x^2+{a + b}x+{a * b}", rf"(x+{a})(x+{b + wrong})"),
            (rf"\frac{{{a}\pi}}{{{c}}}", rf"{a + wrong}\pi/{c}"),
            (rf"({a},{b})", rf"({a}, {b + wrong})"),
        ]
    )
    return f"{_WORKING * draw.randint(1, 4)}The answer is $\\boxed{{{said}}}$", f"${gold}$"
