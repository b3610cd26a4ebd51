"""The rules that scripts/draw_architecture.py states and draws, and how large a folder and a file may be."""

import runpy
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "r1parallel"
MAP = SimpleNamespace(**runpy.run_path(str(ROOT / "scripts" / "draw_architecture.py"), run_name="map"))
ARROWS = list(MAP.arrows(PACKAGE))
# Where a device is set up: a run's, and that of a program that is only compiled.
DEVICE_SETUP = {"r1parallel.parallel.device", "r1parallel.strategy_check.compile_rank"}
MOST_FILES, MOST_LINES = 12, 299


def faults(arrows: list[tuple[str, str]]) -> list[str]:
    found = [(a, b, MAP.fault(MAP.place_of(a), MAP.place_of(b))) for a, b in arrows]
    return [f"{a} imports {b}: {why}" for a, b, why in found if why]


def circles(arrows: list[tuple[str, str]]) -> list[str]:
    """Files that can be reached from themselves."""
    to: dict[str, set[str]] = {}
    for a, b in arrows:
        to.setdefault(a, set()).add(b)

    def reached(start: str) -> set[str]:
        seen, todo = set(), [start]
        while todo:
            for other in to.get(todo.pop(), ()):
                if other not in seen:
                    seen.add(other)
                    todo.append(other)
        return seen

    return [module for module in sorted(to) if module in reached(module)]


def crowded(package: Path) -> dict[str, int]:
    """Folders with too many files, and files with too many lines."""
    files = [file for file in package.rglob("*") if file.is_file() and "__pycache__" not in file.parts]
    folders = {folder: sum(file.parent == folder for file in files) for folder in {file.parent for file in files}}
    lines = {file: len(file.read_text(encoding="utf-8").splitlines()) for file in files if file.suffix == ".py"}
    sizes = {path: n for path, n in folders.items() if n > MOST_FILES} | {
        path: n for path, n in lines.items() if n > MOST_LINES
    }
    return {str(path.relative_to(package)): n for path, n in sizes.items()}


def test_imports_go_downwards_between_packages_and_between_wings():
    assert len(ARROWS) > 500
    assert faults(ARROWS) == []


@pytest.mark.parametrize(
    ("arrow", "why"),
    [
        (("config.schema", "rl.trainer"), "config is not above rl"),
        (("data.batches", "rewards.pool"), "data is not above rewards"),
        (("checkpoint.models", "models.logps"), "checkpoint is not above models"),
        (
            ("checkpoint.formats.dtypes", "checkpoint.reading.match"),
            "checkpoint/formats is not above checkpoint/reading",
        ),
        (("checkpoint.formats.dtypes", "checkpoint.tables.names"), "checkpoint/formats is not above checkpoint/tables"),
        (("config.schema", "config.loading.load"), "config/. is not above config/loading"),
        (("rl.objective.kl", "rl.trainer"), "rl/objective is not above rl/."),
    ],
)
def test_an_import_upwards_is_found(arrow, why):
    importing, imported = (f"r1parallel.{module}" for module in arrow)
    assert faults([(importing, imported)]) == [f"{importing} imports {imported}: {why}"]


@pytest.mark.parametrize(
    "arrow",
    [("rl.trainer", "config.schema"), ("models.parameters", "checkpoint.load"), ("rl.trainer", "rl.objective.kl")],
)
def test_an_import_downwards_is_none(arrow):
    assert faults([tuple(f"r1parallel.{module}" for module in arrow)]) == []


def test_every_exception_is_used():
    ranks = {name: rank for rank, layer in enumerate(MAP.LAYERS) for name in layer}
    found = {(MAP.place_of(a).package, MAP.place_of(b).package) for a, b in ARROWS}
    assert {(a, b) for a, b in found if a != b and ranks[a] == ranks[b]} == MAP.SAME_LAYER


def test_every_package_and_every_wing_has_its_place():
    packages = {path.name for path in PACKAGE.iterdir() if (path / "__init__.py").exists()}
    assert packages == set(MAP.WINGS) == {name for layer in MAP.LAYERS[1:] for name in layer}
    for package, tiers in MAP.WINGS.items():
        wings = {path.parent.name for path in (PACKAGE / package).glob("*/__init__.py")}
        assert {wing for tier in tiers for wing in tier} == wings | {"."}, package


def test_no_file_is_reached_from_itself():
    assert circles(ARROWS) == []
    assert circles([("a", "b"), ("b", "c"), ("c", "b"), ("d", "a")]) == ["b", "c"]


def test_imports_inside_functions_and_of_modules_are_seen(tmp_path):
    user = tmp_path / "trainer.py"
    user.write_text("def f():\n    from r1parallel.rl.objective import kl\nfrom r1parallel.errors import UserError\n")
    known = {"r1parallel.rl.objective.kl", "r1parallel.rl.objective", "r1parallel.errors"}
    assert MAP.imports(user, known) == {"r1parallel.rl.objective.kl", "r1parallel.errors"}
    user.write_text("from .objective import kl\n")
    with pytest.raises(AssertionError, match="a relative import hides where it leads"):
        MAP.imports(user, known)


def test_no_folder_and_no_file_is_too_large():
    assert crowded(PACKAGE) == {}


def test_a_crowded_folder_and_a_long_file_are_found(tmp_path):
    for number in range(MOST_FILES + 1):
        (tmp_path / f"{number}.h").write_text("")
    (tmp_path / "wing").mkdir()
    (tmp_path / "wing" / "long.py").write_text("\n" * (MOST_LINES + 1))
    assert crowded(tmp_path) == {".": MOST_FILES + 1, "wing/long.py": MOST_LINES + 1}


def test_the_cpu_backend_is_imported_only_where_a_device_is_set_up():
    users = {a for a, b in ARROWS if MAP.place_of(b).package == "cpu_backend"}
    assert {user for user in users if MAP.place_of(user).package != "cpu_backend"} == DEVICE_SETUP


def test_the_picture_is_that_of_the_code():
    assert MAP.PICTURE.read_text(encoding="utf-8") == MAP.draw(PACKAGE), "run python scripts/draw_architecture.py"


@pytest.mark.parametrize("module", ["rl.grpo", "training.sft"])
def test_nothing_is_imported_before_a_run_that_only_its_end_needs(module):
    code = f"import sys, r1parallel.{module}; print(*{{'matplotlib', 'tensorboardX', 'torch'}} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, start_new_session=True)
    assert done.returncode == 0 and done.stdout.strip() == "", done
