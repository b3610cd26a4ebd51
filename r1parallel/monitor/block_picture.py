"""One block of the model as a picture: which rank holds which part of its weights, and of what passes through it."""

from collections.abc import Sequence

from r1parallel.monitor.block_flow import HALVES, Split, Step, block_steps, collective, num_parts, part_of
from r1parallel.monitor.canvas import Canvas
from r1parallel.monitor.charts import GRID, INK, SERIES
from r1parallel.parallel.layout import ModelLayout
from r1parallel.parallel.operators import DP, ROWS, TP

_WIDTH, _HALF = 800.0, 394.0
_BAR, _MATRIX, _HEIGHT = 40.0, 88.0, 84.0  # of a vector, of a matrix, of both
_WEIGHTS = (
    ("attention_norm", "attention.wq", "attention.wk", "attention.wv", "attention.wo"),
    ("ffn_norm", "feed_forward.w1", "feed_forward.w3", "feed_forward.w2"),
)
_WEIGHTS_TOP, _FLOW_TOP = 66.0, 356.0
_GLYPH_WIDTH, _GLYPH_HEIGHT, _LINE = 104.0, 66.0, 26.0
_SMALLEST_CELL = 9.0  # a lower one has no room for its ranks
_ALONE = "#7c8796"


def draw_block(layout: ModelLayout, sequence_parallel: bool) -> Canvas:
    """Draw the first block on the ranks of the first stage; all others are split alike."""
    flows = [_flow(half, layout, sequence_parallel) for half in HALVES]
    height = _FLOW_TOP + 30 + max(sum(_heights(flow)) for flow in flows) + 34
    canvas = Canvas(_WIDTH, height)
    mesh = layout.mesh
    sp = ", sequence parallel" if sequence_parallel else ""
    opt = ", optimizer parallel" if layout.opt_shard else ""
    canvas.text(12, 18, f"One block on dp {mesh.dp} x tp {mesh.tp}{sp}{opt}", size=14, at="left", bold=True)
    _draw_legend(canvas, layout)
    for row, names in enumerate(_WEIGHTS):
        _draw_weights(canvas, layout, names, _WEIGHTS_TOP + row * (_HEIGHT + 50))
    canvas.text(12, _FLOW_TOP, "What passes through it, forward: rows = tokens of the micro-batch", at="left", bold=True)
    for column, flow in enumerate(flows):
        y = _FLOW_TOP + 30
        for item, used in zip(flow, _heights(flow), strict=True):
            _draw_item(canvas, layout, sequence_parallel, item, 12 + column * _HALF, y)
            y += used
    if mesh.tp > 1:
        canvas.text(12, height - 16, _backward_words(sequence_parallel), at="left", size=10)
    return canvas


def ranks_text(ranks: Sequence[int]) -> str:
    """Ranks in few words: 3, 0·2, or 0…7 for four and more that follow one another at equal distances."""
    if len(ranks) < 4:
        return "·".join(map(str, ranks))
    step = ranks[1] - ranks[0]
    return f"{ranks[0]}…{ranks[-1]}" if step == 1 else f"{ranks[0]}·{ranks[1]}…{ranks[-1]}"


def _draw_legend(canvas: Canvas, layout: ModelLayout) -> None:
    canvas.text(12, 42, "Weights [out, in]. Numbers are ranks, colours:", at="left", bold=True)
    x = 312.0
    for tp in range(layout.mesh.tp if layout.mesh.tp <= 7 else 0):
        canvas.box(x, 35, 14, 14, fill=SERIES[tp], edge=SERIES[tp], tint=0.3)
        canvas.text(x + 20, 42, f"tp {tp}", at="left")
        x += 60
    canvas.box(x, 35, 14, 14, fill=_ALONE, edge=_ALONE, tint=0.2)
    canvas.text(x + 20, 42, "all tp ranks", at="left")


def _draw_weights(canvas: Canvas, layout: ModelLayout, names: Sequence[str], y: float) -> None:
    x = 12.0
    for name in names:
        full = f"model.layers.0.{name}"
        canvas.text(x, y + _HEIGHT + 12, name.split(".")[-1], at="left", bold=True, size=10)
        shape = layout.parameters[f"{full}.weight"].shape
        canvas.text(x, y + _HEIGHT + 26, " x ".join(map(str, shape)), at="left", size=9)
        width = _MATRIX if len(shape) == 2 else _BAR
        _draw_weight(canvas, layout, f"{full}.weight", x, y, width)
        x += width + 6
        if f"{full}.bias" in layout.parameters:
            _draw_weight(canvas, layout, f"{full}.bias", x, y, _BAR)
            canvas.text(x, y + _HEIGHT + 12, "bias", at="left", size=10)
            x += _BAR
        x += 34 if len(shape) == 1 else 18


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
    colour = SERIES[tp.pop() % 7] if len(tp) == 1 else _ALONE
    canvas.box(x, y, width, height, fill=colour, edge="#ffffff", tint=0.3 if colour != _ALONE else 0.2)
    words = ranks_text(ranks)
    size = min(10.0, height - 1, 1.6 * width / len(words))
    if height >= _SMALLEST_CELL:
        canvas.text(x + width / 2, y + height / 2, words, size=size)


# An item of a picture's column: a step, a collective, or activations as (split, columns).
_Item = Step | str | tuple[Split, str]


def _flow(half: str, layout: ModelLayout, sequence_parallel: bool) -> list[_Item]:
    """Activations wherever their split changes, and what stands between."""
    steps = block_steps(half)
    items: list[_Item] = [(steps[0].takes, "hidden")]
    for before, step in zip([None, *steps], steps):
        if before is not None:
            talk = collective(before, step, layout.mesh, sequence_parallel)
            items += [] if talk is None else [talk]
            if talk is not None or before.gives != before.takes:
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
    canvas.text(x + _GLYPH_WIDTH + 12, y + 42, _split_words(split, columns, sequence_parallel), at="left", size=10)


def _split_words(split: Split, columns: str, sequence_parallel: bool) -> str:
    over = {DP: "dp", TP: "tp", ROWS: "dp and tp" if sequence_parallel else "dp"}
    rows = f"rows split over {over[split[0]]}" if split[0] is not None else "all rows"
    return f"{rows}; {columns} " + ("whole" if split[1] is None else f"split over {over[split[1]]}")


def _backward_words(sequence_parallel: bool) -> str:
    if sequence_parallel:
        return "Backward, gradients take the same way: ReduceScatter where AllGather stands, and AllGather for ReduceScatter."
    return "Backward, there is no AllReduce here; one stands in front of the column parallel projections instead."
