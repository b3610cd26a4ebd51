"""Models of random sizes and bits, the layouts they are cut by, and the check of what was written."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import safetensors
import xxhash

from r1parallel.checkpoint.formats.dtypes import DTYPES, dtype_name
from r1parallel.checkpoint.formats.manifest import SUFFIX
from r1parallel.checkpoint.formats.tensor_file import read_file
from r1parallel.checkpoint.writing.tensor_writer import write_checkpoint
from r1parallel.config.model import ModelConfig
from r1parallel.parallel.layout.mesh import Mesh
from r1parallel.parallel.layout.table import ModelLayout
from r1parallel.parallel.layout.tensor_layout import StageLayouts

# mesh, optimizer parallel, all layers but one each on the last stage; None: not cut
LAYOUTS = {
    "full": None,
    "dp2": (Mesh(dp=2), False, False),
    "tp2": (Mesh(tp=2), False, False),
    "tp4": (Mesh(tp=4), False, False),
    "pp2": (Mesh(pp=2), False, False),
    "pp3-uneven": (Mesh(pp=3), False, True),
    "dp2-opt": (Mesh(dp=2), True, False),
    "dp2-tp2": (Mesh(dp=2, tp=2), False, False),
    "tp2-pp2": (Mesh(tp=2, pp=2), False, False),
    "dp2-tp2-opt": (Mesh(dp=2, tp=2), True, False),
    "dp2-pp2-opt": (Mesh(dp=2, pp=2), True, False),
    "dp2-tp2-pp2-opt-uneven": (Mesh(dp=2, tp=2, pp=2), True, True),
}
FORMATS = ("safetensors", "ckpt")
STATES = ("adam_m.", "adam_v.")
EVERYWHERE = {"global_step": np.array(7, np.int64), "learning_rate": np.array([0.1], np.float32)}


@dataclass(frozen=True)
class Model:
    """Sizes, and random bits for every parameter, its optimizer state, and two numbers that no strategy names."""

    config: ModelConfig
    tensors: Mapping[str, np.ndarray]

    def layout(self, name: str) -> ModelLayout | None:
        if LAYOUTS[name] is None:
            return None
        mesh, opt_shard, uneven = LAYOUTS[name]
        stages = (*[1] * (mesh.pp - 1), self.config.num_layers - mesh.pp + 1) if uneven else None
        return ModelLayout(self.config, mesh, opt_shard, stages)

    def write(self, folder: Path) -> None:
        write_checkpoint(folder, [(name, a.shape, dtype_name(a.dtype), a) for name, a in self.tensors.items()])

    def on_rank(self, layout: StageLayouts, rank: int) -> dict[str, np.ndarray]:
        """What numpy cuts for a rank."""
        parameters = layout.stages[rank // layout.stage_size]
        held = {
            prefix + name: self.tensors[prefix + name][layout.cut(name, self.tensors[name].shape, rank)]
            for name in parameters
            for prefix in ("", *STATES)
            if prefix + name in self.tensors
        }
        return held | {name: self.tensors[name] for name in EVERYWHERE if name in self.tensors}


def random_bits(rng: np.random.Generator, shape: tuple[int, ...], dtype: str) -> np.ndarray:
    """Not-a-numbers of all kinds are among them."""
    return np.frombuffer(rng.bytes(int(np.prod(shape)) * DTYPES[dtype].itemsize), DTYPES[dtype]).reshape(shape)


def random_model(seed: int, tied: bool, with_state: bool = True) -> Model:
    """Sizes that every layout can cut: four key heads at least, all but the layers multiples of 4."""
    rng = np.random.default_rng(seed)
    heads = 4 * int(rng.integers(1, 3))
    sizes = rng.integers(1, 6, 2) * 4
    config = ModelConfig(
        vocab_size=int(sizes[0]),
        hidden_size=heads * 2 * int(rng.integers(1, 3)),
        intermediate_size=int(sizes[1]),
        num_layers=4,
        num_heads=heads,
        num_kv_heads=4,
        tie_word_embeddings=tied,
    )
    shapes = config.parameter_shapes()
    tensors = {name: random_bits(rng, shape, str(rng.choice(["F32", "F16", "BF16"]))) for name, shape in shapes.items()}
    if with_state:
        tensors |= {prefix + name: random_bits(rng, shapes[name], "F32") for prefix in STATES for name in shapes}
        tensors |= EVERYWHERE
    return Model(config, tensors)


def contents(file: Path) -> dict[str, tuple[str, tuple[int, ...], bytes, str | None]]:
    """Name → dtype, shape, bytes and the manifest's hash; of safetensors as their own library reads them."""
    entries, content = read_file(file)[0], file.read_bytes()
    if file.suffix == ".safetensors":
        found = safetensors.deserialize(content)
        tensors = {name: (tensor["dtype"], tuple(tensor["shape"]), bytes(tensor["data"])) for name, tensor in found}
    else:
        data = {n: b"".join(content[begin : begin + size] for begin, size in e.extents) for n, e in entries.items()}
        tensors = {name: (entry.dtype, entry.shape, data[name]) for name, entry in entries.items()}
    return {name: (*tensor, entries[name].digest) for name, tensor in tensors.items()}


def check_file(file: Path, expected: Mapping[str, np.ndarray]) -> None:
    """A weights file and its manifest hold these arrays and nothing else."""
    data = {name: array.tobytes() for name, array in expected.items()}
    assert contents(file) == {
        name: (dtype_name(array.dtype), array.shape, data[name], xxhash.xxh3_128_hexdigest(data[name]))
        for name, array in expected.items()
    }


def check_cut(folder: Path, model: Model, layout: StageLayouts, kind: str, prefix: str = "checkpoint_") -> None:
    """Every rank's folder holds the slices of its layout, their manifest, and nothing else."""
    ranks = [f"rank_{rank}" for rank in range(layout.world_size)]
    assert sorted(path.name for path in folder.iterdir() if path.is_dir()) == sorted(ranks)
    for rank in range(layout.world_size):
        file = folder / f"rank_{rank}" / f"{prefix}{rank}.{kind}"
        assert {path.name for path in file.parent.iterdir()} == {file.name, file.name + SUFFIX}
        check_file(file, model.on_rank(layout, rank))


def check(folder: Path, model: Model, layout: StageLayouts | None, kind: str) -> None:
    if layout is None:
        check_file(folder / f"model.{kind}", model.tensors)
    else:
        check_cut(folder, model, layout, kind)
