"""One rank's graph, compiled and never run.

Usage: python -m r1parallel.strategy_check.compile_rank FOLDER MODEL SECTION,… RANK WORLD_SIZE
"""

import json
import time
from collections.abc import Collection, Sequence
from copy import deepcopy
from dataclasses import fields
from pathlib import Path
from typing import Any

from mindspore import nn

from r1parallel.config.loading.load import load_config
from r1parallel.config.model import ModelConfig, load_model_config
from r1parallel.config.schema import RunConfig
from r1parallel.cpu_backend.enable import enable
from r1parallel.errors import run_command
from r1parallel.generation.make_engine import make_engine
from r1parallel.models.parameters import transposed_weights, unallocated
from r1parallel.monitor.memory import peak_resident_bytes
from r1parallel.parallel.device import setup_device
from r1parallel.parallel.launch.msrun import die_with_parent
from r1parallel.parallel.launch.world import CompileOnlyWorld
from r1parallel.parallel.layout.from_config import layout_from_config
from r1parallel.rl.grpo import GRPO, shortest_rows
from r1parallel.rl.models import Reference
from r1parallel.strategy_check.compare import REQUEST, RESULT, STRATEGY
from r1parallel.training.run import Task
from r1parallel.training.sft import SFT

TASKS: tuple[Task[Any], ...] = (SFT, GRPO)


def main(argv: Sequence[str]) -> None:
    """Compile what FOLDER/request.yaml configures and write FOLDER/result.json."""
    die_with_parent()
    folder, start = Path(argv[0]), time.monotonic()
    model, sections, rank, world_size = argv[1], argv[2].split(","), int(argv[3]), int(argv[4])
    config = load_config(folder / REQUEST, {}, [section.name for section in fields(RunConfig)])
    result: dict[str, object]
    try:
        turned = compile_rank(config, model, task_of(sections), rank, world_size, folder / STRATEGY)
        result = {"error": "", "transposed": sorted(turned)}
    except Exception as error:  # whatever MindSpore raises: the user is told its first line
        lines = [line for line in str(error).splitlines() if line.strip("- ")]
        result = {"error": f"{type(error).__name__}: {lines[0] if lines else ''}"}
    result |= {"seconds": time.monotonic() - start, "peak_bytes": peak_resident_bytes()}
    (folder / RESULT).write_text(json.dumps(result))


def task_of(sections: Collection[str]) -> Task[Any]:
    """Which run a file with these sections configures: the first of `TASKS` whose own is among them, otherwise GRPO."""
    return next((task for task in TASKS if task.section in sections), GRPO)


def compile_rank(
    config: RunConfig, model: str, task: Task[Any], rank: int, world_size: int, strategy_file: Path
) -> set[str]:
    """Let MindSpore lay out one of a run's models for one rank. No weights are allocated.

    The program is the one that a run compiles, with its fused operators and in its type, on shorter rows and fewer
    micro-batches: neither changes the layout. It is compiled on the CPU, which has no kernels for bf16 and for the
    fused operators. Where those are asked for, MindSpore stops at the selection of kernels, after it has written the
    strategy file. The compilation has reached its end if and only if the file then exists and is whole; an error before
    it is written is an error, and so is any other error than a missing kernel.

    Args:
        config: of the run.
        model: "actor", "ref" or "generate".
        task: whose actor it is.
        rank: of the job.
        world_size: its number of ranks, more than one.
        strategy_file: where MindSpore writes the layout.

    Returns:
        Names of the weights that this model keeps as [in, out], and so are described like this in the file.
    """
    config = deepcopy(config)
    config.context.device_target = "CPU"
    setup_device(config.context)
    enable((rank, world_size))
    sizes = load_model_config(config.actor_config.model_config)
    world = CompileOnlyWorld(rank, world_size, str(strategy_file))
    with unallocated():
        if model == "actor":
            return transposed_weights(_actor(config, sizes, task, world))
        return transposed_weights(_FORWARD[model](config, sizes, world))


def _actor(config: RunConfig, sizes: ModelConfig, task: Task[Any], world: CompileOnlyWorld) -> nn.Cell:
    """As few micro-batches as the stages allow."""
    parallel = config.actor_config.parallel_config
    parallel.micro_batch_num = parallel.pipeline_stage
    return task.compile_actor(config, sizes, _slots(parallel.model_parallel), world)


def _reference(config: RunConfig, sizes: ModelConfig, world: CompileOnlyWorld) -> nn.Cell:
    slots = _slots(config.ref_config.parallel_config.model_parallel)
    return Reference(config, sizes, shortest_rows(config, slots), world).model


def _generator(config: RunConfig, sizes: ModelConfig, world: CompileOnlyWorld) -> nn.Cell:
    generate = config.generate_config
    slots = generate.sampling_config.max_tokens = _slots(generate.parallel_config.model_parallel)
    mesh = layout_from_config(config, sizes, "generate", world.size).mesh
    return make_engine(config, sizes, slots, tokenizer=None, mesh=mesh, world=world).model


_FORWARD = {"ref": _reference, "generate": _generator}


def _slots(tp: int) -> int:
    """Tokens of the prompt, and of the completion, of the shortest rows that sequence parallelism can split."""
    return 2 * tp


if __name__ == "__main__":
    run_command(main)
