"""The pipeline's schedule as a picture: which stage works on which micro-batch when, and when it waits."""

from collections.abc import Sequence
from dataclasses import dataclass

from r1parallel.monitor.charts import GRID, SERIES
from r1parallel.monitor.pictures.canvas import Canvas

FORWARD, BACKWARD = "forward", "backward"
_COLOURS = {FORWARD: SERIES[0], BACKWARD: SERIES[1]}
_WIDTH, _LEFT, _TOP, _ROW = 800.0, 70.0, 62.0, 34.0
_SMALLEST_LETTERS = 6.0


@dataclass(frozen=True)
class Work:
    """One pass of one micro-batch through one stage, from `start` to `end` in units of a forward pass."""

    stage: int
    kind: str
    micro: int
    start: int
    end: int


def one_forward_one_backward(num_stages: int, num_micro: int, backward_time: int) -> list[Work]:
    """The 1F1B schedule (Narayanan et al. 2021, section 2.2), where sending takes no time.

    A stage first runs one forward pass for each stage behind it, then one forward and one backward pass in turn.

    Args:
        num_stages: pipeline stages.
        num_micro: micro-batches of an update.
        backward_time: of a backward pass; a forward pass takes 1.
    """
    waiting = [_order(stage, num_stages, num_micro) for stage in range(num_stages)]
    free, done = [0] * num_stages, []
    ends: dict[tuple[int, str, int], int] = {}
    while any(waiting):
        for stage, passes in enumerate(waiting):
            if not passes:
                continue
            kind, micro = passes[0]
            needed = _needs(stage, kind, micro, num_stages)
            if needed is not None and needed not in ends:
                continue
            start = max(free[stage], 0 if needed is None else ends[needed])
            end = start + (1 if kind == FORWARD else backward_time)
            free[stage] = ends[stage, kind, micro] = end
            done.append(Work(stage, kind, micro, start, end))
            passes.pop(0)
    return done


def idle_fraction(schedule: Sequence[Work]) -> float:
    """The part of their time, from the first pass to the last, in which the stages wait."""
    busy = sum(work.end - work.start for work in schedule)
    num_stages = 1 + max(work.stage for work in schedule)
    return 1 - busy / (num_stages * max(work.end for work in schedule))


def draw_schedule(num_stages: int, num_micro: int, recompute: bool) -> Canvas:
    """Draw one update.

    A backward pass takes as long as two forward passes, which is what its matrix products are, and as three where it
    computes the blocks again (`recompute`).
    """
    backward_time = 3 if recompute else 2
    schedule = one_forward_one_backward(num_stages, num_micro, backward_time)
    span = max(work.end for work in schedule)
    unit = (_WIDTH - _LEFT - 12) / span
    canvas = Canvas(_WIDTH, _TOP + _ROW * num_stages + 40)
    canvas.text(12, 18, f"1F1B: {num_stages} stages, {num_micro} micro-batches", size=14, at="left", bold=True)
    again = " (it computes its blocks again)" if recompute else ""
    _draw_legend(canvas, f"backward: takes {backward_time} times as long{again}")
    for stage in range(num_stages):
        y = _TOP + _ROW * stage
        canvas.text(12, y + _ROW / 2 - 2, f"stage {stage}", at="left")
        canvas.box(_LEFT, y, span * unit, _ROW - 5, fill=GRID, edge=GRID)
    for work in schedule:
        _draw_work(canvas, work, unit)
    fraction = f"({num_stages} − 1) / ({num_micro} + {num_stages} − 1)"
    y = _TOP + _ROW * num_stages
    canvas.arrow(_LEFT, y + 4, _LEFT + span * unit, y + 4)
    canvas.text(_LEFT, y + 22, f"Time. Idle: {idle_fraction(schedule):.1%} = {fraction}", at="left")
    return canvas


def _order(stage: int, num_stages: int, num_micro: int) -> list[tuple[str, int]]:
    """(kind, micro-batch) of a stage's passes, in their order."""
    first = min(num_stages - 1 - stage, num_micro)
    passes = [(FORWARD, micro) for micro in range(first)]
    for micro in range(num_micro - first):
        passes += [(FORWARD, first + micro), (BACKWARD, micro)]
    return passes + [(BACKWARD, micro) for micro in range(num_micro - first, num_micro)]


def _needs(stage: int, kind: str, micro: int, num_stages: int) -> tuple[int, str, int] | None:
    """The pass whose result this one takes in, or None."""
    if kind == FORWARD:
        return (stage - 1, FORWARD, micro) if stage else None
    return (stage + 1, BACKWARD, micro) if stage < num_stages - 1 else (stage, FORWARD, micro)


def _draw_legend(canvas: Canvas, backward: str) -> None:
    for x, colour, tint, words in (
        (12.0, SERIES[0], 0.3, "forward"),
        (92.0, SERIES[1], 0.3, backward),
        (500.0, GRID, 1.0, "idle"),
    ):
        canvas.box(x, 36, 14, 14, fill=colour, edge=GRID if colour == GRID else colour, tint=tint)
        canvas.text(x + 20, 43, words, at="left")


def _draw_work(canvas: Canvas, work: Work, unit: float) -> None:
    x, y, width = _LEFT + work.start * unit, _TOP + _ROW * work.stage, (work.end - work.start) * unit
    canvas.box(x, y, width, _ROW - 5, fill=_COLOURS[work.kind], edge=_COLOURS[work.kind], tint=0.3)
    size = min(11.0, 0.7 * unit)
    if size >= _SMALLEST_LETTERS:
        canvas.text(x + width / 2, y + (_ROW - 5) / 2, str(work.micro), size=size)
