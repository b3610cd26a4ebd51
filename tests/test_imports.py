"""Imports go downwards only: the map of the packages, checked."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "r1parallel"
# From the bottom up. A package may import those of lower layers, and those of its own layer where LEVEL says so.
LAYERS = (
    {"errors", "atomic"},
    {"config"},
    {"parallel", "cpu_backend"},
    {"models", "checkpoint", "monitor"},
    {"data", "rewards"},
    {"generation"},
    {"training"},
    {"rl"},
)
SAME_LAYER = {("checkpoint", "models")}  # a checkpoint's config.json is written beside its weights
RANK = {name: rank for rank, layer in enumerate(LAYERS) for name in layer}


def imported(file):
    """Names of our packages that a file imports."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        modules = [node.module or ""] if isinstance(node, ast.ImportFrom) and not node.level else []
        if isinstance(node, ast.Import):
            modules = [alias.name for alias in node.names]
        for module in modules:
            parts = module.split(".")
            if parts[0] == "r1parallel" and len(parts) > 1:
                yield parts[1]


@pytest.mark.parametrize("file", sorted(PACKAGE.glob("*/**/*.py")), ids=lambda file: str(file.relative_to(PACKAGE)))
def test_imports_go_downwards(file):
    own = file.relative_to(PACKAGE).parts[0]
    for other in set(imported(file)) - {own}:
        assert RANK[other] < RANK[own] or (own, other) in SAME_LAYER, f"{own} imports {other}"


def test_every_package_has_a_layer():
    assert {path.name for path in PACKAGE.iterdir() if (path / "__init__.py").exists()} == set(RANK) - LAYERS[0]
