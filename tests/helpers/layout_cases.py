"""The layouts that are compared with one process, and the training that all of them do."""

from dataclasses import dataclass

import numpy as np

from r1parallel.config.model import ModelConfig
from r1parallel.config.schema import ActorConfig, OptimizerConfig, ParallelConfig, RecomputeConfig
from r1parallel.models.fused.operators import FUSED, PLAIN, Operators
from r1parallel.models.logps import CompletionLogps
from r1parallel.models.parameters import unallocated
from r1parallel.models.qwen2_5 import Qwen2ForCausalLM
from r1parallel.parallel.launch.world import World
from r1parallel.parallel.layout.mesh import Mesh
from r1parallel.parallel.layout.table import ModelLayout
from r1parallel.training.sft import SFTLoss
from r1parallel.training.step import TrainStep

ROWS, PROMPT, ANSWER, STEPS = 8, 6, 6, 3
OPTIMIZERS = {"momentum": 1e-6, "adamw": 1e-5}  # type → largest difference of a parameter after STEPS updates
OPERATORS = {"plain": PLAIN, "fused": FUSED}  # every device has the first; CPU runs use the second
LR = 1e-3
EPS = 1e-6  # of AdamW; with less, rounding alone moves a parameter by a part of lr where its gradient is near zero


@dataclass(frozen=True)
class Case:
    """One way to spread the training over ranks."""

    name: str
    dp: int = 1
    tp: int = 1
    pp: int = 1
    sp: bool = False
    opt: bool = False
    layers: int = 2  # the compiler takes half as long as for four
    stages: tuple[int, ...] | None = None
    recompute: RecomputeConfig | None = None
    interleave: int = 1

    @property
    def world_size(self) -> int:
        return self.dp * self.tp * self.pp

    def layout(self, model: ModelConfig) -> ModelLayout:
        return ModelLayout(model, Mesh(dp=self.dp, pp=self.pp, tp=self.tp), self.opt, self.stages)


CASES = {
    case.name: case
    for case in (
        Case("dp2", dp=2),
        Case("tp2", tp=2),
        Case("pp2", pp=2),
        Case("tp2-sp", tp=2, sp=True),
        Case("dp2-opt", dp=2, opt=True),
        Case("pp2-uneven", pp=2, layers=4, stages=(3, 1)),
        Case("tp2-recompute", tp=2, recompute=RecomputeConfig(recompute=True)),
        Case("tp2-select", tp=2, layers=4, recompute=RecomputeConfig(select_recompute=True, recompute_layers=[0, 2])),
        Case("dp2-interleave", dp=2, interleave=2),
        Case("dp2-tp2", dp=2, tp=2),
        Case("tp2-pp2-sp", tp=2, pp=2, sp=True),
        Case("dp2-pp2-opt", dp=2, pp=2, opt=True),
        Case("dp2-tp2-pp2-sp-opt", dp=2, tp=2, pp=2, sp=True, opt=True),
    )
}


def model_config(tied: bool, layers: int) -> ModelConfig:
    """Two query heads to a key head."""
    return ModelConfig(64, 32, 64, layers, 4, 2, rope_theta=100.0, max_position_embeddings=16, tie_word_embeddings=tied)


def start_values(config: ModelConfig) -> dict[str, np.ndarray]:
    """Nothing is zero, biases included."""
    rng = np.random.default_rng(7)
    return {
        name: rng.normal(1.0 if "norm" in name else 0.0, 0.2, shape).astype(np.float32)
        for name, shape in config.parameter_shapes().items()
    }


def batch(step: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Tokens [N, S], starts [N], weights [N, C] of an update."""
    rng = np.random.default_rng(step)
    tokens = rng.integers(0, 64, (ROWS, PROMPT + ANSWER)).astype(np.int32)
    weights = rng.random((ROWS, ANSWER)).astype(np.float32)
    return tokens, rng.integers(0, PROMPT, ROWS).astype(np.int32), weights / weights.sum()


def make_step(
    case: Case, tied: bool, operators: Operators, world: World
) -> tuple[Qwen2ForCausalLM, ModelLayout, TrainStep]:
    """Model, layout and compiled training step of a case, made of plain operators or of fused ones."""
    config = model_config(tied, case.layers)
    layout, micro = case.layout(config), 2
    with unallocated():
        model = Qwen2ForCausalLM(config, PROMPT + ANSWER, operators=operators)
    logps = CompletionLogps(model, ROWS // micro // case.interleave, PROMPT, ANSWER, split_vocab=case.tp > 1)
    parallel = ParallelConfig(case.dp, case.tp, case.pp, case.sp, micro, case.interleave)
    actor = ActorConfig(parallel_config=parallel, recompute_config=case.recompute or RecomputeConfig())
    return model, layout, TrainStep(SFTLoss(logps), model.trainable_params(), layout, world, actor, batch(0))


def train(step: TrainStep, kind: str) -> list[float]:
    """Losses of STEPS updates with a fresh optimizer."""
    step.start_optimizer(OptimizerConfig(type=kind, max_grad_norm=1.0, eps=EPS))
    losses = []
    for number in range(STEPS):
        losses.append(float(step.accumulate(*batch(number)).sum(dtype=np.float64)))
        step.apply(LR, losses[-1], f"step {number}")
    return losses
