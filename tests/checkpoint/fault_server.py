"""Runs checkpoint tools in forked children that are slowed down, hindered and killed, as the lines on stdin ask for.

A process of its own, which has imported everything and has no threads, so that a child starts in a millisecond. Each
order is a line of JSON and is answered by one: see `Order` in faults.py. A child has a process group of its own.
"""

import itertools
import json
import os
import resource
import runpy
import shutil
import signal
import sys
import threading
import time
import traceback
from pathlib import Path

from r1parallel.checkpoint.reading import windows
from r1parallel.errors import run_command

TOOLS = {
    name: runpy.run_path(str(Path(__file__).parents[2] / "tools" / f"{name}.py"))["main"]
    for name in ("slice_ckpt", "convert_weight")
}
# What changes a folder or a file, besides opening one to write and writing; each is a moment to be killed at.
CHANGES = {"os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.link", "os.truncate", "shutil.rmtree", "fcntl.flock"}


def count_changes(order: dict, report: int) -> None:
    """Number every change that this process is about to make, and send itself a signal before one."""
    numbers = itertools.count(1)

    def step(event: str) -> None:
        number = next(numbers)
        os.write(report, b".")
        time.sleep(order["slow"])
        if number == order["signal_at"]:
            os.kill(os.getpid(), order["signal"])

    def audit(event: str, args: tuple) -> None:
        if event in CHANGES or (event == "open" and args[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)):
            step(event)

    plain = os.pwrite

    def pwrite(*args):
        step("pwrite")
        return plain(*args)

    os.pwrite = pwrite
    sys.addaudithook(audit)


def cut_short_later(file: str) -> None:
    """Shorten a file when its data is read for the first time, after its header was."""
    plain = os.preadv
    size = os.stat(file).st_size
    lock = threading.Lock()

    def preadv(descriptor, *args):
        with lock:
            if os.fstat(descriptor).st_size == size and os.path.samestat(os.fstat(descriptor), os.stat(file)):
                os.truncate(file, size - 300)
        return plain(descriptor, *args)

    os.preadv = preadv


def hinder(order: dict, report: int) -> None:
    windows.WINDOW = order["window"]
    if order["ignore_space"]:
        plain = shutil.disk_usage
        shutil.disk_usage = lambda path: plain(path)._replace(free=10**15)
    if order["cut_short"]:
        cut_short_later(order["cut_short"])
    if order["open_files"]:
        resource.setrlimit(resource.RLIMIT_NOFILE, (order["open_files"], order["open_files"]))
    if order["folder"]:
        os.chdir(order["folder"])
    if order["user"]:
        os.setuid(order["user"])
    count_changes(order, report)


def run_child(order: dict, command: list[str], gate: int, report: int, output: int) -> None:
    code: int | str | None = 1
    try:
        for stream in (1, 2):
            os.dup2(output, stream)
        os.read(gate, 1)  # until the other children are there
        hinder(order, report)
        sys.argv = command
        run_command(TOOLS[command[0]])
        code = 0
    except SystemExit as error:
        code = error.code
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code if isinstance(code, int) else 1)


def start(order: dict, command: list[str], gates: tuple[int, int]) -> dict:
    report, told = os.pipe()
    output = os.memfd_create("output")
    pid = os.fork()
    if pid == 0:
        os.close(gates[1])
        os.close(report)
        run_child(order, command, gates[0], told, output)
    os.setpgid(pid, pid)
    os.close(told)
    return {"pid": pid, "report": report, "output": output}


def finish(child: dict, order: dict, began: float) -> dict:
    """Wait for a child's end; send it a signal when its time has come, and end it when it takes too long."""
    sent = order["signal_after"] is None
    while True:
        pid, status = os.waitpid(child["pid"], os.WNOHANG)
        if pid:
            break
        passed = time.monotonic() - began
        if not sent and passed >= order["signal_after"]:
            os.killpg(child["pid"], order["signal"])
            sent = True
        if passed > order["limit"]:
            os.killpg(child["pid"], signal.SIGKILL)
            os.waitpid(child["pid"], 0)
            return {"code": None, "text": f"took more than {order['limit']} s", "seconds": passed, "changes": 0}
        time.sleep(0.0005)
    seconds = time.monotonic() - began
    changes = b""
    while block := os.read(child["report"], 2**16):
        changes += block
    text = os.pread(child["output"], 2**20, 0).decode()
    os.close(child["report"])
    os.close(child["output"])
    code = os.waitstatus_to_exitcode(status)
    return {"code": code, "text": text, "seconds": seconds, "changes": len(changes)}


def main() -> None:
    for line in sys.stdin:
        order = json.loads(line)
        gates = os.pipe()
        children = [start(order, command, gates) for command in order["commands"]]
        for gate in gates:
            os.close(gate)
        began = time.monotonic()
        print(json.dumps([finish(child, order, began) for child in children]), flush=True)


if __name__ == "__main__":
    main()
