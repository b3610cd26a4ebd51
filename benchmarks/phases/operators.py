"""MindSpore's profiler on one call: the seconds of each type of operator."""

import csv
import time
from collections.abc import Callable
from pathlib import Path

Operators = dict[str, tuple[int, float]]  # type → number and seconds


def profiled(work: Callable[[], object], folder: Path) -> tuple[float, Operators]:
    """Seconds of a call under the profiler, and its operators; the profiler's files go to `folder`, which is new."""
    from mindspore.profiler import ProfilerActivity, profile, tensorboard_trace_handler

    handler = tensorboard_trace_handler(str(folder))
    with profile(activities=[ProfilerActivity.CPU], on_trace_ready=handler) as profiler:
        began = time.perf_counter()
        work()
        seconds = time.perf_counter() - began
        profiler.step()
    (table,) = folder.rglob("cpu_op_type_info*.csv")
    return seconds, operators(table.read_text(encoding="utf-8"))


def operators(text: str) -> Operators:
    """From cpu_op_type_info_*.csv, which has milliseconds."""
    rows = csv.DictReader(text.splitlines())
    return {row["op_type"]: (int(row["type_occurrences"]), float(row["total_compute_time"]) / 1e3) for row in rows}
