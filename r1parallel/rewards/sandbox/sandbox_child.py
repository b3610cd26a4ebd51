"""The inside of the sandbox: gives up every right it does not need, then runs a program that nobody trusts.

Started by `sandbox` as `python -I -S -B sandbox_child.py JOB RESULT`, two open files. It is a script of its own, away
from the package, so that it starts quickly and finds nothing of the trainer in its memory.
"""

import ast
import builtins
import ctypes
import importlib
import json
import os
import resource
import signal
import struct
import sys

REFUSED = 96  # exit status: this machine cannot protect itself; the reason stands in RESULT

_TERMINAL_QUESTIONS = (0x5401, 0x5413, 0x5450, 0x5451)  # TCGETS, TIOCGWINSZ, FIONCLEX, FIOCLEX
# F_DUPFD, F_GETFD, F_SETFD, F_GETFL, F_SETFL, F_DUPFD_CLOEXEC; never F_SETOWN, which sends signals to others.
_FILE_FLAGS = (0, 1, 2, 3, 4, 1030)
_X32_BIT = 0x40000000

_LOAD, _EQUAL, _AT_LEAST, _RETURN = 0x20, 0x15, 0x35, 0x06  # classic BPF
_ALLOW, _FAIL, _KILL = 0x7FFF0000, 0x00050000 | 1, 0x80000000  # the failure is EPERM
_ARGUMENTS = 16  # where the arguments start in seccomp_data, 8 bytes each

_PR_SET_PDEATHSIG, _PR_SET_SECCOMP, _PR_SET_NO_NEW_PRIVS = 1, 22, 38
_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446  # landlock_…, the same numbers on every machine
_READ = 1 << 2 | 1 << 3  # READ_FILE, READ_DIR
_READ_FILE, _WRITE_FILE = 1 << 2, 1 << 1
# Without EXECUTE, MAKE_CHAR, MAKE_SOCK, MAKE_FIFO, MAKE_BLOCK and MAKE_SYM.
_OWN = 1 << 1 | _READ | 1 << 4 | 1 << 5 | 1 << 7 | 1 << 8 | 1 << 13 | 1 << 14
_RIGHTS_OF_VERSION = (0, 13, 14, 15, 15, 16)  # how many file rights each version of Landlock knows
_HARMFUL_IMPORTS = {"antigravity", "this"}
_PRELOADABLE = {*sys.stdlib_module_names, "numpy"} - _HARMFUL_IMPORTS

libc = ctypes.CDLL(None, use_errno=True)


def main() -> None:
    """Read the job, give up all rights, run the program, confirm that it ran to its end."""
    job_file, result = int(sys.argv[1]), int(sys.argv[2])
    with os.fdopen(job_file, "rb") as file:
        job = json.load(file)
    sys.argv = ["program.py"]
    sys.path.extend(job["modules"])
    try:
        _lock(job)
    except OSError as error:
        os.write(result, f"{type(error).__name__}: {error}".encode())
        os._exit(REFUSED)
    namespace = {"__name__": "__main__"}
    builtins.open = _open
    exec(compile(job["program"], "program.py", "exec"), namespace)
    for text in job["asserts"]:
        exec(compile(text, "assert", "exec"), namespace)
    os.write(result, job["token"].encode())


def _open(file, *arguments, _real=open, **options):
    """The usual `open`; standard input by its other name too, which is a file that may not be opened again."""
    return _real(0 if file == "/dev/stdin" else file, *arguments, **options)


def _lock(job: dict) -> None:
    _check(libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0), "PR_SET_PDEATHSIG")
    if os.getppid() != job["parent"]:
        os._exit(1)
    for what, limit in (
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_AS, job["memory_bytes"]),
        (resource.RLIMIT_CPU, job["cpu_seconds"]),
        (resource.RLIMIT_FSIZE, job["file_bytes"]),
        (resource.RLIMIT_NOFILE, 64),
    ):
        resource.setrlimit(what, (limit, limit))
    version = libc.syscall(_CREATE_RULESET, None, ctypes.c_size_t(0), 1) if job["landlock"] else 0
    _check(libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), "PR_SET_NO_NEW_PRIVS")
    if version > 0:
        _restrict_files(version, job["readable"], os.getcwd())
    else:  # a kernel that cannot tell files apart: then none is opened any more
        _preload(job["program"])
    calls = job["calls"]
    _filter_calls(calls, calls["always"] + (calls["files"] if version > 0 else []))


def _check(result: int, what: str) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")
    return result


def _restrict_files(version: int, readable: list, own: str) -> None:
    """Landlock: read below `readable`, read and write below `own`, nothing else."""
    known = (1 << _RIGHTS_OF_VERSION[min(version, len(_RIGHTS_OF_VERSION) - 1)]) - 1
    rules = struct.pack("=Q", known)
    ruleset = _check(libc.syscall(_CREATE_RULESET, rules, ctypes.c_size_t(len(rules)), 0), "landlock_create_ruleset")
    grants = [(path, _READ) for path in readable]
    grants += [("/dev/null", _READ_FILE | _WRITE_FILE), ("/dev/urandom", _READ_FILE), (own, _OWN)]
    for path, rights in grants:
        try:
            folder = os.open(path, os.O_PATH | os.O_CLOEXEC)
        except FileNotFoundError:
            continue
        rule = struct.pack("=Qi", rights & known, folder)
        _check(libc.syscall(_ADD_RULE, ruleset, 1, rule, 0), f"landlock_add_rule {path}")
        os.close(folder)
    _check(libc.syscall(_RESTRICT_SELF, ruleset, 0), "landlock_restrict_self")
    os.close(ruleset)


def _preload(program: str) -> None:
    """Import what the program will import and may, while files can still be opened."""
    try:
        tree = ast.parse(program)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return
    names = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names += [node.module]
    for name in names:
        if name.partition(".")[0] in _PRELOADABLE:
            try:
                importlib.import_module(name)
            except ImportError:  # the program will meet it again
                continue


def _filter_calls(numbers: dict, allowed: list) -> None:
    """Seccomp: let the calls `allowed` through, and a few questions about terminals, open files and limits."""

    def step(code: int, value: int, then: int = 0, otherwise: int = 0) -> bytes:
        return struct.pack("=HBBI", code, then, otherwise, value)

    def only(call: int, argument: int, values: tuple) -> bytes:
        tests = b"".join(step(_EQUAL, value, 0, 1) + step(_RETURN, _ALLOW) for value in values)
        body = step(_LOAD, _ARGUMENTS + 8 * argument) + tests + step(_RETURN, _FAIL)
        return step(_EQUAL, call, 0, len(body) // 8) + body

    without_new_limit = (
        step(_LOAD, _ARGUMENTS + 16) + step(_EQUAL, 0, 0, 3) + step(_LOAD, _ARGUMENTS + 20) + step(_EQUAL, 0, 0, 1)
        + step(_RETURN, _ALLOW) + step(_RETURN, _FAIL)
    )  # fmt: skip
    program = step(_LOAD, 4) + step(_EQUAL, numbers["audit_arch"], 1, 0) + step(_RETURN, _KILL) + step(_LOAD, 0)
    if numbers["machine"] == "x86_64":
        program += step(_AT_LEAST, _X32_BIT, 0, 1) + step(_RETURN, _KILL)
    for call in allowed:
        program += step(_EQUAL, call, 0, 1) + step(_RETURN, _ALLOW)
    program += only(numbers["ioctl"], 1, _TERMINAL_QUESTIONS) + only(numbers["fcntl"], 1, _FILE_FLAGS)
    program += step(_EQUAL, numbers["prlimit64"], 0, len(without_new_limit) // 8) + without_new_limit
    program += step(_RETURN, _FAIL)
    steps = ctypes.create_string_buffer(program, len(program))
    header = struct.pack("@HP", len(program) // 8, ctypes.addressof(steps))
    _check(libc.prctl(_PR_SET_SECCOMP, 2, header, 0, 0), "PR_SET_SECCOMP")


if __name__ == "__main__":
    main()
