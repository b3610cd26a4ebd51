"""The shell scripts, with stand-ins for Python that note how they are called: nothing is installed here."""

import os
import re
import runpy
import shutil
import subprocess
from pathlib import Path

import pytest
import setuptools

ROOT = Path(__file__).parents[1]
SCRIPTS = [*sorted((ROOT / "scripts").glob("*.sh")), ROOT / ".ci" / "run"]
# $0.calls gets one line a call; `pip install` fails if $0.broken exists; `-m venv DIR` makes DIR with copies of this.
STAND_IN = """#!/usr/bin/env bash
echo "$*" >>"$0.calls"
case "$*" in
    "-m pip install"*) if [ -e "$0.broken" ]; then echo "no such thing on the index"; exit 1; fi ;;
    "-m venv "*) mkdir -p "$3/bin"; touch "$3/pyvenv.cfg"; cp "$0" "$3/bin/python"; cp "$0" "$3/bin/clang-format" ;;
esac
"""
FAILING = "#!/usr/bin/env bash\necho 'pyenv: command not found' >&2\nexit 127\n"


def write_program(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(0o755)
    return path


@pytest.fixture
def project(tmp_path):
    """A copy of what the scripts read, in a folder with a space in its name."""
    root = tmp_path / "a project"
    shutil.copytree(ROOT / "scripts", root / "scripts")
    shutil.copy(ROOT / "setup.py", root)
    for source in ("r1parallel/cpu/one.h", "r1parallel/cpu/deep/two.cc", "tests/three.cc"):
        write_program(root / source, "")
    return root


@pytest.fixture
def run(tmp_path, project):
    """Run a script of the copy; `python3.11` is the stand-in, the other Pythons fail."""
    programs = tmp_path / "programs"
    write_program(programs / "python3.11", STAND_IN)
    for name in ("python3.10", "python3"):
        write_program(programs / name, FAILING)

    def run(script, *arguments, **variables):
        environment = {"PATH": f"{programs}:/usr/bin:/bin", "R1_SHARED": str(tmp_path / "none"), **variables}
        return subprocess.run(
            ["bash", str(project / "scripts" / script), *arguments],
            env=environment,
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=60,
            start_new_session=True,
        )

    return run


def installs(venv: Path) -> list[str]:
    calls = (venv / "bin" / "python.calls").read_text().splitlines()
    return [call.partition("--disable-pip-version-check ")[2] for call in calls if call.startswith("-m pip install")]


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_scripts_parse_and_may_be_executed(script):
    assert os.access(script, os.X_OK)
    assert script.read_text().startswith("#!/usr/bin/env bash\n")
    subprocess.run(["bash", "-n", str(script)], check=True, timeout=60)


def test_the_environment_is_made_once_and_its_python_printed(project, run):
    first, second = run("setup_venv.sh", "test"), run("setup_venv.sh", "test")
    assert (first.returncode, second.returncode) == (0, 0), first.stderr
    assert first.stdout == second.stdout == f"{project}/.venv/bin/python\n"
    assert installs(project / ".venv") == ["-e .[test]"]
    assert "installing r1parallel with test" in first.stderr
    assert second.stderr == ""


def test_another_setup_py_and_other_extras_are_installed(project, run):
    for extras in ("", "test", ""):
        run("setup_venv.sh", extras)
    (project / "setup.py").write_text("changed")
    run("setup_venv.sh", "test")
    assert installs(project / ".venv") == ["-e .", "-e .[test]", "-e .[test]"]


def test_a_copy_of_the_project_elsewhere_is_installed_again(tmp_path, project, run):
    shutil.copytree(project, tmp_path / "copy")
    for script in ("setup_venv.sh", tmp_path / "copy" / "scripts" / "setup_venv.sh"):
        run(script, R1_VENV="shared")
    assert installs(tmp_path / "shared") == ["-e .", "-e ."]


def test_a_failed_install_is_shown_and_tried_again(project, run):
    run("setup_venv.sh")
    broken = project / ".venv" / "bin" / "python.broken"
    broken.touch()
    failed = run("setup_venv.sh", "test")
    assert failed.returncode == 1
    assert failed.stdout == ""
    assert "no such thing on the index" in failed.stderr
    assert failed.stderr.splitlines()[-1] == "error: pip install -e .[test] failed; its last lines are above"
    broken.unlink()
    assert run("setup_venv.sh", "test").returncode == 0
    assert installs(project / ".venv")[1:] == ["-e .[test]", "-e .[test]"]


def test_no_fitting_python_is_one_line(tmp_path, run):
    write_program(tmp_path / "programs" / "python3.11", FAILING)
    result = run("setup_venv.sh")
    assert result.returncode == 1
    assert result.stderr.startswith("error: no Python 3.10 or 3.11 with the venv module on PATH; install one")
    assert result.stderr.count("\n") == 1


def test_a_name_that_fails_is_passed_over(tmp_path, project, run):
    programs = tmp_path / "programs"
    (programs / "python3.11").rename(programs / "python3.10")
    write_program(programs / "python3.11", FAILING)
    assert run("setup_venv.sh").returncode == 0
    assert installs(project / ".venv") == ["-e ."]


def test_r1_venv_is_honoured_from_any_folder_and_never_overruns_another_folder(tmp_path, run):
    assert run("setup_venv.sh", R1_VENV="my venv").stdout == f"{tmp_path}/my venv/bin/python\n"
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "letter").write_text("dear")
    refused = run("setup_venv.sh", R1_VENV=f"{tmp_path}/home")
    assert refused.returncode == 1
    assert "home is a folder, but not a virtual environment; set R1_VENV" in refused.stderr
    assert [path.name for path in (tmp_path / "home").iterdir()] == ["letter"]


def test_an_environment_with_a_python_that_does_not_fit_is_refused(tmp_path, run):
    # pip works in it, the check of its version does not pass.
    old = STAND_IN + 'case "$*" in *version_info*) exit 1 ;; esac\n'
    write_program(tmp_path / "old" / "bin" / "python", old)
    (tmp_path / "old" / "pyvenv.cfg").touch()
    refused = run("setup_venv.sh", R1_VENV=f"{tmp_path}/old")
    assert refused.returncode == 1
    assert refused.stderr.startswith(f"error: {tmp_path}/old does not hold Python 3.10 or 3.11")
    assert installs(tmp_path / "old") == []


def test_all_checks_run_in_order(project, run):
    result = run("test.sh")
    assert result.returncode == 0, result.stderr
    shown = [line[3:] for line in result.stdout.splitlines() if line.startswith("== ")]
    assert shown == [
        "ruff check .",
        "ruff format --check .",
        "clang-format of 3 files",
        "mypy",
        "pytest -n 2 --dist loadfile --no-loadscope-reorder --cov=r1parallel --cov-report=term --cov-fail-under=90",
    ]
    assert installs(project / ".venv") == ["-e .[test]"]
    formatted = (project / ".venv" / "bin" / "clang-format.calls").read_text().splitlines()
    assert formatted == ["--dry-run -Werror r1parallel/cpu/one.h r1parallel/cpu/deep/two.cc tests/three.cc"]


def test_arguments_mean_only_pytest(project, run):
    result = run("test.sh", "tests/config", "-k", "two words", R1_PARITY="1")
    assert result.stdout.strip() == "== pytest tests/config -k two words"
    calls = (project / ".venv" / "bin" / "python.calls").read_text().splitlines()
    assert calls[-1] == "-m pytest tests/config -k two words"
    assert installs(project / ".venv")[-1] == "-e .[test,parity]"


def test_mindformers_is_installed_when_asked_for(project, run):
    result = run("test.sh", "tests/parity", R1_MINDFORMERS="1")
    assert result.stdout.strip() == "== pytest tests/parity"
    assert installs(project / ".venv") == ["-e .[test,mindformers]"]


def test_judges_that_need_other_versions_are_refused_together(project, run):
    result = run("test.sh", "tests/parity", R1_PARITY="1", R1_MINDFORMERS="1")
    assert result.returncode == 2
    assert "set one of them" in result.stderr
    assert not (project / ".venv").exists()


def test_the_first_failing_check_ends_it_and_skips_are_announced(tmp_path, project, run):
    # A Python without torch, in which mypy finds something.
    poor = STAND_IN + 'case "$*" in *find_spec*) exit 1 ;; "-m mypy") exit 3 ;; esac\n'
    write_program(tmp_path / "programs" / "python3.11", poor)
    result = run("test.sh")
    assert result.returncode == 3
    assert result.stdout.rstrip().endswith("== mypy")
    result = run("test.sh", "tests")
    assert "parity tests will be SKIPPED" in result.stdout
    assert "R1_PARITY=1 bash scripts/test.sh" in result.stdout
    assert "R1_MINDFORMERS=1 bash scripts/test.sh" in result.stdout


def test_only_what_is_missing_is_announced(tmp_path, project, run):
    # A Python with torch and transformers, and without mindformers.
    some = STAND_IN + 'case "$*" in *" mindformers") exit 1 ;; esac\n'
    write_program(tmp_path / "programs" / "python3.11", some)
    result = run("test.sh", "tests")
    assert "R1_PARITY" not in result.stdout
    assert "mindformers is not installed: the comparisons with it will be SKIPPED" in result.stdout


def test_smollm2_without_its_converter_says_what_to_do(tmp_path, project, run):
    result = run("build_smollm2.sh")
    assert result.returncode == 1
    tool = "tools/make_smollm2.py"
    assert result.stderr == f"error: no {tmp_path}/none/{tool}; set R1_SHARED to the folder that holds {tool}\n"
    assert not (project / ".cache").exists()


def test_smollm2_that_is_there_is_left_alone(tmp_path, run):
    model = tmp_path / "model"
    model.mkdir()
    assert "exists, but holds no model" in run("build_smollm2.sh", "model").stderr
    for name in ("model.safetensors", "config.json"):
        (model / name).touch()
    assert run("build_smollm2.sh", "model").stdout == "model: there already\n"


def test_a_smollm2_that_fails_half_way_leaves_nothing(tmp_path, run):
    for name in ("tools/make_smollm2.py", "tokenizers/smollm2/tokenizer.json"):
        write_program(tmp_path / "shared" / name, "")
    before = sorted(path.name for path in tmp_path.iterdir())
    # The stand-in downloads nothing and writes no model, so the last rename fails.
    result = run("build_smollm2.sh", "model", R1_SHARED=f"{tmp_path}/shared")
    assert result.returncode != 0
    assert sorted(path.name for path in tmp_path.iterdir()) == before


def test_extras_named_in_scripts_exist(monkeypatch):
    given = {}
    monkeypatch.setattr(setuptools, "setup", lambda **settings: given.update(settings))
    runpy.run_path(str(ROOT / "setup.py"))
    text = "".join(script.read_text() for script in SCRIPTS)
    used = re.findall(r'setup_venv\.sh" ([\w,]+)', text) + re.findall(r"extras\+?=,?([\w,]+)", text)
    assert {"test", "parity", "mindformers"} <= set(used)
    assert {extra for extras in used for extra in extras.split(",")} <= set(given["extras_require"])
