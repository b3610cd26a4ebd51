"""Pictures of metrics: drawn once, given as SVG that follows the page's colours, or as a PNG file."""

import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from statistics import fmean
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter, PercentFormatter

from r1parallel.atomic import replacing
from r1parallel.errors import UserError
from r1parallel.monitor.metrics import read_metrics

Lines = Sequence[Mapping[str, Any]]  # what read_metrics gives

INK = "#4b5563"
GRID = "#e2e6ec"
SERIES = ("#2563eb", "#e0700f", "#0f9667", "#8b5cf6", "#d63a4c", "#0a8fb0", "#b98a05", "#7c8796")
# In the page these colours are CSS variables, so that dark mode can change them.
_CSS_NAMES = {INK: "ink", GRID: "grid"} | {colour: f"series{i}" for i, colour in enumerate(SERIES)}

_STYLE: Any = {
    "font.size": 10,
    "axes.edgecolor": GRID,
    "axes.labelcolor": INK,
    "axes.titlecolor": INK,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "grid.color": GRID,
    "legend.frameon": False,
    "legend.labelcolor": INK,
    "lines.linewidth": 1.8,
    "lines.markersize": 4,
    "text.parse_math": False,  # a $ in a name is a $
    "xtick.color": GRID,
    "xtick.labelcolor": INK,
    "ytick.color": GRID,
    "ytick.labelcolor": INK,
    "svg.fonttype": "none",  # letters stay text, in the page's font
    "svg.hashsalt": "r1parallel",  # equal runs give equal files
}
_OUTSIDE_STEP = ("seconds/checkpoint", "seconds/eval")  # seconds/step does not include these
_MOST_POINTS = 400
_MOST_BARS = 60
_MARKED_POINTS = 20


@dataclass(frozen=True)
class Panel:
    """One chart: which metrics, in which unit, and what to say about them.

    `curves` maps a metric's name to its label. `band` names the metrics of the lower and the upper edge of a
    shade. `smooth` adds a moving average to the first curve.
    """

    title: str
    caption: str
    unit: str
    curves: Mapping[str, str]
    band: tuple[str, str] | None = None
    smooth: bool = False
    from_zero: bool = True
    percent: bool = False
    log: bool = False


def series(lines: Lines, metric: str) -> tuple[list[int], list[float]]:
    """Give the steps at which a metric was logged, and its values there."""
    points = [(line["step"], line[metric]) for line in lines if metric in line]
    return [step for step, _ in points], [value for _, value in points]


def moving_average(values: Sequence[float], window: int) -> list[float]:
    """Mean over the `window` (odd) values around each one; fewer at the two ends."""
    half = window // 2
    return [fmean(values[max(0, i - half) : i + half + 1]) for i in range(len(values))]


def thin_lines(lines: Lines, limit: int) -> list[dict[str, Any]]:
    """Merge neighbouring lines until at most `limit` are left.

    A merged line has the means, but the smallest of each *_min and the largest of each *_max. A phase that was
    not run at some of the steps took 0 seconds there.
    """
    size = -(-len(lines) // limit)
    return [_merge(lines[start : start + size]) for start in range(0, len(lines), size)]


def phase_seconds(line: Mapping[str, Any]) -> dict[str, float]:
    """Give what each phase of a step took; what no phase accounts for of seconds/step is called "other"."""
    phases = {name: value for name, value in line.items() if name.startswith("seconds/")}
    step = phases.pop("seconds/step", 0.0)
    inside = sum(value for name, value in phases.items() if name not in _OUTSIDE_STEP)
    named = {name.removeprefix("seconds/"): value for name, value in phases.items()}
    return named | {"other": step - inside} if step > inside else named


def draw_panel(lines: Lines, panel: Panel) -> Figure:
    """Draw the panel's curves over the step. At least one of them must be in `lines`."""
    lines = thin_lines(lines, _MOST_POINTS)
    with matplotlib.rc_context(_STYLE):
        figure, axes = _empty_figure(panel.unit)
        if panel.band is not None:
            _draw_band(axes, lines, *panel.band)
        for number, (metric, label) in enumerate(panel.curves.items()):
            averaged = panel.smooth and number == 0
            _draw_curve(axes, *series(lines, metric), label=label, colour=SERIES[number % 8], averaged=averaged)
        _finish(axes, panel)
    return figure


def draw_phases(lines: Lines) -> Figure:
    """Draw the `phase_seconds` of each step as stacked bars."""
    lines = thin_lines(lines, _MOST_BARS)
    columns = [phase_seconds(line) for line in lines]
    phases = sorted({phase: 0 for column in columns for phase in column}, key="other".__eq__)  # it comes last
    steps = [line["step"] for line in lines]
    gaps = [later - earlier for earlier, later in pairwise(steps)]
    with matplotlib.rc_context(_STYLE):
        figure, axes = _empty_figure("seconds per step")
        bottom = [0.0] * len(steps)
        for number, phase in enumerate(phases):
            height = [column.get(phase, 0.0) for column in columns]
            colour = SERIES[-1] if phase == "other" else SERIES[number % 7]
            axes.bar(steps, height, width=0.85 * min(gaps, default=1), bottom=bottom, color=colour, label=phase)
            bottom = [low + high for low, high in zip(bottom, height, strict=True)]
        axes.grid(visible=False, axis="x")
        _show_steps(axes)
        _show_legend(axes)
    return figure


def to_svg(figure: Figure, label: str) -> str:
    """Give an <svg> element whose colours are the page's CSS variables; `label` is read out by screen readers."""
    buffer = io.StringIO()
    with matplotlib.rc_context(_STYLE):
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    svg = buffer.getvalue()
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg[svg.index("<svg") :], flags=re.DOTALL)
    svg = re.sub(r'<g id="[^"]*"', "<g", svg)  # the names repeat from picture to picture
    svg = re.sub(r" font-family: [^;\"]*;", "", svg)
    svg = re.sub(r' (width|height)="[^"]*pt"', "", svg, count=2)  # the page decides
    for colour, name in _CSS_NAMES.items():
        svg = svg.replace(colour, f"var(--{name})")
    safe = label.replace("&", "&amp;").replace('"', "&quot;").replace("<", "&lt;")
    return svg.replace("<svg", f'<svg role="img" aria-label="{safe}"', 1)


def save_curve(metrics_path: Path, metric: str, out_png: Path, title: str) -> None:
    """Write a picture of one metric over the steps of a run, with its *_min to *_max band where it has one.

    Raises UserError when the run has no such metric or the picture's folder does not exist.
    """
    lines = read_metrics(metrics_path)
    known = sorted({name for line in lines for name in line} - {"step"})
    if metric not in known:
        raise UserError(f"{metrics_path} has no metric {metric!r}; it has {', '.join(known)}")
    if not out_png.parent.is_dir():
        raise UserError(f"the folder {out_png.parent} does not exist: create it or choose another output file")
    stem = metric.removesuffix("_mean")
    edges = (f"{stem}_min", f"{stem}_max")
    band = edges if metric != stem and set(edges) <= set(known) else None
    panel = Panel(title, "", metric, {metric: metric}, band, smooth=True, from_zero=False)
    figure = draw_panel(lines, panel)
    figure.suptitle(title, fontsize=11, color=INK, parse_math=False)
    with replacing(out_png) as temporary:
        figure.savefig(temporary, format="png", dpi=200, facecolor="white")


def _merge(lines: Lines) -> dict[str, Any]:
    merged: dict[str, Any] = {"step": lines[-1]["step"]}
    for name in dict.fromkeys(name for line in lines for name in line if name != "step"):
        values = [line[name] for line in lines if name in line]
        if name.endswith("_min"):
            merged[name] = min(values)
        elif name.endswith("_max"):
            merged[name] = max(values)
        elif name.startswith("seconds/"):
            merged[name] = sum(values) / len(lines)
        else:
            merged[name] = fmean(values)
    return merged


def _empty_figure(unit: str) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(5.4, 2.9), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.set_xlabel("step")
    axes.set_ylabel(unit)
    return figure, axes


def _draw_band(axes: Axes, lines: Lines, low: str, high: str) -> None:
    steps, lows = series(lines, low)
    _, highs = series(lines, high)
    if len(steps) == 1:  # an area needs two points
        axes.vlines(steps, lows, highs, color=SERIES[0], alpha=0.3, linewidth=8, label="min to max")
    elif steps:
        axes.fill_between(steps, lows, highs, color=SERIES[0], alpha=0.14, linewidth=0, label="min to max")


def _draw_curve(axes: Axes, steps: list[int], values: list[float], *, label: str, colour: str, averaged: bool) -> None:
    if not steps:
        return
    marker = "o" if len(steps) <= _MARKED_POINTS else None
    averaged = averaged and len(steps) > _MARKED_POINTS // 2
    width, alpha = (1.0, 0.6) if averaged else (1.8, 1.0)
    axes.plot(steps, values, color=colour, marker=marker, linewidth=width, alpha=alpha, label=label)
    if averaged:
        window = max(5, len(steps) // 8) | 1
        span = steps[window] - steps[0]
        average = moving_average(values, window)
        axes.plot(steps, average, color=SERIES[1], linewidth=2.2, label=f"moving average, {span} steps")


def _finish(axes: Axes, panel: Panel) -> None:
    if panel.log and axes.dataLim.y0 > 0:
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    elif panel.from_zero:
        axes.set_ylim(bottom=0, top=None if axes.dataLim.y1 > 0 else 1)
    formatter = PercentFormatter(1.0) if panel.percent else FuncFormatter(lambda value, _: f"{value:.6g}")
    axes.yaxis.set_major_formatter(formatter)
    axes.yaxis.set_minor_formatter(NullFormatter())
    _show_steps(axes)
    _show_legend(axes)


def _show_steps(axes: Axes) -> None:
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10]))
    low, high = axes.dataLim.x0, axes.dataLim.x1
    if low == high:
        axes.set_xlim(low - 1, high + 1)
        axes.set_xticks([low])


def _show_legend(axes: Axes) -> None:
    labels = axes.get_legend_handles_labels()[1]
    if len(labels) > 1:
        columns = 3 if len(labels) <= 3 else 4
        place: dict[str, Any] = {"loc": "lower left", "bbox_to_anchor": (0, 1.0), "borderaxespad": 0.2}
        axes.legend(**place, ncols=columns, fontsize=8.5, handlelength=1.4, columnspacing=1.2)
