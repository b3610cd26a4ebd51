"""One rank's graph, compiled and never run.

Usage: python -m r1parallel.strategy_check.compile_rank FOLDER PROGRAM RANK WORLD_SIZE
"""

import json
import time
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
from mindspore import nn

from r1parallel.config.loading.load import load_config
from r1parallel.config.model import ModelConfig, load_model_config
from r1parallel.config.schema import RunConfig
from r1parallel.cpu_backend.enable import enable
from r1parallel.data.mindrecord import Rows
from r1parallel.errors import run_command
from r1parallel.generation.engine import RolloutEngine
from r1parallel.models.fused.operators import choose_operators
from r1parallel.models.parameters import transposed_weights, unallocated
from r1parallel.monitor.memory import peak_resident_bytes
from r1parallel.parallel.device import setup_device
from r1parallel.parallel.launch.msrun import die_with_parent
from r1parallel.parallel.launch.world import CompileOnlyWorld
from r1parallel.parallel.layout.from_config import model_layout
from r1parallel.rl.experience.rows import RowShape
from r1parallel.rl.models import Actor, Reference
from r1parallel.strategy_check.compare import REQUEST, RESULT, STRATEGY
from r1parallel.training.sft import SFTTrainer


def main(argv: Sequence[str]) -> None:
    """Compile what FOLDER/request.yaml configures and write FOLDER/result.json."""
    die_with_parent()
    folder, start = Path(argv[0]), time.monotonic()
    program, rank, world_size = argv[1], int(argv[2]), int(argv[3])
    config = load_config(folder / REQUEST, {}, [section.name for section in fields(RunConfig)])
    result: dict[str, object]
    try:
        turned = compile_rank(config, program, rank, world_size, folder / STRATEGY)
        result = {"error": "", "transposed": sorted(turned)}
    except Exception as error:  # whatever MindSpore raises: the user is told its first line
        lines = [line for line in str(error).splitlines() if line.strip("- ")]
        result = {"error": f"{type(error).__name__}: {lines[0] if lines else ''}"}
    result |= {"seconds": time.monotonic() - start, "peak_bytes": peak_resident_bytes()}
    (folder / RESULT).write_text(json.dumps(result))


def compile_rank(config: RunConfig, program: str, rank: int, world_size: int, strategy_file: Path) -> set[str]:
    """Let MindSpore lay out one of a run's models for one rank. No weights are allocated.

    The program is the one that a run compiles, with its fused operators and in its type, on shorter rows and fewer
    micro-batches: neither changes the layout. It is compiled on the CPU, which has no kernels for bf16 and for the
    fused operators. Where those are asked for, MindSpore stops at the selection of kernels, after it has written the
    strategy file. The compilation has reached its end if and only if the file then exists and is whole; an error before
    it is written is an error, and so is any other error than a missing kernel.

    Args:
        config: of the run.
        program: "actor" (GRPO's), "sft" (the actor of an SFT run), "ref" or "generate".
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
    sizes, world = (
        load_model_config(config.actor_config.model_config),
        CompileOnlyWorld(rank, world_size, str(strategy_file)),
    )
    with unallocated():
        return transposed_weights(_PROGRAMS[program](config, sizes, world))


def _actor(config: RunConfig, sizes: ModelConfig, world: CompileOnlyWorld) -> nn.Cell:
    shape = _packed(config, _actor_shape(config))
    return Actor(config, sizes, shape, updates=1, world=world).model


def _sft(config: RunConfig, sizes: ModelConfig, world: CompileOnlyWorld) -> nn.Cell:
    shape, parallel = _actor_shape(config), config.actor_config.parallel_config
    rows = config.sft_config.batch_size * parallel.data_parallel * parallel.micro_batch_num
    return SFTTrainer(config, sizes, _any_rows(rows, shape), None, world).model


def _reference(config: RunConfig, sizes: ModelConfig, world: CompileOnlyWorld) -> nn.Cell:
    shape = _packed(config, _shape(config.ref_config.parallel_config.model_parallel))
    return Reference(config, sizes, shape, world).model


def _generator(config: RunConfig, sizes: ModelConfig, world: CompileOnlyWorld) -> nn.Cell:
    generate = config.generate_config
    shape = _shape(generate.parallel_config.model_parallel)
    generate.sampling_config.max_tokens = shape.completion
    mesh, rows = model_layout(config, sizes, "generate", world.size).mesh, generate.infer_model_batch_size
    operators = choose_operators(config.context.compute_dtype, trained=False)
    return RolloutEngine(sizes, generate.sampling_config, rows, shape.prompt, [], 0, mesh, world, operators).model


_PROGRAMS = {"actor": _actor, "sft": _sft, "ref": _reference, "generate": _generator}


def _actor_shape(config: RunConfig) -> RowShape:
    """The shortest rows; as few micro-batches as the stages allow."""
    parallel = config.actor_config.parallel_config
    parallel.micro_batch_num = parallel.pipeline_stage
    return _shape(parallel.model_parallel)


def _shape(tp: int) -> RowShape:
    """Short rows that sequence parallelism can share out."""
    return RowShape(2 * tp, 2 * tp)


def _packed(config: RunConfig, shape: RowShape) -> RowShape:
    return replace(shape, pack_length=shape.length) if config.rl_config.packing else shape


def _any_rows(count: int, shape: RowShape) -> Rows:
    """Full ones, of token 0."""
    tokens = [np.zeros((count, size), np.int32) for size in (shape.prompt, shape.completion)]
    lengths = [np.full(count, size, np.int32) for size in (shape.prompt, shape.completion)]
    return Rows(tokens[0], lengths[0], tokens[1], lengths[1], [""] * count)


if __name__ == "__main__":
    run_command(main)
