"""The headers of kernels/common that need no MindSpore, tested by a C++ program of their own."""

import shutil
import subprocess
from pathlib import Path

import pytest

from r1parallel.cpu_backend.build import COMPILER, KERNELS

PROGRAM = Path(__file__).with_name("common_test.cc")
# Vectors of four numbers, those of this machine as the library is compiled, and every access checked.
FLAGS = {
    "baseline": ["-O2"],
    "native": ["-O3", "-march=native", "-fno-math-errno"],
    "sanitizers": ["-O1", "-g", "-march=native", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"],
}


@pytest.mark.skipif(shutil.which(COMPILER) is None, reason="needs g++")
@pytest.mark.parametrize("flags", FLAGS.values(), ids=FLAGS)
def test_common_headers_compute_what_plain_loops_do(tmp_path: Path, flags: list[str]):
    warnings = ["-Wall", "-Wextra", "-Werror"]
    program = tmp_path / "common_test"
    command = [COMPILER, "-std=c++17", *warnings, *flags, f"-I{KERNELS}", str(PROGRAM), "-o", str(program)]
    for step in (command, [str(program)]):
        # `timeout` ends the whole process group: g++ starts programs of its own.
        result = subprocess.run(["timeout", "120", *step], capture_output=True, text=True, start_new_session=True)
        assert result.returncode == 0, result.stderr
    assert result.stdout == "ok\n"
