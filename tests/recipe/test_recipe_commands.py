"""How the commands of a recipe are run and ended."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from r1parallel.errors import UserError
from r1parallel.recipe.commands import Stages

ROOT = Path(__file__).parents[2]
HANG = "import os, pathlib, sys, time\npathlib.Path(sys.argv[1]).write_text(str(os.getpid()))\ntime.sleep(600)\n"
DRIVER = """
import pathlib, sys
from r1parallel.recipe.commands import Stages
Stages(pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[1], "log"), 600).run("sft", "hang.py", sys.argv[2])
"""


def script(folder: Path, name: str, text: str) -> Path:
    (folder / name).write_text(text)
    return folder


def assert_gone(pid: int) -> None:
    """The process has ended; the one that was killed may still wait for its parent to ask."""
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        try:
            if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z":
                return
        except (FileNotFoundError, ProcessLookupError):
            return
        time.sleep(0.05)
    pytest.fail(f"process {pid} still runs")


def test_the_last_line_is_given_and_all_is_in_the_log(tmp_path, capfd):
    text = "import sys\nprint('first', sys.argv[1])\nprint('last')\nprint('progress', file=sys.stderr)\n"
    stages = Stages(script(tmp_path, "a.py", text), tmp_path / "log", 60)
    assert stages.run("data", "a.py", 7) == "last"
    assert stages.run("data", "a.py", "b c") == "last"
    assert (tmp_path / "log").read_text() == "$ a.py 7\nfirst 7\nlast\n$ a.py b c\nfirst b c\nlast\n"
    seen = capfd.readouterr()
    assert seen.out == "[data] python a.py 7\n[data] python a.py b c\n"
    assert seen.err == "progress\n" * 2
    assert list(stages.seconds) == ["data"] and stages.seconds["data"] > 0


def test_a_silent_command_gives_nothing(tmp_path):
    stages = Stages(script(tmp_path, "a.py", "print('  ')"), tmp_path / "log", 60)
    assert stages.run("data", "a.py") == ""


def test_a_stage_that_fails_is_named(tmp_path):
    stages = Stages(ROOT, tmp_path / "stages.log", 60)
    with pytest.raises(UserError, match=r"data: tools/make_problems.py ended with exit code 2; see above"):
        stages.run(
            "data", "tools/make_problems.py", "--kind", "arithmetic", "--num", 0, "--output_path", tmp_path / "x"
        )


def test_a_stage_that_hangs_is_ended(tmp_path):
    stages = Stages(script(tmp_path, "hang.py", HANG), tmp_path / "log", 2)
    with pytest.raises(UserError, match="sft: no end after 2 seconds"):
        stages.run("sft", "hang.py", tmp_path / "pid")
    assert_gone(int((tmp_path / "pid").read_text()))


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_the_stage_ends_with_its_driver(tmp_path, signum):
    script(tmp_path, "hang.py", HANG)
    words = [sys.executable, "-c", DRIVER, str(tmp_path), str(tmp_path / "pid")]
    driver = subprocess.Popen(words, start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 60
        while not (tmp_path / "pid").exists() or not (tmp_path / "pid").read_text():
            assert driver.poll() is None and time.monotonic() < deadline
            time.sleep(0.05)
        os.kill(driver.pid, signum)
        code = driver.wait(60)
    finally:
        if driver.poll() is None:
            os.killpg(driver.pid, signal.SIGKILL)
            driver.wait()
    assert code == (143 if signum == signal.SIGTERM else -signum)
    assert_gone(int((tmp_path / "pid").read_text()))


def test_sigterm_means_again_what_it_meant(tmp_path):
    before = signal.getsignal(signal.SIGTERM)
    Stages(script(tmp_path, "a.py", ""), tmp_path / "log", 60).run("data", "a.py")
    assert signal.getsignal(signal.SIGTERM) is before
