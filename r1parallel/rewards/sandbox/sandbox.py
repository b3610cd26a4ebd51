"""Running a program that nobody trusts: a process of its own without network, files, processes or time to waste.

The kernel enforces it (see `sandbox_child`), for root and for ordinary users alike, in containers too.
"""

import functools
import json
import math
import os
import platform
import secrets
import signal
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from r1parallel.errors import UserError
from r1parallel.rewards.sandbox import system_calls
from r1parallel.rewards.sandbox.sandbox_child import REFUSED

_CHILD = Path(__file__).with_name("sandbox_child.py")
_FILE_BYTES = 16 << 20  # of one file, and of all files in the folder
_MOST_FILES = 1000
_LOOK_AGAIN = 0.005  # seconds
_SYSTEM_LIBRARIES = ("/lib", "/lib64", "/usr/lib", "/usr/lib64", "/usr/local/lib", "/usr/share/zoneinfo")


@dataclass(frozen=True)
class Finished:
    """How a program ended.

    Attributes:
        ok: it ended by itself with status 0, inside its limits.
        confirmed: its last line and then every assert ran; a program that leaves early does not get there.
        stdout: what it printed.
    """

    ok: bool
    confirmed: bool
    stdout: str


@functools.lru_cache(maxsize=1)
def check_sandbox() -> None:
    """Raise `UserError` where the kernel cannot protect this machine from a program."""
    if not sys.platform.startswith("linux"):
        raise UserError("code_reward: its sandbox needs Linux; take it out of reward_config.verifier_function")
    if platform.machine() not in system_calls.AUDIT_ARCH:
        raise UserError(_cannot(f"it is {platform.machine()}"))
    status, result, _ = _run("print(1)", "", (), 60.0, 1024, True)
    if status != 0:
        reason = result if status == REFUSED else f"exit status {status}"
        raise UserError(_cannot(reason))


def _cannot(reason: str) -> str:
    return (
        f"code_reward: this machine cannot shut a program in ({reason}); it needs seccomp filters on x86_64 or "
        "aarch64, so allow them in the container or take code_reward out of reward_config.verifier_function"
    )


def run_program(
    program: str,
    stdin: str = "",
    asserts: Sequence[str] = (),
    *,
    seconds: float,
    mebibytes: int,
    landlock: bool = True,
) -> Finished:
    """Run `program`, then each of `asserts` in its namespace.

    Args:
        program: Python.
        stdin: what it may read from standard input.
        asserts: statements.
        seconds: after which it is killed.
        mebibytes: of address space.
        landlock: whether it may have a folder of its own for files, where the kernel can keep it inside.

    Raises:
        UserError: the machine cannot enforce the limits.

    """
    check_sandbox()
    token = secrets.token_hex(16)
    status, result, stdout = _run(program, stdin, asserts, seconds, mebibytes, landlock, token)
    return Finished(status == 0, status == 0 and result == token, stdout)


def _run(
    program: str,
    stdin: str,
    asserts: Sequence[str],
    seconds: float,
    mebibytes: int,
    landlock: bool,
    token: str = "",
) -> tuple[int, str, str]:
    """(exit status, what the child said beside the program, what the program printed)."""
    job = {
        "program": program,
        "asserts": list(asserts),
        "token": token,
        "landlock": landlock,
        "calls": system_calls.numbers(platform.machine()),
        "parent": os.getpid(),
        "memory_bytes": mebibytes << 20,
        "cpu_seconds": math.ceil(seconds) + 1,
        "file_bytes": _FILE_BYTES,
        "modules": _module_folders(),
        "readable": [*_SYSTEM_LIBRARIES, *_module_folders(), sysconfig.get_paths()["stdlib"], _library_folder()],
    }
    with (
        tempfile.TemporaryDirectory(prefix="r1parallel_program_", ignore_cleanup_errors=True) as folder,
        _filled(json.dumps(job)) as job_file,
        _filled(stdin) as stdin_file,
        _filled("") as stdout_file,
        _filled("") as result_file,
    ):
        command = [sys.executable, "-I", "-S", "-B", "-X", "utf8", str(_CHILD)]
        process = subprocess.Popen(
            [*command, str(job_file.fileno()), str(result_file.fileno())],
            stdin=stdin_file,
            stdout=stdout_file,
            stderr=subprocess.DEVNULL,
            pass_fds=(job_file.fileno(), result_file.fileno()),
            cwd=folder,
            env={"LANG": "C.UTF-8", "HOME": folder, "TMPDIR": folder, "OPENBLAS_NUM_THREADS": "1"},
            start_new_session=True,
        )
        try:
            _wait(process, folder, time.monotonic() + seconds)
        finally:
            if process.returncode is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        return process.returncode, _content(result_file), _content(stdout_file)


def _wait(process: subprocess.Popen, folder: str, deadline: float) -> None:
    """Return when the process has ended, or has to."""
    while process.poll() is None and time.monotonic() < deadline and not _is_full(folder):
        time.sleep(_LOOK_AGAIN)


def _is_full(folder: str) -> bool:
    """Whether the folder holds more than it may: a limit of the kernel's counts each file alone."""
    count = size = 0
    for parent, folders, files in os.walk(folder):
        count += len(folders) + len(files)
        for name in files:
            try:
                size += os.lstat(os.path.join(parent, name)).st_blocks * 512
            except OSError:  # removed meanwhile
                continue
        if count > _MOST_FILES or size > _FILE_BYTES:
            return True
    return False


def _filled(text: str) -> IO[bytes]:
    """A file without a name that holds `text`, to be read from its start."""
    file = tempfile.TemporaryFile()  # noqa: SIM115 - the caller's to close
    file.write(text.encode(errors="surrogatepass"))
    file.seek(0)
    return file


def _content(file: IO[bytes]) -> str:
    file.seek(0)
    return file.read(_FILE_BYTES).decode(errors="replace")


def _module_folders() -> list[str]:
    paths = sysconfig.get_paths()
    return sorted({paths["purelib"], paths["platlib"]})


def _library_folder() -> str:
    """Where shared libraries of this Python lie, conda's for example."""
    return str(Path(sysconfig.get_paths()["stdlib"]).parent)
