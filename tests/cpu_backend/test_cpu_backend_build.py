import os
import subprocess
import sys
from pathlib import Path

import pytest

from r1parallel.cpu_backend import build
from r1parallel.cpu_backend.build import NO_COMPILER, build_kernels, cached_library
from r1parallel.cpu_backend.wheel import Wheel
from r1parallel.errors import UserError

REPOSITORY = Path(__file__).parents[2]
# Notes each call; slow enough that all the processes of a test are waiting for the first.
SLOW_COMPILER = """#!/bin/sh
echo call >> "$R1_TEST_CALLS"
while [ "$1" != -o ]; do shift; done
sleep 1
echo library > "$2"
"""
FAILING_COMPILER = "#!/bin/sh\necho 'kernels.cc:7:1: error: no such header' >&2\nexit 1\n"


@pytest.fixture
def wheel(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return Wheel("2.9.0", tmp_path / "mindspore", 4)


@pytest.fixture
def compiler(tmp_path, monkeypatch):
    """Puts a script in the place of g++; its calls are lines of the file that is returned."""

    def install(script):
        folder = tmp_path / "bin"
        folder.mkdir()
        (folder / "g++").write_text(script)
        (folder / "g++").chmod(0o755)
        monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
        monkeypatch.setenv("R1_TEST_CALLS", str(tmp_path / "calls"))
        return tmp_path / "calls"

    return install


def test_the_key_follows_the_version_and_the_sources(wheel, tmp_path, monkeypatch):
    first = cached_library(wheel)
    assert first == cached_library(wheel)
    assert first.parent == tmp_path / "cache" / "r1parallel" / "cpu_backend"
    assert cached_library(Wheel("2.9.1", wheel.folder, 4)) != first
    source = tmp_path / "kernels.cc"
    source.write_text("// other")
    monkeypatch.setattr(build, "_SOURCES", (source,))
    assert cached_library(wheel) != first


def test_the_cache_is_in_the_home_folder_by_default(wheel, tmp_path, monkeypatch):
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert cached_library(wheel).is_relative_to(tmp_path / "home" / ".cache" / "r1parallel")


def test_processes_that_start_at_once_make_one_build(wheel, compiler, tmp_path):
    calls = compiler(SLOW_COMPILER)
    code = (
        "from pathlib import Path\n"
        "from r1parallel.cpu_backend.build import build_kernels\n"
        "from r1parallel.cpu_backend.wheel import Wheel\n"
        f"print(build_kernels(Wheel('2.9.0', Path({str(wheel.folder)!r}), 4)).read_text())\n"
    )
    command = [sys.executable, "-c", code]
    started = [
        subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.PIPE, text=True, start_new_session=True)
        for _ in range(3)
    ]
    assert [process.communicate(timeout=60)[0].strip() for process in started] == ["library"] * 3
    assert calls.read_text().splitlines() == ["call"]
    kept = {path.suffix for path in cached_library(wheel).parent.iterdir()}
    assert kept == {".so", ".lock"}


def test_a_library_that_is_there_needs_no_compiler(wheel, tmp_path, monkeypatch):
    target = cached_library(wheel)
    target.parent.mkdir(parents=True)
    target.touch()
    monkeypatch.setenv("PATH", str(tmp_path))
    assert build_kernels(wheel) == target


def test_without_a_compiler_there_is_no_library_and_nothing_is_written(wheel, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert build_kernels(wheel) is None
    assert not (tmp_path / "cache").exists()


def test_the_message_says_what_to_install_and_what_is_lost():
    for word in ("g++", "apt-get install", "sequence", "pipeline", "optimizer"):
        assert word in NO_COMPILER
    assert "\n" not in NO_COMPILER


def test_a_compiler_that_fails_is_quoted_and_leaves_nothing(wheel, compiler):
    compiler(FAILING_COMPILER)
    with pytest.raises(UserError, match=r"mindspore 2\.9\.0: kernels\.cc:7:1: error: no such header$"):
        build_kernels(wheel)
    assert {path.suffix for path in cached_library(wheel).parent.iterdir()} == {".lock"}


def test_a_cache_that_cannot_be_made_is_named(wheel, compiler, tmp_path):
    compiler(SLOW_COMPILER)
    (tmp_path / "cache").write_text("a file")
    with pytest.raises(UserError, match="Not a directory; set XDG_CACHE_HOME"):
        build_kernels(wheel)


def test_the_command_uses_the_wheel_and_our_source(wheel, tmp_path):
    command = build._command(wheel, tmp_path / "made.so")
    assert command[0] == "g++"
    assert str(build._SOURCES[0]) in command
    assert f"-I{wheel.folder}/include" in command
    assert f"-L{wheel.folder}/lib" in command
