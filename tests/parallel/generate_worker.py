"""One rank: `tiny` answers with every setting under the named layouts, `real` with real weights on two dp ranks."""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from generate_cases import CONFIG, LAYOUTS, ROWS, SETTINGS, generate

from r1parallel.config.schema import ContextConfig, SamplingConfig
from r1parallel.parallel.worker import run_worker
from r1parallel.parallel.world import World


def main(argv: Sequence[str]) -> None:
    from r1parallel.parallel.device import setup_device

    case, folder = argv[0], Path(argv[1])
    world = setup_device(ContextConfig(wait_limit=300.0))
    if case == "tiny":
        tiny(folder, argv[2:], world)
    else:
        real(folder, Path(argv[2]), world)


def tiny(folder: Path, layouts: Sequence[str], world: World) -> None:
    from r1parallel.checkpoint.load import ArraySource

    with np.load(folder / "values.npz") as values:
        source = ArraySource(dict(values), "start values")
    for layout in layouts:
        mesh = LAYOUTS[layout]
        for name in SETTINGS:
            engine, drawn = generate(name, source, mesh, world)
            attention = engine.model.model.layers[0].attention
            shapes = [attention.key_cache.shape, attention.value_cache.shape]
            assert [shape[1] for shape in shapes] == [CONFIG.num_kv_heads // mesh.tp] * 2, shapes
            assert [shape[0] for shape in shapes] == [ROWS] * 2, shapes
            np.savez(folder / f"{layout}-{name}-{world.rank}.npz", **vars(drawn))


def real(folder: Path, checkpoint: Path, world: World) -> None:
    from r1parallel.checkpoint.load import config_beside, open_model
    from r1parallel.generation.engine import RolloutEngine
    from r1parallel.models.parameters import load_slices
    from r1parallel.parallel.layout import ModelLayout

    mesh = LAYOUTS["dp2"]
    config, prompts = config_beside(checkpoint), json.loads((folder / "prompts.json").read_text())
    sampling = SamplingConfig(max_tokens=24, temperature=0.0)
    engine = RolloutEngine(config, sampling, 2, max(map(len, prompts)), [2], 2, mesh, world)
    load_slices(engine.model, open_model(checkpoint, config), ModelLayout(config, mesh), world.rank)
    np.savez(folder / f"real-{world.rank}.npz", **vars(engine.generate(prompts, 0, range(len(prompts)))))


if __name__ == "__main__":
    run_worker(main)
