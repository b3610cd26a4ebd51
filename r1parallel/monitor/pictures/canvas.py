"""Boxes, words and arrows on a page of fixed size, saved as an SVG whose bytes follow from what was drawn alone."""

import io
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, Rectangle

from r1parallel.atomic import replacing
from r1parallel.monitor.charts import INK

_STYLE: Any = {
    "svg.fonttype": "none",  # letters stay text
    "svg.hashsalt": "r1parallel",
    "font.family": "DejaVu Sans",  # it comes with matplotlib
    "text.parse_math": False,
}
_POINTS_PER_INCH = 72  # one point is one pixel of the SVG
_NO_METADATA = dict.fromkeys(("Creator", "Date", "Format", "Type"))  # they differ from version to version
_FONTS = "'Helvetica Neue', Helvetica, Arial, 'DejaVu Sans', sans-serif"


class Canvas:
    """A white page of `width` × `height` pixels; y grows downwards from its upper left corner."""

    def __init__(self, width: float, height: float):
        self._figure = Figure(figsize=(width / _POINTS_PER_INCH, height / _POINTS_PER_INCH), facecolor="white")
        FigureCanvasSVG(self._figure)
        self._axes = self._figure.add_axes((0.0, 0.0, 1.0, 1.0))
        self._axes.set(xlim=(0, width), ylim=(height, 0))
        self._axes.set_axis_off()

    def box(
        self, x: float, y: float, width: float, height: float, *, fill: str = "none", edge: str = INK, tint: float = 1.0
    ) -> None:
        """A rectangle; `tint` is how much of the fill colour is laid on the white."""
        self._axes.add_patch(Rectangle((x, y), width, height, facecolor=_mixed(fill, tint), edgecolor=edge, lw=1.0))

    def text(
        self,
        x: float,
        y: float,
        words: str,
        *,
        size: float = 11,
        at: str = "center",
        bold: bool = False,
        colour: str = INK,
    ) -> None:
        """One line whose middle is at height y; x is its left end, its center or its right end, as `at` says."""
        baseline = y + 0.36 * size  # half of a capital letter
        with matplotlib.rc_context(_STYLE):
            weight = "bold" if bold else "normal"
            self._axes.text(x, baseline, words, fontsize=size, ha=at, va="baseline", weight=weight, color=colour)

    def arrow(self, x: float, y: float, to_x: float, to_y: float, *, both: bool = False, colour: str = INK) -> None:
        """An arrow with one head or, with `both`, two."""
        style = "<|-|>" if both else "-|>"
        self._axes.add_patch(
            FancyArrowPatch(
                (x, y), (to_x, to_y), arrowstyle=style, mutation_scale=9, shrinkA=0, shrinkB=0, color=colour
            )
        )

    def save(self, path: Path, title: str) -> None:
        """Write the page; the folder exists."""
        buffer = io.StringIO()
        with matplotlib.rc_context(_STYLE):
            self._figure.savefig(buffer, format="svg", metadata={"Title": title, **_NO_METADATA})
        svg = re.sub(r"<metadata>.*?</metadata>\s*", "", buffer.getvalue(), flags=re.DOTALL)
        svg = re.sub(r'(width|height)="([\d.]+)pt"', r'\1="\2"', svg, count=2)
        svg = re.sub(r"'DejaVu Sans'[^;\"]*", _FONTS, svg)
        with replacing(path) as temporary:
            temporary.write_text(svg, encoding="utf-8")


def ranks_text(ranks: Sequence[int]) -> str:
    """Ranks in few words: 3, 0·2, or 0…7 for four and more that follow one another at equal distances."""
    if len(ranks) < 4:
        return "·".join(map(str, ranks))
    step = ranks[1] - ranks[0]
    return f"{ranks[0]}…{ranks[-1]}" if step == 1 else f"{ranks[0]}·{ranks[1]}…{ranks[-1]}"


def _mixed(colour: str, tint: float) -> str:
    """The colour laid thinly on white."""
    if colour == "none":
        return colour
    parts = (int(colour[i : i + 2], 16) for i in (1, 3, 5))
    return "#" + "".join(f"{round(255 - tint * (255 - part)):02x}" for part in parts)
