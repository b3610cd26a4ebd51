"""One block of the model as a picture: which rank holds which part of its weights, and of what passes through it."""

from collections.abc import Sequence
from itertools import pairwise

from r1parallel.monitor.charts import GRID, INK, SERIES
from r1parallel.monitor.pictures.block_flow import HALVES, Split, Step, block_steps, collective, num_parts, part_of
from r1parallel.monitor.pictures.canvas import Canvas, ranks_text
from r1parallel.parallel.layout.mesh import Mesh
from r1parallel.parallel.layout.operators import DP, ROWS, TP
from r1parallel.parallel.layout.table import ModelLayout

_WIDTH, _HALF = 800.0, 394.0
_BAR, _MATRIX, _HEIGHT = 40.0, 88.0, 84.0  # of a vector, of a matrix, of both
_WEIGHTS = (
    ("attention_norm", "attention.wq", "attention.wk", "attention.wv", "attention.wo"),
    ("ffn_norm", "feed_forward.w1", "feed_forward.w3", "feed_forward.w2"),
)
_WEIGHTS_TOP, _FLOW_TOP = 66.0, 356.0
_GLYPH_WIDTH, _GLYPH_HEIGHT, _LINE = 104.0, 72.0, 26.0
_SHARED, _TINT, _SHARED_TINT = INK, 0.3, 0.12


def draw_block(layout: ModelLayout, sequence_parallel: bool) -> Canvas:
    """Draw the first block on the ranks of the first stage; all others are split alike."""
    flows = [_flow(half, layout, sequence_parallel) for half in HALVES]
    height = _FLOW_TOP + 30 + max(sum(_heights(flow)) for flow in flows) + 56
    canvas = Canvas(_WIDTH, height)
    mesh = layout.mesh
    sp = ", sequence parallel" if sequence_parallel else ""
    opt = ", optimizer parallel" if layout.opt_shard else ""
    canvas.text(12, 18, f"One block on dp {mesh.dp} × tp {mesh.tp}{sp}{opt}", size=14, at="left", bold=True)
    _draw_legend(canvas, layout)
    for row, names in enumerate(_WEIGHTS):
        _draw_weights(canvas, layout, names, _WEIGHTS_TOP + row * (_HEIGHT + 50))
    canvas.text(
        12, _FLOW_TOP, "What passes through it, forward: rows = tokens of the micro-batch", at="left", bold=True
    )
    for column, flow in enumerate(flows):
        y = _FLOW_TOP + 30
        for item, used in zip(flow, _heights(flow), strict=True):
            _draw_item(canvas, layout, sequence_parallel, item, 12 + column * _HALF, y)
            y += used
    for line, words in enumerate(_notes(layout, sequence_parallel)):
        canvas.text(12, height - 36 + 18 * line, words, at="left", size=10)
    return canvas


def _draw_legend(canvas: Canvas, layout: ModelLayout) -> None:
    canvas.text(12, 42, "Weights [out, in]. Numbers are ranks, colours:", at="left", bold=True)
    x = 284.0
    for tp in range(layout.mesh.tp):
        canvas.box(x, 35, 14, 14, fill=SERIES[tp], edge=SERIES[tp], tint=_TINT)
        canvas.text(x + 20, 42, f"tp {tp}", at="left")
        x += 52
    if layout.mesh.tp > 1:
        canvas.box(x, 35, 14, 14, fill=_SHARED, edge=_SHARED, tint=_SHARED_TINT)
        canvas.text(x + 20, 42, "all of them", at="left")


def _draw_weights(canvas: Canvas, layout: ModelLayout, names: Sequence[str], y: float) -> None:
    x = 12.0
    for name in names:
        full = f"model.layers.0.{name}"
        canvas.text(x, y + _HEIGHT + 12, name.split(".")[-1], at="left", bold=True, size=10)
        shape = layout.parameters[f"{full}.weight"].shape
        canvas.text(x, y + _HEIGHT + 26, " × ".join(map(str, shape)), at="left", size=9)
        width = _MATRIX if len(shape) == 2 else _BAR
        _draw_weight(canvas, layout, f"{full}.weight", x, y, width)
        x += width + 6
        if f"{full}.bias" in layout.parameters:
            _draw_weight(canvas, layout, f"{full}.bias", x, y, _BAR)
            canvas.text(x, y + _HEIGHT + 12, "bias", at="left", size=10)
            x += _BAR
        x += 48 if len(shape) == 1 else 18


def _draw_weight(canvas: Canvas, layout: ModelLayout, name: str, x: float, y: float, width: float) -> None:
    """Each part of a parameter, at its place in the whole."""
    shape = layout.parameters[name].shape
    holders: dict[tuple[tuple[float, float], ...], list[int]] = {}
    for rank in range(layout.stage_size):
        slices = layout.slices(name, rank)
        assert slices is not None, name
        place = tuple((part.start / size, part.stop / size) for part, size in zip(slices, shape, strict=True))
        holders.setdefault(place, []).append(rank)
    for place, ranks in holders.items():
        top, bottom = place[0]
        left, right = place[1] if len(place) == 2 else (0.0, 1.0)
        box = (x + left * width, y + top * _HEIGHT, (right - left) * width, (bottom - top) * _HEIGHT)
        _draw_part(canvas, layout, ranks, box)


def _draw_part(canvas: Canvas, layout: ModelLayout, ranks: list[int], box: tuple[float, float, float, float]) -> None:
    x, y, width, height = box
    tp = {layout.mesh.coordinates(rank)[2] for rank in ranks}
    colour, tint = (SERIES[tp.pop()], _TINT) if len(tp) == 1 else (_SHARED, _SHARED_TINT)
    canvas.box(x, y, width, height, fill=colour, edge="#ffffff", tint=tint)
    words = ranks_text(ranks)
    size = min(10.0, height - 1, 1.6 * width / len(words))
    canvas.text(x + width / 2, y + height / 2, words, size=size)


# An item of a picture's column: a step, a collective, or activations as (split, columns).
_Item = Step | str | tuple[Split, str]


def _flow(half: str, layout: ModelLayout, sequence_parallel: bool) -> list[_Item]:
    """Activations wherever their split changes, and what stands between."""
    steps, mesh = block_steps(half), layout.mesh
    items: list[_Item] = [(steps[0].takes, steps[0].columns), steps[0]]
    for before, step in pairwise(steps):
        talk = collective(before, step, mesh, sequence_parallel)
        taken, shown = (num_parts(split, mesh, sequence_parallel) for split in (step.takes, before.takes))
        items += [] if talk is None else [talk]
        if talk is not None or taken != shown:
            items.append((step.takes, before.columns))
        items.append(step)
    return items


def _heights(flow: Sequence[_Item]) -> list[float]:
    return [_GLYPH_HEIGHT + 10 if isinstance(item, tuple) else _LINE for item in flow]


def _draw_item(canvas: Canvas, layout: ModelLayout, sequence_parallel: bool, item: _Item, x: float, y: float) -> None:
    if isinstance(item, str):
        canvas.box(x, y + 1, _GLYPH_WIDTH, _LINE - 8, fill=SERIES[4], edge=SERIES[4], tint=0.15)
        canvas.text(x + _GLYPH_WIDTH / 2, y + _LINE / 2 - 3, item, bold=True, colour=SERIES[4])
        canvas.text(x + _GLYPH_WIDTH + 12, y + _LINE / 2 - 3, "among the tp ranks of a dp copy", at="left", size=10)
    elif isinstance(item, Step):
        middle = x + _GLYPH_WIDTH / 2
        canvas.arrow(middle, y, middle, y + _LINE - 7)
        words = item.words + ("; each rank has a part of the sum" if item.partial and layout.mesh.tp > 1 else "")
        canvas.text(middle + 12, y + _LINE / 2 - 3, words, at="left")
    else:
        _draw_activations(canvas, layout, sequence_parallel, *item, x=x, y=y)


def _draw_activations(
    canvas: Canvas, layout: ModelLayout, sequence_parallel: bool, split: Split, columns: str, x: float, y: float
) -> None:
    parts = num_parts(split, layout.mesh, sequence_parallel)
    holders: dict[tuple[int, ...], list[int]] = {}
    for rank in range(layout.stage_size):
        holders.setdefault(part_of(split, layout.mesh, sequence_parallel, rank), []).append(rank)
    height, width = _GLYPH_HEIGHT / parts[0], _GLYPH_WIDTH / parts[1]
    for (row, column), ranks in holders.items():
        _draw_part(canvas, layout, ranks, (x + column * width, y + row * height, width, height))
    canvas.box(x, y, _GLYPH_WIDTH, _GLYPH_HEIGHT, edge=GRID)
    canvas.text(x + _GLYPH_WIDTH + 12, y + 22, f"[rows, {columns}]", at="left", bold=True)
    words = "; ".join(
        f"{what} {_split_words(axis, layout.mesh, sequence_parallel)}"
        for what, axis in zip(("rows", columns), split, strict=True)
    )
    canvas.text(x + _GLYPH_WIDTH + 12, y + 42, words, at="left", size=10)


def _split_words(axis: str | None, mesh: Mesh, sequence_parallel: bool) -> str:
    over = {DP: ["dp"], TP: ["tp"], ROWS: ["dp", "tp"] if sequence_parallel else ["dp"], None: []}[axis]
    split = [name for name in over if {"dp": mesh.dp, "tp": mesh.tp}[name] > 1]
    return f"split over {' and '.join(split)}" if split else "whole"


def _notes(layout: ModelLayout, sequence_parallel: bool) -> list[str]:
    notes = []
    if layout.mesh.tp > 1 and sequence_parallel:
        notes.append("Backward, a ReduceScatter stands in the place of each AllGather, and the other way round.")
    elif layout.mesh.tp > 1:
        notes.append("Backward, an AllReduce stands in front of the column parallel projections instead.")
    if layout.opt_shard:
        notes.append("Optimizer parallel: a weight's parts are gathered before use, its gradient is scattered back.")
    return notes
