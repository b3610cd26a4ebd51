"""Packed rows under the layouts that are compared with one process: log-probs, entropies and gradients of both."""

import numpy as np
from helpers.layout_cases import Case, model_config, start_values
from helpers.packed_texts import Packed, pack, random_texts
from mindspore import Tensor

from r1parallel.checkpoint.load import ArraySource
from r1parallel.config.model import ModelConfig
from r1parallel.config.schema import ActorConfig, OptimizerConfig, ParallelConfig
from r1parallel.models.fused.operators import PLAIN
from r1parallel.models.fused.packing import packed
from r1parallel.models.logps import PackedLogps
from r1parallel.models.parameters import load_slices, parameter_values, share_parameters, unallocated
from r1parallel.models.qwen2_5 import Qwen2ForCausalLM
from r1parallel.parallel.launch.world import World
from r1parallel.training.forward import compiled_forward
from r1parallel.training.sft import SFTLoss
from r1parallel.training.step import TrainStep

ROWS, MICRO, LENGTH, TARGETS, TEMPERATURE = 8, 2, 16, 8, 0.8
CASES = {
    case.name: case
    for case in (
        Case("dp4", dp=4),
        Case("dp2-tp2-sp", dp=2, tp=2, sp=True),
        Case("tp2-pp2-sp", tp=2, pp=2, sp=True),
    )
}


def small() -> ModelConfig:
    """One layer for each stage."""
    return model_config(tied=False, layers=2)


def rows() -> Packed:
    """Two texts in a row; rows 0 and 5 have one prompt with two completions."""
    rng = np.random.default_rng(5)
    sizes = [(int(rng.integers(1, 5)), int(rng.integers(1, 4))) for _ in range(2 * ROWS)]
    texts = random_texts(rng, 64, sizes)
    for first in (0, 10):
        texts[first + 1] = texts[first]._replace(completion=texts[first + 1].completion)
    groups = [[[a, a + 1]] if a in (0, 10) else [[a], [a + 1]] for a in range(0, 2 * ROWS, 2)]
    return pack(texts, groups, LENGTH, TARGETS)


def compute(case: Case, world: World) -> dict[str, np.ndarray]:
    """What a case's training says of every row, and this rank's slices of the gradients of it.

    Of the case with stages also what its program without training gives.
    """
    config = small()
    layout = case.layout(config)
    operators = packed(PLAIN)
    with unallocated():
        model, twin = (Qwen2ForCausalLM(config, LENGTH, operators=operators) for _ in range(2))
    share_parameters(model, twin)

    def logps(of: Qwen2ForCausalLM) -> PackedLogps:
        return PackedLogps(of, ROWS // MICRO, LENGTH, TARGETS, case.tp > 1, TEMPERATURE, entropy=True)

    filled = rows()
    inputs, micro_rows = (filled.tokens, filled.segment_map.concatenated()), ROWS // MICRO
    used = np.tile(filled.origin[..., 0] >= 0, (1, 2))
    weights = (np.random.default_rng(6).uniform(0.5, 1.5, used.shape) * used).astype(np.float32)
    actor = ActorConfig(parallel_config=ParallelConfig(case.dp, case.tp, case.pp, case.sp, MICRO))
    step = TrainStep(SFTLoss(logps(model)), model.trainable_params(), layout, world, actor, (*inputs, weights))
    forward = None
    if case.pp > 1 or world.size == 1:
        forward = compiled_forward(logps(twin), [x[:micro_rows] for x in inputs], layout, world, case.sp)
    load_slices(model, ArraySource(start_values(config), "start values"), layout, world.rank)
    result = {}
    if forward is not None:
        parts = [[Tensor(x[first : first + micro_rows]) for x in inputs] for first in range(0, ROWS, micro_rows)]
        result["values"] = np.where(used, np.concatenate([forward(*part).asnumpy() for part in parts]), 0.0)
    before = parameter_values(model, layout, world.rank)
    step.start_optimizer(OptimizerConfig(type="momentum", max_grad_norm=0.0))
    result["shares"] = step.accumulate(*inputs, weights)
    step.apply(1.0, float(result["shares"].sum()), "the only update")
    after = parameter_values(model, layout, world.rank)
    return result | {name: before[name] - after[name] for name in before}  # of the first update: the gradient
