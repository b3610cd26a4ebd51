"""A Cell compiled over the ranks of a mesh: MindSpore's semi-automatic parallel mode, the same on CPU and Ascend."""

from mindspore import nn
from mindspore.parallel.auto_parallel import AutoParallel

from r1parallel.config.schema import RecomputeConfig
from r1parallel.parallel.compile_only import CompileOnlyProgram
from r1parallel.parallel.launch.world import CompileOnlyWorld, World
from r1parallel.parallel.layout.table import ModelLayout
from r1parallel.parallel.parallelize import parallelize


def on_mesh(
    program: nn.Cell,
    layout: ModelLayout,
    world: World,
    sequence_parallel: bool = False,
    recompute: RecomputeConfig | None = None,
) -> nn.Cell:
    """Spread a program over the ranks of a layout; in a world of one rank it stays as it is.

    Every rank is fed the whole batch. A program in inference mode gives every rank the whole result. One in training
    mode gives it to the ranks of the last pipeline stage, if its last operators are on whole tensors, as `operators.py`
    has it for losses; earlier stages then give zeros.

    Args:
        program: around one Qwen2ForCausalLM; changed in place, before it is compiled.
        layout: of that model, for `world.size` ranks.
        world: which rank this is.
        sequence_parallel: split the activations between the blocks over tp too.
        recompute: what the backward pass computes again; None: nothing.
    """
    parallelize(program, layout.mesh, layout.stage_layers, sequence_parallel, recompute)
    if world.size == 1:
        return program
    assert layout.world_size == world.size, (layout.world_size, world.size)
    spread = AutoParallel(program, parallel_mode="semi_auto")
    spread.dataset_strategy("full_batch")
    if layout.mesh.pp > 1:
        spread.pipeline(layout.mesh.pp, output_broadcast=not program.training, scheduler="1f1b")
    if layout.opt_shard:
        spread.hsdp(shard_size=-1, threshold=0)
    if isinstance(world, CompileOnlyWorld):
        spread.save_param_strategy_file(world.strategy_file)
        spread.disable_strategy_file_only_for_trainable_params()
        spread.no_init_parameters_in_compile()
        return CompileOnlyProgram(spread, world.strategy_file)
    return spread
