"""The layouts and settings of the rollout engine that are compared with one process."""

import numpy as np

from r1parallel.config.model import ModelConfig
from r1parallel.config.schema import SamplingConfig
from r1parallel.generation.engine import Completions, RolloutEngine
from r1parallel.models.fused.operators import choose_operators
from r1parallel.models.parameters import TensorSource, load_slices
from r1parallel.parallel.launch.world import World
from r1parallel.parallel.layout.mesh import Mesh
from r1parallel.parallel.layout.table import ModelLayout

CONFIG = ModelConfig(38, 32, 48, 2, 4, 2, rope_theta=100.0, max_position_embeddings=40, tie_word_embeddings=True)
TOKENS, ROWS, PROMPT_SLOTS, SEED = 7, 3, 9, 5
LENGTHS = (3, 9, 1, 6, 5, 2, 7, 4)  # on one rank or on two, the last batch is filled up
STOP_IDS = [3, 11, 20]
SETTINGS = {
    "greedy": SamplingConfig(max_tokens=TOKENS, temperature=0.0),
    "sampled": SamplingConfig(max_tokens=TOKENS),
    "all": SamplingConfig(
        max_tokens=TOKENS, temperature=0.9, top_k=30, top_p=0.95, min_tokens=2, repetition_penalty=1.2
    ),
}
LAYOUTS = {"tp2": Mesh(tp=2), "dp2": Mesh(dp=2), "dp2-tp2": Mesh(dp=2, tp=2), "tp3": Mesh(tp=3)}


def prompts() -> list[list[int]]:
    rng = np.random.default_rng(3)
    return [rng.integers(0, CONFIG.vocab_size, length).tolist() for length in LENGTHS]


def generate(name: str, source: TensorSource, mesh: Mesh, world: World) -> tuple[RolloutEngine, Completions]:
    """The engine of a layout, and what it answers to all prompts."""
    operators = choose_operators("float32", trained=False)
    engine = RolloutEngine(CONFIG, SETTINGS[name], ROWS, PROMPT_SLOTS, STOP_IDS, 0, mesh, world, operators)
    load_slices(engine.model, source, ModelLayout(CONFIG, mesh), world.rank)
    return engine, engine.generate(prompts(), SEED, range(len(LENGTHS)))
