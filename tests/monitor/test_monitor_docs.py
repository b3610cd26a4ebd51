import random
import re
from pathlib import Path

from helpers.monitor_runs import grpo_metrics

from r1parallel.monitor.metrics import TENSORBOARD_TAGS

PAGE = (Path(__file__).parents[2] / "docs" / "metrics.md").read_text(encoding="utf-8")


def test_every_tag_of_the_table_is_documented():
    missing = [tag for tags in TENSORBOARD_TAGS.values() for tag in tags if f"`{tag}`" not in PAGE]
    assert not missing


def test_every_metric_of_a_run_is_documented():
    names = {name for name in grpo_metrics(5, 10, random.Random(1)) if not name.startswith("reward/")}
    ranges = {f"{stem}_{end}" for stem in ("completion_length",) for end in ("min", "max")}
    assert [name for name in sorted(names - ranges) if f"`{name}`" not in PAGE] == []


def test_every_metric_that_a_step_names_is_documented():
    """Names as they stand in the code that makes them; `_spread` adds the ends of a range."""
    folder = Path(__file__).parents[2] / "r1parallel" / "rl"
    code = "".join((folder / name).read_text(encoding="utf-8") for name in ("metrics.py", "trainer.py"))
    rollout = (folder / "experience" / "rollout.py").read_text(encoding="utf-8")
    refill = rollout.split("def refill")[1].split("def _useless")[0]
    names = set(re.findall(r'metrics\["(\w+)"\]|[{ ]"(\w+)": |_spread\("(\w+)"', code + refill, re.MULTILINE))
    names = {next(filter(None, found)) for found in names}
    assert {"loss", "beta", "refill_tokens", "entropy", "advantage", "learned_fraction", "reward_failures"} <= names
    documented = set(re.findall(r"`(\w+)`", PAGE))
    assert [name for name in sorted(names) if not {name, f"{name}_mean"} & documented] == []
