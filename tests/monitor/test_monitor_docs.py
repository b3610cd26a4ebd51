import random
from pathlib import Path

from monitor_runs import grpo_metrics

from r1parallel.monitor.metrics import TENSORBOARD_TAGS

PAGE = (Path(__file__).parents[2] / "docs" / "metrics.md").read_text(encoding="utf-8")


def test_every_tag_of_the_table_is_documented():
    missing = [tag for tags in TENSORBOARD_TAGS.values() for tag in tags if f"`{tag}`" not in PAGE]
    assert not missing


def test_every_metric_of_a_run_is_documented():
    names = {name for name in grpo_metrics(5, 10, random.Random(1)) if not name.startswith("reward/")}
    ranges = {f"{stem}_{end}" for stem in ("completion_length",) for end in ("min", "max")}
    assert [name for name in sorted(names - ranges) if f"`{name}`" not in PAGE] == []
