"""The sandbox: whatever a program tries, it fails, and fails alone."""

import os
import platform
import subprocess
import sys

import psutil
import pytest

from r1parallel.errors import UserError
from r1parallel.rewards.sandbox import sandbox, system_calls
from r1parallel.rewards.sandbox.sandbox import check_sandbox, run_program

# Says of each attempt whether the kernel refused it.
ATTEMPTS = """
import fcntl, os, resource, socket, subprocess, threading
VICTIM, attempts = {!r}, {!r}
for what, code in attempts.items():
    try:
        exec(code)
    except (OSError, RuntimeError, ValueError, MemoryError):
        print(what, "refused", sep=": ")
    else:
        print(what, "GOT THROUGH", sep=": ")
"""
FORBIDDEN = {
    "read /etc/shadow": "open('/etc/shadow').read()",
    "read a file that anybody may read": "open('/etc/passwd').read()",
    "list a folder": "import os; os.listdir('/')",
    "TCP socket": "import socket; socket.socket()",
    "Unix socket": "import socket; socket.socket(socket.AF_UNIX)",
    "raw socket": "import socket; socket.socket(socket.AF_INET, socket.SOCK_RAW, 1)",
    "netlink socket": "import socket; socket.socket(socket.AF_NETLINK)",
    "socket pair": "import socket; socket.socketpair()",
    "write in /tmp": "open('/tmp/r1parallel_escape', 'w')",
    "write in /dev/shm": "open('/dev/shm/r1parallel_escape', 'w')",
    "write above its folder": "open('../r1parallel_escape', 'w')",
    "make a folder": "import os; os.mkdir('/tmp/r1parallel_escape')",
    "remove a file": "import os; os.unlink(VICTIM)",
    "change a file's rights": "import os; os.chmod(VICTIM, 0o777)",
    "symbolic link": "import os; os.symlink('/etc/shadow', 'shadow')",
    "hard link": "import os; os.link('/etc/shadow', 'shadow')",
    "fork": "import os; os.fork()",
    "new program": "import os; os.execv('/bin/sh', ['sh', '-c', 'echo got through'])",
    "subprocess": "import subprocess; subprocess.Popen(['/bin/sh', '-c', 'sleep 100'])",
    "thread": "import threading; threading.Thread(target=print).start()",
    "kill the parent": "import os; os.kill(os.getppid(), 9)",
    "kill everything": "import os; os.kill(-1, 9)",
    "signal by a file's owner": "import fcntl, os; fcntl.fcntl(0, 8, os.getppid())",
    "read the parent's environment": "import os; open(f'/proc/{os.getppid()}/environ').read()",
    "read the parent's memory": "import os; open(f'/proc/{os.getppid()}/mem')",
    "raise its own limit": "import resource; resource.setrlimit(resource.RLIMIT_AS, (-1, -1))",
    "change the parent's limit": "import os, resource; resource.prlimit(os.getppid(), resource.RLIMIT_AS, (1, 1))",
    "new root": "import os; os.chroot('.')",
    "another user": "import os; os.setuid(12345)",
    "eat memory": "bytes(2 << 30)",
}
SYSTEM_CALLS = """
import ctypes, os
libc = ctypes.CDLL(None, use_errno=True)
for number in {}:
    print(libc.syscall(number, os.getppid(), 0, 0, 0), ctypes.get_errno())
"""
# x86_64, aarch64
NUMBERS = {
    "ptrace": (101, 117),
    "process_vm_readv": (310, 270),
    "mount": (165, 40),
    "unshare": (272, 97),
    "bpf": (321, 280),
    "io_uring_setup": (425, 425),
    "clone3": (435, 435),
    "memfd_create": (319, 279),
    "userfaultfd": (323, 282),
    "keyctl": (250, 219),
}


@pytest.fixture(params=[True, False], ids=["own folder", "no files"])
def landlock(request):
    return request.param


def run(program, landlock=True, seconds=30.0, mebibytes=512, **options):
    return run_program(program, seconds=seconds, mebibytes=mebibytes, landlock=landlock, **options)


def test_what_it_may_not(landlock, tmp_path):
    victim = tmp_path / "victim"
    victim.write_text("precious")
    mode = victim.stat().st_mode
    finished = run(ATTEMPTS.format(str(victim), FORBIDDEN), landlock)
    assert finished.stdout.splitlines() == [f"{what}: refused" for what in FORBIDDEN]
    assert victim.read_text() == "precious"
    assert victim.stat().st_mode == mode


def test_system_calls_without_a_python_name():
    numbers = [pair[platform.machine() == "aarch64"] for pair in NUMBERS.values()]
    assert run(SYSTEM_CALLS.format(numbers)).stdout.splitlines() == ["-1 1"] * len(NUMBERS)


@pytest.mark.parametrize(
    "program", ["while True: pass", "import time; time.sleep(1000)", "import signal; signal.pause()"]
)
def test_a_program_that_does_not_end_is_ended(program, landlock):
    assert not run(program, landlock, seconds=0.7).ok


def test_a_fork_bomb_is_one_process():
    finished = run("import os\nfor _ in range(100):\n    try: os.fork()\n    except OSError: pass\nprint(os.getpid())")
    assert len(finished.stdout.splitlines()) == 1


def test_nothing_of_the_parent_is_left_to_read(monkeypatch, landlock):
    monkeypatch.setenv("SECRET", "42")
    with open(__file__):
        finished = run(
            "import os\nprint('SECRET' in os.environ)\nopened = []\n"
            "for number in range(3, 64):\n    try: opened.append(os.fstat(number).st_size)\n    except OSError: pass\n"
            "print(opened)",
            landlock,
        )
    assert finished.stdout == "False\n[0]\n"  # the file for the confirmation is open and empty


def test_a_full_disk_is_prevented():
    one_file = "with open('a', 'wb') as f:\n    for _ in range(1000): f.write(bytes(1 << 20))\nprint('got through')"
    many = "for n in range(10**6):\n    with open(f'{n}', 'wb') as f: f.write(bytes(1 << 20))\nprint('got through')"
    empty = "for n in range(10**7): open(f'{n}', 'w').close()\nprint('got through')"
    printed = "for _ in range(1000): print('x' * (1 << 20))\nprint('got through')"
    for program in (one_file, many, empty, printed):
        finished = run(program)
        assert not finished.ok
        assert "got through" not in finished.stdout


def test_its_folder_is_its_own_and_is_removed():
    program = (
        "import os\nos.mkdir('d')\nopen('d/a', 'w').write('hi')\nos.rename('d/a', 'd/b')\n"
        "print(open('d/b').read(), os.listdir('d'), os.getcwd())"
    )
    finished = run(program)
    assert finished.stdout.startswith("hi ['b'] ")
    assert not os.path.exists(finished.stdout.split()[-1])


def test_ordinary_programs_run(landlock):
    program = (
        "import sys, math, collections, heapq, json, re, itertools, functools, decimal, datetime\n"
        "import numpy as np\nfrom collections import abc\n"
        "first = input()\nrest = sys.stdin.read().split()\n"
        "print(first, rest, np.arange(3).sum(), decimal.Decimal(1) / 8)\nsys.exit()"
    )
    finished = run(program, landlock, stdin="a b\n1 2\n3")
    assert finished.ok
    assert finished.stdout == "a b ['1', '2', '3'] 3 0.125\n"
    assert run("print(open('/dev/stdin').read())", landlock, stdin="é\n").stdout == "é\n\n"


@pytest.mark.parametrize(
    "program", ["def f(:", "1/0", "import sys; sys.exit(3)", "import os; os.abort()", "\0", "\ud800"]
)
def test_a_broken_program_is_not_ok(program, landlock):
    assert not run(program, landlock).ok


@pytest.mark.parametrize(
    ("program", "asserts", "confirmed"),
    [
        ("def f(x): return x + 1", ["assert f(1) == 2", "assert f(2) == 3"], True),
        ("def f(x): return x + 1", ["assert f(1) == 2", "assert f(2) == 4"], False),
        ("def f(x): return x + 1", ["assert f(1) =="], False),
        ("import sys; sys.exit(0)", ["assert False"], False),
        ("import os; os._exit(0)", ["assert False"], False),
        ("def f(x): raise SystemExit(0)", ["assert f(1) == 2"], False),
    ],
)
def test_asserts_must_have_run(program, asserts, confirmed):
    assert run(program, asserts=asserts).confirmed is confirmed


def test_the_sandbox_ends_with_the_process_that_asked():
    code = (
        "import os\n"
        "from r1parallel.rewards.sandbox import sandbox\n"
        "def wait(process, *_):\n    print(process.pid, flush=True); os._exit(0)\n"
        "sandbox.check_sandbox()\nsandbox._wait = wait\n"
        "sandbox.run_program('import time; time.sleep(1000)', seconds=600, mebibytes=512)\n"
    )
    run = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, start_new_session=True, check=True
    )
    left = [psutil.Process(pid) for pid in psutil.pids() if pid == int(run.stdout)]
    _, alive = psutil.wait_procs(left, timeout=30)
    assert not [process for process in alive if process.status() != psutil.STATUS_ZOMBIE]


def test_a_machine_that_cannot_is_refused(monkeypatch, tmp_path):
    check_sandbox.cache_clear()
    child = tmp_path / "child.py"
    child.write_text("import os, sys\nos.write(int(sys.argv[2]), b'OSError: PR_SET_SECCOMP')\nos._exit(96)\n")
    with monkeypatch.context() as patch:
        patch.setattr(sandbox, "_CHILD", child)
        with pytest.raises(UserError, match=r"PR_SET_SECCOMP.*seccomp.*take code_reward out"):
            run("print(1)")
        patch.setattr(sys, "platform", "darwin")
        with pytest.raises(UserError, match="needs Linux"):
            run("print(1)")
    assert run("print(1)").ok


def test_a_machine_whose_system_calls_are_not_known_is_refused(monkeypatch):
    check_sandbox.cache_clear()
    with monkeypatch.context() as patch:
        patch.setattr(platform, "machine", lambda: "riscv64")
        patch.setattr(sandbox, "_run", lambda *_: pytest.fail("a program was started"))
        with pytest.raises(UserError, match=r"it is riscv64.*x86_64 or aarch64.*take code_reward out"):
            run("print(1)")
    assert run("print(1)").ok


def test_calls_of_another_machine_end_the_process(monkeypatch):
    other = {"x86_64": "aarch64", "aarch64": "x86_64"}[platform.machine()]
    numbers = {**system_calls.numbers(platform.machine()), "audit_arch": system_calls.AUDIT_ARCH[other]}
    assert run("print(1)").ok
    monkeypatch.setattr(system_calls, "numbers", lambda machine: numbers)
    assert run("print(1)") == sandbox.Finished(False, False, "")
