"""Imports go downwards only: the map of the packages, checked."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "r1parallel"
# From the bottom up. A package may import those of lower layers, and those of its own layer where LEVEL says so.
LAYERS = (
    {"errors", "atomic", "wire"},
    {"config"},
    {"parallel", "cpu_backend"},
    {"models", "checkpoint", "monitor"},
    {"data", "rewards"},
    {"generation"},
    {"training"},
    {"rl"},
    {"recipe", "strategy_check"},
)
SAME_LAYER = {
    ("models", "checkpoint"),  # a model takes its slices from a checkpoint's source
    ("parallel", "cpu_backend"),  # where the device is set up
    ("cpu_backend", "parallel"),  # the self-test starts its processes as a run does
}
# Where a device is set up: a run's, and that of a compile-only process.
DEVICE_SETUP = {"parallel/device.py", "strategy_check/compile_rank.py"}
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


def test_the_cpu_backend_is_imported_only_where_a_device_is_set_up():
    users = {str(file.relative_to(PACKAGE)) for file in PACKAGE.rglob("*.py") if "cpu_backend" in imported(file)}
    assert {user for user in users if not user.startswith("cpu_backend/")} == DEVICE_SETUP


def test_every_exception_is_used():
    found = {
        (file.relative_to(PACKAGE).parts[0], other) for file in PACKAGE.glob("*/**/*.py") for other in imported(file)
    }
    assert {(own, other) for own, other in found if own != other and RANK[own] == RANK[other]} == SAME_LAYER


def test_every_package_has_a_layer():
    assert {path.name for path in PACKAGE.iterdir() if (path / "__init__.py").exists()} == set(RANK) - LAYERS[0]


@pytest.mark.parametrize("module", ["rl.grpo", "training.sft"])
def test_nothing_is_imported_before_a_run_that_only_its_end_needs(module):
    code = f"import sys, r1parallel.{module}; print(*{{'matplotlib', 'tensorboardX', 'torch'}} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, start_new_session=True)
    assert done.returncode == 0 and done.stdout.strip() == "", done
