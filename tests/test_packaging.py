import ast
import re
import runpy
import sys
from collections.abc import Iterable
from importlib.metadata import version
from pathlib import Path

import pytest
import setuptools
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import r1parallel

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "r1parallel"
ENTRIES = [*sorted(ROOT.glob("run_*.py")), *sorted((ROOT / "tools").glob("*.py"))]
OURS = {"r1parallel", "helpers", "benchmarks"}
# Import name → distribution, where the two differ.
DISTRIBUTIONS = {"google": "protobuf", "yaml": "pyyaml"}


@pytest.fixture(scope="module")
def settings():
    """What setup.py hands to setuptools."""
    given = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(setuptools, "setup", lambda **settings: given.update(settings))
        runpy.run_path(str(ROOT / "setup.py"))
    return given


def names(requirements: Iterable[str]) -> set[str]:
    return {canonicalize_name(Requirement(text).name) for text in requirements}


def imported_modules(path: Path) -> set[str]:
    """Top-level names that a file imports, `pytest.importorskip` included."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            found.add(node.module)
        elif isinstance(node, ast.Call) and ast.unparse(node.func) == "pytest.importorskip":
            found.add(ast.literal_eval(node.args[0]))
    return {name.split(".")[0] for name in found}


def imported_distributions(paths: Iterable[Path]) -> set[str]:
    modules = set().union(*map(imported_modules, paths)) - sys.stdlib_module_names - OURS
    return {canonicalize_name(DISTRIBUTIONS.get(module, module)) for module in modules}


def test_what_is_imported_is_required_and_nothing_else(settings):
    imported = imported_distributions([*PACKAGE.rglob("*.py"), *ENTRIES, *(ROOT / "scripts").glob("*.py")])
    assert imported == names(settings["install_requires"])


def test_what_tests_and_benchmarks_import_is_in_an_extra(settings):
    files = [*(ROOT / "tests").rglob("*.py"), *(ROOT / "benchmarks").rglob("*.py")]
    helpers = {canonicalize_name(file.stem) for file in files}
    allowed = names([*settings["install_requires"], *settings["extras_require"]["test"]])
    for judges in ("parity", "mindformers"):
        allowed |= names(settings["extras_require"][judges])
    assert imported_distributions(files) - helpers <= allowed


def test_relative_and_conditional_imports_are_seen(tmp_path):
    path = tmp_path / "m.py"
    path.write_text(
        "import os.path, a.b as c\nfrom . import d\ndef f():\n    from e.g import h\npytest.importorskip('i.j')\n"
    )
    assert imported_modules(path) == {"os", "a", "e", "i"}


def test_every_requirement_has_both_bounds_or_is_pinned(settings):
    for text in [*settings["install_requires"], *settings["extras_require"]["test"]]:
        operators = {part.operator for part in Requirement(text).specifier}
        # These two number by the year or the month and keep their interfaces.
        assert operators in ({">=", "<"}, {"=="}) or Requirement(text).name in {"setuptools", "packaging"}, text


def test_this_environment_is_one_that_setup_py_allows(settings):
    assert sys.version_info[:2] in [(3, 10), (3, 11)]
    assert settings["python_requires"] == ">=3.10,<3.12"
    for requirement in map(Requirement, [*settings["install_requires"], *settings["extras_require"]["test"]]):
        assert requirement.specifier.contains(version(requirement.name)), f"{requirement} {version(requirement.name)}"


def test_the_version_stands_in_one_place(settings):
    assert settings["version"] == r1parallel.__version__
    assert re.fullmatch(r"\d+\.\d+\.\d+", r1parallel.__version__)
    holders = [path for path in [*PACKAGE.rglob("*.py"), *ENTRIES, ROOT / "setup.py"] if "__version__ =" in read(path)]
    assert holders == [PACKAGE / "__init__.py", ROOT / "setup.py"]  # setup.py looks for that line
    assert r1parallel.__version__ not in read(ROOT / "setup.py") + read(ROOT / "pyproject.toml")


def read(path: Path) -> str:
    return path.read_text(encoding="utf-8")


def test_all_code_and_data_of_the_package_is_packed(settings):
    files = [path for path in PACKAGE.rglob("*") if path.is_file() and "__pycache__" not in path.parts]
    for path in files:
        package = ".".join(path.parent.relative_to(ROOT).parts)
        packed = package in settings["packages"] and path.suffix == ".py"
        for owner, patterns in settings["package_data"].items():
            folder = ROOT.joinpath(*owner.split("."))
            packed = packed or any(path in folder.glob(pattern) for pattern in patterns)
        assert packed, f"setup.py leaves out {path}"


def test_the_license_is_apache_and_ours(settings):
    text = read(ROOT / "LICENSE")
    assert settings["license"] == "Apache-2.0"
    assert "Version 2.0, January 2004" in text
    assert "The r1parallel developers" in text


@pytest.mark.parametrize("entry", ENTRIES, ids=lambda path: path.name)
def test_every_command_line_answers_help(entry, capsys):
    main = runpy.run_path(str(entry), run_name="entry")["main"]
    with pytest.raises(SystemExit) as stop:
        main(["--help"])
    assert stop.value.code == 0
    output = capsys.readouterr()
    assert output.out.startswith("usage: ")
    assert "\n  --" in output.out
    assert output.err == ""
