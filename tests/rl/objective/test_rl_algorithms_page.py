"""docs/algorithms.md says what the presets are, and names every key that an algorithm is made of."""

import re
from pathlib import Path

import pytest

from r1parallel.config.limits import _KNOWN_NAMES
from r1parallel.config.presets import PRESETS

PAGE = (Path(__file__).parents[3] / "docs" / "algorithms.md").read_text(encoding="utf-8")
ROWS = dict(re.findall(r"^\| `(\w+)` \| [^|]*\b20\d\d\b[^|]*, arXiv [\d.]+ \| (.*) \|$", PAGE, re.MULTILINE))


def test_the_table_lists_the_presets_in_order():
    assert list(ROWS) == list(PRESETS)


@pytest.mark.parametrize("name", PRESETS)
def test_the_table_has_the_presets_values(name):
    values = ", ".join(f"`{key}: {value}`" for key, value in PRESETS[name].items())
    assert ROWS[name] == (values or "the defaults")


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_has_its_deviations(name):
    assert len(re.findall(rf"^\*\*{name}\.\*\* \S", PAGE, re.MULTILINE)) == 1


@pytest.mark.parametrize("key", [key for key in _KNOWN_NAMES if key.startswith("rl_config.")])
def test_every_choice_is_named(key):
    name = key.removeprefix("rl_config.")
    assert f"`{name}`" in PAGE or f"`{name}:" in PAGE or f"`rl_config.{name}`" in PAGE
    for value in _KNOWN_NAMES[key]:
        assert re.search(rf"`{value}`|: {value}`|{name} {value}\b", PAGE) or value in ("none", "same", "fixed"), value
