"""The mesh as a picture: where every rank stands, what its stage holds and which groups it is in."""

from collections.abc import Iterable
from math import prod

from r1parallel.monitor.charts import GRID, SERIES
from r1parallel.monitor.pictures.canvas import Canvas, ranks_text
from r1parallel.parallel.layout.table import ModelLayout

_WIDTH, _LEFT, _TOP, _CELL_HEIGHT, _GAP = 800.0, 250.0, 66.0, 44.0, 44.0
_MOST_CELL_WIDTH = 150.0
_SHOWN_GROUPS = 8
_OUTSIDE_LAYERS = {
    "model.tok_embeddings.embedding_weight": "embedding",
    "model.norm_out.weight": "last norm",
    "lm_head.weight": "head",
}


def draw_mesh(layout: ModelLayout) -> Canvas:
    """Draw every stage as a grid, one row for each dp copy and one column for each tp part."""
    mesh = layout.mesh
    panel = mesh.dp * _CELL_HEIGHT
    canvas = Canvas(_WIDTH, _TOP + mesh.pp * (panel + _GAP) + 66)
    title = f"{layout.world_size} ranks = dp {mesh.dp} × tp {mesh.tp} × pp {mesh.pp}"
    canvas.text(12, 18, title, size=14, at="left", bold=True)
    canvas.text(12, _TOP - 24, "M: million weights on this rank", at="left", size=10)
    width = min(_MOST_CELL_WIDTH, (_WIDTH - _LEFT - 60) / mesh.tp)
    for tp in range(mesh.tp):
        canvas.text(_LEFT + (tp + 0.5) * width, _TOP - 14, f"tp {tp}", colour=SERIES[tp], bold=True)
    for stage in range(mesh.pp):
        y = _TOP + stage * (panel + _GAP)
        _draw_stage(canvas, layout, stage, y, width)
        if stage < mesh.pp - 1:
            middle = _LEFT + mesh.tp * width / 2
            canvas.arrow(middle, y + panel + 6, middle, y + panel + _GAP - 8, both=True)
            words = f"rank r and rank r + {mesh.stage_size}: activations down, gradients up"
            canvas.text(middle + 10, y + panel + _GAP / 2, words, at="left", size=10)
    _draw_groups(canvas, layout, _TOP + mesh.pp * (panel + _GAP) - 14)
    return canvas


def stage_contents(layout: ModelLayout, stage: int) -> list[str]:
    """What a stage holds, in words, in the model's order."""
    first = sum(layout.stage_layers[:stage])
    last = first + layout.stage_layers[stage] - 1
    own = [words for name, words in _OUTSIDE_LAYERS.items() if _stage_of(layout, name) == stage]
    before = [words for words in own if words == "embedding"]
    sent = layout.config.tie_word_embeddings and stage == layout.mesh.pp - 1
    head = ["tied head"] if sent else []
    layers = f"layers {first} to {last}" if first < last else f"layer {first}"
    return [*before, layers, *(words for words in own if words != "embedding"), *head]


def _stage_of(layout: ModelLayout, name: str) -> int | None:
    return layout.parameters[name].stage if name in layout.parameters else None


def _draw_stage(canvas: Canvas, layout: ModelLayout, stage: int, y: float, width: float) -> None:
    mesh = layout.mesh
    canvas.text(12, y + 12, f"stage {stage}", at="left", bold=True)
    canvas.text(12, y + 30, ", ".join(stage_contents(layout, stage)), at="left", size=10)
    for dp in range(mesh.dp):
        row = y + dp * _CELL_HEIGHT
        canvas.text(_LEFT - 8, row + _CELL_HEIGHT / 2, f"dp {dp}", at="right", bold=True)
        for tp in range(mesh.tp):
            rank = mesh.rank_of(dp, stage, tp)
            x, colour = _LEFT + tp * width, SERIES[tp]
            canvas.box(x, row, width, _CELL_HEIGHT, fill=colour, edge="#ffffff", tint=0.22)
            canvas.text(x + width / 2, row + 15, f"rank {rank}", bold=True)
            canvas.text(x + width / 2, row + 31, f"{_held(layout, rank) / 1e6:,.4g} M", size=10)
    canvas.box(_LEFT, y, mesh.tp * width, mesh.dp * _CELL_HEIGHT, edge=GRID)


def _held(layout: ModelLayout, rank: int) -> int:
    """How many numbers of the model a rank keeps."""
    shapes = (layout.local_shape(name, rank) for name in layout.parameters)
    return sum(prod(shape) for shape in shapes if shape is not None)


def _draw_groups(canvas: Canvas, layout: ModelLayout, y: float) -> None:
    mesh, ranks = layout.mesh, range(layout.world_size)
    for number, (kind, what, groups) in enumerate(
        (
            ("tp groups", "share every matrix product", {mesh.tp_group(rank) for rank in ranks}),
            ("dp groups", "hold equal weights, see other rows", {mesh.dp_group(rank) for rank in ranks}),
            ("pp groups", "hold the other layers", {mesh.pp_group(rank) for rank in ranks}),
        )
    ):
        line = y + 24 * number + 18
        canvas.text(12, line, kind, at="left", bold=True)
        canvas.text(92, line, what, at="left", size=10)
        canvas.text(290, line, _listed(groups), at="left", size=10)


def _listed(groups: Iterable[tuple[int, ...]]) -> str:
    ordered = sorted(groups)
    words = [ranks_text(group) for group in ordered[:_SHOWN_GROUPS]]
    return ",  ".join(words) + (", …" if len(ordered) > _SHOWN_GROUPS else "")
