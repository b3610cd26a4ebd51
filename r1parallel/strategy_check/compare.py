"""`make_strategy.py --check`: the layout table against what the compiler makes of the same model, rank by rank."""

import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import yaml

from r1parallel.config.model import load_model_config
from r1parallel.config.schema import RunConfig
from r1parallel.errors import UserError
from r1parallel.parallel.launch.msrun import worker_environment
from r1parallel.parallel.layout.describe import slices_text
from r1parallel.parallel.layout.strategy_files import STRATEGY_NAMES, read_rank_strategy, read_strategy
from r1parallel.parallel.layout.tensor_layout import StageLayouts, TensorLayout

# Files of one compilation, in a folder of its own.
REQUEST, RESULT, STRATEGY = "request.yaml", "result.json", "strategy.ckpt"


def check_strategy(
    config: RunConfig, model: str, ranks: Sequence[int], output_dir: str | Path, sections: Collection[str] = ()
) -> None:
    """Compare the strategy files of one of a run's models with what MindSpore's compiler makes; a line for each rank.

    Each rank is compiled by a process of its own, one after the other, on the CPU; no weights are allocated. Where the
    program has operators that the CPU has no kernels for, see `compile_rank.compile_rank` for how far that gets.

    Args:
        config: of the run; `context.wait_limit` is the limit of one compilation, in seconds.
        model: "actor", "ref" or "generate".
        ranks: which to check.
        output_dir: as given to `write_model_strategies`.
        sections: of the configuration's file; they tell whose actor it is, see `compile_rank.task_of`.

    Raises:
        UserError: a rank's compilation fails or takes too long, or a parameter lies elsewhere than the table says.
    """
    table = read_strategy(Path(output_dir) / f"{STRATEGY_NAMES[model]}_strategy")
    if table.world_size == 1:
        print("nothing to check: a single process holds everything")
        return
    shapes = load_model_config(config.actor_config.model_config).parameter_shapes()
    for rank in ranks:
        with tempfile.TemporaryDirectory() as folder:
            result = _compile(config, model, sections, rank, table.world_size, Path(folder))
            theirs = read_rank_strategy(Path(folder) / STRATEGY, shapes)
        difference = first_difference(table, rank, theirs, shapes, result["transposed"])
        if difference:
            raise UserError(f"rank {rank}: {difference}; the table is wrong for this layout: do not use its files")
        count = len(table.stages[rank // table.stage_size])
        usage = f"{result['seconds']:.0f} s, {result['peak_bytes'] / 2**30:.1f} GiB"
        print(f"rank {rank}: MindSpore lays out all {count} parameters as the table does ({usage})", flush=True)


def first_difference(
    table: StageLayouts,
    rank: int,
    theirs: Mapping[str, TensorLayout],
    shapes: Mapping[str, tuple[int, ...]],
    transposed: Collection[str] = (),
) -> str | None:
    """Compare what a rank's stage holds, on every rank of that stage.

    The numbers in two files may differ and still mean the same: [4] devices or [2, 2], of which nothing is split.

    Args:
        table: ours.
        rank: of the job.
        theirs: parameter → layout on the stage of `rank`, as MindSpore wrote it.
        shapes: full shapes of the model's parameters, [out, in].
        transposed: parameters that `theirs` has as [in, out].

    Returns:
        Which parameter, on which rank, and both slices; None where all are the same.
    """
    ours = table.stages[rank // table.stage_size]
    for name in sorted(ours.keys() ^ theirs.keys()):
        here, there = ("the table", "MindSpore") if name in ours else ("MindSpore", "the table")
        return f"{name} is held according to {here} and not according to {there}"
    first = rank - rank % table.stage_size
    for name, layout in ours.items():
        for device in range(table.stage_size):
            texts = [
                _slices(layout, shapes[name], device, False),
                _slices(theirs[name], shapes[name], device, name in transposed),
            ]
            if texts[0] != texts[1]:
                return f"{name} on rank {first + device} is {texts[0]} in the table, MindSpore has {texts[1]}"
    return None


def _slices(layout: TensorLayout, shape: tuple[int, ...], device: int, transposed: bool) -> str:
    order = -1 if transposed else 1
    try:
        return slices_text(shape, layout.slices(shape[::order], device)[::order])
    except ValueError as error:
        return str(error)


def write_request(config: RunConfig, folder: Path) -> None:
    """The configuration as the compiling process reads it."""
    sections = asdict(config)
    sections["actor_config"]["model_config"] = str(Path(config.actor_config.model_config).resolve())
    (folder / REQUEST).write_text(yaml.safe_dump(sections), encoding="utf-8")


def _compile(
    config: RunConfig, model: str, sections: Collection[str], rank: int, world_size: int, folder: Path
) -> dict[str, Any]:
    """Let another process compile one rank's graph; MindSpore's file is then in `folder`."""
    write_request(config, folder)
    with (folder / "log").open("w+", errors="replace") as log:
        process = subprocess.Popen(
            [
                sys.executable,
                "-m",
                "r1parallel.strategy_check.compile_rank",
                str(folder),
                model,
                ",".join(sorted(sections)),
                str(rank),
                str(world_size),
            ],
            cwd=folder,
            env=worker_environment(),
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            process.wait(config.context.wait_limit)
        except subprocess.TimeoutExpired:
            raise UserError(
                f"rank {rank}: MindSpore did not compile the model within {config.context.wait_limit:g} s; "
                "raise context.wait_limit"
            ) from None
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        log.seek(0)
        tail = log.read().splitlines()[-1:]
    if not (folder / RESULT).exists():
        raise UserError(
            f"rank {rank}: the compiling process ended with exit code {process.returncode}: {''.join(tail)}"
        )
    result: dict[str, Any] = json.loads((folder / RESULT).read_text())
    if result["error"]:
        raise UserError(f"rank {rank}: MindSpore cannot compile this layout: {result['error']}")
    return result
