import json
import runpy
from pathlib import Path

import numpy as np
import pytest
from faults import Server, make_all

from r1parallel.checkpoint.formats.dtypes import CONFIG_DTYPES, DTYPES
from r1parallel.checkpoint.tables.names import to_hf
from r1parallel.checkpoint.writing.tensor_writer import write_checkpoint
from r1parallel.config.model import ModelConfig

SIZES = {
    "vocab_size": 16,
    "hidden_size": 8,
    "intermediate_size": 12,
    "num_layers": 2,
    "num_heads": 4,
    "num_kv_heads": 2,
}


@pytest.fixture
def config():
    return ModelConfig(**SIZES)


@pytest.fixture
def tied_config():
    return ModelConfig(**SIZES, tie_word_embeddings=True)


@pytest.fixture
def make_folder(tmp_path):
    """A checkpoint with random weights: make_folder(name, config, hf=True, dtype="F32", change=None, …)."""

    def make(name, config, hf=True, dtype="F32", change=None, max_shard_size=10**9):
        rng = np.random.default_rng(0)
        arrays = {
            to_hf(ours) if hf else ours: rng.standard_normal(shape).astype(DTYPES[dtype])
            for ours, shape in config.parameter_shapes().items()
        }
        if change is not None:
            change(arrays)
        folder = tmp_path / name
        entries = [(key, a.shape, dtype, a) for key, a in arrays.items()]
        write_checkpoint(folder, entries, max_shard_size, {"format": "pt"})
        (folder / "config.json").write_text(json.dumps({**config.to_hf(), "torch_dtype": CONFIG_DTYPES[dtype]}))
        (folder / "tokenizer.json").write_text('{"made": "up"}')
        return folder

    return make


@pytest.fixture
def tool():
    """The `main` of a command line in tools/."""
    return lambda name: runpy.run_path(str(Path(__file__).parents[2] / "tools" / f"{name}.py"))["main"]


@pytest.fixture(scope="module")
def server():
    server = Server()
    yield server
    server.close()


@pytest.fixture(scope="module")
def made(tmp_path_factory, server):
    return make_all(tmp_path_factory.mktemp("made"), server)
