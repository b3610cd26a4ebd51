"""One rank: `tiny` answers with every setting under the named layouts, `real` with real weights."""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from generate_cases import CONFIG, LAYOUTS, ROWS, SETTINGS, generate
from mindspore import Tensor

from r1parallel.checkpoint.load import ArraySource, config_beside, open_model
from r1parallel.config.model import ModelConfig
from r1parallel.config.schema import ContextConfig, SamplingConfig
from r1parallel.data.batches import right_aligned
from r1parallel.generation.engine import Completions, RolloutEngine
from r1parallel.models.parameters import TensorSource, load_slices, parameter_values, set_slices
from r1parallel.models.qwen2_5 import Qwen2ForCausalLM
from r1parallel.parallel.device import setup_device
from r1parallel.parallel.launch.world import World
from r1parallel.parallel.layout.mesh import Mesh
from r1parallel.parallel.layout.table import ModelLayout
from r1parallel.parallel.worker import run_worker
from r1parallel.rl.models import TiedCopy, WeightSync
from r1parallel.training.forward import compiled_logps


def main(argv: Sequence[str]) -> None:
    case, folder = argv[0], Path(argv[1])
    world = setup_device(ContextConfig(wait_limit=300.0))
    if case == "tiny":
        tiny(folder, argv[2:], world)
    else:
        real(folder, Path(argv[2]), argv[3:], world)


def tiny(folder: Path, layouts: Sequence[str], world: World) -> None:
    with np.load(folder / "values.npz") as values:
        source = ArraySource(dict(values), "start values")
    for layout in layouts:
        mesh = LAYOUTS[layout]
        for name in SETTINGS:
            engine, drawn = generate(name, source, mesh, world)
            cache = engine.model.model.layers[0].attention.cache
            shapes = [cache.key_cache.shape, cache.value_cache.shape]
            assert [shape[2] for shape in shapes] == [CONFIG.num_kv_heads // mesh.tp] * 2, shapes
            assert [shape[0] for shape in shapes] == [ROWS] * 2, shapes
            np.savez(folder / f"{layout}-{name}-{world.rank}.npz", **vars(drawn))


def real(folder: Path, checkpoint: Path, layouts: Sequence[str], world: World) -> None:
    config, prompts = config_beside(checkpoint), json.loads((folder / "prompts.json").read_text())
    sampling = SamplingConfig(max_tokens=24, temperature=0.0)
    source, mesh = open_model(checkpoint, config), LAYOUTS[layouts[0]]
    engine = RolloutEngine(config, sampling, 4 // mesh.dp, max(map(len, prompts)), [2], 2, mesh, world)
    generator = ModelLayout(config, mesh)
    for layout in layouts:
        pipeline = None
        if layout == "pp2":
            pipeline = Pipeline(config, source, (4, engine.prompt_length, engine.max_tokens), world)
            WeightSync(pipeline, engine.model, generator, world)()
        else:
            load_slices(engine.model, source, generator, world.rank)
        drawn = engine.generate(prompts, 0, range(len(prompts)))
        if pipeline is not None:  # its own log-probs of these tokens instead of the generator's
            drawn.logps = pipeline.logps_of(prompts, drawn)
        np.savez(folder / f"{layout}-{world.rank}.npz", **vars(drawn))
        set_slices(engine.model, {name: 0 * value for name, value in parameter_values(engine.model).items()})


class Pipeline:
    """A model over two stages, as an actor has it: it computes log-probs and hands its weights to a generator."""

    def __init__(self, config: ModelConfig, source: TensorSource, sizes: tuple[int, int, int], world: World):
        self.world, self.prompt_slots = world, sizes[1]
        self.layout = ModelLayout(config, Mesh(pp=2), stage_layers=(config.num_layers // 2,) * 2)
        self.model = Qwen2ForCausalLM(config, sizes[1] + sizes[2])
        self.program = compiled_logps(self.model, *sizes, self.layout, world)
        load_slices(self.model, source, self.layout, world.rank)
        TiedCopy(self.model, self.layout, world).refresh()

    def values(self) -> dict[str, np.ndarray]:
        return parameter_values(self.model, self.layout, self.world.rank)

    def logps_of(self, prompts: list[list[int]], drawn: Completions) -> np.ndarray:
        tokens, starts = right_aligned(prompts, self.prompt_slots, 2)
        logps = self.program(Tensor(np.concatenate([tokens, drawn.tokens], axis=1)), Tensor(starts)).asnumpy()
        return np.where(np.arange(logps.shape[1]) < drawn.lengths[:, None], logps, 0.0)


if __name__ == "__main__":
    run_worker(main)
