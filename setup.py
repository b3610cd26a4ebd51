"""Packaging. Tool settings are in pyproject.toml; how to set up an environment is in docs/development.md."""

import re
from pathlib import Path

from setuptools import find_packages, setup

# A lower bound is the oldest version that the tests were run with, an upper bound the first that they were not.
INSTALL_REQUIRES = [
    # mindformers 1.9.0, the newest whose dependencies are all on PyPI, needs mindspore 2.9, which needs numpy 1.
    "mindspore>=2.9,<2.10",
    "numpy>=1.26,<2",
    "jinja2>=3.1,<4",
    "markupsafe>=2.1,<4",
    "math-verify>=0.8,<0.10",
    # 3.10 is the last for Python 3.10.
    "matplotlib>=3.10,<3.12",
    "ml_dtypes>=0.5,<0.6",
    "protobuf>=5,<8",
    "psutil>=7.2,<8",
    # mindformers 1.9.0 pins 19.0.0.
    "pyarrow>=18,<22",
    "pyyaml>=6,<7",
    "sentencepiece>=0.2,<0.3",
    "tensorboardX>=2.6.2.2,<3",
    # transformers 4.57, which the parity tests and mindformers 1.9.0 need, asks for tokenizers 0.22.
    "tokenizers>=0.22,<0.23",
    "tqdm>=4.66,<5",
    # Hashes of tensors, in the manifests beside weights.
    "xxhash>=3.5,<5",
]

# For scripts/build_smollm2.sh and the fixture that makes the same model.
SMOLLM2_REQUIRES = ["gguf>=0.19,<0.20", "safetensors>=0.4.3,<0.9"]

EXTRAS_REQUIRE = {
    "test": [
        # The next major version formats differently.
        "clang-format>=22.1,<23",
        "hypothesis>=6.100,<7",
        "mypy>=2.4,<3",
        "packaging>=24",
        "pytest>=8.2,<10",
        "coverage>=7.10,<8",
        "pytest-cov>=7,<8",
        "pytest-xdist>=3.6,<4",
        # The next minor version formats differently.
        "ruff>=0.17,<0.18",
        "safetensors>=0.4.3,<0.9",
        "setuptools>=68",
        "types-PyYAML>=6,<7",
    ],
    # Judges of our numbers, and gguf for a pretrained model to judge with. trl needs pyarrow 21, mindformers pins 19:
    # these two extras cannot stand in one environment.
    "parity": ["torch==2.13.0", "transformers==4.57.1", "trl==1.16.0", "datasets>=4.7,<6", *SMOLLM2_REQUIRES],
    "mindformers": ["mindformers==1.9.0"],
    "smollm2": SMOLLM2_REQUIRES,
}


def read_version() -> str:
    """The version as r1parallel/__init__.py states it, read without importing the package."""
    text = (Path(__file__).parent / "r1parallel" / "__init__.py").read_text(encoding="utf-8")
    found = re.search(r'^__version__ = "(.+)"$', text, re.MULTILINE)
    if found is None:
        raise SystemExit('setup.py: r1parallel/__init__.py has no line __version__ = "…"')
    return found[1]


setup(
    name="r1parallel",
    version=read_version(),
    description="R1-style training (SFT, then GRPO) of Qwen2.5 on MindSpore graph mode",
    license="Apache-2.0",
    python_requires=">=3.10,<3.12",
    packages=find_packages(include=["r1parallel", "r1parallel.*"]),
    package_data={
        "r1parallel.monitor.report": ["*.jinja"],
        "r1parallel.cpu_backend": ["kernels/*.cc", "kernels/*.h", "kernels/*/*.cc", "kernels/*/*.h"],
    },
    install_requires=INSTALL_REQUIRES,
    extras_require=EXTRAS_REQUIRE,
)
