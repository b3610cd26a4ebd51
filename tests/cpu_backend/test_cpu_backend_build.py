import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from r1parallel.cpu_backend import build
from r1parallel.cpu_backend.build import COLLECTIVES, FUSED, build_kernels, cached_library
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
LIBRARIES = pytest.mark.parametrize("kernels", [COLLECTIVES, FUSED], ids=lambda kernels: kernels.name)
FAILING_COMPILER = "#!/bin/sh\necho 'collectives.cc:7:1: error: no such header' >&2\nexit 1\n"


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


@LIBRARIES
def test_the_key_follows_the_version_the_sources_and_the_flags(wheel, tmp_path, kernels):
    first = cached_library(wheel, kernels)
    assert first == cached_library(wheel, kernels)
    assert first.parent == tmp_path / "cache" / "r1parallel" / "cpu_backend"
    assert first.name.startswith(f"{kernels.name}-2.9.0-{sys.implementation.cache_tag}-")
    assert cached_library(Wheel("2.9.1", wheel.folder, 4), kernels) != first
    for number in range(len(kernels.sources)):
        source = tmp_path / f"other{number}"
        source.write_text("// other")
        sources = (*kernels.sources[:number], source, *kernels.sources[number + 1 :])
        assert cached_library(wheel, replace(kernels, sources=sources)) != first
    assert cached_library(wheel, replace(kernels, flags=(*kernels.flags, "-g"))) != first


@pytest.mark.parametrize(("kernels", "follows"), [(COLLECTIVES, False), (FUSED, True)], ids=["collectives", "fused"])
def test_the_key_follows_the_processor_where_the_code_is_made_for_it(wheel, monkeypatch, kernels, follows):
    names = []
    for processor in (b"flags\t\t: sse2 avx2", b"flags\t\t: sse2 avx2 avx512f"):
        monkeypatch.setattr(build, "_processor", lambda processor=processor: processor)
        names.append(cached_library(wheel, kernels).name)
    assert (names[0] != names[1]) == follows


def test_a_processor_is_what_it_can_do():
    line = build._processor()
    assert line.startswith(b"flags") and b"\n" not in line
    assert b"sse2" in line.split()


@LIBRARIES
def test_a_library_is_compiled_from_its_first_source_which_includes_the_others(kernels):
    sources = {str(path.relative_to(build.KERNELS)): path for path in kernels.sources}
    ours = {str(path.relative_to(build.KERNELS)) for path in build.KERNELS.rglob("*.h")}
    included = {
        name: set(re.findall(r'^#include "(.+)"$', path.read_text(), re.MULTILINE)) for name, path in sources.items()
    }
    for name, names in included.items():
        assert names & ours <= sources.keys(), name  # each decides the key
    first = next(iter(sources))
    reached, waiting = {first}, [first]
    while waiting:
        found = included[waiting.pop()] & ours - reached
        reached |= found
        waiting += found
    assert reached == sources.keys()
    assert f'extern "C" void {kernels.register}()' in kernels.sources[0].read_text()


def test_every_header_is_named_from_the_folder_of_kernels_and_belongs_to_a_library():
    headers = {path for path in build.KERNELS.rglob("*") if path.suffix in {".h", ".cc"}}
    assert headers == {source for kernels in (COLLECTIVES, FUSED) for source in kernels.sources}
    for path in headers:
        for name in re.findall(r'^#include "(.+)"$', path.read_text(), re.MULTILINE):
            # A name beside the file would be found there too, and be missing from the check above.
            assert (build.KERNELS / name).exists() or not (path.parent / name).exists(), f"{path}: {name}"


def test_the_cache_is_in_the_home_folder_by_default(wheel, tmp_path, monkeypatch):
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert cached_library(wheel, FUSED).is_relative_to(tmp_path / "home" / ".cache" / "r1parallel")


def test_processes_that_start_at_once_make_one_build(wheel, compiler, tmp_path):
    calls = compiler(SLOW_COMPILER)
    code = (
        "from pathlib import Path\n"
        "from r1parallel.cpu_backend.build import FUSED, build_kernels\n"
        "from r1parallel.cpu_backend.wheel import Wheel\n"
        f"print(build_kernels(Wheel('2.9.0', Path({str(wheel.folder)!r}), 4), FUSED).read_text())\n"
    )
    command = [sys.executable, "-c", code]
    started = [
        subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.PIPE, text=True, start_new_session=True)
        for _ in range(3)
    ]
    assert [process.communicate(timeout=60)[0].strip() for process in started] == ["library"] * 3
    assert calls.read_text().splitlines() == ["call"]
    kept = {path.suffix for path in cached_library(wheel, FUSED).parent.iterdir()}
    assert kept == {".so", ".lock"}


@LIBRARIES
def test_a_library_that_is_there_needs_no_compiler(wheel, tmp_path, monkeypatch, kernels):
    target = cached_library(wheel, kernels)
    target.parent.mkdir(parents=True)
    target.touch()
    monkeypatch.setenv("PATH", str(tmp_path))
    assert build_kernels(wheel, kernels) == target


def test_without_a_compiler_there_is_no_library_and_nothing_is_written(wheel, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert build_kernels(wheel, COLLECTIVES) is None
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize(
    ("kernels", "lost"),
    [(COLLECTIVES, ("sequence", "pipeline", "optimizer")), (FUSED, ("plain operators", "longer", "memory"))],
    ids=["collectives", "fused"],
)
def test_the_message_says_what_to_install_and_what_is_lost(kernels, lost):
    for word in ("g++", "apt-get install", *lost):
        assert word in kernels.missing
    assert "\n" not in kernels.missing


def test_a_compiler_that_fails_is_quoted_and_leaves_nothing(wheel, compiler):
    compiler(FAILING_COMPILER)
    with pytest.raises(UserError, match=r"/collectives\.cc for mindspore 2\.9\.0: collectives\.cc:7:1: error: no "):
        build_kernels(wheel, COLLECTIVES)
    assert {path.suffix for path in cached_library(wheel, COLLECTIVES).parent.iterdir()} == {".lock"}


def test_a_cache_that_cannot_be_made_is_named(wheel, compiler, tmp_path):
    compiler(SLOW_COMPILER)
    (tmp_path / "cache").write_text("a file")
    with pytest.raises(UserError, match="Not a directory; set XDG_CACHE_HOME"):
        build_kernels(wheel, FUSED)


@pytest.mark.parametrize(
    ("kernels", "flags"), [(COLLECTIVES, ["-O2"]), (FUSED, ["-O3", "-march=native"])], ids=["collectives", "fused"]
)
def test_the_command_uses_the_wheel_our_source_and_its_flags(wheel, tmp_path, kernels, flags):
    command = build._command(wheel, kernels, tmp_path / "made.so")
    assert command[0] == "g++"
    assert [part for part in command if part.endswith(".cc")] == [str(kernels.sources[0])]
    assert [part for part in command if part.startswith(("-O", "-march"))] == flags
    assert f"-I{wheel.folder}/include" in command
    assert f"-L{wheel.folder}/lib" in command
