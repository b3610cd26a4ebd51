"""The cuts that MindSpore loads, the model, and the log-probs that it computes."""

from dataclasses import dataclass

import numpy as np
from mindspore import Tensor, nn

from r1parallel.config.model import ModelConfig
from r1parallel.models.parameters import unallocated
from r1parallel.models.qwen2_5 import Qwen2ForCausalLM
from r1parallel.parallel.launch.world import World
from r1parallel.parallel.layout.mesh import Mesh
from r1parallel.parallel.layout.table import ModelLayout
from r1parallel.training.forward import compiled_logps

ROWS, PROMPT, COMPLETION = 4, 4, 4
CONFIG = ModelConfig(32, 16, 24, 3, 4, 2, rope_theta=100.0, max_position_embeddings=16)


@dataclass(frozen=True)
class Cut:
    """A layout for four ranks, and the format of its files."""

    layout: ModelLayout
    kind: str


CUTS = {
    "tp2-pp2-uneven": Cut(ModelLayout(CONFIG, Mesh(tp=2, pp=2), stage_layers=(1, 2)), "ckpt"),
    "dp2-tp2-opt": Cut(ModelLayout(CONFIG, Mesh(dp=2, tp=2), opt_shard=True), "safetensors"),
}


def logps_program(layout: ModelLayout, world: World) -> tuple[Qwen2ForCausalLM, nn.Cell]:
    """The model, whose values are still to be loaded, and the compiled program of its log-probs."""
    with unallocated():
        model = Qwen2ForCausalLM(CONFIG, PROMPT + COMPLETION)
    return model, compiled_logps(model, ROWS, PROMPT, COMPLETION, layout, world)


def batch() -> tuple[Tensor, Tensor]:
    """Tokens [N, S], starts [N]."""
    rng = np.random.default_rng(1)
    tokens = rng.integers(0, CONFIG.vocab_size, (ROWS, PROMPT + COMPLETION)).astype(np.int32)
    return Tensor(tokens), Tensor(rng.integers(0, PROMPT, ROWS).astype(np.int32))
