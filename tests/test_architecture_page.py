"""docs/architecture.md answers where things are, and every path in it exists."""

import re
import runpy
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
WINGS = runpy.run_path(str(ROOT / "scripts" / "draw_architecture.py"), run_name="map")["WINGS"]


def paths(text: str) -> list[str]:
    return re.findall(r"`((?:r1parallel|scripts|tools|tests|docs|benchmarks)/[\w./]*)", text)


def test_every_path_exists():
    assert len(paths(PAGE)) > 60
    assert [path for path in paths(PAGE) if not (ROOT / path).exists()] == []


def test_at_least_twenty_questions_are_answered_with_a_path():
    table = PAGE.split("## Where do I change")[1].split("## Rules")[0]
    answers = [line.split(" | ")[1] for line in table.splitlines() if line.startswith("| ") and " | " in line][1:]
    assert len(answers) >= 20
    assert [answer for answer in answers if not paths(answer)] == []


def test_the_tiers_on_the_page_are_those_of_the_test():
    for package, tiers in WINGS.items():
        told = " → ".join(", ".join("its own files" if w == "." else f"`{w}`" for w in tier) for tier in tiers)
        assert len(tiers) == 1 or f"| `{package}` | {told} |" in PAGE, package
