"""One HTML page on a run: self-contained, so that it can be mailed, kept and opened anywhere."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from r1parallel.atomic import replacing
from r1parallel.errors import UserError
from r1parallel.monitor.charts import Lines, draw_panel, draw_phases, to_svg
from r1parallel.monitor.metrics import METRICS_FILE, read_metrics
from r1parallel.monitor.report.panels import is_grpo, panels_of, table_of, tiles_of
from r1parallel.monitor.samples import SAMPLES_FILE, read_samples

REPORT_FILE = "report.html"
_TEMPLATE = "report.html.jinja"
_SHOWN_SAMPLES = 4


def write_report(run_dir: Path, title: str | None = None) -> Path:
    """Write `run_dir`/report.html and return its path.

    `run_dir` holds metrics.jsonl, and if there is more to tell samples.jsonl, config.json (the settings) and
    summary.json (results, shown on top). Or it is a folder of such folders: each becomes a section, SFT runs first.
    `title` is the page's heading; the folder's name if None. Raises UserError when there is nothing to show.
    """
    sections = _sections(run_dir)
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["score"] = _score
    page = environment.get_template(_TEMPLATE).render(
        title=title or run_dir.resolve().name,
        summary=flatten(_json(run_dir / "summary.json")),
        sections=sections,
    )
    path = run_dir / REPORT_FILE
    with replacing(path) as temporary:
        temporary.write_text(page, encoding="utf-8")
    return path


def flatten(values: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """Turn nested settings or results into rows of (dotted name, text)."""
    rows: list[tuple[str, str]] = []
    for key, value in values.items():
        if isinstance(value, dict):
            rows += flatten(value, f"{prefix}{key}.")
        else:
            rows.append((f"{prefix}{key}", _text(value)))
    return rows


def _sections(run_dir: Path) -> list[dict[str, Any]]:
    if (run_dir / METRICS_FILE).is_file():
        return [_section(run_dir, read_metrics(run_dir / METRICS_FILE))]
    runs = {path.parent: read_metrics(path) for path in sorted(run_dir.glob(f"*/{METRICS_FILE}"))}
    if not runs:
        raise UserError(
            f"no {METRICS_FILE} in {run_dir} or its sub-folders: give the output_dir of a run that has logged a step"
        )
    in_order = sorted(runs.items(), key=lambda item: (is_grpo(item[1]), item[0].name))
    return [_section(folder, lines) for folder, lines in in_order]


def _section(run_dir: Path, lines: Lines) -> dict[str, Any]:
    if not lines:
        raise UserError(f"{run_dir / METRICS_FILE} has no step yet: run it again when the run has logged one")
    cards = [
        {"title": panel.title, "caption": panel.caption, "svg": Markup(to_svg(draw_panel(lines, panel), panel.title))}
        for panel in panels_of(lines)
    ]
    if any(name.startswith("seconds/") for line in lines for name in line):
        title, caption = (
            "Time by phase",
            "What a step's seconds are spent on; in a long run each bar is a mean over neighbouring steps.",
        )
        cards.append({"title": title, "caption": caption, "svg": Markup(to_svg(draw_phases(lines), title))})
    return {
        "name": run_dir.resolve().name,
        "kind": "GRPO" if is_grpo(lines) else "Supervised fine-tuning",
        "tiles": tiles_of(lines),
        "cards": cards,
        "samples": _samples(run_dir / SAMPLES_FILE),
        "table": table_of(lines),
        "config": flatten(_json(run_dir / "config.json")),
    }


def _samples(path: Path) -> list[dict[str, Any]]:
    """Give a few rows of the first and of the last sampled step."""
    rows = read_samples(path) if path.is_file() else []
    steps = sorted({row["step"] for row in rows})
    shown = dict.fromkeys([steps[0], steps[-1]]) if steps else {}
    return [{"step": step, "rows": [row for row in rows if row["step"] == step][:_SHOWN_SAMPLES]} for step in shown]


def _json(path: Path) -> dict[str, Any]:
    """Read a file of one JSON object; empty when the file is not there."""
    if not path.is_file():
        return {}
    try:
        values = json.loads(path.read_bytes())
    except ValueError as error:
        raise UserError(f"{path} is not JSON ({error}): mend or delete it") from error
    if not isinstance(values, dict):
        raise UserError(f"{path} must hold one JSON object: mend or delete it")
    return values


def _score(value: float | None) -> str:
    return "not scored" if value is None else f"{value:.4g}"


def _text(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, list):
        return ", ".join(_text(item) for item in value)
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
